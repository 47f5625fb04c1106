//! What one request leaves in log and metrics.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tracing::info;

use super::{Core, Exchange};
use crate::clock::Stopwatch;
use crate::entry::Key;
use crate::session::{Copied, Report};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{GaugeGuard, ReasonLabel};

/// What is counted of requests at their end.
#[derive(Debug)]
pub(super) struct LogMetrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<OutcomeLabel, Histogram>,
    not_storable: Family<ReasonLabel, Counter>,
    streams: Gauge,
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

impl LogMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            requests: metrics.counter_by(
                "requests",
                "Requests by policy, outcome word and the reason for it",
            ),
            seconds: metrics.seconds_by(
                "request_duration",
                "From the request's head to the last answer that this process gave",
            ),
            not_storable: metrics.counter_by(
                "not_storable",
                "Answers to requests that could have filled, by why they may not be stored",
            ),
            streams: metrics.gauge("streams", "Requests that are with this process now"),
        }
    }
}

/// Everything that one request leaves in log and metrics, once.
#[derive(Debug)]
pub struct Log {
    core: Arc<Core>,
    policy: Arc<str>,
    key: Option<Key>,
    status: Option<u16>,
    report: Report,
    since: Stopwatch,
    took: Duration,
    lookup: Duration,
    stage: Stage,
    _present: GaugeGuard,
}

/// How far a request's traces are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// Counted.
    Ended,
    /// Counted, and its line written.
    Written,
}

impl Log {
    /// A request that begins now, of the policy with this name.
    pub fn new(core: Arc<Core>, policy: Arc<str>) -> Self {
        Self {
            policy,
            key: None,
            status: None,
            report: Report::Left,
            since: Stopwatch::start(),
            took: Duration::ZERO,
            lookup: Duration::ZERO,
            stage: Stage::Open,
            _present: GaugeGuard::of(&core.log_metrics.streams),
            core,
        }
    }

    /// The name of its policy.
    pub fn policy(&self) -> &Arc<str> {
        &self.policy
    }

    /// How it stands.
    pub fn report(&self) -> Report {
        self.report
    }

    /// It is of this policy.
    pub fn set_policy(&mut self, policy: &Arc<str>) {
        self.policy = Arc::clone(policy);
    }

    /// It has this status.
    pub fn set_status(&mut self, status: http::StatusCode) {
        self.status = Some(status.as_u16());
    }

    /// An answer goes out now, with which it stands so.
    pub fn answered(&mut self, report: Report) {
        if self.stage == Stage::Open {
            self.report = report;
            self.took = self.since.elapsed();
        }
    }

    /// An answer goes out now, with which it stands as the exchange says.
    pub fn take(&mut self, exchange: &Exchange) {
        if self.stage != Stage::Open {
            return;
        }
        self.key = exchange.key().cloned();
        self.lookup = exchange.lookup_time();
        self.answered(exchange.report());
    }

    /// The request is over, and counted; only the first call counts.
    pub fn end(&mut self) {
        if self.stage != Stage::Open {
            return;
        }
        self.stage = Stage::Ended;
        self.took = self.since.elapsed();
        let metrics = &self.core.log_metrics;
        let outcome = self.report.outcome().as_str();
        metrics
            .requests
            .get_or_create(&RequestLabels {
                policy: Arc::clone(&self.policy),
                outcome,
                reason: self.report.reason(),
            })
            .inc();
        metrics
            .seconds
            .get_or_create(&OutcomeLabel { outcome })
            .observe(self.took.as_secs_f64());
        if let Report::Miss {
            copy: Copied::Refused(refusal),
            ..
        } = self.report
        {
            let reason = refusal.as_str();
            metrics
                .not_storable
                .get_or_create(&ReasonLabel { reason })
                .inc();
        }
    }

    /// Whether the request has ended without its line.
    pub fn is_to_be_written(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Writes the line of a request that has ended; only the first call counts.
    pub fn write(&mut self) {
        if !self.is_to_be_written() {
            return;
        }
        self.stage = Stage::Written;
        info!(
            policy = &*self.policy,
            outcome = self.report.outcome().as_str(),
            reason = self.report.reason(),
            copy = self.report.copy(),
            status = self.status,
            key = self.key.as_ref().map(Key::object_name),
            lookup_ms = ms(self.lookup),
            took_ms = ms(self.took),
            "request"
        );
    }
}

/// Milliseconds, to the microsecond.
fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}
