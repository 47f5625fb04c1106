//! What was invalidated a short while ago (RFC 9111 section 4.4).
//!
//! The deletion of entries takes time, and a response that the upstream made before may still be on its way
//! into the store. An invalidation of a source hides all that: from [`Invalidations::set`] on, lookups do not see what
//! was stored up to then, and fills that began before are given up. The deletion itself runs in the
//! background, and is tried again until it succeeds or the invalidation's time is over. An invalidation stays until no
//! fill that began before it can be running any more.
//!
//! The number of invalidations is bounded for each namespace. Where there is no room for another one, everything of
//! that namespace that was stored up to then is hidden for the time of an invalidation, but not deleted: the store is
//! asked less, not more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::clock::{Clock, Stopwatch, Timestamp};
use crate::entry::Source;
use crate::store::{self, Store};

/// Deletions at a time.
const DELETIONS: usize = 4;

/// After a deletion has failed; doubled with each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// A point in the order of invalidations: what is asked for at one is older than later invalidations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct InvalidationSeq(u64);

/// The invalidations of this process; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Invalidations(Arc<State>);

#[derive(Debug)]
struct State {
    table: Mutex<Table>,
    /// Entries of the table and its floor, so that nobody takes the lock for nothing.
    present: AtomicUsize,
    sequence: AtomicU64,
    store: Arc<dyn Store>,
    clock: Clock,
    tasks: TaskTracker,
    deletions: Arc<Semaphore>,
    bounds: Bounds,
}

/// How many invalidations there are, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Sources that are remembered as invalidated at a time.
    pub(super) count: usize,
    /// For how long a deletion that fails is tried again.
    pub(super) patience: Duration,
    /// The longest that a fill takes, its commit included.
    pub(super) fill: Duration,
}

/// By namespace, of which there are as many as the configuration names.
type Table = HashMap<Arc<str>, OfNamespace>;

#[derive(Debug, Default)]
struct OfNamespace {
    invalidations: HashMap<Source, Invalidation>,
    /// For all sources that found no room.
    floor: Option<Invalidation>,
}

#[derive(Debug, Clone, Copy)]
struct Invalidation {
    seq: InvalidationSeq,
    at: Timestamp,
    set: Stopwatch,
    deletion: Deletion,
}

/// How far the deletion of what was stored before is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deletion {
    /// A task deletes, or will try again.
    UnderWay,
    /// Nobody deletes, although entries may still be there.
    GivenUp,
    /// Nothing is there any more.
    Done,
}

impl Invalidation {
    /// Whether what was stored before may still be there.
    fn hides_stored(&self) -> bool {
        self.deletion != Deletion::Done
    }
}

impl Invalidations {
    /// No invalidation yet. Invalidated sources are deleted from `store`, in `tasks`.
    pub(super) fn new(
        store: Arc<dyn Store>,
        clock: Clock,
        tasks: TaskTracker,
        bounds: Bounds,
    ) -> Self {
        Self(Arc::new(State {
            table: Mutex::default(),
            present: AtomicUsize::new(0),
            sequence: AtomicU64::new(0),
            store,
            clock,
            tasks,
            deletions: Arc::new(Semaphore::new(DELETIONS)),
            bounds,
        }))
    }

    /// The place of what is asked for now.
    pub(super) fn now(&self) -> InvalidationSeq {
        InvalidationSeq(self.0.sequence.load(Ordering::SeqCst))
    }

    /// Invalidates sources. When this returns, nothing that was stored or asked for before is used by this
    /// process any more.
    pub(super) fn set(&self, sources: Vec<Source>) {
        for source in sources {
            let invalidation = Invalidation {
                seq: InvalidationSeq(self.0.sequence.fetch_add(1, Ordering::SeqCst) + 1),
                at: self.0.clock.now(),
                set: Stopwatch::start(),
                deletion: Deletion::UnderWay,
            };
            if self.insert(&source, invalidation) {
                let invalidations = self.clone();
                self.0
                    .tasks
                    .spawn(async move { invalidations.delete(source).await });
            }
        }
    }

    /// Entries of `source` whose responses arrived up to this time are not used, because their
    /// deletion is under way. Who reads one must have asked before, too: the deletion may be over by
    /// the time that it was read.
    pub(super) fn horizon(&self, source: &Source) -> Option<Timestamp> {
        self.latest(source, |invalidation| {
            invalidation.hides_stored().then_some(invalidation.at)
        })
    }

    /// Whether a response of `source` that was asked for at `seq` was invalidated.
    pub(super) fn hides(&self, source: &Source, seq: InvalidationSeq) -> bool {
        self.latest(source, |invalidation| Some(invalidation.seq))
            .is_some_and(|latest| seq < latest)
    }

    /// The latest of what the invalidations on `source` give.
    fn latest<T: Ord>(
        &self,
        source: &Source,
        give: impl Fn(&Invalidation) -> Option<T>,
    ) -> Option<T> {
        if self.0.present.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let table = self.lock();
        let own = table.get(source.namespace())?;
        own.invalidations
            .get(source)
            .into_iter()
            .chain(&own.floor)
            .filter(|invalidation| !self.is_over(invalidation))
            .filter_map(give)
            .max()
    }

    /// Whether nobody deletes the source's entries yet.
    fn insert(&self, source: &Source, invalidation: Invalidation) -> bool {
        let mut table = self.lock();
        let own = table.entry(Arc::clone(source.namespace())).or_default();
        if own.invalidations.len() >= self.0.bounds.count && !own.invalidations.contains_key(source)
        {
            own.invalidations
                .retain(|_, invalidation| !self.is_over(invalidation));
        }
        let needs_deletion = if let Some(known) = own.invalidations.get_mut(source) {
            // A deletion that is under way sees that there is another invalidation, and runs again.
            let is_deleting = known.deletion == Deletion::UnderWay;
            *known = invalidation;
            !is_deleting
        } else if own.invalidations.len() < self.0.bounds.count {
            own.invalidations.insert(source.clone(), invalidation);
            true
        } else {
            warn!(
                namespace = &**source.namespace(),
                "no room for another invalidation: what was stored in the namespace up to now is hidden, not deleted"
            );
            own.floor = Some(Invalidation {
                deletion: Deletion::GivenUp,
                ..invalidation
            });
            false
        };
        let present = table
            .values()
            .map(|own| own.invalidations.len() + usize::from(own.floor.is_some()))
            .sum();
        self.0.present.store(present, Ordering::SeqCst);
        needs_deletion
    }

    /// An invalidation that hides what is stored lasts until the deletion succeeds or is given up.
    fn is_over(&self, invalidation: &Invalidation) -> bool {
        let bounds = &self.0.bounds;
        let time = if invalidation.hides_stored() {
            bounds.patience.max(bounds.fill)
        } else {
            bounds.fill
        };
        invalidation.set.elapsed() >= time
    }

    async fn delete(&self, source: Source) {
        let mut pause = FIRST_PAUSE;
        loop {
            let Some(begun) = self.invalidation(&source) else {
                return;
            };
            let result = {
                // The semaphore is never closed.
                let _slot = self.0.deletions.acquire().await;
                self.0.store.delete_source(&source).await
            };
            match result {
                Ok(_) => {
                    if self.end(&source, begun.seq, Deletion::Done) {
                        return;
                    }
                }
                Err(error) => {
                    let error = store::Causes(&error);
                    if begun.set.elapsed() + pause >= self.0.bounds.patience {
                        let prefix = source.prefix();
                        warn!(prefix, %error, "invalidated entries were not deleted");
                        if self.end(&source, begun.seq, Deletion::GivenUp) {
                            return;
                        }
                        continue;
                    }
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
    }

    fn invalidation(&self, source: &Source) -> Option<Invalidation> {
        let table = self.lock();
        let own = table.get(source.namespace())?;
        own.invalidations.get(source).copied()
    }

    /// Notes how the deletion for the invalidation `seq` ended; `false` when there is a later one, for which it has to
    /// run again.
    fn end(&self, source: &Source, seq: InvalidationSeq, deletion: Deletion) -> bool {
        let mut table = self.lock();
        let own = table.get_mut(source.namespace());
        let Some(invalidation) = own.and_then(|own| own.invalidations.get_mut(source)) else {
            return true;
        };
        let is_last = invalidation.seq == seq;
        if is_last {
            invalidation.deletion = deletion;
        }
        is_last
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
