//! Where entries are kept.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

use super::problem::Problem;
use super::secret::SecretSource;
use crate::endpoint::Endpoint;
use crate::secret::Secret;
use crate::store::{LocalConfig, S3Config, S3Timeouts};
use crate::written::{As, ByteSize, HumanDuration, Optional, Written};

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

/// Where entries are kept.
#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawStore {
    /// Which store there is. The fields of the others are checked, but not used.
    kind: StoreKind,
    local: RawLocal,
    memory: RawMemory,
    s3: RawS3,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(rename_all = "lowercase")]
enum StoreKind {
    /// A directory, which needs nothing to be installed.
    #[default]
    Local,
    /// Garage or any other S3 store, which several replicas can share.
    S3,
    /// Memory, for trying out.
    Memory,
}

/// A directory.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
struct RawLocal {
    /// The directory, made when it is absent. One process owns it, and nothing else may be kept in it.
    path: PathBuf,
    /// What it may hold; the least recently used entries go first. The default is weeks of
    /// derivatives for most sites, and little beside an image of a container host.
    #[serde(with = "As::<ByteSize>")]
    max_bytes: u64,
}

impl Default for RawLocal {
    fn default() -> Self {
        Self {
            path: "run/store".into(),
            max_bytes: LocalConfig::DEFAULT_MAX_BYTES,
        }
    }
}

/// Memory, for trying out.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
struct RawMemory {
    /// What it may hold; the oldest entries go first.
    #[serde(with = "As::<ByteSize>")]
    max_bytes: u64,
}

impl Default for RawMemory {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 20,
        }
    }
}

/// Garage or any other S3 store.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
struct RawS3 {
    /// The service: `http://host:port`, `https://host`, or `unix:/path` for Garage's socket.
    #[cfg_attr(test, schemars(extend("x-default" = "required for `s3`")))]
    #[serde(with = "Optional::<EndpointUrl>")]
    endpoint: Option<Endpoint>,
    /// The region that requests are signed for. Garage compares it with its `s3_region`.
    region: String,
    /// One or more buckets. The source of an image picks one by the list's order, so a bucket
    /// appended takes over an equal share, and every other change forgets more.
    buckets: Vec<String>,
    /// Stands before every object name, for buckets that are shared: at most 256 bytes, without a slash
    /// at either end.
    prefix: String,
    /// Names the key that signs requests.
    #[cfg_attr(test, serde(skip_serializing), schemars(extend("x-default" = "required for `s3`")))]
    access_key_id: Option<SecretSource>,
    /// Signs requests.
    #[cfg_attr(test, serde(skip_serializing), schemars(extend("x-default" = "required for `s3`")))]
    secret_access_key: Option<SecretSource>,
    /// How long it may take to open a connection: many round trips inside a region.
    #[serde(with = "As::<HumanDuration>")]
    connect_timeout: Duration,
    /// How long each piece of a body may take. Servers send the head of an answer before they have the
    /// first block of the body.
    #[serde(with = "As::<HumanDuration>")]
    read_timeout: Duration,
}

impl Default for RawS3 {
    fn default() -> Self {
        let timeouts = S3Timeouts::default();
        Self {
            endpoint: None,
            region: "garage".to_owned(),
            buckets: vec!["afterimage".to_owned()],
            prefix: String::new(),
            access_key_id: None,
            secret_access_key: None,
            connect_timeout: timeouts.connect,
            read_timeout: timeouts.read,
        }
    }
}

impl RawStore {
    pub(super) fn build(self, problems: &mut Vec<Problem>) -> Option<StoreConfig> {
        match self.kind {
            StoreKind::Local => Some(StoreConfig::Local {
                path: self.local.path,
                max_bytes: self.local.max_bytes,
            }),
            StoreKind::Memory => Some(StoreConfig::Memory {
                max_bytes: self.memory.max_bytes,
            }),
            StoreKind::S3 => {
                let s3 = self.s3.build(problems)?;
                Some(StoreConfig::S3(Box::new(s3)))
            }
        }
    }
}

impl RawS3 {
    fn build(self, problems: &mut Vec<Problem>) -> Option<S3Config> {
        let mut problem = |field: &str, what: &str| {
            problems.push(Problem::new(format!("store.s3.{field}"), what));
        };
        if self.endpoint.is_none() {
            problem("endpoint", &format!("needs {}", EndpointUrl::EXPECTED));
        }
        let prefix = self.prefix;
        if prefix.starts_with('/') || prefix.ends_with('/') || prefix.len() > 256 {
            problem("prefix", "has no slash at either end and at most 256 bytes");
        }
        if self.buckets.is_empty() || self.buckets.iter().any(String::is_empty) {
            problem("buckets", "name at least one bucket, and none empty");
        }
        let mut secret = |field: &str, source: Option<SecretSource>| -> Option<Secret> {
            let Some(source) = source else {
                problem(field, &format!("needs {}", SecretSource::EXPECTED));
                return None;
            };
            source.read().map_err(|error| problem(field, &error)).ok()
        };
        let access_key_id = secret("access_key_id", self.access_key_id);
        let secret_access_key = secret("secret_access_key", self.secret_access_key);
        Some(S3Config {
            endpoint: self.endpoint?,
            region: self.region,
            buckets: self.buckets,
            prefix,
            access_key_id: access_key_id?.expose().to_owned(),
            secret_access_key: secret_access_key?,
            timeouts: S3Timeouts {
                connect: self.connect_timeout,
                read: self.read_timeout,
                ..S3Timeouts::default()
            },
        })
    }
}

/// Where an HTTP service listens.
struct EndpointUrl;

impl Written for EndpointUrl {
    type Value = Endpoint;

    #[cfg(test)]
    const NAME: &'static str = "URL";
    const EXPECTED: &'static str = "`http://host:port`, `https://host` or `unix:/path`";

    fn read(text: &str) -> Option<Endpoint> {
        text.parse().ok()
    }

    #[cfg(test)]
    fn write(value: &Endpoint) -> String {
        value.to_string()
    }
}
