//! What requests of this process for the same key know of each other.
//!
//! [`InFlight`] has the fills that are whole, but not yet confirmed by the store: from the end of a
//! stream until its commit is confirmed, lookups are served from the bytes that are held for it.
//! [`Refreshes`] has the keys whose stale entry one request is asking the upstream about, while the
//! others are served the stale one. What is in a table lives exactly as long as its guard.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::entry::Record;
use crate::marks::Moment;
use crate::policy::Key;

/// A whole entry that is held in memory.
#[derive(Debug)]
pub struct Held {
    /// Its record.
    pub record: Arc<Record>,
    /// Its body.
    pub chunks: Vec<Bytes>,
    /// When it was asked for.
    pub asked: Moment,
}

/// The table; clones share it. Its size is bounded by what the memory budget lets fills hold.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Mutex<HashMap<[u8; 32], Slot>>>);

/// `None` until the record is made.
type Slot = watch::Receiver<Option<Arc<Held>>>;

/// The right to show one whole fill to lookups; dropping it takes the entry away.
#[derive(Debug)]
pub struct Pending {
    table: InFlight,
    digest: [u8; 32],
    sender: watch::Sender<Option<Arc<Held>>>,
}

impl InFlight {
    /// Announces a whole fill: from here on lookups wait for [`Pending::show`] or the drop. A fill
    /// of the same key takes the place of an earlier one.
    pub fn announce(&self, key: &Key) -> Pending {
        let (sender, receiver) = watch::channel(None);
        self.lock().insert(*key.digest(), receiver);
        Pending {
            table: self.clone(),
            digest: *key.digest(),
            sender,
        }
    }

    /// The whole fill for `key`, if there is one. Waits at most until its record is made, which
    /// takes as long as hashing the body; the caller brings the deadline.
    pub async fn get(&self, key: &Key) -> Option<Arc<Held>> {
        let mut slot = self.lock().get(key.digest()).cloned()?;
        let held = slot.wait_for(Option::is_some).await.ok()?;
        held.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// Shows the entry to lookups, those that wait included.
    pub fn show(&self, held: Arc<Held>) {
        self.sender.send_replace(Some(held));
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        // A later fill of the same key may have taken the place.
        let is_own = table
            .get(&self.digest)
            .is_some_and(|slot| slot.same_channel(&self.sender.subscribe()));
        if is_own {
            table.remove(&self.digest);
        }
    }
}

/// The keys that are being refreshed; clones share them. At most one for each open stream.
#[derive(Debug, Clone, Default)]
pub struct Refreshes(Arc<Mutex<HashSet<[u8; 32]>>>);

/// The task to refresh one key; dropping it lets another request have it.
#[derive(Debug)]
pub struct Claim {
    table: Refreshes,
    digest: [u8; 32],
}

impl Refreshes {
    /// Takes the task to refresh `key`; `None` while another request has it.
    pub fn claim(&self, key: &Key) -> Option<Claim> {
        self.lock().insert(*key.digest()).then(|| Claim {
            table: self.clone(),
            digest: *key.digest(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<[u8; 32]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.table.lock().remove(&self.digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::entry::BodyProof;

    fn key() -> Key {
        Key::from_parts("test", 1, [1; 32], [2; 32])
    }

    fn held() -> Arc<Held> {
        Arc::new(Held {
            record: Arc::new(Record {
                variants: None,
                key_digest: *key().digest(),
                status: http::StatusCode::OK,
                headers: http::HeaderMap::new(),
                response_time: Timestamp::from_unix(1),
                initial_age: 0,
                body: BodyProof::of(&[]),
            }),
            chunks: Vec::new(),
            asked: Moment::default(),
        })
    }

    #[test]
    fn one_request_at_a_time_refreshes_a_key() {
        let table = Refreshes::default();
        let first = table.claim(&key());
        assert!(first.is_some() && table.claim(&key()).is_none());
        drop(first);
        assert!(table.claim(&key()).is_some());
    }

    #[tokio::test]
    async fn a_lookup_waits_for_the_record_and_gets_the_entry() {
        let table = InFlight::default();
        let pending = table.announce(&key());
        let waiting = tokio::spawn({
            let table = table.clone();
            async move { table.get(&key()).await }
        });
        tokio::task::yield_now().await;
        pending.show(held());
        assert!(waiting.await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_fill_that_fails_lets_its_waiters_go() {
        let table = InFlight::default();
        let pending = table.announce(&key());
        let waiting = tokio::spawn({
            let table = table.clone();
            async move { table.get(&key()).await }
        });
        tokio::task::yield_now().await;
        drop(pending);
        assert!(waiting.await.unwrap().is_none());
        assert!(table.get(&key()).await.is_none());
    }

    #[tokio::test]
    async fn the_end_of_an_earlier_fill_leaves_a_later_one_in_place() {
        let table = InFlight::default();
        let earlier = table.announce(&key());
        let later = table.announce(&key());
        drop(earlier);
        later.show(held());
        assert!(table.get(&key()).await.is_some());
    }
}
