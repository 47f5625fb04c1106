//! Entries that are on their way into the store, or out of it.
//!
//! [`InFlight`] has the fills that are whole, but not yet confirmed by the store: from the end of a response
//! until its commit is confirmed, and until the last follower has seen it, lookups are served from the bytes
//! that are held for it. It has the keys, too, that a lookup reads from the store, so that others need not
//! read them as well. An entry of the table lives exactly as long as its guard.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::budget::Reservation;
use super::invalidations::InvalidationSeq;
use crate::entry::{Key, Record, Source};

/// A whole entry that is held in memory.
#[derive(Debug)]
pub(super) struct Held {
    /// Its record.
    pub(super) record: Arc<Record>,
    /// Its body.
    pub(super) chunks: Vec<Bytes>,
    /// When it was asked for.
    pub(super) asked: InvalidationSeq,
}

/// The table; clones share it. Its size is bounded by what the memory budget lets fills hold, and by the
/// number of open streams.
#[derive(Debug, Clone, Default)]
pub(super) struct InFlight(Arc<Mutex<Keys>>);

#[derive(Debug, Default)]
struct Keys {
    fills: HashMap<Key, Slot>,
    reads: HashMap<Key, watch::Receiver<Option<Read>>>,
}

/// What a lookup of a key does.
#[derive(Debug)]
pub(super) enum LookupStep {
    /// It reads the store.
    Reads,
    /// It reads the store, and those that come later wait for what it reads.
    ReadsForAll(Reading),
    /// It waits for a fill that is whole.
    WaitsForFill(Filled),
    /// It waits for what another lookup reads.
    JoinsRead(JoinedRead),
}

/// Waits for the record of a whole fill.
#[derive(Debug)]
pub(super) struct Filled(watch::Receiver<Option<Arc<Held>>>);

/// Waits for what another lookup reads.
#[derive(Debug)]
pub(super) struct JoinedRead(watch::Receiver<Option<Read>>);

/// A lookup that others join. Dropping it lets each of them read for itself.
#[derive(Debug)]
pub(super) struct Reading {
    table: InFlight,
    key: Key,
    read: watch::Sender<Option<Read>>,
}

/// What a lookup leaves to those that joined it.
#[derive(Debug, Clone)]
pub(super) enum Read {
    /// The entry, whole.
    Whole(Whole),
    /// There is no entry.
    Absent,
    /// Nothing: each reads for itself.
    Alone,
}

/// A whole entry that was read.
#[derive(Debug, Clone)]
pub(super) struct Whole {
    /// Its record.
    pub(super) record: Arc<Record>,
    /// Its body, proved.
    pub(super) body: Bytes,
}

/// One whole fill.
#[derive(Debug, Clone)]
struct Slot {
    /// `None` until the record is made.
    held: watch::Receiver<Option<Arc<Held>>>,
    /// A lookup waits for the record, or has waited.
    wanted: Arc<Notify>,
}

/// The place of one whole fill among those that lookups see. Dropping it takes the fill out of the table.
#[derive(Debug)]
pub(super) struct SlotGuard {
    table: InFlight,
    key: Key,
    slot: Slot,
}

/// Puts a fill into its place. Dropping it before lets those go that wait.
#[derive(Debug)]
pub(super) struct Publisher {
    held: watch::Sender<Option<Arc<Held>>>,
    wanted: Arc<Notify>,
}

/// Keeps whole fills visible to lookups, with the reservation for their bytes. The task that commits them and
/// whoever waits for them share it.
#[derive(Debug)]
pub struct Published {
    _slots: Vec<SlotGuard>,
    _reservation: Reservation,
}

impl Published {
    pub(super) fn new(slots: Vec<SlotGuard>, reservation: Reservation) -> Arc<Self> {
        Arc::new(Self {
            _slots: slots,
            _reservation: reservation,
        })
    }
}

impl InFlight {
    /// Announces a whole fill. Later lookups wait until [`Publisher::publish`], or until one of both is dropped. A
    /// fill of the same key takes the place of an earlier one, and later lookups no longer join a read that is
    /// under way.
    pub(super) fn announce(&self, key: &Key) -> (SlotGuard, Publisher) {
        let (sender, held) = watch::channel(None);
        let wanted = Arc::new(Notify::new());
        let slot = Slot {
            held,
            wanted: Arc::clone(&wanted),
        };
        let mut table = self.lock();
        table.fills.insert(key.clone(), slot.clone());
        table.reads.remove(key);
        drop(table);
        let guard = SlotGuard {
            table: self.clone(),
            key: key.clone(),
            slot,
        };
        let publisher = Publisher {
            held: sender,
            wanted,
        };
        (guard, publisher)
    }

    /// Whether there is a whole fill for `key`.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.lock().fills.contains_key(key)
    }

    /// What a lookup of `key` does. When it reads the store, later lookups wait for what it reads.
    pub(super) fn look_up(&self, key: &Key) -> LookupStep {
        let mut table = self.lock();
        table.wait(key).unwrap_or_else(|| {
            let (sender, read) = watch::channel(None);
            table.reads.insert(key.clone(), read);
            LookupStep::ReadsForAll(Reading {
                table: self.clone(),
                key: key.clone(),
                read: sender,
            })
        })
    }

    /// As [`InFlight::look_up`] for a lookup that wants no body. What it reads is not enough for others.
    pub(super) fn look_up_head(&self, key: &Key) -> LookupStep {
        self.lock().wait(key).unwrap_or(LookupStep::Reads)
    }

    /// Later lookups no longer join a read of `key` that is under way: the entry has changed.
    pub(super) fn detach_readers(&self, key: &Key) {
        self.lock().reads.remove(key);
    }

    /// As [`InFlight::detach_readers`], for all keys of `source`.
    pub(super) fn detach_readers_of(&self, source: &Source) {
        self.lock().reads.retain(|key, _| key.source() != source);
    }

    /// Whether no fill is whole and no lookup reads.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        let table = self.lock();
        table.fills.is_empty() && table.reads.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn wait(&self, key: &Key) -> Option<LookupStep> {
        if let Some(slot) = self.fills.get(key) {
            slot.wanted.notify_one();
            return Some(LookupStep::WaitsForFill(Filled(slot.held.clone())));
        }
        let read = self.reads.get(key)?;
        Some(LookupStep::JoinsRead(JoinedRead(read.clone())))
    }
}

impl Filled {
    /// The fill; `None` if it comes to nothing. It waits until the record is made, which takes as long as hashing the
    /// body and begins at the latest now. The caller brings the deadline.
    pub(super) async fn end(mut self) -> Option<Arc<Held>> {
        let held = self.0.wait_for(Option::is_some).await.ok()?;
        held.clone()
    }
}

impl JoinedRead {
    /// What the other lookup reads. The caller brings the deadline.
    pub(super) async fn end(mut self) -> Read {
        let read = self.0.wait_for(Option::is_some).await;
        read.ok()
            .and_then(|read| read.clone())
            .unwrap_or(Read::Alone)
    }
}

impl Reading {
    /// Leaves this to those that joined.
    pub(super) fn end(self, read: Read) {
        self.read.send_replace(Some(read));
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        // A later lookup may have taken the place.
        let is_own = table
            .reads
            .get(&self.key)
            .is_some_and(|read| self.read.subscribe().same_channel(read));
        if is_own {
            table.reads.remove(&self.key);
        }
    }
}

impl Publisher {
    /// Makes the entry visible to lookups, those that wait included.
    pub(super) fn publish(&self, held: Arc<Held>) {
        self.held.send_replace(Some(held));
    }

    /// Waits until a lookup wants the entry; not at all if one has.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        // A later fill of the same key may have taken the place.
        let is_own = table
            .fills
            .get(&self.key)
            .is_some_and(|slot| slot.held.same_channel(&self.slot.held));
        if is_own {
            table.fills.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::entry::{BodyProof, Identity};

    fn key() -> Key {
        Key::from_parts("test", 1, [1; 32], [2; 32])
    }

    fn held() -> Arc<Held> {
        Arc::new(Held {
            record: Arc::new(Record {
                variants: None,
                identity: Identity::of(&key()),
                status: http::StatusCode::OK,
                headers: http::HeaderMap::new(),
                response_time: Timestamp::from_unix(1),
                initial_age: 0,
                body: BodyProof::of(&[]),
            }),
            chunks: Vec::new(),
            asked: InvalidationSeq::default(),
        })
    }

    fn filled(table: &InFlight) -> Filled {
        match table.look_up(&key()) {
            LookupStep::WaitsForFill(filled) => filled,
            other => panic!("{other:?}"),
        }
    }

    fn reading(table: &InFlight) -> Reading {
        match table.look_up(&key()) {
            LookupStep::ReadsForAll(reading) => reading,
            other => panic!("{other:?}"),
        }
    }

    fn joining(table: &InFlight) -> JoinedRead {
        match table.look_up(&key()) {
            LookupStep::JoinsRead(joined) => joined,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_lookup_waits_for_the_record_and_gets_the_entry() {
        let table = InFlight::default();
        let (slot, publisher) = table.announce(&key());
        let waiting = tokio::spawn(filled(&table).end());
        publisher.wanted().await;
        publisher.publish(held());
        drop(publisher);
        assert!(waiting.await.unwrap().is_some());
        assert!(filled(&table).end().await.is_some());
        drop(slot);
        assert!(!table.has(&key()));
    }

    #[tokio::test]
    async fn a_fill_that_fails_lets_its_waiters_go() {
        let table = InFlight::default();
        let (slot, publisher) = table.announce(&key());
        let waiting = tokio::spawn(filled(&table).end());
        tokio::task::yield_now().await;
        // Others may hold its place for longer.
        drop(publisher);
        assert!(waiting.await.unwrap().is_none());
        assert!(filled(&table).end().await.is_none());
        drop(slot);
    }

    #[tokio::test]
    async fn the_end_of_an_earlier_fill_leaves_a_later_one_in_place() {
        let table = InFlight::default();
        let earlier = table.announce(&key());
        let (later, publisher) = table.announce(&key());
        drop(earlier);
        publisher.publish(held());
        assert!(filled(&table).end().await.is_some());
        drop(later);
    }

    #[tokio::test]
    async fn a_lookup_joins_the_one_that_reads() {
        let table = InFlight::default();
        let first = reading(&table);
        let (joined, head) = (joining(&table), table.look_up_head(&key()));
        first.end(Read::Absent);
        assert!(matches!(joined.end().await, Read::Absent));
        assert!(matches!(head, LookupStep::JoinsRead(_)));
        // Nobody has read it for those that come now, and one without a body reads for nobody else.
        assert!(matches!(table.look_up_head(&key()), LookupStep::Reads));
        drop(reading(&table));
    }

    #[tokio::test]
    async fn a_lookup_whose_client_leaves_lets_those_go_that_joined_it() {
        let table = InFlight::default();
        let first = reading(&table);
        let joined = joining(&table);
        drop(first);
        assert!(matches!(joined.end().await, Read::Alone));
    }

    #[tokio::test]
    async fn what_is_read_before_a_change_is_not_for_those_that_come_after_it() {
        let changes: [fn(&InFlight); 3] = [
            |table| drop(table.announce(&key())),
            |table| table.detach_readers(&key()),
            |table| table.detach_readers_of(key().source()),
        ];
        for change in changes {
            let table = InFlight::default();
            let before = reading(&table);
            change(&table);
            let after = reading(&table);
            let joined = joining(&table);
            // It leaves the later one in its place.
            before.end(Read::Absent);
            assert!(matches!(table.look_up(&key()), LookupStep::JoinsRead(_)));
            after.end(Read::Alone);
            assert!(matches!(joined.end().await, Read::Alone));
        }
    }

    #[test]
    fn the_same_digest_in_another_namespace_or_epoch_is_another_entry() {
        let table = InFlight::default();
        let _announced = table.announce(&key());
        let read = |namespace, epoch| Key::from_parts(namespace, epoch, [1; 32], [3; 32]);
        let _reading = table.look_up(&read("test", 1));
        for (namespace, epoch) in [("other", 1), ("test", 2)] {
            assert!(!table.has(&Key::from_parts(namespace, epoch, [1; 32], [2; 32])));
            let looked_up = table.look_up(&read(namespace, epoch));
            assert!(matches!(looked_up, LookupStep::ReadsForAll(_)));
        }
    }
}
