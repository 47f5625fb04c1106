//! Where Envoy fetches large hits.

use serde::Deserialize;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

use super::Listen;
use super::listen::ListenAddress;
use super::problem::Problem;
use crate::written::{As, ByteSize, Optional};

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

/// A listener of our own for large hits, which Envoy streams without keeping them.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawObjects {
    /// Where Envoy fetches large hits: `unix:PATH` or a loopback `IP:PORT`. Envoy needs a route to it
    /// for requests with the header `x-afterimage-object`, as `objects` in `envoy/envoy.yaml`. Without it
    /// hits up to `limits.stream_cap` are sent to Envoy, and larger bodies are not stored.
    #[serde(with = "Optional::<ListenAddress>")]
    listen: Option<Listen>,
    /// Hits above this are fetched, at most `limits.stream_cap`. Smaller ones are answered sooner
    /// without a second request.
    #[serde(with = "As::<ByteSize>")]
    above: u64,
    /// The largest body that is served so, and so stored, at least `limits.stream_cap`.
    #[serde(with = "As::<ByteSize>")]
    cap: u64,
}

impl Default for RawObjects {
    fn default() -> Self {
        Self {
            listen: None,
            above: 4 << 20,
            cap: 256 << 20,
        }
    }
}

impl RawObjects {
    pub(super) fn build(
        self,
        stream_cap: u64,
        problems: &mut Vec<Problem>,
    ) -> Option<ObjectsConfig> {
        let listen = self.listen?;
        if self.above > stream_cap {
            problems.push(Problem::new(
                "objects.above",
                "is at most limits.stream_cap: what lies between could not be served",
            ));
        }
        if self.cap < stream_cap {
            problems.push(Problem::new("objects.cap", "is at least limits.stream_cap"));
        }
        Some(ObjectsConfig {
            listen,
            above: self.above,
            cap: self.cap,
        })
    }
}
