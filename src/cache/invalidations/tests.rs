use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::entry::Key;
use crate::entry::{BodyProof, Identity, Record};
use crate::store::{Error, Found, MemoryStore, Writer};

const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
const BEFORE: Timestamp = Timestamp::from_unix(1_799_999_999);
const AFTER: Timestamp = Timestamp::from_unix(1_800_000_001);

fn key(source: u8) -> Key {
    Key::from_parts("test", 1, [source; 32], [2; 32])
}

/// A store whose deletions fail as long as it is told to.
#[derive(Debug)]
struct Failing {
    inner: MemoryStore,
    fails: AtomicBool,
}

#[async_trait]
impl Store for Failing {
    async fn head(&self, key: &Key) -> Result<Option<Record>, Error> {
        self.inner.head(key).await
    }
    async fn get(&self, key: &Key) -> Result<Option<Found>, Error> {
        self.inner.get(key).await
    }
    async fn put(&self, key: &Key, record: &Record, body: &[Bytes]) -> Result<(), Error> {
        self.inner.put(key, record, body).await
    }
    async fn begin(&self, key: &Key, draft: &Record) -> Result<Box<dyn Writer>, Error> {
        self.inner.begin(key, draft).await
    }
    async fn replace_record(&self, key: &Key, record: &Record) -> Result<bool, Error> {
        self.inner.replace_record(key, record).await
    }
    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.inner.delete(key).await
    }
    async fn delete_source(&self, source: &Source) -> Result<u64, Error> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(Error::TimedOut);
        }
        self.inner.delete_source(source).await
    }
    async fn check(&self) -> Result<(), Error> {
        self.inner.check().await
    }
}

struct Setup {
    marks: Marks,
    store: Arc<Failing>,
    tasks: TaskTracker,
}

impl Setup {
    fn hides(&self, source: &Source, response_time: Timestamp) -> bool {
        let horizon = self.marks.horizon(source);
        horizon.is_some_and(|horizon| response_time <= horizon)
    }

    fn new(count: usize) -> Self {
        let store = Arc::new(Failing {
            inner: MemoryStore::new(1 << 20),
            fails: AtomicBool::new(false),
        });
        let tasks = TaskTracker::new();
        let bounds = Bounds {
            count,
            patience: Duration::from_secs(60),
            fill: Duration::from_secs(90),
        };
        let marks = Marks::new(
            Arc::clone(&store) as _,
            Clock::manual(NOW),
            tasks.clone(),
            bounds,
        );
        Self {
            marks,
            store,
            tasks,
        }
    }

    async fn put(&self, key: &Key) {
        let record = Record {
            variants: None,
            identity: Identity::of(key),
            status: http::StatusCode::OK,
            headers: http::HeaderMap::new(),
            response_time: BEFORE,
            initial_age: 0,
            body: BodyProof::of(&[]),
        };
        self.store.put(key, &record, &[]).await.unwrap();
    }

    async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }
}

#[tokio::test]
async fn without_marks_nothing_is_hidden() {
    let setup = Setup::new(2);
    let marks = &setup.marks;
    assert!(!setup.hides(key(1).source(), BEFORE));
    assert!(!marks.hide_asked(key(1).source(), marks.now()));
}

#[tokio::test]
async fn a_mark_hides_what_was_before_it_at_once_and_deletes_it() {
    let setup = Setup::new(2);
    setup.put(&key(1)).await;
    setup.put(&key(2)).await;
    let (marks, source) = (&setup.marks, key(1).source().clone());
    let before = marks.now();
    marks.set(vec![source.clone()]);
    assert!(setup.hides(&source, BEFORE) && setup.hides(&source, NOW));
    assert!(!setup.hides(&source, AFTER));
    assert!(marks.hide_asked(&source, before) && !marks.hide_asked(&source, marks.now()));
    assert!(!setup.hides(key(2).source(), BEFORE));

    setup.settled().await;
    assert!(setup.store.head(&key(1)).await.unwrap().is_none());
    assert!(setup.store.head(&key(2)).await.unwrap().is_some());
    // What is there now came after the mark; a fill from before may still be running.
    assert!(!setup.hides(&source, NOW));
    assert!(marks.hide_asked(&source, before));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_fails_is_tried_again_and_hides_until_then() {
    let setup = Setup::new(2);
    setup.put(&key(1)).await;
    setup.store.fails.store(true, Ordering::SeqCst);
    let source = key(1).source().clone();
    setup.marks.set(vec![source.clone()]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(setup.hides(&source, BEFORE));
    assert!(setup.store.head(&key(1)).await.unwrap().is_some());
    setup.store.fails.store(false, Ordering::SeqCst);
    setup.settled().await;
    assert!(setup.store.head(&key(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_mark_during_a_deletion_has_its_own() {
    let setup = Setup::new(2);
    let source = key(1).source().clone();
    setup.marks.set(vec![source.clone(), source.clone()]);
    setup.put(&key(1)).await;
    setup.settled().await;
    assert!(setup.store.head(&key(1)).await.unwrap().is_none());
    assert!(!setup.hides(&source, NOW));
}

#[tokio::test]
async fn beyond_their_number_everything_from_before_is_hidden() {
    let setup = Setup::new(1);
    let marks = &setup.marks;
    let before = marks.now();
    marks.set(vec![key(1).source().clone(), key(2).source().clone()]);
    for source in [2, 3] {
        assert!(setup.hides(key(source).source(), BEFORE));
        assert!(marks.hide_asked(key(source).source(), before));
        assert!(!setup.hides(key(source).source(), AFTER));
    }
    setup.settled().await;
    assert!(!setup.hides(key(3).source(), AFTER));
}
