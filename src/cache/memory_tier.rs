//! Entries that are kept in memory in front of the store.
//!
//! Bounded in bytes: an entry counts with its body, its header fields and what keeping it costs. What
//! was asked for once does not push out what is asked for again and again (`quick_cache` admits new
//! entries to a small queue of its own). Bodies are shared with the answers that they go out in.
//!
//! The store stays what counts. An entry is served as long as it is fresh, and every so often one of
//! its hits is told to compare it with the store beside the answer, so that what other replicas wrote
//! or removed arrives. What an unsafe method of this process has invalidated is taken out at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prometheus_client::registry::Unit;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use super::invalidations::{InvalidationSeq, Invalidations};
use crate::clock::Stopwatch;
use crate::entry::{Key, Record, Source};
use crate::telemetry::Metrics;

/// What an entry costs beside its body and its fields: key, record, and its place in the cache.
const ENTRY_BYTES: u64 = 512;

/// Parts that are locked by themselves. Each has its share of the bytes and keeps nothing larger, so
/// there are few.
const SHARDS: usize = 4;

/// Of the average entry, to choose the size of the tables; being wrong costs nothing but memory.
const ESTIMATED_ENTRY_BYTES: u64 = 32 * 1024;

/// The tier; clones share it.
#[derive(Debug, Clone)]
pub(super) struct MemoryTier(Option<Arc<Tier>>);

#[derive(Debug)]
struct Tier {
    cache: Cache<Key, Arc<Kept>, Weight>,
    largest_body: u64,
    recheck: Duration,
    since: Stopwatch,
    invalidations: Invalidations,
}

/// A whole entry.
#[derive(Debug)]
pub(super) struct Kept {
    /// Its record.
    pub(super) record: Arc<Record>,
    /// Its body, proved.
    pub(super) body: Bytes,
    bytes: u64,
    /// When it was compared with the store last, in milliseconds since the start.
    compared: AtomicU64,
}

/// What is kept under a key.
#[derive(Debug)]
pub(super) struct Hit {
    /// The entry.
    pub(super) entry: Arc<Kept>,
    /// Whether it is this caller who has to compare it with the store.
    pub(super) is_due: bool,
}

#[derive(Debug, Clone)]
struct Weight;

impl Weighter<Key, Arc<Kept>> for Weight {
    fn weight(&self, _: &Key, kept: &Arc<Kept>) -> u64 {
        kept.bytes
    }
}

impl MemoryTier {
    /// Holds at most `max_bytes`, and bodies up to `largest_body` and a quarter of `max_bytes`; none
    /// with 0. Entries are compared
    /// with the store every `recheck`.
    pub(super) fn new(
        max_bytes: u64,
        largest_body: u64,
        recheck: Duration,
        invalidations: Invalidations,
        metrics: &Metrics,
    ) -> Self {
        let tier = Self::open(max_bytes, largest_body, recheck, invalidations);
        let (bytes, entries) = (tier.clone(), tier.clone());
        metrics.observed(
            "memory",
            "What the memory tier holds now",
            Some(Unit::Bytes),
            move || bytes.usage().0,
        );
        metrics.observed(
            "memory_entries",
            "Entries in the memory tier now",
            None,
            move || entries.usage().1 as u64,
        );
        tier
    }

    fn open(
        max_bytes: u64,
        largest_body: u64,
        recheck: Duration,
        invalidations: Invalidations,
    ) -> Self {
        if max_bytes == 0 {
            return Self(None);
        }
        let options = OptionsBuilder::new()
            .estimated_items_capacity(
                usize::try_from(max_bytes / ESTIMATED_ENTRY_BYTES).unwrap_or(usize::MAX),
            )
            .weight_capacity(max_bytes)
            .shards(SHARDS)
            .build()
            .expect("both capacities are given");
        let cache = Cache::with_options(
            options,
            Weight,
            DefaultHashBuilder::default(),
            DefaultLifecycle::default(),
        );
        Self(Some(Arc::new(Tier {
            cache,
            largest_body,
            recheck,
            since: Stopwatch::start(),
            invalidations,
        })))
    }

    /// Whether there is a tier at all.
    pub(super) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The entry for `key`.
    pub(super) fn get(&self, key: &Key) -> Option<Hit> {
        let tier = self.0.as_ref()?;
        let entry = tier.cache.get(key)?;
        let now = tier.now();
        let compared = entry.compared.load(Ordering::Relaxed);
        let is_due = u128::from(now.saturating_sub(compared)) >= tier.recheck.as_millis()
            && entry
                .compared
                .compare_exchange(compared, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        Some(Hit { entry, is_due })
    }

    /// Keeps a whole, proved entry that was asked for, from the upstream or the store, at `asked`,
    /// unless it was invalidated since, or a later response is kept. The body is copied, because it may be a part of a larger buffer:
    /// what is counted is what is held.
    pub(super) fn put(
        &self,
        key: &Key,
        record: Arc<Record>,
        body: &[Bytes],
        asked: InvalidationSeq,
    ) {
        let Some(tier) = &self.0 else {
            return;
        };
        let length: usize = body.iter().map(Bytes::len).sum();
        if length as u64 > tier.largest_body {
            return;
        }
        // What was read from the store may have been replaced since.
        let is_late = |kept: Arc<Kept>| kept.record.response_time > record.response_time;
        if tier.cache.peek(key).is_some_and(is_late) {
            return;
        }
        let mut whole = BytesMut::with_capacity(length);
        for chunk in body {
            whole.extend_from_slice(chunk);
        }
        tier.put(key, record, whole.freeze(), asked);
    }

    /// Gives an entry its new record, if it is kept with the same body.
    pub(super) fn freshen(&self, key: &Key, record: Record, asked: InvalidationSeq) {
        let Some(tier) = &self.0 else {
            return;
        };
        if let Some(kept) = tier.cache.peek(key)
            && kept.record.body == record.body
        {
            tier.put(key, Arc::new(record), kept.body.clone(), asked);
        }
    }

    /// Takes out an entry, whatever it is.
    pub(super) fn remove(&self, key: &Key) {
        if let Some(tier) = &self.0 {
            tier.cache.remove(key);
        }
    }

    /// Takes out an entry if it is still this one.
    pub(super) fn remove_this(&self, key: &Key, entry: &Arc<Kept>) {
        if let Some(tier) = &self.0 {
            tier.cache.remove_if(key, |kept| Arc::ptr_eq(kept, entry));
        }
    }

    /// Takes out all entries of a source. Looks at each entry that is kept.
    pub(super) fn remove_source(&self, source: &Source) {
        if let Some(tier) = &self.0 {
            tier.cache.retain(|key, _| key.source() != source);
        }
    }

    /// Bytes and number of the entries that are kept.
    pub(super) fn usage(&self) -> (u64, usize) {
        match &self.0 {
            None => (0, 0),
            Some(tier) => (tier.cache.weight(), tier.cache.len()),
        }
    }
}

impl Tier {
    fn put(&self, key: &Key, record: Arc<Record>, body: Bytes, asked: InvalidationSeq) {
        let fields: usize = record
            .headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        let kept = Kept {
            bytes: ENTRY_BYTES + (fields + body.len()) as u64,
            record,
            body,
            compared: AtomicU64::new(self.now()),
        };
        let is_hidden = || self.invalidations.hides(key.source(), asked);
        if is_hidden() {
            return;
        }
        self.cache.insert(key.clone(), Arc::new(kept));
        // An invalidation that came meanwhile may have looked for it too early.
        if is_hidden() {
            self.cache.remove(key);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
