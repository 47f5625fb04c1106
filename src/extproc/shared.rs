//! What all conversations share, and the lookup.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::routes::Routes;
use crate::cache::body_reader::ROOM_BYTES;
use crate::cache::budget::{Budget, Reservation};
use crate::cache::collapse::Groups;
use crate::cache::fill::Fills;
use crate::cache::in_flight::{Lookup, Read, Waits, Whole};
use crate::cache::memory_tier::Kept;
use crate::cache::refreshes::Refreshes;
use crate::clock::{Clock, Stopwatch};
use crate::entry::Key;
use crate::entry::Record;
use crate::large_hits::Objects;
use crate::policy::{LookupMethod, MissReason};
use crate::session::{Answer, StoredBody};
use crate::store::{self, BodyStream, Store};
use crate::telemetry::Metrics;
use crate::upstream::Fetcher;

/// What all conversations share.
#[derive(Debug)]
pub struct Shared {
    /// Which policy a route means.
    pub routes: Routes,
    /// Where entries are. It answers within the lookup deadline.
    pub store: Arc<dyn Store>,
    /// What may be held.
    pub budget: Budget,
    /// How copies are made.
    pub fills: Fills,
    /// Makes requests of our own.
    pub fetcher: Fetcher,
    /// Comparisons of what memory has with the store that may be under way.
    pub rechecks: Arc<Semaphore>,
    /// Which keys a request was sent on for.
    pub groups: Groups,
    /// Which keys are being refreshed.
    pub refreshes: Refreshes,
    /// Where the proxy fetches large hits; `None`: all are sent to it.
    pub objects: Option<Objects>,
    /// Where everything is counted.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// How long a lookup may take, from asking to having the entry.
    pub lookup_deadline: Duration,
    /// How Envoy is waited for.
    pub patience: Patience,
    /// Hits up to this size go out in one message.
    pub immediate_bytes: u64,
    /// Largest body that is served, and so stored.
    pub largest_bytes: u64,
}

/// How long a request may wait for something else than a lookup.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// What Envoy is asked for, once; `None` where it would refuse.
    pub extension: Option<Duration>,
    /// How long we wait then.
    pub wait: Duration,
}

/// What a lookup gave, and what goes with it until the answer is out.
pub(super) struct Fetched {
    /// What the session is told.
    pub(super) answer: Answer,
    /// The body, where it is still in the store.
    pub(super) body: Option<BodyStream>,
    /// Room for the body.
    pub(super) room: Option<Arc<Reservation>>,
}

impl Shared {
    /// Asks for an entry, and from its begin on never for longer than the lookup deadline. Whatever
    /// goes wrong becomes a reason to forward.
    pub(super) async fn look_up(
        &self,
        key: &Key,
        method: LookupMethod,
        begin: Stopwatch,
    ) -> Fetched {
        let fetched = match self.remembered(key) {
            Some(fetched) => fetched,
            // In a box, because what every conversation has room for should not be what few need.
            None => Box::pin(self.fetch(key, method, begin))
                .await
                .unwrap_or_else(|error| Fetched::nothing(reason(key, &error))),
        };
        self.metrics.lookup(begin.elapsed());
        fetched
    }

    /// Gets an entry from memory, unless a fill that is not confirmed yet may have a later one.
    fn remembered(&self, key: &Key) -> Option<Fetched> {
        if !self.fills.memory.is_on() || self.fills.in_flight.has(key) {
            return None;
        }
        let is_hidden = self.hiding(key);
        let hit = self.fills.memory.get(key);
        let hit = hit.filter(|hit| !is_hidden(&hit.entry.record));
        self.metrics.memory_lookup(hit.is_some());
        let hit = hit?;
        let record = Arc::clone(&hit.entry.record);
        let body = StoredBody::Held(vec![hit.entry.body.clone()]);
        if hit.is_due {
            self.recheck(key.clone(), hit.entry);
        }
        Some(Fetched::of(record, body))
    }

    /// Gets an entry: from a fill that is not confirmed yet, from another lookup that reads it, else from the
    /// store. All within the lookup deadline.
    async fn fetch(
        &self,
        key: &Key,
        method: LookupMethod,
        begin: Stopwatch,
    ) -> Result<Fetched, store::Error> {
        let time_left = || self.lookup_deadline.saturating_sub(begin.elapsed());
        let is_get = method == LookupMethod::Get;
        let waits = match self.fills.in_flight.look_up(key, is_get) {
            Lookup::Waits(waits) => waits,
            Lookup::Reads(reading) => {
                let fetched = self.read(key, method, begin).await?;
                if let Some(reading) = reading {
                    reading.end(fetched.for_others());
                }
                return Ok(fetched);
            }
        };
        let fetched = async {
            match waits {
                Waits::Fill(filled) => {
                    if let Some(held) = filled.end().await
                        && !self.fills.marks.hide_asked(key.source(), held.asked)
                    {
                        let body = StoredBody::Held(held.chunks.clone());
                        return Ok(Fetched::of(Arc::clone(&held.record), body));
                    }
                }
                Waits::Read(joined) => {
                    self.metrics.joined_lookup();
                    match joined.end().await {
                        Read::Whole(whole) => return Ok(Fetched::whole(whole)),
                        Read::Absent => return Ok(Fetched::nothing(MissReason::Absent)),
                        Read::Alone => {}
                    }
                }
            }
            self.read(key, method, begin).await
        };
        tokio::time::timeout(time_left(), fetched)
            .await
            .map_err(|_| store::Error::TimedOut)?
    }

    /// Gets an entry from the store; its body whole and proved if it goes out in one message.
    async fn read(
        &self,
        key: &Key,
        method: LookupMethod,
        begin: Stopwatch,
    ) -> Result<Fetched, store::Error> {
        let time_left = || self.lookup_deadline.saturating_sub(begin.elapsed());
        let timed_out = |_| store::Error::TimedOut;
        let asked = self.fills.marks.now();
        let is_hidden = self.hiding(key);
        // The store's own deadline is within ours, and a second timer is not for nothing: each wakes the thread
        // that waits for the network.
        let found = match method {
            LookupMethod::Get => self.store.get(key).await?,
            LookupMethod::Head => {
                return Ok(match self.store.head(key).await? {
                    None => Fetched::nothing(MissReason::Absent),
                    Some(record) if is_hidden(&record) => Fetched::nothing(MissReason::Invalidated),
                    Some(record) => Fetched::of(Arc::new(record), StoredBody::NotNeeded),
                });
            }
        };
        let Some(store::Found { record, body }) = found else {
            return Ok(Fetched::nothing(MissReason::Absent));
        };
        if is_hidden(&record) {
            return Ok(Fetched::nothing(MissReason::Invalidated));
        }
        let length = record.body.content_length;
        if length > self.largest_bytes {
            return Ok(Fetched::nothing(MissReason::TooLarge));
        }
        let is_whole = length <= self.immediate_bytes;
        let wanted = if is_whole { length } else { ROOM_BYTES };
        let room = tokio::time::timeout(time_left(), self.budget.reserve(wanted)).await;
        let Ok(Ok(room)) = room else {
            return Ok(Fetched::nothing(MissReason::Budget));
        };
        let room = Arc::new(room);
        let record = Arc::new(record);
        if !is_whole {
            return Ok(Fetched {
                answer: Answer::Found {
                    record,
                    body: StoredBody::Streamed,
                },
                body: Some(body),
                room: Some(room),
            });
        }
        let body = tokio::time::timeout(time_left(), store::read_whole(&record, body))
            .await
            .map_err(timed_out)??;
        let kept = std::slice::from_ref(&body);
        self.fills.memory.put(key, Arc::clone(&record), kept, asked);
        Ok(Fetched::whole(Whole { record, body, room }))
    }

    /// Tells of a record that is read from now on whether it was invalidated. What is read may be deleted
    /// meanwhile, and the mark with it, so that marks are looked for before and after.
    fn hiding(&self, key: &Key) -> impl Fn(&Record) -> bool {
        let marks = &self.fills.marks;
        let before = marks.horizon(key.source());
        move |record| {
            let horizon = before.max(marks.horizon(key.source()));
            horizon.is_some_and(|horizon| record.response_time <= horizon)
        }
    }

    /// Compares what memory has with the store, in the background. What is not there any more, or not
    /// the same, goes; a store that does not answer changes nothing.
    fn recheck(&self, key: Key, entry: Arc<Kept>) {
        let Ok(slot) = Arc::clone(&self.rechecks).try_acquire_owned() else {
            return;
        };
        let (store, memory) = (Arc::clone(&self.store), self.fills.memory.clone());
        self.fills.tasks.spawn(async move {
            let is_same = match store.head(&key).await {
                Ok(record) => record.is_some_and(|record| record == *entry.record),
                Err(_) => true,
            };
            if !is_same {
                memory.remove_this(&key, &entry);
            }
            drop(slot);
        });
    }
}

impl Fetched {
    /// An entry that is held.
    fn of(record: Arc<Record>, body: StoredBody) -> Self {
        Self {
            answer: Answer::Found { record, body },
            body: None,
            room: None,
        }
    }

    /// An entry that was read.
    fn whole(whole: Whole) -> Self {
        let Whole { record, body, room } = whole;
        Self {
            answer: Answer::Found {
                record,
                body: StoredBody::Held(vec![body]),
            },
            body: None,
            room: Some(room),
        }
    }

    /// What it leaves to those that joined the lookup.
    fn for_others(&self) -> Read {
        match (&self.answer, &self.room) {
            (
                Answer::Found {
                    record,
                    body: StoredBody::Held(chunks),
                },
                Some(room),
            ) if let [body] = &chunks[..] => Read::Whole(Whole {
                record: Arc::clone(record),
                body: body.clone(),
                room: Arc::clone(room),
            }),
            (Answer::Nothing(MissReason::Absent), _) => Read::Absent,
            _ => Read::Alone,
        }
    }

    fn nothing(reason: MissReason) -> Self {
        Self {
            answer: Answer::Nothing(reason),
            body: None,
            room: None,
        }
    }
}

/// Why a lookup that failed is forwarded.
fn reason(key: &Key, error: &store::Error) -> MissReason {
    let reason = match error {
        store::Error::Unavailable(_) => MissReason::StoreUnavailable,
        store::Error::TimedOut => MissReason::StoreTimeout,
        store::Error::Denied(_) => MissReason::StoreDenied,
        store::Error::Corrupt(_) => MissReason::Corrupt,
        store::Error::TooLarge(_) => MissReason::TooLarge,
    };
    let (key, error) = (key.object_name(), store::Causes(error));
    // The request's own line has the reason; only what an operator must mend is worth more.
    match reason {
        MissReason::Corrupt | MissReason::StoreDenied => warn!(key, %error, "lookup failed"),
        _ => debug!(key, %error, "lookup failed"),
    }
    reason
}
