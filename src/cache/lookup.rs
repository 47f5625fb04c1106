//! From a key to its entry: out of memory, of a fill that is not confirmed yet, of another lookup's read, or of
//! the store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tracing::{debug, warn};

use super::body_reader::{FoundStream, STREAM_BYTES};
use super::in_flight::{LookupStep, Read, Whole};
use super::memory_tier::Kept;
use super::{Cache, InvalidationSeq};
use crate::clock::Stopwatch;
use crate::entry::{Key, Record};
use crate::policy::{LookupMethod, MissReason};
use crate::session::{LookupAnswer, StoredBody};
use crate::store;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::ResultLabel;

/// What a lookup gave.
#[derive(Debug)]
pub struct LookupResult {
    /// The entry, or why there is none.
    pub answer: LookupAnswer,
    /// Its body, where it is still in the store.
    pub stream: Option<FoundStream>,
}

/// What is counted of lookups.
#[derive(Debug)]
pub(super) struct LookupMetrics {
    seconds: Histogram,
    memory: Family<ResultLabel, Counter>,
    joined: Counter,
}

impl LookupMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            seconds: metrics.seconds(
                "lookup_duration",
                "From asking for an entry to having it whole, or knowing that there is none",
            ),
            memory: metrics.counter_by(
                "memory_lookups",
                "Lookups by whether the memory tier had the entry: hit or miss",
            ),
            joined: metrics.counter(
                "joined_lookups",
                "Lookups that joined another one of the same entry, which reads it from the store",
            ),
        }
    }
}

/// The time that all lookups of one request have together.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    begin: Stopwatch,
    time: Duration,
    /// Whether it is shorter than the store's own.
    is_shortened: bool,
}

impl Deadline {
    fn time_left(&self) -> Duration {
        self.time.saturating_sub(self.begin.elapsed())
    }

    async fn hold<T>(
        &self,
        work: impl Future<Output = Result<T, store::Error>>,
    ) -> Result<T, store::Error> {
        tokio::time::timeout(self.time_left(), work)
            .await
            .map_err(|_| store::Error::TimedOut)?
    }

    /// The same for an operation that the store itself ends within a whole lookup's time. A timer is not for
    /// nothing: each wakes the thread that waits for the network.
    async fn hold_store<T>(
        &self,
        work: impl Future<Output = Result<T, store::Error>>,
    ) -> Result<T, store::Error> {
        if self.is_shortened {
            self.hold(work).await
        } else {
            work.await
        }
    }
}

impl Cache {
    /// The entry in memory, unless a fill that is not confirmed yet may have a later one.
    pub fn remembered(&self, key: &Key) -> Option<LookupResult> {
        let parts = &self.0;
        if !parts.memory.is_on() || parts.in_flight.has(key) {
            return None;
        }
        let begin = Stopwatch::start();
        let is_hidden = self.hiding(key);
        let hit = parts.memory.get(key);
        let hit = hit.filter(|hit| !is_hidden(&hit.entry.record));
        let result = if hit.is_some() { "hit" } else { "miss" };
        let metrics = &parts.lookup_metrics;
        metrics.memory.get_or_create(&ResultLabel { result }).inc();
        let hit = hit?;
        let found = LookupResult::held(Arc::clone(&hit.entry.record), vec![hit.entry.body.clone()]);
        if hit.is_due {
            self.recheck(key.clone(), hit.entry);
        }
        metrics.seconds.observe(begin.elapsed().as_secs_f64());
        Some(found)
    }

    /// Looks an entry up that is not in memory, and takes no longer than what is left of the lookup deadline after
    /// `spent`. Whatever goes wrong becomes a reason to forward.
    pub async fn look_up(&self, key: &Key, method: LookupMethod, spent: Duration) -> LookupResult {
        let deadline = Deadline {
            begin: Stopwatch::start(),
            time: self.0.limits.lookup_timeout.saturating_sub(spent),
            is_shortened: !spent.is_zero(),
        };
        let found = self
            .fetch(key, method, deadline)
            .await
            .unwrap_or_else(|error| LookupResult::nothing(reason(key, &error)));
        let seconds = deadline.begin.elapsed().as_secs_f64();
        self.0.lookup_metrics.seconds.observe(seconds);
        found
    }

    async fn fetch(
        &self,
        key: &Key,
        method: LookupMethod,
        deadline: Deadline,
    ) -> Result<LookupResult, store::Error> {
        let step = match method {
            LookupMethod::Get => self.0.in_flight.look_up(key),
            LookupMethod::Head => self.0.in_flight.look_up_head(key),
        };
        match step {
            LookupStep::Reads => self.read(key, method, deadline).await,
            LookupStep::ReadsForAll(reading) => {
                let found = self.read(key, method, deadline).await?;
                reading.end(found.for_others());
                Ok(found)
            }
            LookupStep::WaitsForFill(filled) => {
                let filled = async { Ok(filled.end().await) };
                match deadline.hold(filled).await? {
                    Some(held) if !self.0.invalidations.hides(key.source(), held.asked) => {
                        let chunks = held.chunks.clone();
                        Ok(LookupResult::held(Arc::clone(&held.record), chunks))
                    }
                    Some(_) | None => deadline.hold(self.read(key, method, deadline)).await,
                }
            }
            LookupStep::JoinsRead(joined) => {
                self.0.lookup_metrics.joined.inc();
                match deadline.hold(async { Ok(joined.end().await) }).await? {
                    Read::Whole(Whole { record, body }) => {
                        Ok(LookupResult::held(record, vec![body]))
                    }
                    Read::Absent => Ok(LookupResult::nothing(MissReason::Absent)),
                    Read::Alone => deadline.hold(self.read(key, method, deadline)).await,
                }
            }
        }
    }

    /// Reads an entry from the store: its body whole and proved if it is held, else as a stream.
    async fn read(
        &self,
        key: &Key,
        method: LookupMethod,
        deadline: Deadline,
    ) -> Result<LookupResult, store::Error> {
        let parts = &self.0;
        let asked = self.now();
        let is_hidden = self.hiding(key);
        let found = match method {
            LookupMethod::Get => deadline.hold_store(parts.store.get(key)).await?,
            LookupMethod::Head => {
                let record = deadline.hold_store(parts.store.head(key)).await?;
                return Ok(match record {
                    None => LookupResult::nothing(MissReason::Absent),
                    Some(record) if is_hidden(&record) => {
                        LookupResult::nothing(MissReason::Invalidated)
                    }
                    Some(record) => LookupResult::found(Arc::new(record), StoredBody::NotNeeded),
                });
            }
        };
        let Some(store::Found { record, body }) = found else {
            return Ok(LookupResult::nothing(MissReason::Absent));
        };
        if is_hidden(&record) {
            return Ok(LookupResult::nothing(MissReason::Invalidated));
        }
        let length = record.body.content_length;
        if length > parts.largest_bytes {
            return Ok(LookupResult::nothing(MissReason::TooLarge));
        }
        let is_held = length <= parts.limits.immediate_cap;
        let wanted = if is_held { length } else { STREAM_BYTES };
        let reservation =
            tokio::time::timeout(deadline.time_left(), parts.budget.reserve(wanted)).await;
        let Ok(Ok(reservation)) = reservation else {
            return Ok(LookupResult::nothing(MissReason::Budget));
        };
        let record = Arc::new(record);
        if !is_held {
            let found = LookupResult::found(record, StoredBody::Streamed);
            return Ok(LookupResult {
                stream: Some(FoundStream { body, reservation }),
                ..found
            });
        }
        let body = deadline.hold(store::read_whole(&record, body)).await?;
        self.keep(key, &record, &body, asked);
        let body = reservation.into_bytes(body);
        Ok(LookupResult::held(record, vec![body]))
    }

    fn keep(&self, key: &Key, record: &Arc<Record>, body: &Bytes, asked: InvalidationSeq) {
        let body = std::slice::from_ref(body);
        self.0.memory.put(key, Arc::clone(record), body, asked);
    }

    /// Tells of a record that is read from now on whether it was invalidated. What is read may be deleted
    /// meanwhile, and the invalidation forgotten with it, so that invalidations are looked at before and after.
    fn hiding(&self, key: &Key) -> impl Fn(&Record) -> bool {
        let invalidations = &self.0.invalidations;
        let before = invalidations.horizon(key.source());
        move |record| {
            let horizon = before.max(invalidations.horizon(key.source()));
            horizon.is_some_and(|horizon| record.response_time <= horizon)
        }
    }

    /// Compares what memory has with the store, in the background. What is not there any more, or not
    /// the same, goes; a store that does not answer changes nothing.
    fn recheck(&self, key: Key, entry: Arc<Kept>) {
        let Ok(slot) = Arc::clone(&self.0.rechecks).try_acquire_owned() else {
            return;
        };
        let parts = Arc::clone(&self.0);
        self.0.tasks.spawn(async move {
            let is_same = match parts.store.head(&key).await {
                Ok(record) => record.is_some_and(|record| record == *entry.record),
                Err(_) => true,
            };
            if !is_same {
                parts.memory.remove_this(&key, &entry);
            }
            drop(slot);
        });
    }
}

impl LookupResult {
    fn found(record: Arc<Record>, body: StoredBody) -> Self {
        Self {
            answer: LookupAnswer::Found { record, body },
            stream: None,
        }
    }

    fn held(record: Arc<Record>, chunks: Vec<Bytes>) -> Self {
        Self::found(record, StoredBody::Held(chunks))
    }

    fn nothing(reason: MissReason) -> Self {
        Self {
            answer: LookupAnswer::Nothing(reason),
            stream: None,
        }
    }

    /// What it leaves to those that joined the lookup.
    fn for_others(&self) -> Read {
        match &self.answer {
            LookupAnswer::Found {
                record,
                body: StoredBody::Held(chunks),
            } if let [body] = &chunks[..] => Read::Whole(Whole {
                record: Arc::clone(record),
                body: body.clone(),
            }),
            LookupAnswer::Nothing(MissReason::Absent) => Read::Absent,
            LookupAnswer::Found { .. } | LookupAnswer::Nothing(_) => Read::Alone,
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

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::clock::{Clock, Timestamp};
    use crate::config::Config;
    use crate::store::{Fault, FaultyStore, MemoryStore, Operation};

    fn key() -> Key {
        Key::from_parts("test", 1, [1; 32], [2; 32])
    }

    /// A cache whose lookups may take an hour, and whose store never answers one.
    fn hanging() -> Cache {
        let store = FaultyStore::new(Arc::new(MemoryStore::new(1024)));
        let never = Fault::WaitsBefore(Arc::new(Semaphore::new(0)));
        store.set(Operation::Get, never.clone());
        store.set(Operation::Head, never);
        let text = "{envoy: {message_timeout: 2h}, limits: {lookup_timeout: 1h}}";
        let config = Config::parse(text, std::iter::empty()).unwrap();
        let clock = Clock::manual(Timestamp::from_unix(1));
        let (limits, memory) = (config.limits, config.memory);
        Cache::open(limits, memory, 1024, store, clock, &Metrics::new())
    }

    #[tokio::test]
    async fn all_lookups_of_a_request_share_one_deadline() {
        let cache = hanging();
        let spent = Duration::from_secs(3600);
        for method in [LookupMethod::Get, LookupMethod::Head] {
            let result = cache.look_up(&key(), method, spent).await;
            let reason = match result.answer {
                LookupAnswer::Nothing(reason) => reason,
                other => panic!("{other:?}"),
            };
            assert_eq!(reason, MissReason::StoreTimeout);
        }
    }

    #[tokio::test]
    async fn a_lookup_that_joins_another_one_keeps_to_its_own_deadline() {
        let cache = hanging();
        let leading = tokio::spawn({
            let cache = cache.clone();
            async move {
                cache
                    .look_up(&key(), LookupMethod::Get, Duration::ZERO)
                    .await
            }
        });
        while cache.0.in_flight.is_idle() {
            tokio::task::yield_now().await;
        }
        let spent = Duration::from_secs(3600);
        let joined = cache.look_up(&key(), LookupMethod::Get, spent).await;
        let is_late = matches!(
            joined.answer,
            LookupAnswer::Nothing(MissReason::StoreTimeout)
        );
        assert!(is_late, "{joined:?}");
        leading.abort();
    }
}
