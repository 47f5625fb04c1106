//! The keys whose stale entry one request asks the upstream about, while the others get the stale one.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::entry::Key;

/// The keys that are being refreshed; clones share them. At most one for each open stream.
#[derive(Debug, Clone, Default)]
pub struct Refreshes(Arc<Mutex<HashSet<Key>>>);

/// The task to refresh one key; dropping it lets another request have it.
#[derive(Debug)]
pub struct Claim {
    table: Refreshes,
    key: Key,
}

impl Refreshes {
    /// Takes the task to refresh `key`; `None` while another request has it.
    pub fn claim(&self, key: &Key) -> Option<Claim> {
        self.lock().insert(key.clone()).then(|| Claim {
            table: self.clone(),
            key: key.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.table.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::from_parts("test", 1, [1; 32], [2; 32])
    }

    #[test]
    fn one_request_at_a_time_refreshes_a_key() {
        let table = Refreshes::default();
        let first = table.claim(&key());
        assert!(first.is_some() && table.claim(&key()).is_none());
        drop(first);
        assert!(table.claim(&key()).is_some());
    }

    #[test]
    fn the_same_digest_in_another_namespace_or_epoch_is_refreshed_by_itself() {
        let table = Refreshes::default();
        let _claim = table.claim(&key());
        for (namespace, epoch) in [("other", 1), ("test", 2)] {
            let other = Key::from_parts(namespace, epoch, [1; 32], [2; 32]);
            assert!(table.claim(&other).is_some(), "{other:?}");
        }
    }
}
