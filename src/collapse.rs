//! What requests of this process for the same key know of each other.
//!
//! [`Groups`] has the keys that a request was sent on for: it leads, the others follow, which means
//! that they wait for what becomes of it. [`InFlight`] has the fills that are whole, but not yet
//! confirmed by the store: from the end of a stream until its commit is confirmed, and until the
//! last follower has seen it, lookups are served from the bytes that are held for it. It has the keys,
//! too, that a lookup reads from the store, so that others need not read them as well. [`Refreshes`]
//! has the keys whose stale entry one request is asking the upstream about, while the others are
//! served the stale one. What is in a table lives exactly as long as its guard.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quick_cache::sync::Cache;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::budget::Reservation;
use crate::clock::Stopwatch;
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

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Key>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.table.lock().remove(&self.key);
    }
}

/// Keys that are not waited for, and keys that were stored, at most of each; beyond them those go that
/// were used least.
const REMEMBERED: usize = 8192;

/// The keys that a request was sent on for; clones share them. At most one for each open stream.
#[derive(Debug, Clone)]
pub struct Groups(Arc<Table>);

#[derive(Debug)]
struct Table {
    groups: Mutex<HashMap<Key, Arc<Group>>>,
    /// Since when, and for how long, requests for a key do not wait for each other (hit-for-miss).
    alone: Cache<Key, (Stopwatch, Duration)>,
    /// When there last was something to be looked up. A lookup that began earlier may have missed it,
    /// and must not lead.
    stored: Cache<Key, Stopwatch>,
    /// Followers of one group that may be sent on at a time.
    turns: usize,
}

/// The requests that wait for one leader.
#[derive(Debug)]
struct Group {
    verdict: watch::Sender<Verdict>,
    turns: Arc<Semaphore>,
}

/// What became of a leader.
#[derive(Debug, Clone)]
enum Verdict {
    Open,
    Stored(Option<Arc<Shown>>),
    Refused,
    Left,
}

/// Which part a request has.
#[derive(Debug)]
pub enum Joined {
    /// It is sent on, and others wait for it.
    Lead(Lead),
    /// It waits.
    Follow(Follow),
    /// It is sent on, and nobody waits for it.
    Alone,
}

/// The part of the leader. Dropping it is leaving: one of the followers leads then.
#[derive(Debug)]
pub struct Lead {
    table: Groups,
    key: Key,
    group: Arc<Group>,
    has_ended: bool,
}

/// The part of a follower.
#[derive(Debug)]
pub struct Follow {
    table: Groups,
    key: Key,
    looked_up: Stopwatch,
    verdict: watch::Receiver<Verdict>,
    turns: Arc<Semaphore>,
}

/// What a follower has waited for.
#[derive(Debug)]
pub enum Followed {
    /// There is something to be looked up, and as long as this is held, it is.
    Stored(Option<Arc<Shown>>),
    /// The leader left, and this request leads now.
    Lead(Lead),
    /// There is nothing; this request may be sent on, and the next one when this is dropped.
    Turn(OwnedSemaphorePermit),
    /// The time was over.
    TimedOut,
}

impl Followed {
    /// The word for labels.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stored(_) => "stored",
            Self::Lead(_) => "lead",
            Self::Turn(_) => "turn",
            Self::TimedOut => "timed_out",
        }
    }
}

impl Groups {
    /// `turns`: how many followers of one group are sent on at a time when there is nothing to
    /// serve them; at least 1.
    pub fn new(turns: usize) -> Self {
        Self(Arc::new(Table {
            groups: Mutex::default(),
            alone: Cache::new(REMEMBERED),
            stored: Cache::new(REMEMBERED),
            turns,
        }))
    }

    /// Takes the part that is left for a request of this key, for which nothing usable was found by a
    /// lookup that began at `looked_up`. If a leader has stored something since then, the request
    /// follows it.
    pub fn join(&self, key: &Key, looked_up: Stopwatch) -> Joined {
        if let Some((since, lasts)) = self.0.alone.get(key) {
            if since.elapsed() < lasts {
                return Joined::Alone;
            }
            self.0.alone.remove(key);
        }
        let mut groups = self.lock();
        let follow = |group: &Group| {
            Joined::Follow(Follow {
                table: self.clone(),
                key: key.clone(),
                looked_up,
                verdict: group.verdict.subscribe(),
                turns: Arc::clone(&group.turns),
            })
        };
        if let Some(group) = groups.get(key) {
            return follow(group);
        }
        let new = |verdict| Group {
            verdict: watch::Sender::new(verdict),
            turns: Arc::new(Semaphore::new(self.0.turns)),
        };
        let stored = self.0.stored.get(key);
        if stored.is_some_and(|stored| looked_up <= stored) {
            return follow(&new(Verdict::Stored(None)));
        }
        let group = Arc::new(new(Verdict::Open));
        groups.insert(key.clone(), Arc::clone(&group));
        Joined::Lead(Lead {
            table: self.clone(),
            key: key.clone(),
            group,
            has_ended: false,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Group>>> {
        self.0.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lead {
    /// Whether others wait.
    pub fn is_followed(&self) -> bool {
        self.group.verdict.receiver_count() > 0
    }

    /// There is something to be looked up now; what is `shown` stays so for those who wait.
    pub fn stored(mut self, shown: Option<Arc<Shown>>) {
        self.end(Verdict::Stored(shown));
    }

    /// There is nothing for others. For so long nobody waits for a request of this key.
    pub fn refused(mut self, alone: Duration) {
        if !alone.is_zero() {
            let alone = (Stopwatch::start(), alone);
            self.table.0.alone.insert(self.key.clone(), alone);
        }
        self.end(Verdict::Refused);
    }

    fn end(&mut self, verdict: Verdict) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let mut groups = self.table.lock();
        if let Verdict::Stored(_) = verdict {
            let stored = Stopwatch::start();
            self.table.0.stored.insert(self.key.clone(), stored);
        }
        // Whoever comes from here on finds what is stored, or leads.
        groups.remove(&self.key);
        drop(groups);
        self.group.verdict.send_replace(verdict);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.end(Verdict::Left);
    }
}

impl Follow {
    /// Waits for what becomes of the leader, at most so long.
    pub async fn end(self, patience: Duration) -> Followed {
        tokio::time::timeout(patience, self.turn())
            .await
            .unwrap_or(Followed::TimedOut)
    }

    async fn turn(mut self) -> Followed {
        loop {
            let is_over = |verdict: &Verdict| !matches!(verdict, Verdict::Open);
            let verdict = match self.verdict.wait_for(is_over).await {
                Ok(verdict) => verdict.clone(),
                Err(_) => Verdict::Left,
            };
            let joined = match verdict {
                Verdict::Stored(shown) => return Followed::Stored(shown),
                Verdict::Refused => Joined::Alone,
                Verdict::Open | Verdict::Left => self.table.join(&self.key, self.looked_up),
            };
            match joined {
                Joined::Lead(lead) => return Followed::Lead(lead),
                Joined::Follow(follow) => self = follow,
                Joined::Alone => {
                    let turn = Arc::clone(&self.turns).acquire_owned().await;
                    return turn.map_or(Followed::TimedOut, Followed::Turn);
                }
            }
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

    #[test]
    fn one_request_at_a_time_refreshes_a_key() {
        let table = Refreshes::default();
        let first = table.claim(&key());
        assert!(first.is_some() && table.claim(&key()).is_none());
        drop(first);
        assert!(table.claim(&key()).is_some());
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

    const PATIENCE: Duration = Duration::from_secs(3600);

    fn lead(groups: &Groups) -> Lead {
        match groups.join(&key(), Stopwatch::start()) {
            Joined::Lead(lead) => lead,
            other => panic!("{other:?}"),
        }
    }

    fn follow(groups: &Groups) -> Follow {
        match groups.join(&key(), Stopwatch::start()) {
            Joined::Follow(follow) => follow,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_first_leads_and_the_rest_see_what_it_stored() {
        let groups = Groups::new(4);
        let leader = lead(&groups);
        assert!(!leader.is_followed());
        let followers = [follow(&groups), follow(&groups)];
        assert!(leader.is_followed());
        leader.stored(None);
        for follower in followers {
            let followed = follower.end(PATIENCE).await;
            assert!(matches!(followed, Followed::Stored(None)), "{followed:?}");
        }
        drop(lead(&groups));
    }

    #[tokio::test]
    async fn when_the_leader_leaves_one_follower_leads() {
        let groups = Groups::new(4);
        let leader = lead(&groups);
        let (first, second) = (follow(&groups), follow(&groups));
        drop(leader);
        let Followed::Lead(leader) = first.end(PATIENCE).await else {
            panic!("nobody leads")
        };
        let second = tokio::spawn(second.end(PATIENCE));
        tokio::task::yield_now().await;
        leader.stored(None);
        assert!(matches!(second.await.unwrap(), Followed::Stored(_)));
    }

    #[tokio::test]
    async fn who_looked_up_before_a_leader_stored_does_not_lead_after_it() {
        let groups = Groups::new(4);
        let looked_up = Stopwatch::start();
        lead(&groups).stored(None);
        let Joined::Follow(late) = groups.join(&key(), looked_up) else {
            panic!("a second request for what is stored")
        };
        let followed = late.end(PATIENCE).await;
        assert!(matches!(followed, Followed::Stored(None)), "{followed:?}");
        // What is looked up afterwards and not found is gone again.
        drop(lead(&groups));
    }

    #[tokio::test]
    async fn followers_of_a_refused_leader_are_released_a_few_at_a_time() {
        let groups = Groups::new(2);
        let leader = lead(&groups);
        let followers: Vec<_> = (0..3).map(|_| follow(&groups)).collect();
        leader.refused(Duration::ZERO);
        let mut followers = followers.into_iter();
        let mut next = || followers.next().unwrap();
        let first = next().end(PATIENCE).await;
        let second = next().end(PATIENCE).await;
        assert!(matches!(
            (&first, &second),
            (Followed::Turn(_), Followed::Turn(_))
        ));
        let third = tokio::spawn(next().end(PATIENCE));
        tokio::task::yield_now().await;
        assert!(!third.is_finished());
        drop(first);
        assert!(matches!(third.await.unwrap(), Followed::Turn(_)));
    }

    #[tokio::test]
    async fn nobody_waits_for_longer_than_asked() {
        let groups = Groups::new(1);
        let leader = lead(&groups);
        let followed = follow(&groups).end(Duration::ZERO).await;
        assert!(matches!(followed, Followed::TimedOut), "{followed:?}");
        drop(leader);
    }

    #[tokio::test]
    async fn hit_for_miss_lasts_as_long_as_said() {
        let groups = Groups::new(1);
        lead(&groups).refused(Duration::from_secs(3600));
        assert!(matches!(
            groups.join(&key(), Stopwatch::start()),
            Joined::Alone
        ));
        let groups = Groups::new(1);
        lead(&groups).refused(Duration::from_nanos(1));
        drop(lead(&groups));
    }

    #[test]
    fn the_same_digest_in_another_namespace_or_epoch_is_another_entry() {
        let others = [
            Key::from_parts("other", 1, [1; 32], [2; 32]),
            Key::from_parts("test", 2, [1; 32], [2; 32]),
        ];
        let (groups, in_flight) = (Groups::new(1), InFlight::default());
        let refreshes = Refreshes::default();
        let _lead = lead(&groups);
        let _claim = refreshes.claim(&key()).unwrap();
        let _announced = in_flight.announce(&key());
        let read = Key::from_parts("test", 1, [1; 32], [3; 32]);
        let _reading = in_flight.look_up(&read, true);
        for other in &others {
            let joined = groups.join(other, Stopwatch::start());
            assert!(matches!(joined, Joined::Lead(_)), "{other:?}");
            assert!(refreshes.claim(other).is_some(), "{other:?}");
            assert!(!in_flight.has(other), "{other:?}");
        }
        let other = Key::from_parts("other", 1, [1; 32], [3; 32]);
        assert!(matches!(in_flight.look_up(&other, true), Lookup::Reads(_)));
    }
}
