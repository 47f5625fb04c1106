//! What one request leaves in log and metrics.

use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use super::shared::Shared;
use crate::cache::budget::Reservation;
use crate::clock::Stopwatch;
use crate::entry::Key;
use crate::session::{Copied, Report};
use crate::telemetry::metrics::GaugeGuard;

/// Everything that one request leaves in log and metrics, once.
pub(super) struct Log {
    shared: Arc<Shared>,
    pub(super) policy: Arc<str>,
    pub(super) key: Option<Key>,
    pub(super) status: Option<u16>,
    pub(super) report: Report,
    since: Stopwatch,
    took: Duration,
    pub(super) lookup: Duration,
    stage: Stage,
    /// What a hit holds until it is out.
    pub(super) room: Option<Arc<Reservation>>,
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
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            policy: Arc::clone(shared.routes.no_policy()),
            key: None,
            status: None,
            report: Report::Left,
            since: Stopwatch::start(),
            took: Duration::ZERO,
            lookup: Duration::ZERO,
            stage: Stage::Open,
            room: None,
            _present: shared.metrics.stream(),
            shared,
        }
    }

    /// An answer goes out now.
    pub(super) fn answered(&mut self) {
        self.took = self.since.elapsed();
    }

    /// The request is over, and counted; only the first call counts.
    pub(super) fn end(&mut self) {
        if self.stage != Stage::Open {
            return;
        }
        self.stage = Stage::Ended;
        self.answered();
        let metrics = &self.shared.metrics;
        metrics.request(&self.policy, self.report, self.took);
        if let Report::Miss {
            copy: Copied::Refused(refusal),
            ..
        } = self.report
        {
            metrics.not_storable(refusal.as_str());
        }
    }

    /// Has the request ended without its line?
    pub(super) fn is_to_be_written(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Writes the line of a request that has ended; only the first call counts.
    pub(super) fn write(&mut self) {
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
