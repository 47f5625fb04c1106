//! What all requests share.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::log::LogMetrics;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::policy::RequestHead;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::ResultLabel;
use crate::upstream::Upstreams;

/// What all requests share, without anything of the proxy's protocol.
#[derive(Debug)]
pub struct Core {
    pub(super) cache: Cache,
    pub(super) upstreams: Upstreams,
    pub(super) clock: Clock,
    /// How long a request may wait for other requests, for all that it waits for together.
    pub(super) patience: Duration,
    pub(super) metrics: ExchangeMetrics,
    pub(super) log_metrics: LogMetrics,
}

/// What is counted of requests on their way.
#[derive(Debug)]
pub(super) struct ExchangeMetrics {
    pub(super) following: Gauge,
    pub(super) followers: Family<ResultLabel, Counter>,
    pub(super) fetches: Family<ResultLabel, Counter>,
    pub(super) served_bytes: Counter,
}

impl ExchangeMetrics {
    fn new(metrics: &Metrics) -> Self {
        Self {
            following: metrics.gauge("following", "Requests that wait for one for the same"),
            followers: metrics.counter_by(
                "followers",
                "Requests that waited for one for the same by what came of it; stored: something to look up; lead: its client left and this one took its place; turn: it was in vain; timed_out: no end in time",
            ),
            fetches: metrics.counter_by(
                "upstream_fetches",
                "Requests of our own to upstreams by result; nothing: as many as may were under way, or no answer in time",
            ),
            served_bytes: metrics.bytes("served", "Body bytes of hits"),
        }
    }
}

impl Core {
    /// Shares these. A request waits for others at most for `patience`.
    pub fn new(
        cache: Cache,
        upstreams: Upstreams,
        clock: Clock,
        patience: Duration,
        metrics: &Metrics,
    ) -> Self {
        Self {
            cache,
            upstreams,
            clock,
            patience,
            metrics: ExchangeMetrics::new(metrics),
            log_metrics: LogMetrics::new(metrics),
        }
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Whether a request is one of our own that has come back.
    pub fn is_own(&self, head: &RequestHead) -> bool {
        self.upstreams.is_own(head, self.clock.now())
    }
}
