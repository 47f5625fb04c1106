//! Entries that the store has refused a short while ago.

use std::time::Duration;

use quick_cache::sync::Cache;

use crate::clock::Stopwatch;
use crate::entry::Key;

/// Entries that are remembered; beyond them those go that were used least.
const REMEMBERED: usize = 8192;

/// The refusals of this process.
#[derive(Debug)]
pub(super) struct Refusals(Cache<Key, (Stopwatch, Duration)>);

impl Refusals {
    pub(super) fn new() -> Self {
        Self(Cache::new(REMEMBERED))
    }

    /// The store has refused this entry, which says something about so long.
    pub(super) fn add(&self, key: &Key, lasts: Duration) {
        self.0.insert(key.clone(), (Stopwatch::start(), lasts));
    }

    /// Whether the store would refuse this entry again.
    pub(super) fn holds_for(&self, key: &Key) -> bool {
        let refusal = self.0.get(key);
        refusal.is_some_and(|(since, lasts)| since.elapsed() < lasts)
    }
}
