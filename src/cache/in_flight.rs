//! Entries that are on their way into the store, or out of it.
//!
//! [`InFlight`] has the fills that are whole, but not yet confirmed by the store: from the end of a stream
//! until its commit is confirmed, and until the last follower has seen it, lookups are served from the bytes
//! that are held for it. It has the keys, too, that a lookup reads from the store, so that others need not
//! read them as well. An entry of the table lives exactly as long as its guard.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::budget::Reservation;
use super::invalidations::Moment;
use crate::entry::{Key, Record};

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

/// The table; clones share it. Its size is bounded by what the memory budget lets fills hold, and by the
/// number of open streams.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Mutex<Keys>>);

#[derive(Debug, Default)]
struct Keys {
    fills: HashMap<Key, Slot>,
    reads: HashMap<Key, watch::Receiver<Option<Read>>>,
}

/// What a lookup of a key has to do.
#[derive(Debug)]
pub enum Lookup {
    /// Wait for somebody who has the entry, or will have it.
    Waits(Waits),
    /// Read the store; the one that leads tells those that come later.
    Reads(Option<Reading>),
}

/// For whom a lookup waits.
#[derive(Debug)]
pub enum Waits {
    /// There is a whole fill, or will be as soon as its record is made.
    Fill(Filled),
    /// Another lookup reads the store.
    Read(JoinedRead),
}

/// Waits for the record of a whole fill.
#[derive(Debug)]
pub struct Filled(watch::Receiver<Option<Arc<Held>>>);

/// Waits for what another lookup reads.
#[derive(Debug)]
pub struct JoinedRead(watch::Receiver<Option<Read>>);

/// A lookup that others join. Dropping it lets each of those read for itself.
#[derive(Debug)]
pub struct Reading {
    table: InFlight,
    key: Key,
    read: watch::Sender<Option<Read>>,
}

/// What a lookup leaves to those that joined it.
#[derive(Debug, Clone)]
pub enum Read {
    /// The entry, whole.
    Whole(Whole),
    /// That there is none.
    Absent,
    /// Nothing: each has to read for itself.
    Alone,
}

/// A whole entry that was read.
#[derive(Debug, Clone)]
pub struct Whole {
    /// Its record.
    pub record: Arc<Record>,
    /// Its body, proved.
    pub body: Bytes,
    /// Room for the body.
    pub room: Arc<Reservation>,
}

/// One whole fill.
#[derive(Debug, Clone)]
struct Slot {
    /// `None` until the record is made.
    held: watch::Receiver<Option<Arc<Held>>>,
    /// A lookup waits for that, or has waited.
    wanted: Arc<Notify>,
}

/// The place of one whole fill among those that lookups see; dropping it takes the entry away.
#[derive(Debug)]
pub struct Pending {
    table: InFlight,
    key: Key,
    slot: Slot,
}

/// Fills that place. Dropping it before lets those go that wait.
#[derive(Debug)]
pub struct Display {
    held: watch::Sender<Option<Arc<Held>>>,
    wanted: Arc<Notify>,
}

/// What keeps whole fills shown, with the room for their bytes: the task that commits them, and
/// whoever waits for them, share it.
#[derive(Debug)]
pub struct Shown {
    _pending: Vec<Pending>,
    _room: Reservation,
}

impl Shown {
    /// Keeps these shown.
    pub fn new(pending: Vec<Pending>, room: Reservation) -> Arc<Self> {
        Arc::new(Self {
            _pending: pending,
            _room: room,
        })
    }
}

impl InFlight {
    /// Announces a whole fill: from here on lookups wait for [`Display::show`] or the drop of one of
    /// both. A fill of the same key takes the place of an earlier one, and what is being read meanwhile is not
    /// for lookups that begin later.
    pub fn announce(&self, key: &Key) -> (Pending, Display) {
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
        let pending = Pending {
            table: self.clone(),
            key: key.clone(),
            slot,
        };
        let display = Display {
            held: sender,
            wanted,
        };
        (pending, display)
    }

    /// Whether there is a whole fill for `key`, or will be as soon as its record is made.
    pub fn has(&self, key: &Key) -> bool {
        self.lock().fills.contains_key(key)
    }

    /// What a lookup of `key` has to do. If it reads and is one that `leads`, those that come later wait for it.
    pub fn look_up(&self, key: &Key, leads: bool) -> Lookup {
        let mut table = self.lock();
        if let Some(slot) = table.fills.get(key) {
            slot.wanted.notify_one();
            return Lookup::Waits(Waits::Fill(Filled(slot.held.clone())));
        }
        if let Some(read) = table.reads.get(key) {
            return Lookup::Waits(Waits::Read(JoinedRead(read.clone())));
        }
        Lookup::Reads(leads.then(|| {
            let (sender, read) = watch::channel(None);
            table.reads.insert(key.clone(), read);
            Reading {
                table: self.clone(),
                key: key.clone(),
                read: sender,
            }
        }))
    }

    /// What is being read of `key` is not for lookups that begin later: the entry has changed.
    pub fn part(&self, key: &Key) {
        self.lock().reads.remove(key);
    }

    /// As [`InFlight::part`], of all keys.
    pub fn part_all(&self) {
        self.lock().reads.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Keys> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filled {
    /// The fill; `None` if it comes to nothing. Waits at most until its record is made, which takes as long as
    /// hashing the body and begins at the latest now. The caller brings the deadline.
    pub async fn end(mut self) -> Option<Arc<Held>> {
        let held = self.0.wait_for(Option::is_some).await.ok()?;
        held.clone()
    }
}

impl JoinedRead {
    /// What it reads. The caller brings the deadline.
    pub async fn end(mut self) -> Read {
        let read = self.0.wait_for(Option::is_some).await;
        read.ok()
            .and_then(|read| read.clone())
            .unwrap_or(Read::Alone)
    }
}

impl Reading {
    /// Leaves this to those that joined.
    pub fn end(self, read: Read) {
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

impl Display {
    /// Shows the entry to lookups, those that wait included.
    pub fn show(&self, held: Arc<Held>) {
        self.held.send_replace(Some(held));
    }

    /// Waits until a lookup waits; not at all if one has.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

impl Drop for Pending {
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
            asked: Moment::default(),
        })
    }

    fn filled(table: &InFlight) -> Filled {
        match table.look_up(&key(), true) {
            Lookup::Waits(Waits::Fill(filled)) => filled,
            other => panic!("{other:?}"),
        }
    }

    fn reading(table: &InFlight) -> Reading {
        match table.look_up(&key(), true) {
            Lookup::Reads(Some(reading)) => reading,
            other => panic!("{other:?}"),
        }
    }

    fn joining(table: &InFlight) -> JoinedRead {
        match table.look_up(&key(), true) {
            Lookup::Waits(Waits::Read(joined)) => joined,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_lookup_waits_for_the_record_and_gets_the_entry() {
        let table = InFlight::default();
        let (pending, display) = table.announce(&key());
        let waiting = tokio::spawn(filled(&table).end());
        display.wanted().await;
        display.show(held());
        drop(display);
        assert!(waiting.await.unwrap().is_some());
        assert!(filled(&table).end().await.is_some());
        drop(pending);
        assert!(!table.has(&key()));
    }

    #[tokio::test]
    async fn a_fill_that_fails_lets_its_waiters_go() {
        let table = InFlight::default();
        let (pending, display) = table.announce(&key());
        let waiting = tokio::spawn(filled(&table).end());
        tokio::task::yield_now().await;
        // Others may hold its place for longer.
        drop(display);
        assert!(waiting.await.unwrap().is_none());
        assert!(filled(&table).end().await.is_none());
        drop(pending);
    }

    #[tokio::test]
    async fn the_end_of_an_earlier_fill_leaves_a_later_one_in_place() {
        let table = InFlight::default();
        let earlier = table.announce(&key());
        let (later, display) = table.announce(&key());
        drop(earlier);
        display.show(held());
        assert!(filled(&table).end().await.is_some());
        drop(later);
    }

    #[tokio::test]
    async fn a_lookup_joins_the_one_that_reads() {
        let table = InFlight::default();
        let first = reading(&table);
        let (joined, head) = (joining(&table), table.look_up(&key(), false));
        first.end(Read::Absent);
        assert!(matches!(joined.end().await, Read::Absent));
        assert!(matches!(head, Lookup::Waits(Waits::Read(_))));
        // Nobody has read it for those that come now, and one without a body reads for nobody else.
        assert!(matches!(table.look_up(&key(), false), Lookup::Reads(None)));
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
            |table| table.part(&key()),
            InFlight::part_all,
        ];
        for change in changes {
            let table = InFlight::default();
            let before = reading(&table);
            change(&table);
            let after = reading(&table);
            let joined = joining(&table);
            // It leaves the later one in its place.
            before.end(Read::Absent);
            assert!(matches!(
                table.look_up(&key(), true),
                Lookup::Waits(Waits::Read(_))
            ));
            after.end(Read::Alone);
            assert!(matches!(joined.end().await, Read::Alone));
        }
    }

    #[test]
    fn the_same_digest_in_another_namespace_or_epoch_is_another_entry() {
        let table = InFlight::default();
        let _announced = table.announce(&key());
        let read = |namespace, epoch| Key::from_parts(namespace, epoch, [1; 32], [3; 32]);
        let _reading = table.look_up(&read("test", 1), true);
        for (namespace, epoch) in [("other", 1), ("test", 2)] {
            assert!(!table.has(&Key::from_parts(namespace, epoch, [1; 32], [2; 32])));
            let looked_up = table.look_up(&read(namespace, epoch), true);
            assert!(matches!(looked_up, Lookup::Reads(_)));
        }
    }
}
