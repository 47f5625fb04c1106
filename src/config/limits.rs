//! How long and how much.

use std::time::Duration;

use serde::Deserialize;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

use super::EnvoyLimits;
use super::problem::Problem;
use crate::written::{As, ByteSize, HumanDuration, Written};

const MIB: u64 = 1024 * 1024;

/// Envoy keeps every message whole, and gRPC's own limit is 4 MiB.
const LARGEST_MESSAGE: u64 = 4 * MIB;

/// How long and how much. The defaults fit a sidecar with a few hundred MiB, in front of a store in the
/// same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A lookup may take this long, from asking the store to having the entry whole; afterwards the
    /// request is forwarded. It is at most 0.7 of `envoy.message_timeout`, because a lookup that Envoy
    /// cuts off costs the fill as well. The default is well above the round trip to another zone.
    #[serde(with = "As::<HumanDuration>")]
    pub lookup_timeout: Duration,
    /// A write to the store may take this long. The default is 8 MiB at 280 KB/s.
    #[serde(with = "As::<HumanDuration>")]
    pub write_timeout: Duration,
    /// A response may take this long to pass while its copy is kept. Afterwards the copy is dropped; the
    /// client is not touched.
    #[serde(with = "As::<HumanDuration>")]
    pub fill_deadline: Duration,
    /// This much of a response must pass in a second while its copy is kept, on the average and from
    /// `fill_grace` on, so that slow clients do not hold the budget; with `0B` any rate will do.
    #[serde(with = "As::<ByteSize>")]
    pub fill_rate: u64,
    /// A response may take this long beside the time that `fill_rate` gives it, so that a slow start
    /// costs nothing.
    #[serde(with = "As::<HumanDuration>")]
    pub fill_grace: Duration,
    /// The largest hit that is sent in one message, at most `4MiB`; larger ones stream.
    #[serde(with = "As::<ByteSize>")]
    pub immediate_cap: u64,
    /// The largest body that is served, and so stored, where Envoy does not fetch large hits
    /// (`objects.listen`): Envoy buffers all of it for a slow client.
    #[serde(with = "As::<ByteSize>")]
    pub stream_cap: u64,
    /// The largest copy that is held in memory; a larger one goes to the store while it passes.
    #[serde(with = "As::<ByteSize>")]
    pub held_cap: u64,
    /// All copies and hits together hold at most this much, `1MiB` to `4GiB`. Past it copies are dropped
    /// and hits forwarded. A copy counts 16 KiB beside its bytes; one above `held_cap` on its way to S3
    /// counts up to 8 MiB.
    #[serde(with = "As::<BudgetSize>")]
    pub budget: u32,
    /// At most this many requests of our own to the policies' upstreams are under way at a time. There
    /// is no queue.
    pub upstream_fetches: usize,
    /// When requests waited in vain for another one for the same, this many of them are sent on at a
    /// time, so that the upstream does not meet all of them at once.
    pub released_followers: usize,
    /// At most this many paths of a namespace that an unsafe method invalidated a short while ago are
    /// remembered, so that older answers for them are not used any more. Beyond them everything older in
    /// that namespace is hidden for `invalidation_time`.
    pub invalidations: usize,
    /// While the store fails, the deletion of what was invalidated is tried again for this long, and
    /// what was invalidated stays hidden.
    #[serde(with = "As::<HumanDuration>")]
    pub invalidation_time: Duration,
    /// This many failures in a row open the store's circuit breaker. While it is open, requests are
    /// forwarded without asking the store.
    pub breaker_failures: u32,
    /// The circuit breaker stays open this long before one request may try the store.
    #[serde(with = "As::<HumanDuration>")]
    pub breaker_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lookup_timeout: Duration::from_millis(300),
            write_timeout: Duration::from_secs(30),
            fill_deadline: Duration::from_secs(60),
            fill_rate: 16 * 1024,
            fill_grace: Duration::from_secs(5),
            immediate_cap: MIB,
            stream_cap: 8 * MIB,
            held_cap: 8 * MIB,
            budget: 48 << 20,
            upstream_fetches: 16,
            released_followers: 4,
            invalidations: 10_000,
            invalidation_time: Duration::from_secs(600),
            breaker_failures: 5,
            breaker_wait: Duration::from_secs(2),
        }
    }
}

impl Limits {
    /// Reports what cannot be.
    pub(super) fn check(&self, envoy: &EnvoyLimits, problems: &mut Vec<Problem>) {
        let mut problem = |field: &str, what: String| {
            problems.push(Problem::new(format!("limits.{field}"), what));
        };
        if self.immediate_cap > LARGEST_MESSAGE {
            problem("immediate_cap", "is at most 4MiB".to_owned());
        }
        for (field, is_zero) in [
            ("released_followers", self.released_followers == 0),
            ("invalidations", self.invalidations == 0),
            ("breaker_failures", self.breaker_failures == 0),
        ] {
            if is_zero {
                problem(field, "is at least 1".to_owned());
            }
        }
        let most = envoy.message_timeout.mul_f64(0.7);
        if self.lookup_timeout > most {
            problem(
                "lookup_timeout",
                format!(
                    "is {:?}, but may be at most 0.7 of envoy.message_timeout, {most:?}",
                    self.lookup_timeout
                ),
            );
        }
    }
}

/// A size that a budget can have.
struct BudgetSize;

impl Written for BudgetSize {
    type Value = u32;

    #[cfg(test)]
    const NAME: &'static str = ByteSize::NAME;
    const EXPECTED: &'static str = "a size with a unit, from `1MiB` to `4GiB`";

    fn read(text: &str) -> Option<u32> {
        let size = ByteSize::read(text).filter(|size| *size >= MIB)?;
        u32::try_from(size).ok()
    }

    #[cfg(test)]
    fn write(value: &u32) -> String {
        ByteSize::write(&u64::from(*value))
    }
}
