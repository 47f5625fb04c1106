//! The copy of a response on its way to the store.
//!
//! A [`Fill`] takes chunks as they pass, and never makes the stream wait: when there is no room, or
//! the store is slower than the upstream, the copy is given up. Bodies up to a cap are held and
//! become one put when they are whole; larger ones go to the store while they pass. Dropping a fill
//! before [`Fills::finish`] leaves nothing behind. After it, the copy belongs to a task of its own,
//! which the end of the stream does not touch.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::cache::budget::{Budget, Reservation};
use crate::cache::in_flight::{Display, Held, InFlight, Shown};
use crate::cache::invalidations::{Marks, Moment};
use crate::cache::memory_tier::Memory;
use crate::clock::Stopwatch;
use crate::entry::{BodyChecksum, BodyProof, Identity, Record};
use crate::entry::{Key, Source};
use crate::policy::Storable;
use crate::session::{AbortReason, CopyStep, FillPlan, Freshened, Signpost, StoredBody};
use crate::store::{self, Store};
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

/// What fills need, shared by all.
#[derive(Debug, Clone)]
pub struct Fills {
    /// Where entries go.
    pub store: Arc<dyn Store>,
    /// What fills may hold.
    pub budget: Budget,
    /// Where whole fills are shown to lookups.
    pub in_flight: InFlight,
    /// What was invalidated.
    pub marks: Marks,
    /// Where committed entries are kept, too.
    pub memory: Memory,
    /// Where their ends are counted.
    pub metrics: Metrics,
    /// Largest body that is held; larger ones go to the store while they pass.
    pub held_bytes: u64,
    /// How slowly a response may pass.
    pub pace: Pace,
    /// Tasks that finish fills; the process waits for them at its end.
    pub tasks: TaskTracker,
}

/// How slowly a response may pass while its copy is kept.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// In all.
    pub deadline: Duration,
    /// At least, on the average since its begin; 0: any rate.
    pub bytes_per_second: u64,
    /// What it may take beside that.
    pub grace: Duration,
}

/// One copy.
#[derive(Debug)]
pub struct Fill {
    plan: Arc<Plan>,
    copy: Copy,
    open: Arc<Open>,
}

/// The copy of one response from its begin to its end, counted when it is lost.
#[derive(Debug)]
pub struct Copying {
    metrics: Metrics,
    since: Stopwatch,
    /// Until it is finished or lost.
    open: Option<Fill>,
    finished: Option<Finished>,
    received: u64,
}

/// A copy that was handed over.
#[derive(Debug)]
pub struct Finished {
    /// Commits it.
    commit: JoinHandle<()>,
    /// Keeps it shown to lookups; `None` for one that is not held.
    shown: Option<Arc<Shown>>,
}

impl Copying {
    /// Begins the copy of a response that was asked for at this moment.
    ///
    /// # Errors
    /// As [`Fills::begin`].
    pub fn begin(fills: &Fills, plan: FillPlan, asked: Moment) -> Result<Self, AbortReason> {
        let fill = fills
            .begin(plan, asked)
            .inspect_err(|&reason| fills.metrics.aborted(reason))?;
        Ok(Self {
            metrics: fills.metrics.clone(),
            since: Stopwatch::start(),
            open: Some(fill),
            finished: None,
            received: 0,
        })
    }

    /// Does the next step, if the copy is still open.
    ///
    /// # Errors
    /// Why the copy is gone, other than by [`CopyStep::Abort`].
    pub fn step(&mut self, fills: &Fills, step: CopyStep) -> Result<(), AbortReason> {
        let Some(fill) = self.open.take() else {
            return Ok(());
        };
        let appended = match step {
            CopyStep::Append(bytes) => {
                self.received += bytes.len() as u64;
                fills.append(fill, bytes).map(|fill| self.open = Some(fill))
            }
            CopyStep::Finish(bytes) => fills
                .append(fill, bytes)
                .map(|fill| self.finished = Some(fills.finish(fill))),
            CopyStep::Abort(reason) => {
                self.metrics.aborted(reason);
                Ok(())
            }
        };
        appended.inspect_err(|&reason| self.metrics.aborted(reason))
    }

    /// How long an open copy may go on with what has come of it, and what it is then; `None` without
    /// one.
    pub fn time_left(&self, pace: Pace) -> Option<(Duration, AbortReason)> {
        self.open.as_ref()?;
        let longest = (pace.deadline, AbortReason::Deadline);
        let (limit, reason) = match self.received.checked_div(pace.bytes_per_second) {
            None => longest,
            Some(seconds) => {
                let slowest = pace.grace + Duration::from_secs(seconds);
                if slowest < pace.deadline {
                    (slowest, AbortReason::Slow)
                } else {
                    longest
                }
            }
        };
        Some((limit.saturating_sub(self.since.elapsed()), reason))
    }

    /// Whether the copy is, or was when it was finished, whole in memory, so that it can be shown.
    pub fn is_held(&self) -> bool {
        match (&self.open, &self.finished) {
            (Some(fill), _) => matches!(fill.copy, Copy::Held(_)),
            (None, Some(finished)) => finished.shown.is_some(),
            (None, None) => false,
        }
    }

    /// Keeps a finished copy shown to lookups; `None` before it is finished, and for one that is not
    /// held.
    pub fn shown(&self) -> Option<Arc<Shown>> {
        self.finished.as_ref()?.shown.clone()
    }

    /// Gives up an open copy.
    pub fn abort(&mut self, reason: AbortReason) {
        if self.open.take().is_some() {
            self.metrics.aborted(reason);
        }
    }

    /// Waits until a finished copy is committed, or has failed.
    pub async fn committed(mut self) {
        if let Some(finished) = self.finished.take() {
            // It only ends early with the runtime.
            let _ = finished.commit.await;
        }
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.abort(AbortReason::Cut);
    }
}

/// What is stored, and whether it still may be.
#[derive(Debug)]
struct Plan {
    key: Key,
    storable: Storable,
    signpost: Option<Signpost>,
    /// When the response was asked for.
    asked: Moment,
}

/// Counts a fill as open, and has room for it, until neither the fill nor a task that writes for it has it any
/// more.
#[derive(Debug)]
struct Open {
    _counted: GaugeGuard,
    /// For [`COPY_BYTES`].
    _room: Reservation,
}

#[derive(Debug)]
enum Copy {
    Held(HeldCopy),
    Passing {
        queue: mpsc::Sender<Piece>,
        /// Writes what is queued.
        writer: JoinHandle<()>,
    },
}

#[derive(Debug)]
struct HeldCopy {
    chunks: Vec<Bytes>,
    length: u64,
    room: Reservation,
    /// Bytes of `room`, at least `length`.
    reserved: u64,
}

/// What a task that writes a large body gets to do.
#[derive(Debug)]
enum Piece {
    Chunks(Vec<Bytes>, Reservation),
    /// The body is whole and verified.
    End,
}

impl Fills {
    /// Begins the copy of a response that was asked for at this moment.
    ///
    /// # Errors
    /// [`AbortReason::Invalidated`] when that was too early, [`AbortReason::Budget`] when there is no room for it, [`AbortReason::RecordTooLarge`] when
    /// its headers are more than is kept.
    pub fn begin(&self, plan: FillPlan, asked: Moment) -> Result<Fill, AbortReason> {
        let FillPlan {
            key,
            storable,
            signpost,
            ..
        } = plan;
        let plan = Plan {
            key,
            storable,
            signpost,
            asked,
        };
        if !Record::surely_fits(&plan.storable.headers) {
            let draft = record(&plan, BodyProof::of(&[]));
            draft.encode().map_err(|_| AbortReason::RecordTooLarge)?;
        }
        let plan = Arc::new(plan);
        self.is_valid(&plan)?;
        let open = Arc::new(Open {
            _counted: self.metrics.open_fill(),
            _room: self.reserve(COPY_BYTES)?,
        });
        let copy = match plan.storable.content_length {
            Some(length) if length > self.held_bytes => self.pass_on(Arc::clone(&plan), &open),
            known => {
                let reserved = known.unwrap_or(0);
                Copy::Held(HeldCopy {
                    chunks: Vec::new(),
                    length: 0,
                    room: self.reserve(reserved)?,
                    reserved,
                })
            }
        };
        Ok(Fill { plan, copy, open })
    }

    /// Takes the next bytes. With an error the fill is gone.
    ///
    /// # Errors
    /// [`AbortReason::Budget`] without room, [`AbortReason::Store`] when the store fails or is
    /// slower than the upstream.
    pub fn append(&self, fill: Fill, chunk: Bytes) -> Result<Fill, AbortReason> {
        if chunk.is_empty() {
            return Ok(fill);
        }
        let Fill { plan, copy, open } = fill;
        let copy = match copy {
            Copy::Held(mut held) => {
                held.length += chunk.len() as u64;
                if held.length > held.reserved {
                    held.room.merge(self.reserve(held.length - held.reserved)?);
                    held.reserved = held.length;
                }
                held.chunks.push(chunk);
                if held.length <= self.held_bytes {
                    Copy::Held(held)
                } else {
                    let copy = self.pass_on(Arc::clone(&plan), &open);
                    if let Copy::Passing { queue, .. } = &copy {
                        send(queue, Piece::Chunks(held.chunks, held.room))?;
                    }
                    copy
                }
            }
            Copy::Passing { queue, writer } => {
                let room = self.reserve(chunk.len() as u64)?;
                send(&queue, Piece::Chunks(vec![chunk], room))?;
                Copy::Passing { queue, writer }
            }
        };
        Ok(Fill { plan, copy, open })
    }

    /// Hands a whole, verified copy over to a task that commits it. From here on lookups of this
    /// process see a held one.
    pub fn finish(&self, fill: Fill) -> Finished {
        let fills = self.clone();
        match fill.copy {
            Copy::Held(held) => {
                let (pending, display) = self.in_flight.announce(&fill.plan.key);
                let signpost = fill.plan.signpost.as_ref().map(|signpost| {
                    let (pending, display) = self.in_flight.announce(&signpost.key);
                    display.show(Arc::new(Held {
                        record: Arc::new(signpost.record.clone()),
                        chunks: Vec::new(),
                        asked: fill.plan.asked,
                    }));
                    pending
                });
                let pending = [pending].into_iter().chain(signpost).collect();
                let shown = Shown::new(pending, held.room);
                let commit = self.tasks.spawn({
                    let shown = Arc::clone(&shown);
                    async move {
                        fills
                            .put(&fill.plan, held.chunks, held.length, display)
                            .await;
                        drop((shown, fill.open));
                    }
                });
                Finished {
                    commit,
                    shown: Some(shown),
                }
            }
            Copy::Passing { queue, writer } => {
                let commit = self.tasks.spawn(async move {
                    if queue.send(Piece::End).await.is_err() {
                        fills.metrics.aborted(AbortReason::Store);
                    }
                    drop(queue);
                    // It only ends early with the runtime.
                    let _ = writer.await;
                    drop(fill.open);
                });
                Finished {
                    commit,
                    shown: None,
                }
            }
        }
    }

    async fn put(&self, plan: &Plan, chunks: Vec<Bytes>, length: u64, display: Display) {
        let mut client_first = pin!(tokio::time::sleep(CLIENT_FIRST));
        tokio::select! {
            () = client_first.as_mut() => {}
            () = display.wanted() => {}
        }
        let (proof, chunks) = if length <= HASHED_INLINE_BYTES {
            (BodyProof::of(&chunks), chunks)
        } else {
            let hashed =
                tokio::task::spawn_blocking(move || (BodyProof::of(&chunks), chunks)).await;
            match hashed {
                Ok(hashed) => hashed,
                // The runtime is going down.
                Err(_) => return self.metrics.aborted(AbortReason::Cut),
            }
        };
        let held = Arc::new(Held {
            record: Arc::new(record(plan, proof)),
            chunks,
            asked: plan.asked,
        });
        if let Err(reason) = self.is_valid(plan) {
            return self.metrics.aborted(reason);
        }
        display.show(Arc::clone(&held));
        client_first.await;
        let put = self.store.put(&plan.key, &held.record, &held.chunks);
        let result = put.await;
        if result.is_ok() {
            let record = Arc::clone(&held.record);
            self.memory.put(&plan.key, record, &held.chunks, plan.asked);
        }
        self.ended(plan, length, result).await;
    }

    /// Starts the task that writes a large body while it passes. It ends without a commit when the
    /// queue is dropped before [`Piece::End`].
    fn pass_on(&self, plan: Arc<Plan>, open: &Arc<Open>) -> Copy {
        let (sender, mut queue) = mpsc::channel(QUEUED_PIECES);
        let fills = self.clone();
        let open = Arc::clone(open);
        let writer = self.tasks.spawn(async move {
            if let Err(error) = fills.write(&plan, &mut queue).await {
                warn!(key = %plan.key.object_name(), error = %store::Causes(&error), "large fill failed");
                // Whoever still appends meets the closed queue and counts the loss. Where the end
                // is in the queue already, nobody does.
                queue.close();
                while let Some(piece) = queue.recv().await {
                    if matches!(piece, Piece::End) {
                        fills.metrics.aborted(AbortReason::Store);
                    }
                }
            }
            drop(open);
        });
        Copy::Passing {
            queue: sender,
            writer,
        }
    }

    /// Shows an entry with the record that the upstream has confirmed when it was asked at this moment,
    /// until [`Fills::freshen`] has written it; `None` where its body is not held, or has no room.
    pub fn show_freshened(&self, freshened: &Freshened, asked: Moment) -> Option<Arc<Shown>> {
        let StoredBody::Held(chunks) = &freshened.body else {
            return None;
        };
        let room = self.reserve(freshened.record.body.content_length).ok()?;
        let (pending, display) = self.in_flight.announce(&freshened.key);
        display.show(Arc::new(Held {
            record: Arc::new(freshened.record.clone()),
            chunks: chunks.clone(),
            asked,
        }));
        Some(Shown::new(vec![pending], room))
    }

    /// Gives an entry the record that the upstream has confirmed when it was asked at this moment.
    pub async fn freshen(&self, freshened: Freshened, asked: Moment) {
        let Freshened { key, record, body } = freshened;
        // Whoever shows it has room for it.
        drop(body);
        if self.marks.hide_asked(key.source(), asked) {
            return;
        }
        match self.store.replace_record(&key, &record).await {
            Ok(true) => self.memory.freshen(&key, record, asked),
            Ok(false) => self.memory.remove(&key),
            Err(error) => {
                warn!(key = %key.object_name(), error = %store::Causes(&error), "entry was not freshened");
            }
        }
    }

    async fn write(
        &self,
        plan: &Plan,
        queue: &mut mpsc::Receiver<Piece>,
    ) -> Result<(), store::Error> {
        let draft = record(plan, BodyProof::of(&[]));
        let mut writer = self.store.begin(&plan.key, &draft).await?;
        let mut sha256 = Sha256::new();
        let mut checksum = BodyChecksum::new();
        // For what the writer has and the store has not.
        let mut held = None::<Reservation>;
        while let Some(piece) = queue.recv().await {
            match piece {
                Piece::Chunks(chunks, mut room) => {
                    if let Some(held) = held.take() {
                        room.merge(held);
                    }
                    let mut held_bytes = 0;
                    for chunk in chunks {
                        sha256.update(&chunk);
                        checksum.update(&chunk);
                        held_bytes = writer.append(chunk).await?;
                    }
                    room.shrink_to(held_bytes);
                    held = Some(room);
                }
                Piece::End => {
                    let proof = BodyProof {
                        content_length: checksum.length(),
                        sha256: sha256.finalize().into(),
                        crc64: checksum.crc64(),
                    };
                    let result = writer.commit(&record(plan, proof)).await;
                    self.memory.remove(&plan.key);
                    self.ended(plan, proof.content_length, result).await;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn ended(&self, plan: &Plan, length: u64, result: Result<(), store::Error>) {
        match result {
            // A mark that was set while it was written may have been too late for the deletion.
            Ok(()) if self.is_valid(plan).is_err() => {
                self.metrics.aborted(AbortReason::Invalidated);
                return self.forget(&plan.key).await;
            }
            Ok(()) => self.metrics.committed(length),
            Err(error) => {
                self.metrics.aborted(AbortReason::Store);
                warn!(key = %plan.key.object_name(), error = %store::Causes(&error), "fill was not committed");
                return;
            }
        }
        // Of a large body nothing was announced.
        self.in_flight.part(&plan.key);
        let Some(Signpost { key, record }) = &plan.signpost else {
            return;
        };
        self.memory.remove(key);
        if let Err(error) = self.store.put(key, record, &[]).await {
            warn!(key = %key.object_name(), error = %store::Causes(&error), "variant will not be found");
        }
        self.in_flight.part(key);
    }

    /// From now on nothing is used of these sources that was stored or asked for before.
    pub fn invalidate(&self, sources: Vec<Source>) {
        self.marks.set(sources.clone());
        self.in_flight.part_all();
        for source in &sources {
            self.memory.remove_source(source);
        }
    }

    /// Removes an entry that may not be used any more.
    pub async fn forget(&self, key: &Key) {
        self.memory.remove(key);
        if let Err(error) = self.store.delete(key).await {
            warn!(key = %key.object_name(), error = %store::Causes(&error), "entry was not removed");
        }
        self.in_flight.part(key);
    }

    fn is_valid(&self, plan: &Plan) -> Result<(), AbortReason> {
        if self.marks.hide_asked(plan.key.source(), plan.asked) {
            return Err(AbortReason::Invalidated);
        }
        Ok(())
    }

    fn reserve(&self, bytes: u64) -> Result<Reservation, AbortReason> {
        self.budget
            .try_reserve(bytes)
            .map_err(|_| AbortReason::Budget)
    }
}

/// Never waits: the stream must not.
fn send(queue: &mpsc::Sender<Piece>, piece: Piece) -> Result<(), AbortReason> {
    queue.try_send(piece).map_err(|_| AbortReason::Store)
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
