//! What this process knows beside the store: entries in memory, fills on their way, and what requests
//! for the same entry know of each other.
//!
//! [`Cache::open`] wires it. [`Cache::remembered`] and [`Cache::look_up`] read, [`Cache::begin`] and the steps of a
//! [`ResponseCopy`] store, [`Cache::invalidate`] and [`Cache::forget`] take away. Nothing here knows requests
//! or their sessions.

mod body_reader;
mod budget;
mod collapse;
mod fill;
mod freshen;
mod in_flight;
mod invalidations;
mod lookup;
mod memory_tier;
mod refreshes;
mod refusals;
mod response_copy;
mod store_metrics;

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use self::body_reader::BodyMetrics;
pub use self::body_reader::{BodyPiece, FoundStream, VerifiedBody};
use self::budget::Budget;
pub use self::collapse::{Follow, Followed, Groups, Joined, Lead};
use self::fill::FillMetrics;
use self::in_flight::InFlight;
pub use self::in_flight::Published;
pub use self::invalidations::InvalidationSeq;
use self::invalidations::{Bounds, Invalidations};
use self::lookup::LookupMetrics;
pub use self::lookup::LookupResult;
use self::memory_tier::MemoryTier;
pub use self::refreshes::{Claim, Refreshes};
use self::refusals::Refusals;
pub use self::response_copy::ResponseCopy;
use self::store_metrics::StoreMetrics;
use crate::clock::Clock;
use crate::config::{Limits, MemoryConfig};
use crate::entry::Source;
use crate::store::{self, Limited, Metered, Store, WriteLimit};
use crate::telemetry::Metrics;

/// The store's share of a lookup's time. Were it all, the lookup could be over a moment before the
/// store's own deadline, and what was given up does not count against the store.
const STORE_SHARE: f64 = 0.95;

/// Writes to the store at a time, large bodies aside: as many as idle connections to it are kept.
const WRITES: usize = 64;

/// Writes that may wait for their turn. Each has 16 KiB in the budget, so that the default of 48 MiB has no room
/// for more.
const WAITING_WRITES: usize = 4096;

/// Comparisons of the memory tier with the store that may be under way at a time.
const RECHECKS: usize = 16;

/// The cache of this process; clones share it.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    store: Arc<dyn Store>,
    budget: Budget,
    memory: MemoryTier,
    in_flight: InFlight,
    invalidations: Invalidations,
    groups: Groups,
    refreshes: Refreshes,
    refusals: Refusals,
    /// Comparisons of what memory has with the store that may be under way.
    rechecks: Arc<Semaphore>,
    tasks: TaskTracker,
    limits: Limits,
    /// Largest body that is served, and so stored.
    largest_bytes: u64,
    lookup_metrics: LookupMetrics,
    fill_metrics: FillMetrics,
    body_metrics: BodyMetrics,
}

impl Cache {
    /// The cache in front of `store`, which gets its deadlines, its circuit breaker and its bound on writes here.
    /// `largest_bytes` is the largest body that can be served.
    pub fn open(
        limits: Limits,
        memory: MemoryConfig,
        largest_bytes: u64,
        store: Arc<dyn Store>,
        clock: Clock,
        metrics: &Metrics,
    ) -> Self {
        let store_limits = store::Limits {
            lookup: limits.lookup_timeout.mul_f64(STORE_SHARE),
            write: limits.write_timeout,
            failures: limits.breaker_failures,
            open: limits.breaker_wait,
        };
        let observer = Arc::new(StoreMetrics::new(metrics));
        let write_limit = WriteLimit {
            concurrent: WRITES,
            waiting: WAITING_WRITES,
            patience: limits.write_timeout,
        };
        let metered = Metered::new(store, store_limits, observer);
        let store: Arc<dyn Store> = Arc::new(Limited::new(Arc::new(metered), write_limit));
        let tasks = TaskTracker::new();
        let bounds = Bounds {
            count: limits.invalidations,
            patience: limits.invalidation_time,
            // It passes, waits for its turn, and is written.
            fill: limits.fill_deadline + 2 * limits.write_timeout,
        };
        let invalidations = Invalidations::new(Arc::clone(&store), clock, tasks.clone(), bounds);
        let memory = MemoryTier::new(
            memory.max_bytes,
            limits.immediate_cap,
            memory.recheck,
            invalidations.clone(),
            metrics,
        );
        Self(Arc::new(Parts {
            store,
            budget: Budget::new(limits.budget, metrics),
            memory,
            in_flight: InFlight::default(),
            invalidations,
            groups: Groups::new(limits.released_followers),
            refreshes: Refreshes::default(),
            refusals: Refusals::new(),
            rechecks: Arc::new(Semaphore::new(RECHECKS)),
            tasks,
            limits,
            largest_bytes,
            lookup_metrics: LookupMetrics::new(metrics),
            fill_metrics: FillMetrics::new(metrics),
            body_metrics: BodyMetrics::new(metrics),
        }))
    }

    /// The limits that it keeps.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The largest body that is served, and so stored.
    pub fn largest_bytes(&self) -> u64 {
        self.0.largest_bytes
    }

    /// Requests for the same that wait for each other.
    pub fn groups(&self) -> &Groups {
        &self.0.groups
    }

    /// Which entries are being refreshed.
    pub fn refreshes(&self) -> &Refreshes {
        &self.0.refreshes
    }

    /// Tasks that outlive a request. The process waits for them at its end.
    pub fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    /// The place of what is asked for now in the order of invalidations.
    pub fn now(&self) -> InvalidationSeq {
        self.0.invalidations.now()
    }

    /// From now on nothing of these sources is used that was stored or asked for before.
    pub fn invalidate(&self, sources: Vec<Source>) {
        self.0.invalidations.set(sources.clone());
        for source in &sources {
            self.0.in_flight.detach_readers_of(source);
            self.0.memory.remove_source(source);
        }
    }

    /// Whether the store can be used now.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self) -> Result<(), store::Error> {
        self.0.store.check().await
    }
}
