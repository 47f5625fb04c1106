//! The configuration: one YAML file, with overrides from the environment.
//!
//! [`Config::load`] reads the raw form, whose fields are the reference for operators, and turns it
//! into values that cannot be wrong. It reports every problem that it finds, each with its place.

mod envoy;
mod load;
mod policy;
mod tree;
mod value;
mod yaml;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

pub use self::load::Problems;
use self::policy::RawPolicy;
use self::value::{Bytes, Problem, Seconds, SecretSource};
use crate::policy::Policy;
use crate::store::{S3Config, S3Timeouts};
use crate::telemetry::LogFormat;

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

/// An address for gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// Limits that Envoy does not tell us.
#[derive(Debug, Clone, Copy)]
pub struct EnvoyLimits {
    /// `message_timeout` of the filter.
    pub message_timeout: Duration,
    /// `max_message_timeout` of the filter; zero where it is not set.
    pub max_message_timeout: Duration,
}

/// Where entries are kept.
#[derive(Debug)]
pub enum StoreConfig {
    /// In a directory.
    Local {
        /// The directory.
        path: PathBuf,
        /// What it may hold.
        max_bytes: u64,
    },
    /// In S3.
    S3(Box<S3Config>),
    /// In memory, for trying out.
    Memory {
        /// What it may hold.
        max_bytes: u64,
    },
}

/// What is kept in memory in front of the store.
#[derive(Debug, Clone, Copy)]
pub struct MemoryConfig {
    /// At most; 0: nothing.
    pub max_bytes: u64,
    /// How often an entry is compared with the store.
    pub recheck: Duration,
}

/// Where Envoy fetches large hits.
#[derive(Debug, Clone)]
pub struct ObjectsConfig {
    /// For HTTP.
    pub listen: Listen,
    /// Hits above this are fetched there.
    pub above: u64,
    /// Largest body that is served so, and so stored.
    pub cap: u64,
}

/// How long and how much.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For a lookup, from asking to having the entry whole.
    pub lookup_timeout: Duration,
    /// For a write to the store.
    pub write_timeout: Duration,
    /// For a response to pass while its copy is kept.
    pub fill_deadline: Duration,
    /// Bytes a second that must pass while it is kept; 0: any.
    pub fill_rate: u64,
    /// What it may take beside that.
    pub fill_grace: Duration,
    /// Largest hit in one message.
    pub immediate_bytes: u64,
    /// Largest body that is served, and so stored.
    pub stream_cap: u64,
    /// Largest body that a fill holds in memory.
    pub held_bytes: u64,
    /// What all fills and hits may hold together.
    pub budget: u32,
    /// Requests of our own to upstreams at a time.
    pub fetches: usize,
    /// Followers of one request that are sent on at a time when it was in vain.
    pub released_followers: usize,
    /// Sources that are marked as invalidated at a time.
    pub invalidations: usize,
    /// For how long a deletion that fails is tried again.
    pub invalidation_time: Duration,
    /// Failures in a row that open the store's circuit breaker.
    pub breaker_failures: u32,
    /// How long it stays open before one request may try.
    pub breaker_wait: Duration,
}

/// The file. Every field but `policies` has a default.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawConfig {
    /// Where Envoy finds the external processor: `unix:PATH` or a loopback `IP:PORT`. Whoever can
    /// connect can fill the cache, so other addresses are refused. In a directory with the setgid
    /// bit, as a pod's volume with `fsGroup` has it, the socket's group may connect, too. Default `unix:run/ext_proc.sock`.
    listen: Option<String>,
    admin: RawAdmin,
    envoy: RawEnvoy,
    store: RawStore,
    memory: RawMemoryTier,
    objects: RawObjects,
    limits: RawLimits,
    log: RawLog,
    /// Threads that run conversations. Default half of the cores: beside them Envoy needs more than
    /// as much time for the same requests, and every hand-over between threads costs.
    threads: Option<NonZeroUsize>,
    /// How long streams and fills may go on after SIGTERM. Default `10s`.
    drain: Option<Seconds>,
    /// What routes can choose, by name.
    policies: std::collections::BTreeMap<String, RawPolicy>,
    /// Envoy's route names (`xds.route_name`) to policies.
    routes: std::collections::BTreeMap<String, String>,
    /// The policy of routes that name nothing. Default `bypass`: they are left alone.
    default_policy: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawMemoryTier {
    /// Entries up to `limits.immediate_cap` that are kept in front of the store, beside the budget; 0B:
    /// none. Default `64MiB`.
    max_bytes: Option<Bytes>,
    /// How often an entry that is asked for is compared with the store, beside the answer, so that what
    /// other replicas wrote or removed arrives. Default `30s`.
    recheck: Option<Seconds>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawObjects {
    /// Where Envoy fetches large hits: `unix:PATH` or a loopback `IP:PORT`. Envoy needs a route for
    /// requests with the header `x-afterimage-object` to it. Default none: hits up to
    /// `limits.stream_cap` are sent to Envoy, and larger bodies are not stored.
    listen: Option<String>,
    /// Hits above this are fetched, at most `limits.stream_cap`. Default `4MiB`.
    above: Option<Bytes>,
    /// Largest body that is served so, and so stored. Default `256MiB`.
    cap: Option<Bytes>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawAdmin {
    /// `/healthz`, `/readyz`, `/metrics`. Default `127.0.0.1:9911`.
    listen: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawEnvoy {
    /// The filter's `message_timeout`. Lookups must be done well before. Default `1s`.
    message_timeout: Option<Seconds>,
    /// The filter's `max_message_timeout`; `0s` where it cannot be set. Default `30s`.
    max_message_timeout: Option<Seconds>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawStore {
    /// `local`, `s3` or `memory`. Default `local`.
    kind: Option<StoreKind>,
    local: RawLocal,
    memory: RawMemory,
    s3: RawS3,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoreKind {
    #[default]
    Local,
    S3,
    Memory,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawLocal {
    /// Directory; one process owns it. Default `run/store`.
    path: Option<PathBuf>,
    /// What it may hold; the least recently used goes first. Default `10GiB`.
    max_bytes: Option<Bytes>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawMemory {
    /// What it may hold; the oldest goes first. Default `256MiB`.
    max_bytes: Option<Bytes>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawS3 {
    /// `http://host:port`, `https://host`, or `unix:/path` for Garage's socket. No default.
    endpoint: Option<String>,
    /// `s3_region` of Garage. Default `garage`.
    region: Option<String>,
    /// One or more; the source of an image picks one, so the list must not change its order.
    /// Default `[afterimage]`.
    buckets: Option<Vec<String>>,
    /// Before every object name, for buckets that are shared. Default none.
    prefix: Option<String>,
    /// Literal, `{env: NAME}` or `{file: PATH}`. No default.
    access_key_id: Option<SecretSource>,
    /// Literal, `{env: NAME}` or `{file: PATH}`. No default.
    secret_access_key: Option<SecretSource>,
    /// To open a connection. Default `500ms`.
    connect_timeout: Option<Seconds>,
    /// Between two pieces of a body. Default `2s`.
    read_timeout: Option<Seconds>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawLimits {
    /// For a lookup; afterwards the request is forwarded. Default `300ms`.
    lookup_timeout: Option<Seconds>,
    /// For a write to the store. Default `30s`.
    write_timeout: Option<Seconds>,
    /// For a response to pass while its copy is kept; the client is not touched. Default `60s`.
    fill_deadline: Option<Seconds>,
    /// How fast a response must pass while its copy is kept, from `fill_grace` on and on the average;
    /// `0B`: any rate. In a second. Default `16KiB`.
    fill_rate: Option<Bytes>,
    /// Default `5s`.
    fill_grace: Option<Seconds>,
    /// Largest hit in one message, at most `4MiB`. Default `1MiB`.
    immediate_cap: Option<Bytes>,
    /// Largest body that is served, and so stored: Envoy buffers all of it for a slow client.
    /// Default `8MiB`.
    stream_cap: Option<Bytes>,
    /// Largest body that a fill holds in memory; a larger one goes to the store while it passes.
    /// Default `8MiB`.
    held_cap: Option<Bytes>,
    /// What all fills and hits may hold together. Past it copies are dropped and hits forwarded.
    /// Default `48MiB`.
    budget: Option<Bytes>,
    /// Requests of our own to the policies' upstreams at a time; there is no queue. Default 16.
    upstream_fetches: Option<usize>,
    /// Requests that waited for the same one, in vain, and are sent on at a time. Default 4.
    released_followers: Option<usize>,
    /// Paths that were invalidated by an unsafe method a short while ago and are remembered, so that
    /// what was asked for before is not used any more. Beyond them everything older is hidden for
    /// `invalidation_time`. Default 10000.
    invalidations: Option<usize>,
    /// For how long the deletion of what was invalidated is tried again while the store fails; so
    /// long it is hidden. Default `10m`.
    invalidation_time: Option<Seconds>,
    /// Failures in a row that open the store's circuit breaker. Default 5.
    breaker_failures: Option<u32>,
    /// How long it stays open before one request may try. Default `2s`.
    breaker_wait: Option<Seconds>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawLog {
    /// `text` or `json`. Default `text`.
    format: LogFormat,
    /// A level, or a list of `target=level`. At `info` there is one line per request. Default `info`.
    filter: Option<String>,
}

/// What is wrong with a name that is not among these. The name itself is not shown.
fn names_no_policy<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        return "names a policy, but there is none under `policies`".to_owned();
    }
    names.sort();
    format!("names no policy, there is {}", names.join(", "))
}

/// Half of the cores that this process may use, at least one.
pub fn default_threads() -> NonZeroUsize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(cores / 2).unwrap_or(NonZeroUsize::MIN)
}

const MIB: u64 = 1024 * 1024;

/// `limits.stream_cap` unless set.
const STREAM_CAP: u64 = 8 * MIB;

impl RawConfig {
    /// Checks everything, and keeps going after a problem.
    fn validate(self, problems: &mut Vec<Problem>) -> Option<Config> {
        let listen = parse_listen(
            "listen",
            self.listen.as_deref().unwrap_or("unix:run/ext_proc.sock"),
            problems,
        );
        let admin = parse_admin(self.admin.listen.as_deref(), problems);
        let envoy = EnvoyLimits {
            message_timeout: Seconds::or(self.envoy.message_timeout, Duration::from_secs(1)),
            max_message_timeout: Seconds::or(
                self.envoy.max_message_timeout,
                Duration::from_secs(30),
            ),
        };
        let store = self.store.validate(problems);
        let limits = self.limits.validate(&envoy, problems);
        let stream_cap = Bytes::or(self.limits.stream_cap, STREAM_CAP);
        let objects = self.objects.validate(stream_cap, problems);
        let before = problems.len();
        let policies: HashMap<String, Arc<Policy>> = self
            .policies
            .into_iter()
            .filter_map(|(name, raw)| {
                let policy = raw.validate(&name, problems)?;
                Some((name, Arc::new(policy)))
            })
            .collect();
        let policies_are_valid = problems.len() == before;
        let known = |name: &str, place: String, problems: &mut Vec<Problem>| {
            let policy = policies.get(name).cloned();
            // A policy with problems of its own is missing here, too.
            if policy.is_none() && policies_are_valid {
                problems.push(Problem::new(
                    place,
                    names_no_policy(policies.keys().map(String::as_str)),
                ));
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
        let default_policy = match self.default_policy.as_deref() {
            None | Some("bypass") => None,
            Some(name) => known(name, "default_policy".to_owned(), problems),
        };
        Some(Config {
            listen: listen?,
            admin: admin?,
            envoy,
            store: store?,
            memory: MemoryConfig {
                max_bytes: Bytes::or(self.memory.max_bytes, 64 * MIB),
                recheck: Seconds::or(self.memory.recheck, Duration::from_secs(30)),
            },
            objects,
            limits: limits?,
            threads: self.threads,
            drain: Seconds::or(self.drain, Duration::from_secs(10)),
            log_format: self.log.format,
            log_filter: self.log.filter.unwrap_or_else(|| "info".to_owned()),
            policies: policies.values().cloned().collect(),
            routes,
            default_policy,
        })
    }
}

impl RawObjects {
    fn validate(&self, stream_cap: u64, problems: &mut Vec<Problem>) -> Option<ObjectsConfig> {
        let objects = ObjectsConfig {
            listen: parse_listen("objects.listen", self.listen.as_deref()?, problems)?,
            above: Bytes::or(self.above, 4 * MIB),
            cap: Bytes::or(self.cap, 256 * MIB),
        };
        if objects.above > stream_cap {
            problems.push(Problem::new(
                "objects.above",
                "is at most limits.stream_cap: what lies between could not be served",
            ));
        }
        if objects.cap < stream_cap {
            problems.push(Problem::new("objects.cap", "is at least limits.stream_cap"));
        }
        Some(objects)
    }
}

/// A Unix socket, or a loopback address, in this field.
fn parse_listen(field: &str, text: &str, problems: &mut Vec<Problem>) -> Option<Listen> {
    let mut problem = |what: String| {
        problems.push(Problem::new(field, what));
        None
    };
    if let Some(path) = text.strip_prefix("unix:") {
        // The kernel's limit on the path of a socket, with its end mark.
        if path.is_empty() || path.len() > 107 {
            return problem("the path of a Unix socket has 1 to 107 bytes".to_owned());
        }
        return Some(Listen::Unix(path.into()));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Some(Listen::Tcp(address)),
        Ok(_) => problem(
            "is not a loopback address: whoever can connect can fill the cache, so use \
             `unix:PATH` or 127.0.0.1"
                .to_owned(),
        ),
        Err(_) => problem("is neither `unix:PATH` nor `IP:PORT`".to_owned()),
    }
}

fn parse_admin(text: Option<&str>, problems: &mut Vec<Problem>) -> Option<SocketAddr> {
    let text = text.unwrap_or("127.0.0.1:9911");
    let address = text.parse().ok();
    if address.is_none() {
        problems.push(Problem::new("admin.listen", "is not `IP:PORT`"));
    }
    address
}

impl RawStore {
    fn validate(self, problems: &mut Vec<Problem>) -> Option<StoreConfig> {
        match self.kind.unwrap_or_default() {
            StoreKind::Local => Some(StoreConfig::Local {
                path: self.local.path.unwrap_or_else(|| "run/store".into()),
                max_bytes: Bytes::or(self.local.max_bytes, 10 * 1024 * MIB),
            }),
            StoreKind::Memory => Some(StoreConfig::Memory {
                max_bytes: Bytes::or(self.memory.max_bytes, 256 * MIB),
            }),
            StoreKind::S3 => self
                .s3
                .validate(problems)
                .map(|s3| StoreConfig::S3(Box::new(s3))),
        }
    }
}

impl RawS3 {
    fn validate(self, problems: &mut Vec<Problem>) -> Option<S3Config> {
        let mut problem = |field: &str, what: &str| {
            problems.push(Problem::new(format!("store.s3.{field}"), what));
        };
        let endpoint = self.endpoint.as_deref().unwrap_or_default().parse();
        if endpoint.is_err() {
            problem(
                "endpoint",
                "give `http://host:port`, `https://host` or `unix:/path`",
            );
        }
        let prefix = self.prefix.unwrap_or_default();
        if prefix.starts_with('/') || prefix.ends_with('/') || prefix.len() > 256 {
            problem("prefix", "has no slash at either end and at most 256 bytes");
        }
        let buckets = self
            .buckets
            .unwrap_or_else(|| vec!["afterimage".to_owned()]);
        if buckets.is_empty() || buckets.iter().any(String::is_empty) {
            problem("buckets", "name at least one bucket, and none empty");
        }
        let mut secret = |field: &str, source: Option<SecretSource>| match source {
            None => {
                problem(
                    field,
                    "is required: a literal, `{env: NAME}` or `{file: PATH}`",
                );
                None
            }
            Some(source) => source.read().map_err(|error| problem(field, &error)).ok(),
        };
        let access_key_id = secret("access_key_id", self.access_key_id);
        let secret_access_key = secret("secret_access_key", self.secret_access_key);
        let defaults = S3Timeouts::default();
        Some(S3Config {
            endpoint: endpoint.ok()?,
            region: self.region.unwrap_or_else(|| "garage".to_owned()),
            buckets,
            prefix,
            access_key_id: access_key_id?.expose().to_owned(),
            secret_access_key: secret_access_key?,
            timeouts: S3Timeouts {
                connect: Seconds::or(self.connect_timeout, defaults.connect),
                read: Seconds::or(self.read_timeout, defaults.read),
                ..defaults
            },
        })
    }
}

impl RawLimits {
    fn validate(&self, envoy: &EnvoyLimits, problems: &mut Vec<Problem>) -> Option<Limits> {
        let before = problems.len();
        let mut problem = |field: &str, what: String| {
            problems.push(Problem::new(format!("limits.{field}"), what));
        };
        let budget = Bytes::or(self.budget, 48 * MIB);
        let limits = Limits {
            lookup_timeout: Seconds::or(self.lookup_timeout, Duration::from_millis(300)),
            write_timeout: Seconds::or(self.write_timeout, Duration::from_secs(30)),
            fill_deadline: Seconds::or(self.fill_deadline, Duration::from_secs(60)),
            fill_rate: Bytes::or(self.fill_rate, 16 * 1024),
            fill_grace: Seconds::or(self.fill_grace, Duration::from_secs(5)),
            immediate_bytes: Bytes::or(self.immediate_cap, MIB),
            stream_cap: Bytes::or(self.stream_cap, STREAM_CAP),
            held_bytes: Bytes::or(self.held_cap, 8 * MIB),
            budget: u32::try_from(budget).unwrap_or_default(),
            fetches: self.upstream_fetches.unwrap_or(16),
            released_followers: self.released_followers.unwrap_or(4),
            invalidations: self.invalidations.unwrap_or(10_000),
            invalidation_time: Seconds::or(self.invalidation_time, Duration::from_secs(600)),
            breaker_failures: self.breaker_failures.unwrap_or(5),
            breaker_wait: Seconds::or(self.breaker_wait, Duration::from_secs(2)),
        };
        if u64::from(limits.budget) < MIB {
            problem("budget", "must be 1MiB to 4GiB".to_owned());
        }
        if limits.immediate_bytes > 4 * MIB {
            problem("immediate_cap", "is at most 4MiB".to_owned());
        }
        if limits.released_followers == 0 {
            problem("released_followers", "is at least 1".to_owned());
        }
        if limits.invalidations == 0 {
            problem("invalidations", "is at least 1".to_owned());
        }
        if limits.breaker_failures == 0 {
            problem("breaker_failures", "is at least 1".to_owned());
        }
        // A lookup that Envoy cuts off costs the fill as well.
        let most = envoy.message_timeout.mul_f64(0.7);
        if limits.lookup_timeout > most {
            problem(
                "lookup_timeout",
                format!(
                    "is {:?}, but may be at most 0.7 of envoy.message_timeout, {most:?}",
                    limits.lookup_timeout
                ),
            );
        }
        (problems.len() == before).then_some(limits)
    }
}

#[cfg(test)]
mod tests;
