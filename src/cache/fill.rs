//! The copy of a response on its way to the store.
//!
//! A [`Fill`] takes chunks as they pass, and never makes the stream wait: when there is no room, or
//! the store is slower than the upstream, the copy is given up. Bodies up to a cap are held and
//! become one put when they are whole; larger ones go to the store while they pass. Dropping an open fill
//! leaves nothing behind. A finished one belongs to a task of its own, which the end of the stream does not
//! touch.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::warn;

use super::budget::Reservation;
use super::in_flight::{Held, Published, Publisher};
use super::{Cache, InvalidationSeq};
use crate::entry::{BodyChecksum, BodyProof, Identity, Key, Record};
use crate::policy::Storable;
use crate::session::{AbortReason, FillPlan, VaryIndex};
use crate::store;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::GaugeGuard;

/// Pieces of a large body that may wait for the store; each has its room in the budget.
const QUEUED_PIECES: usize = 64;

/// Bodies above this are hashed on a thread that may block: 256 KiB take about 0.2 ms.
const HASHED_INLINE_BYTES: u64 = 256 * 1024;

/// What a copy takes beside its bytes: its record, its task, its places in tables, and what its way to the
/// store needs. Without room for that as well, a flood of tiny images would take memory without bound.
const COPY_BYTES: u64 = 16 * 1024;

/// How long a whole copy waits before it goes to the store, and before it is hashed unless a lookup wants
/// it. The client's last bytes are still on their way then, through a proxy and perhaps beside a store on
/// the same cores.
const CLIENT_FIRST: Duration = Duration::from_millis(2);

/// What is counted of fills.
#[derive(Debug)]
pub(super) struct FillMetrics {
    fills: Family<FillLabels, Counter>,
    stored_bytes: Counter,
    open: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FillLabels {
    result: &'static str,
    reason: &'static str,
}

impl FillMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            fills: metrics.counter_by(
                "fills",
                "Fills by what became of them: committed, or aborted with the reason",
            ),
            stored_bytes: metrics.bytes("stored", "Body bytes of committed fills"),
            open: metrics.gauge(
                "open_fills",
                "Copies of responses that are neither committed nor given up yet",
            ),
        }
    }

    fn committed(&self, bytes: u64) {
        self.count("committed", "");
        self.stored_bytes.inc_by(bytes);
    }

    pub(super) fn aborted(&self, reason: AbortReason) {
        self.count("aborted", reason.as_str());
    }

    fn count(&self, result: &'static str, reason: &'static str) {
        let labels = FillLabels { result, reason };
        self.fills.get_or_create(&labels).inc();
    }
}

/// A copy that was handed over.
#[derive(Debug)]
pub struct FinishedCopy {
    /// Commits it, and tells whether that went well.
    pub(super) commit: JoinHandle<Result<(), AbortReason>>,
    /// Keeps it visible to lookups; `None` for one that is not held.
    pub(super) published: Option<Arc<Published>>,
}

/// One fill.
#[derive(Debug)]
pub(super) struct Fill {
    plan: Arc<Plan>,
    buffering: Buffering,
    open: Arc<Open>,
}

impl Fill {
    /// Whether its bytes are held in memory.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.buffering, Buffering::Held(_))
    }
}

/// What is stored, and whether it still may be.
#[derive(Debug)]
struct Plan {
    key: Key,
    storable: Storable,
    vary_index: Option<VaryIndex>,
    hit_for_miss: Duration,
    /// When the response was asked for.
    asked: InvalidationSeq,
}

/// Counts a fill as open, and has room for it, until neither the fill nor a task that writes for it has it any
/// more.
#[derive(Debug)]
struct Open {
    _counted: GaugeGuard,
    /// For [`COPY_BYTES`].
    _reservation: Reservation,
}

/// Where the bytes go.
#[derive(Debug)]
enum Buffering {
    Held(HeldCopy),
    Passing {
        queue: mpsc::Sender<WriteCommand>,
        /// Writes what is queued.
        writer: JoinHandle<Result<(), AbortReason>>,
    },
}

#[derive(Debug)]
struct HeldCopy {
    chunks: Vec<Bytes>,
    length: u64,
    reservation: Reservation,
    /// Bytes of `reservation`, at least `length`.
    reserved: u64,
}

/// What a task that writes a large body gets to do.
#[derive(Debug)]
enum WriteCommand {
    Append(Vec<Bytes>, Reservation),
    /// The body is whole and verified.
    Commit,
}

impl Cache {
    /// Begins a fill.
    pub(super) fn begin_fill(
        &self,
        plan: FillPlan,
        asked: InvalidationSeq,
    ) -> Result<Fill, AbortReason> {
        let FillPlan {
            key,
            storable,
            vary_index,
            hit_for_miss,
        } = plan;
        let plan = Plan {
            key,
            storable,
            vary_index,
            hit_for_miss,
            asked,
        };
        if !Record::surely_fits(&plan.storable.headers) {
            let draft = record(&plan, BodyProof::of(&[]));
            draft.encode().map_err(|_| AbortReason::RecordTooLarge)?;
        }
        let plan = Arc::new(plan);
        self.is_valid(&plan)?;
        if self.0.refusals.holds_for(&plan.key) {
            return Err(AbortReason::Refused);
        }
        let open = Arc::new(Open {
            _counted: GaugeGuard::of(&self.0.fill_metrics.open),
            _reservation: self.reserve(COPY_BYTES)?,
        });
        let buffering = match plan.storable.content_length {
            Some(length) if length > self.0.limits.held_cap => {
                self.pass_on(Arc::clone(&plan), &open)
            }
            known => {
                let reserved = known.unwrap_or(0);
                Buffering::Held(HeldCopy {
                    chunks: Vec::new(),
                    length: 0,
                    reservation: self.reserve(reserved)?,
                    reserved,
                })
            }
        };
        Ok(Fill {
            plan,
            buffering,
            open,
        })
    }

    /// Takes the next bytes. With an error the fill is gone.
    pub(super) fn append(&self, fill: Fill, chunk: Bytes) -> Result<Fill, AbortReason> {
        if chunk.is_empty() {
            return Ok(fill);
        }
        let Fill {
            plan,
            buffering,
            open,
        } = fill;
        let buffering = match buffering {
            Buffering::Held(mut held) => {
                held.length += chunk.len() as u64;
                if held.length > held.reserved {
                    let missing = held.length - held.reserved;
                    held.reservation.merge(self.reserve(missing)?);
                    held.reserved = held.length;
                }
                held.chunks.push(chunk);
                if held.length <= self.0.limits.held_cap {
                    Buffering::Held(held)
                } else {
                    let buffering = self.pass_on(Arc::clone(&plan), &open);
                    if let Buffering::Passing { queue, .. } = &buffering {
                        send(queue, WriteCommand::Append(held.chunks, held.reservation))?;
                    }
                    buffering
                }
            }
            Buffering::Passing { queue, writer } => {
                let reservation = self.reserve(chunk.len() as u64)?;
                send(&queue, WriteCommand::Append(vec![chunk], reservation))?;
                Buffering::Passing { queue, writer }
            }
        };
        Ok(Fill {
            plan,
            buffering,
            open,
        })
    }

    /// Hands a whole, verified copy over to a task that commits it. From here on lookups of this
    /// process see a held one.
    pub(super) fn finish(&self, fill: Fill) -> FinishedCopy {
        let cache = self.clone();
        match fill.buffering {
            Buffering::Held(held) => {
                let (slot, publisher) = self.0.in_flight.announce(&fill.plan.key);
                let index = fill.plan.vary_index.as_ref().map(|index| {
                    let (slot, publisher) = self.0.in_flight.announce(&index.key);
                    publisher.publish(Arc::new(Held {
                        record: Arc::new(index.record.clone()),
                        chunks: Vec::new(),
                        asked: fill.plan.asked,
                    }));
                    slot
                });
                let slots = [slot].into_iter().chain(index).collect();
                let published = Published::new(slots, held.reservation);
                let commit = self.0.tasks.spawn({
                    let published = Arc::clone(&published);
                    async move {
                        let result = cache
                            .put(&fill.plan, held.chunks, held.length, publisher)
                            .await;
                        drop((published, fill.open));
                        result.inspect_err(|&reason| cache.0.fill_metrics.aborted(reason))
                    }
                });
                FinishedCopy {
                    commit,
                    published: Some(published),
                }
            }
            Buffering::Passing { queue, writer } => {
                let commit = self.0.tasks.spawn(async move {
                    // Without its end in the queue the writer gives up.
                    drop(queue.send(WriteCommand::Commit).await);
                    drop(queue);
                    // It only ends early with the runtime.
                    let result = writer.await.unwrap_or(Err(AbortReason::Store));
                    drop(fill.open);
                    result.inspect_err(|&reason| cache.0.fill_metrics.aborted(reason))
                });
                FinishedCopy {
                    commit,
                    published: None,
                }
            }
        }
    }

    async fn put(
        &self,
        plan: &Plan,
        chunks: Vec<Bytes>,
        length: u64,
        publisher: Publisher,
    ) -> Result<(), AbortReason> {
        let mut client_first = pin!(tokio::time::sleep(CLIENT_FIRST));
        tokio::select! {
            () = client_first.as_mut() => {}
            () = publisher.wanted() => {}
        }
        let (proof, chunks) = if length <= HASHED_INLINE_BYTES {
            (BodyProof::of(&chunks), chunks)
        } else {
            let hashed = tokio::task::spawn_blocking(move || (BodyProof::of(&chunks), chunks));
            // It only fails when the runtime is going down.
            hashed.await.map_err(|_| AbortReason::Cut)?
        };
        let held = Arc::new(Held {
            record: Arc::new(record(plan, proof)),
            chunks,
            asked: plan.asked,
        });
        self.is_valid(plan)?;
        publisher.publish(Arc::clone(&held));
        client_first.await;
        let put = self.0.store.put(&plan.key, &held.record, &held.chunks);
        put.await
            .map_err(|error| self.not_committed(plan, &error))?;
        let record = Arc::clone(&held.record);
        self.0
            .memory
            .put(&plan.key, record, &held.chunks, plan.asked);
        self.committed(plan, length).await
    }

    /// Starts the task that writes a large body while it passes. It ends without a commit when the
    /// queue is dropped before [`WriteCommand::Commit`].
    fn pass_on(&self, plan: Arc<Plan>, open: &Arc<Open>) -> Buffering {
        let (sender, queue) = mpsc::channel(QUEUED_PIECES);
        let cache = self.clone();
        let open = Arc::clone(open);
        let writer = self.0.tasks.spawn(async move {
            let result = cache.write(&plan, queue).await;
            drop(open);
            result
        });
        Buffering::Passing {
            queue: sender,
            writer,
        }
    }

    async fn write(
        &self,
        plan: &Plan,
        mut queue: mpsc::Receiver<WriteCommand>,
    ) -> Result<(), AbortReason> {
        let failed = |error: store::Error| self.not_committed(plan, &error);
        let draft = record(plan, BodyProof::of(&[]));
        let mut writer = self
            .0
            .store
            .begin(&plan.key, &draft)
            .await
            .map_err(failed)?;
        let mut sha256 = Sha256::new();
        let mut checksum = BodyChecksum::new();
        // For what the writer has and the store has not.
        let mut unsent = None::<Reservation>;
        while let Some(command) = queue.recv().await {
            match command {
                WriteCommand::Append(chunks, mut reservation) => {
                    if let Some(unsent) = unsent.take() {
                        reservation.merge(unsent);
                    }
                    let mut unsent_bytes = 0;
                    for chunk in chunks {
                        sha256.update(&chunk);
                        checksum.update(&chunk);
                        unsent_bytes = writer.append(chunk).await.map_err(failed)?;
                    }
                    reservation.shrink_to(unsent_bytes);
                    unsent = Some(reservation);
                }
                WriteCommand::Commit => {
                    let proof = BodyProof {
                        content_length: checksum.length(),
                        sha256: sha256.finalize().into(),
                        crc64: checksum.crc64(),
                    };
                    let result = writer.commit(&record(plan, proof)).await;
                    self.0.memory.remove(&plan.key);
                    result.map_err(failed)?;
                    return self.committed(plan, proof.content_length).await;
                }
            }
        }
        Err(AbortReason::Cut)
    }

    /// Ends a fill that the store has taken.
    async fn committed(&self, plan: &Plan, length: u64) -> Result<(), AbortReason> {
        // An invalidation may have come while it was written, too late for the deletion.
        if let Err(reason) = self.is_valid(plan) {
            self.forget(&plan.key).await;
            return Err(reason);
        }
        self.0.fill_metrics.committed(length);
        // Of a large body nothing was announced.
        self.0.in_flight.detach_readers(&plan.key);
        if let Some(VaryIndex { key, record }) = &plan.vary_index {
            self.0.memory.remove(key);
            if let Err(error) = self.0.store.put(key, record, &[]).await {
                warn!(key = %key.object_name(), error = %store::Causes(&error), "variant will not be found");
            }
            self.0.in_flight.detach_readers(key);
        }
        Ok(())
    }

    fn not_committed(&self, plan: &Plan, error: &store::Error) -> AbortReason {
        match error {
            store::Error::TooLarge(_) => self.0.refusals.add(&plan.key, plan.hit_for_miss),
            // Permissions and quotas change, and not for one entry alone.
            store::Error::Denied(_) => self.0.refusals.add(&plan.key, self.0.limits.breaker_wait),
            store::Error::Unavailable(_) | store::Error::TimedOut | store::Error::Corrupt(_) => {}
        }
        let (key, error) = (plan.key.object_name(), store::Causes(error));
        warn!(key, %error, "fill was not committed");
        AbortReason::Store
    }

    fn is_valid(&self, plan: &Plan) -> Result<(), AbortReason> {
        if self.0.invalidations.hides(plan.key.source(), plan.asked) {
            return Err(AbortReason::Invalidated);
        }
        Ok(())
    }

    pub(super) fn reserve(&self, bytes: u64) -> Result<Reservation, AbortReason> {
        self.0
            .budget
            .try_reserve(bytes)
            .map_err(|_| AbortReason::Budget)
    }
}

/// Never waits: the stream must not.
fn send(queue: &mpsc::Sender<WriteCommand>, command: WriteCommand) -> Result<(), AbortReason> {
    queue.try_send(command).map_err(|_| AbortReason::Store)
}

fn record(plan: &Plan, body: BodyProof) -> Record {
    let storable = &plan.storable;
    Record {
        variants: None,
        identity: Identity::of(&plan.key),
        status: storable.status,
        headers: storable.headers.clone(),
        response_time: storable.response_time,
        initial_age: storable.initial_age,
        body,
    }
}
