//! The configuration: one YAML file, with overrides from the environment.
//!
//! [`Config::load`] reads the raw form, whose fields are the reference for operators, and turns it
//! into values that cannot be wrong. It reports every problem that it finds, each with its place.

mod envoy;
mod limits;
mod listen;
mod load;
mod log;
mod memory;
mod objects;
mod policy;
mod problem;
mod secret;
mod store;
mod tree;
mod yaml;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

pub use self::envoy::{EnvoyLimits, TICKET};
pub use self::limits::Limits;
pub use self::listen::Listen;
use self::listen::{ListenAddress, RawAdmin};
use self::log::RawLog;
pub use self::memory::MemoryConfig;
pub use self::objects::ObjectsConfig;
use self::objects::RawObjects;
use self::policy::RawPolicy;
pub use self::problem::Problems;
use self::problem::{Problem, names_no_policy};
use self::store::RawStore;
pub use self::store::StoreConfig;
use crate::policy::Policy;
use crate::telemetry::LogFormat;
use crate::written::{As, HumanDuration};

/// A configuration that can be run.
#[derive(Debug)]
pub struct Config {
    /// Where Envoy finds the external processor.
    pub listen: Listen,
    /// Where the admin pages are.
    pub admin: SocketAddr,
    /// Envoy's limits, repeated.
    pub envoy: EnvoyLimits,
    /// Where entries are kept.
    pub store: StoreConfig,
    /// What is kept in front of the store.
    pub memory: MemoryConfig,
    /// Where Envoy fetches large hits; `None`: nowhere.
    pub objects: Option<ObjectsConfig>,
    /// How long and how much.
    pub limits: Limits,
    /// Threads that run conversations; `None`: as many as [`default_threads`].
    pub threads: Option<NonZeroUsize>,
    /// How long the end may take.
    pub drain: Duration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which log lines there are.
    pub log_filter: String,
    /// All policies.
    pub policies: Vec<Arc<Policy>>,
    /// Policies by Envoy's route names.
    pub routes: HashMap<String, Arc<Policy>>,
    /// For routes that name nothing.
    pub default_policy: Option<Arc<Policy>>,
}

/// The file. Every field has a default; without policies nothing is cached.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    /// Where Envoy finds the external processor: `unix:PATH` or a loopback `IP:PORT`. Whoever can
    /// connect can fill the cache, so other addresses are refused. In a directory with the setgid bit, as
    /// a pod's volume with `fsGroup` has it, the socket's group may connect, too.
    #[serde(with = "As::<ListenAddress>")]
    listen: Listen,
    /// How many threads run conversations. Beside them Envoy needs more than as much time for the same
    /// requests, and every hand-over between threads costs.
    #[cfg_attr(test, schemars(extend("x-default" = "half of the cores")))]
    threads: Option<NonZeroUsize>,
    /// How long streams and fills may go on after SIGTERM.
    #[serde(with = "As::<HumanDuration>")]
    drain: Duration,
    /// The policy of routes that name nothing. With `bypass` they are left alone.
    default_policy: String,
    /// Policies by Envoy's names of routes (`xds.route_name`), for routes that cannot name one.
    routes: BTreeMap<String, String>,
    /// What routes can choose, by name.
    #[cfg_attr(test, serde(skip_serializing))]
    policies: BTreeMap<String, RawPolicy>,
    admin: RawAdmin,
    envoy: EnvoyLimits,
    store: RawStore,
    memory: MemoryConfig,
    objects: RawObjects,
    limits: Limits,
    log: RawLog,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            listen: Listen::Unix("run/ext_proc.sock".into()),
            threads: None,
            drain: Duration::from_secs(10),
            default_policy: BYPASS.to_owned(),
            routes: BTreeMap::default(),
            policies: BTreeMap::default(),
            admin: RawAdmin::default(),
            envoy: EnvoyLimits::default(),
            store: RawStore::default(),
            memory: MemoryConfig::default(),
            objects: RawObjects::default(),
            limits: Limits::default(),
            log: RawLog::default(),
        }
    }
}

/// Stands where a policy could be named, and names none.
const BYPASS: &str = "bypass";

/// Half of the cores that this process may use, at least one.
pub fn default_threads() -> NonZeroUsize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(cores / 2).unwrap_or(NonZeroUsize::MIN)
}

impl RawConfig {
    /// Checks everything, and keeps going after a problem.
    fn build(self, problems: &mut Vec<Problem>) -> Option<Config> {
        let store = self.store.build(problems);
        self.limits.check(&self.envoy, problems);
        let objects = self.objects.build(self.limits.stream_cap, problems);
        let policies: HashMap<String, Arc<Policy>> = self
            .policies
            .into_iter()
            .filter_map(|(name, raw)| {
                let policy = raw.build(&name, problems)?;
                Some((name, Arc::new(policy)))
            })
            .collect();
        let policies_are_valid = !problems.iter().any(|problem| problem.is_in("policies"));
        let known = |name: &str, place: String, problems: &mut Vec<Problem>| {
            let policy = policies.get(name).cloned();
            // A policy with problems of its own is missing here, too.
            if policy.is_none() && policies_are_valid {
                let names = policies.keys().map(String::as_str);
                problems.push(Problem::new(place, names_no_policy(names)));
            }
            policy
        };
        let routes = self
            .routes
            .iter()
            .filter_map(|(route, name)| {
                let policy = known(name, format!("routes.{route}"), problems)?;
                Some((route.clone(), policy))
            })
            .collect();
        let default_policy = match self.default_policy.as_str() {
            BYPASS => None,
            name => known(name, "default_policy".to_owned(), problems),
        };
        Some(Config {
            listen: self.listen,
            admin: self.admin.listen,
            envoy: self.envoy,
            store: store?,
            memory: self.memory,
            objects,
            limits: self.limits,
            threads: self.threads,
            drain: self.drain,
            log_format: self.log.format,
            log_filter: self.log.filter,
            policies: policies.values().cloned().collect(),
            routes,
            default_policy,
        })
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
