//! Declares and encodes metrics. The component that counts a metric declares it here, once.
//!
//! Names get the prefix `afterimage_`. The values of labels are enums or names of policies, so that
//! the configuration bounds their number.

use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// All metrics of the process; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

/// The label of events that have several reasons.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// One word.
    pub reason: &'static str,
}

/// The label of events that end in several ways.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// One word.
    pub result: &'static str,
}

/// 0.1 ms to 10 s.
const BUCKETS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Metrics {
    /// Makes an empty set of metrics.
    #[expect(
        clippy::new_without_default,
        reason = "metrics are made once, on purpose"
    )]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Registry::with_prefix("afterimage"))))
    }

    /// Declares a count of events.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.lock().register(name, help, counter.clone());
        counter
    }

    /// Declares a count of events by labels.
    pub fn counter_by<L: Labels>(&self, name: &str, help: &str) -> Family<L, Counter> {
        let family = Family::default();
        self.lock().register(name, help, family.clone());
        family
    }

    /// Declares a count of bytes.
    pub fn bytes(&self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.lock()
            .register_with_unit(name, help, Unit::Bytes, counter.clone());
        counter
    }

    /// Declares a number that goes up and down.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.lock().register(name, help, gauge.clone());
        gauge
    }

    /// Declares a distribution of times.
    pub fn seconds(&self, name: &str, help: &str) -> Histogram {
        let seconds = histogram();
        self.lock()
            .register_with_unit(name, help, Unit::Seconds, seconds.clone());
        seconds
    }

    /// Declares a distribution of times by labels.
    pub fn seconds_by<L: Labels>(&self, name: &str, help: &str) -> Family<L, Histogram> {
        let family = Family::new_with_constructor(histogram as fn() -> Histogram);
        self.lock()
            .register_with_unit(name, help, Unit::Seconds, family.clone());
        family
    }

    /// Declares a number that `read` returns at each scrape.
    pub fn observed(
        &self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let read = Box::new(read);
        self.lock().register_collector(Box::new(Observed {
            name,
            help,
            unit,
            read,
        }));
    }

    /// Encodes all metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        text::encode(&mut page, &self.lock()).expect("writing to a string does not fail");
        page
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a set of labels must implement.
pub trait Labels: Clone + fmt::Debug + Eq + Hash + EncodeLabelSet + Send + Sync + 'static {}

impl<L: Clone + fmt::Debug + Eq + Hash + EncodeLabelSet + Send + Sync + 'static> Labels for L {}

struct Observed {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    read: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Collector for Observed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new(i64::try_from((self.read)()).unwrap_or(i64::MAX));
        let unit = self.unit.as_ref();
        let encoder = encoder.encode_descriptor(self.name, self.help, unit, gauge.metric_type())?;
        gauge.encode(encoder)
    }
}

/// Counts one more in a gauge until it is dropped.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    /// Adds one to `gauge`.
    pub fn of(gauge: &Gauge) -> Self {
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

    #[test]
    fn the_guard_of_a_gauge_counts_it_out_again() {
        let metrics = Metrics::new();
        let streams = metrics.gauge("streams", "Requests");
        let guard = GaugeGuard::of(&streams);
        assert!(metrics.encode().contains("afterimage_streams 1"));
        drop(guard);
        assert!(metrics.encode().contains("afterimage_streams 0"));
    }

    #[test]
    fn an_observed_number_is_read_at_each_scrape() {
        let metrics = Metrics::new();
        let held = Arc::new(Mutex::new(7));
        let read = Arc::clone(&held);
        metrics.observed("held", "Held", Some(Unit::Bytes), move || {
            *read.lock().unwrap()
        });
        assert!(metrics.encode().contains("afterimage_held_bytes 7"));
        *held.lock().unwrap() = 9;
        assert!(metrics.encode().contains("afterimage_held_bytes 9"));
    }
}
