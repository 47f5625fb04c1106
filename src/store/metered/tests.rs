use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderMap, StatusCode};

use super::*;
use crate::clock::Timestamp;
use crate::entry::{BodyProof, Identity};

/// What a scripted store does with the next operation.
#[derive(Debug, Clone)]
enum Act {
    Answer,
    Absent,
    Unavailable,
    Denied,
    Hang,
    /// Gives the record, then does this.
    Body(Box<Act>),
    /// Gives the record and a chunk of the body, then fails.
    BreakOff,
}

/// Does the same for every operation until it is told otherwise, and counts them.
#[derive(Debug)]
struct Scripted {
    act: Mutex<Act>,
    calls: AtomicUsize,
}

#[derive(Debug, Default)]
struct Told {
    operations: Mutex<Vec<(Operation, OpResult)>>,
    states: Mutex<Vec<BreakerState>>,
}

impl Observe for Told {
    fn operation(&self, operation: Operation, result: OpResult, _: Duration) {
        self.operations.lock().unwrap().push((operation, result));
    }

    fn breaker(&self, state: BreakerState) {
        self.states.lock().unwrap().push(state);
    }
}

impl Scripted {
    async fn act(&self) -> Result<bool, Error> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let act = self.act.lock().unwrap().clone();
        perform(act).await
    }

    fn set(&self, act: Act) {
        *self.act.lock().unwrap() = act;
    }
}

async fn perform(act: Act) -> Result<bool, Error> {
    match act {
        Act::Answer | Act::Body(_) | Act::BreakOff => Ok(true),
        Act::Absent => Ok(false),
        Act::Unavailable => Err(Error::Unavailable("down".into())),
        Act::Denied => Err(Error::Denied("no".into())),
        Act::Hang => std::future::pending().await,
    }
}

#[async_trait]
impl Store for Scripted {
    async fn head(&self, _: &Key) -> Result<Option<Record>, Error> {
        Ok(self.act().await?.then(record))
    }

    async fn get(&self, _: &Key) -> Result<Option<Found>, Error> {
        if !self.act().await? {
            return Ok(None);
        }
        let acts = match self.act.lock().unwrap().clone() {
            Act::Body(act) => vec![*act],
            Act::BreakOff => vec![Act::Answer, Act::Unavailable],
            act => vec![act],
        };
        let body = stream::iter(acts)
            .then(async |act| perform(act).await.map(|_| Bytes::new()))
            .boxed();
        let record = record();
        Ok(Some(Found { record, body }))
    }

    async fn put(&self, _: &Key, _: &Record, _: &[Bytes]) -> Result<(), Error> {
        self.act().await.map(drop)
    }

    async fn begin(&self, _: &Key, _: &Record) -> Result<Box<dyn Writer>, Error> {
        Ok(Box::new(ScriptedWriter(self.act.lock().unwrap().clone())))
    }

    async fn replace_record(&self, _: &Key, _: &Record) -> Result<bool, Error> {
        self.act().await
    }

    async fn delete(&self, _: &Key) -> Result<(), Error> {
        self.act().await.map(drop)
    }

    async fn delete_source(&self, _: &Source) -> Result<u64, Error> {
        self.act().await.map(u64::from)
    }

    async fn check(&self) -> Result<(), Error> {
        self.act().await.map(drop)
    }
}

struct ScriptedWriter(Act);

#[async_trait]
impl Writer for ScriptedWriter {
    async fn append(&mut self, _: Bytes) -> Result<u64, Error> {
        perform(self.0.clone()).await.map(|_| 0)
    }

    async fn commit(self: Box<Self>, _: &Record) -> Result<(), Error> {
        perform(self.0.clone()).await.map(drop)
    }
}

fn key() -> Key {
    Key::from_parts("images", 1, [1; 32], [1; 32])
}

fn record() -> Record {
    Record {
        variants: None,
        identity: Identity::of(&key()),
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        response_time: Timestamp::from_unix(0),
        initial_age: 0,
        body: BodyProof::of(&[]),
    }
}

fn metered(act: Act) -> (Arc<Scripted>, Arc<Told>, Metered) {
    let inner = Arc::new(Scripted {
        act: Mutex::new(act),
        calls: AtomicUsize::new(0),
    });
    let told = Arc::new(Told::default());
    let store: Arc<dyn Store> = Arc::clone(&inner) as Arc<dyn Store>;
    let observe: Arc<dyn Observe> = Arc::clone(&told) as Arc<dyn Observe>;
    let metered = Metered::new(store, Limits::default(), observe);
    (inner, told, metered)
}

async fn fail(store: &Metered, times: u32) {
    for _ in 0..times {
        assert!(store.head(&key()).await.is_err());
    }
}

fn is_refused<T>(result: Result<T, Error>) -> bool {
    match result {
        Err(Error::Unavailable(source)) => source.downcast_ref::<BreakerOpen>().is_some(),
        _ => false,
    }
}

#[tokio::test(start_paused = true)]
async fn each_class_of_operation_has_its_deadline() {
    let (_, told, store) = metered(Act::Hang);
    let key = key();
    let lookup = tokio::time::timeout(Duration::from_millis(301), store.head(&key));
    assert!(matches!(lookup.await, Ok(Err(Error::TimedOut))));
    let lookup = tokio::time::timeout(Duration::from_millis(301), store.get(&key));
    assert!(matches!(lookup.await, Ok(Err(Error::TimedOut))));
    let record = record();
    let mut write = std::pin::pin!(store.put(&key, &record, &[]));
    let early = tokio::time::timeout(Duration::from_secs(29), write.as_mut());
    assert!(early.await.is_err());
    assert!(matches!(write.await, Err(Error::TimedOut)));
    let mut write = std::pin::pin!(store.delete_source(key.source()));
    let early = tokio::time::timeout(Duration::from_secs(29), write.as_mut());
    assert!(early.await.is_err());
    assert!(matches!(write.await, Err(Error::TimedOut)));
    let expected = [
        (Operation::Head, OpResult::TimedOut),
        (Operation::Get, OpResult::TimedOut),
        (Operation::Put, OpResult::TimedOut),
        (Operation::DeleteSource, OpResult::TimedOut),
    ];
    assert_eq!(*told.operations.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn it_opens_after_failures_in_a_row_and_then_refuses_at_once() {
    let (inner, told, store) = metered(Act::Unavailable);
    fail(&store, 4).await;
    inner.set(Act::Answer);
    store.head(&key()).await.unwrap();
    inner.set(Act::Unavailable);
    fail(&store, 4).await;
    assert!(told.states.lock().unwrap().is_empty());
    fail(&store, 1).await;
    assert_eq!(*told.states.lock().unwrap(), [BreakerState::Open]);
    let calls = inner.calls.load(Ordering::SeqCst);
    assert!(is_refused(store.head(&key()).await));
    assert!(is_refused(store.get(&key()).await));
    assert!(is_refused(store.put(&key(), &record(), &[]).await));
    assert!(is_refused(store.begin(&key(), &record()).await));
    assert!(is_refused(store.replace_record(&key(), &record()).await));
    assert!(is_refused(store.delete(&key()).await));
    assert!(is_refused(store.delete_source(key().source()).await));
    assert_eq!(inner.calls.load(Ordering::SeqCst), calls);
    let last = *told.operations.lock().unwrap().last().unwrap();
    assert_eq!(last, (Operation::DeleteSource, OpResult::Refused));
    // A check asks the store even while the breaker is open.
    assert!(!is_refused(store.check().await));
}

#[tokio::test(start_paused = true)]
async fn refusals_and_absence_are_no_failures() {
    let (inner, told, store) = metered(Act::Denied);
    fail(&store, 20).await;
    inner.set(Act::Absent);
    for _ in 0..20 {
        assert!(store.get(&key()).await.unwrap().is_none());
    }
    assert!(told.states.lock().unwrap().is_empty());
    assert_eq!(store.delete_source(key().source()).await.unwrap(), 0);
    let operations = told.operations.lock().unwrap();
    let last = operations.last_chunk().unwrap();
    let absent = [Operation::Get, Operation::DeleteSource].map(|asked| (asked, OpResult::Absent));
    assert_eq!(*last, absent);
}

#[tokio::test(start_paused = true)]
async fn half_open_lets_exactly_one_through() {
    let (inner, told, store) = metered(Act::Unavailable);
    fail(&store, 5).await;
    tokio::time::sleep(Duration::from_millis(1_990)).await;
    assert!(is_refused(store.head(&key()).await));
    tokio::time::sleep(Duration::from_millis(20)).await;
    inner.set(Act::Hang);
    let record = record();
    let key = key();
    let mut probe = Box::pin(store.put(&key, &record, &[]));
    assert!(futures_util::poll!(probe.as_mut()).is_pending());
    assert!(is_refused(store.head(&key).await));
    assert!(is_refused(store.get(&key).await));

    // A probe that is dropped leaves its place to the next.
    drop(probe);
    inner.set(Act::Unavailable);
    assert!(!is_refused(store.head(&key).await));
    assert!(is_refused(store.head(&key).await));

    tokio::time::sleep(Duration::from_millis(2_010)).await;
    inner.set(Act::Answer);
    store.head(&key).await.unwrap();
    store.head(&key).await.unwrap();
    let expected = [
        BreakerState::Open,
        BreakerState::HalfOpen,
        BreakerState::Open,
        BreakerState::HalfOpen,
        BreakerState::Closed,
    ];
    assert_eq!(*told.states.lock().unwrap(), expected);
    assert!(
        told.operations
            .lock()
            .unwrap()
            .contains(&(Operation::Put, OpResult::Cancelled))
    );
}

#[tokio::test(start_paused = true)]
async fn heads_without_bodies_open_it() {
    let (_, told, store) = metered(Act::Body(Box::new(Act::Unavailable)));
    for _ in 0..5 {
        let mut found = store.get(&key()).await.unwrap().unwrap();
        assert!(found.body.next().await.unwrap().is_err());
    }
    assert_eq!(*told.states.lock().unwrap(), [BreakerState::Open]);
    assert!(is_refused(store.get(&key()).await));
}

#[tokio::test(start_paused = true)]
async fn heads_whose_bodies_never_come_open_it() {
    let (_, told, store) = metered(Act::Body(Box::new(Act::Hang)));
    for _ in 0..5 {
        let mut found = store.get(&key()).await.unwrap().unwrap();
        let chunk = tokio::time::timeout(Duration::from_millis(301), found.body.next());
        assert!(matches!(chunk.await, Ok(Some(Err(Error::TimedOut)))));
    }
    assert_eq!(*told.states.lock().unwrap(), [BreakerState::Open]);
    let last = *told.operations.lock().unwrap().last().unwrap();
    assert_eq!(last, (Operation::Body, OpResult::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn bodies_that_break_off_open_it() {
    let (_, told, store) = metered(Act::BreakOff);
    let mut bodies = Vec::new();
    for _ in 0..5 {
        let mut body = store.get(&key()).await.unwrap().unwrap().body;
        assert!(body.next().await.unwrap().is_ok());
        bodies.push(body);
    }
    for body in &mut bodies {
        assert!(told.states.lock().unwrap().is_empty());
        assert!(body.next().await.unwrap().is_err());
    }
    assert_eq!(*told.states.lock().unwrap(), [BreakerState::Open]);
    let last = *told.operations.lock().unwrap().last().unwrap();
    assert_eq!(last, (Operation::Body, OpResult::Unavailable));
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_body_is_never_read_does_not_wedge_it() {
    let (inner, _, store) = metered(Act::Unavailable);
    fail(&store, 5).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    inner.set(Act::Answer);
    let found = store.get(&key()).await.unwrap().unwrap();
    assert!(is_refused(store.get(&key()).await));
    drop(found);
    let mut found = store.get(&key()).await.unwrap().unwrap();
    assert!(found.body.next().await.unwrap().is_ok());
    // The first chunk has closed the breaker, although the body is still open.
    store.head(&key()).await.unwrap();
    assert!(found.body.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_writer_has_the_deadline_of_writes_and_its_failures_count() {
    let (_, told, store) = metered(Act::Hang);
    let mut writers = Vec::new();
    for _ in 0..5 {
        writers.push(store.begin(&key(), &record()).await.unwrap());
    }
    let last = writers.pop().unwrap();
    for writer in &mut writers {
        let result = writer.append(Bytes::new()).await;
        assert!(matches!(result, Err(Error::TimedOut)));
    }
    assert!(told.states.lock().unwrap().is_empty());
    assert!(matches!(last.commit(&record()).await, Err(Error::TimedOut)));
    assert_eq!(*told.states.lock().unwrap(), [BreakerState::Open]);
    let last = *told.operations.lock().unwrap().last().unwrap();
    assert_eq!(last, (Operation::Commit, OpResult::TimedOut));
}
