//! Every metric, with its help text.
//!
//! Label values are enums, or the names of policies, which the configuration bounds.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::cache::collapse::Followed;
use crate::session::{AbortReason, Fetched, Report};

/// Handles to all metrics; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<OutcomeLabel, Histogram>,
    lookup_seconds: Histogram,
    fills: Family<FillLabels, Counter>,
    not_stored: Family<ReasonLabel, Counter>,
    fetches: Family<ResultLabel, Counter>,
    followers: Family<ResultLabel, Counter>,
    served_bytes: Counter,
    stored_bytes: Counter,
    broken_hits: Counter,
    unexpected_messages: Counter,
    streams: Gauge,
    following: Gauge,
    open_fills: Gauge,
    reserved_bytes: Gauge<i64, AtomicI64>,
    memory_bytes: Gauge<i64, AtomicI64>,
    memory_entries: Gauge<i64, AtomicI64>,
    memory_lookups: Family<ResultLabel, Counter>,
    joined_lookups: Counter,
    store_operations: Family<StoreLabels, Histogram>,
    store_breaker: Gauge<i64, AtomicI64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    policy: Arc<str>,
    outcome: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FillLabels {
    result: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabels {
    operation: &'static str,
    result: &'static str,
}

/// 0.1 ms to 10 s.
const BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

impl Metrics {
    /// All metrics at zero.
    #[expect(
        clippy::new_without_default,
        reason = "metrics are made once, on purpose"
    )]
    pub fn new() -> Self {
        let histogram = || Histogram::new(BUCKETS);
        let mut registry = Registry::with_prefix("afterimage");
        let metrics = Self {
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(histogram),
            lookup_seconds: histogram(),
            fills: Family::default(),
            not_stored: Family::default(),
            fetches: Family::default(),
            followers: Family::default(),
            served_bytes: Counter::default(),
            stored_bytes: Counter::default(),
            broken_hits: Counter::default(),
            unexpected_messages: Counter::default(),
            streams: Gauge::default(),
            following: Gauge::default(),
            open_fills: Gauge::default(),
            reserved_bytes: Gauge::default(),
            memory_bytes: Gauge::default(),
            memory_entries: Gauge::default(),
            memory_lookups: Family::default(),
            joined_lookups: Counter::default(),
            store_operations: Family::new_with_constructor(histogram),
            store_breaker: Gauge::default(),
            registry: Arc::new(Registry::default()),
        };
        registry.register(
            "requests",
            "Requests by policy, outcome word and the reason for it",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "From the request's head to the last answer that this process gave",
            Unit::Seconds,
            metrics.request_seconds.clone(),
        );
        registry.register_with_unit(
            "lookup_duration",
            "From asking for an entry to having it whole, or knowing that there is none",
            Unit::Seconds,
            metrics.lookup_seconds.clone(),
        );
        registry.register(
            "fills",
            "Fills by what became of them: committed, aborted with the reason, or failed in the store",
            metrics.fills.clone(),
        );
        registry.register(
            "not_storable",
            "Answers to requests that could have filled, by why they may not be stored",
            metrics.not_stored.clone(),
        );
        registry.register(
            "upstream_fetches",
            "Requests of our own to upstreams by result; nothing: as many as may were under way, or no answer in time",
            metrics.fetches.clone(),
        );
        registry.register(
            "followers",
            "Requests that waited for one for the same by what came of it; stored: something to look up; lead: its client left and this one took its place; turn: it was in vain; timed_out: no end in time",
            metrics.followers.clone(),
        );
        registry.register(
            "following",
            "Requests that wait for one for the same",
            metrics.following.clone(),
        );
        registry.register_with_unit(
            "served",
            "Body bytes of hits",
            Unit::Bytes,
            metrics.served_bytes.clone(),
        );
        registry.register_with_unit(
            "stored",
            "Body bytes of committed fills",
            Unit::Bytes,
            metrics.stored_bytes.clone(),
        );
        registry.register(
            "broken_hits",
            "Streamed hits that had to be broken off, because the store failed or the body was not the stored one",
            metrics.broken_hits.clone(),
        );
        registry.register(
            "unexpected_messages",
            "Messages of Envoy that do not fit the conversation; compare the filter with envoy/envoy.yaml",
            metrics.unexpected_messages.clone(),
        );
        registry.register(
            "streams",
            "Requests that are with this process now",
            metrics.streams.clone(),
        );
        registry.register(
            "open_fills",
            "Copies of responses that are neither committed nor given up yet",
            metrics.open_fills.clone(),
        );
        registry.register_with_unit(
            "budget_reserved",
            "What fills and hits hold of the memory budget now",
            Unit::Bytes,
            metrics.reserved_bytes.clone(),
        );
        registry.register_with_unit(
            "memory",
            "What the memory tier holds now",
            Unit::Bytes,
            metrics.memory_bytes.clone(),
        );
        registry.register(
            "memory_entries",
            "Entries in the memory tier now",
            metrics.memory_entries.clone(),
        );
        registry.register(
            "joined_lookups",
            "Lookups that joined another one of the same entry, which reads it from the store",
            metrics.joined_lookups.clone(),
        );
        registry.register(
            "memory_lookups",
            "Lookups by whether the memory tier had the entry: hit or miss",
            metrics.memory_lookups.clone(),
        );
        registry.register_with_unit(
            "store_operation_duration",
            "Operations on the store by result",
            Unit::Seconds,
            metrics.store_operations.clone(),
        );
        registry.register(
            "store_breaker_state",
            "Circuit breaker of the store: 0 closed, 1 half-open, 2 open",
            metrics.store_breaker.clone(),
        );
        Self {
            registry: Arc::new(registry),
            ..metrics
        }
    }

    /// A request is over.
    pub fn request(&self, policy: &Arc<str>, report: Report, took: Duration) {
        let outcome = report.outcome().as_str();
        self.requests
            .get_or_create(&RequestLabels {
                policy: Arc::clone(policy),
                outcome,
                reason: report.reason(),
            })
            .inc();
        self.request_seconds
            .get_or_create(&OutcomeLabel { outcome })
            .observe(took.as_secs_f64());
    }

    /// A lookup is over.
    pub fn lookup(&self, took: Duration) {
        self.lookup_seconds.observe(took.as_secs_f64());
    }

    /// An answer was refused by the policy.
    pub fn not_storable(&self, reason: &'static str) {
        self.not_stored.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A fill was committed.
    pub fn committed(&self, bytes: u64) {
        self.fill("committed", "");
        self.stored_bytes.inc_by(bytes);
    }

    /// A fill was given up.
    pub fn aborted(&self, reason: AbortReason) {
        self.fill("aborted", reason.as_str());
    }

    fn fill(&self, result: &'static str, reason: &'static str) {
        self.fills
            .get_or_create(&FillLabels { result, reason })
            .inc();
    }

    /// A request of our own to an upstream is over.
    pub fn fetched(&self, fetched: Fetched) {
        let result = fetched.as_str();
        self.fetches.get_or_create(&ResultLabel { result }).inc();
    }

    /// A request waits for another one as long as this lasts.
    pub fn following(&self) -> GaugeGuard {
        GaugeGuard::of(&self.following)
    }

    /// A request has waited for another one.
    pub fn followed(&self, followed: &Followed) {
        let result = followed.as_str();
        self.followers.get_or_create(&ResultLabel { result }).inc();
    }

    /// A hit's body went out.
    pub fn served(&self, bytes: u64) {
        self.served_bytes.inc_by(bytes);
    }

    /// A streamed hit was broken off.
    pub fn broken_hit(&self) {
        self.broken_hits.inc();
    }

    /// A message did not fit.
    pub fn unexpected_message(&self) {
        self.unexpected_messages.inc();
    }

    /// Counts a request as present until the guard is dropped.
    pub fn stream(&self) -> GaugeGuard {
        GaugeGuard::of(&self.streams)
    }

    /// Counts a fill as open until the guard is dropped.
    pub fn open_fill(&self) -> GaugeGuard {
        GaugeGuard::of(&self.open_fills)
    }

    /// What the budget holds now; called before each scrape.
    pub fn set_reserved_bytes(&self, bytes: u64) {
        self.reserved_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Bytes and entries of the memory tier now; called before each scrape.
    pub fn set_memory(&self, (bytes, entries): (u64, usize)) {
        self.memory_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.memory_entries
            .set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// The memory tier was asked.
    pub fn memory_lookup(&self, is_hit: bool) {
        let result = if is_hit { "hit" } else { "miss" };
        self.memory_lookups
            .get_or_create(&ResultLabel { result })
            .inc();
    }

    /// A lookup waits for what another one reads.
    pub fn joined_lookup(&self) {
        self.joined_lookups.inc();
    }

    /// An operation of the store is over.
    pub fn store_operation(&self, operation: &'static str, result: &'static str, took: Duration) {
        self.store_operations
            .get_or_create(&StoreLabels { operation, result })
            .observe(took.as_secs_f64());
    }

    /// The store's circuit breaker changed: 0 closed, 1 half-open, 2 open.
    pub fn set_store_breaker(&self, state: i64) {
        self.store_breaker.set(state);
    }

    /// Everything in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        text::encode(&mut page, &self.registry).expect("writing to a string does not fail");
        page
    }
}

/// One more in a gauge, until it is dropped.
#[derive(Debug)]
pub struct GaugeGuard(Gauge<i64, AtomicI64>);

impl GaugeGuard {
    fn of(gauge: &Gauge<i64, AtomicI64>) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::MissReason;
    use crate::session::Copied;

    #[test]
    fn a_request_shows_under_its_policy_outcome_and_reason() {
        let metrics = Metrics::new();
        let report = Report::Miss {
            reason: MissReason::Absent,
            copy: Copied::Whole,
        };
        metrics.request(&"images".into(), report, Duration::from_millis(3));
        let page = metrics.encode();
        assert!(
            page.contains(
                "afterimage_requests_total{policy=\"images\",outcome=\"miss\",reason=\"absent\"} 1"
            ),
            "{page}"
        );
    }

    #[test]
    fn the_guard_of_a_stream_counts_it_out_again() {
        let metrics = Metrics::new();
        let guard = metrics.stream();
        assert!(metrics.encode().contains("afterimage_streams 1"));
        drop(guard);
        assert!(metrics.encode().contains("afterimage_streams 0"));
    }
}
