//! Operations of the store as metrics, and changes of its breaker as log lines.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tracing::{info, warn};

use crate::store::{BreakerState, Observe, OpResult, Operation};
use crate::telemetry::Metrics;

/// What is counted of the store.
#[derive(Debug)]
pub(super) struct StoreMetrics {
    operations: Family<OperationLabels, Histogram>,
    breaker: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
    result: &'static str,
}

impl StoreMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            operations: metrics.seconds_by(
                "store_operation_duration",
                "Operations on the store by result",
            ),
            breaker: metrics.gauge(
                "store_breaker_state",
                "Circuit breaker of the store: 0 closed, 1 half-open, 2 open",
            ),
        }
    }
}

impl Observe for StoreMetrics {
    fn operation(&self, operation: Operation, result: OpResult, took: Duration) {
        self.operations
            .get_or_create(&OperationLabels {
                operation: operation.as_str(),
                result: result.as_str(),
            })
            .observe(took.as_secs_f64());
    }

    fn breaker(&self, state: BreakerState) {
        let (value, is_good) = match state {
            BreakerState::Closed => (0, true),
            BreakerState::HalfOpen => (1, true),
            BreakerState::Open => (2, false),
        };
        self.breaker.set(value);
        if is_good {
            info!(state = state.as_str(), "circuit breaker of the store");
        } else {
            warn!(
                state = state.as_str(),
                "circuit breaker of the store: requests are forwarded"
            );
        }
    }
}
