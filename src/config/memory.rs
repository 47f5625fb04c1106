//! What is kept in memory in front of the store.

use std::time::Duration;

use serde::Deserialize;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

use crate::written::{As, ByteSize, HumanDuration};

/// The memory tier in front of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// The entries there hold at most this much, beside `limits.budget`; with `0B` there are none. Only
    /// entries up to `limits.immediate_cap` are kept there.
    #[serde(with = "As::<ByteSize>")]
    pub max_bytes: u64,
    /// How often an entry there that is asked for is compared with the store, beside the answer, so
    /// that what other replicas wrote or removed arrives.
    #[serde(with = "As::<HumanDuration>")]
    pub recheck: Duration,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            recheck: Duration::from_secs(30),
        }
    }
}
