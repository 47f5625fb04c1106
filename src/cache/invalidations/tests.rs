use super::*;
use crate::entry::{BodyProof, Identity, Key, Record};
use crate::store::{Fault, FaultyStore, MemoryStore, Operation};

const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
const BEFORE: Timestamp = Timestamp::from_unix(1_799_999_999);
const AFTER: Timestamp = Timestamp::from_unix(1_800_000_001);

fn key(source: u8) -> Key {
    Key::from_parts("test", 1, [source; 32], [2; 32])
}

struct Setup {
    invalidations: Invalidations,
    store: Arc<FaultyStore>,
    tasks: TaskTracker,
}

impl Setup {
    fn hides(&self, source: &Source, response_time: Timestamp) -> bool {
        let horizon = self.invalidations.horizon(source);
        horizon.is_some_and(|horizon| response_time <= horizon)
    }

    fn new(count: usize) -> Self {
        Self::with_patience(count, Duration::from_secs(60))
    }

    fn with_patience(count: usize, patience: Duration) -> Self {
        let store = FaultyStore::new(Arc::new(MemoryStore::new(1 << 20)));
        let tasks = TaskTracker::new();
        let bounds = Bounds {
            count,
            patience,
            fill: Duration::from_secs(90),
        };
        let invalidations = Invalidations::new(
            Arc::clone(&store) as _,
            Clock::manual(NOW),
            tasks.clone(),
            bounds,
        );
        Self {
            invalidations,
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
async fn without_invalidations_nothing_is_hidden() {
    let setup = Setup::new(2);
    let invalidations = &setup.invalidations;
    assert!(!setup.hides(key(1).source(), BEFORE));
    assert!(!invalidations.hides(key(1).source(), invalidations.now()));
}

#[tokio::test]
async fn an_invalidation_hides_what_was_before_it_at_once_and_deletes_it() {
    let setup = Setup::new(2);
    setup.put(&key(1)).await;
    setup.put(&key(2)).await;
    let (invalidations, source) = (&setup.invalidations, key(1).source().clone());
    let before = invalidations.now();
    invalidations.set(vec![source.clone()]);
    assert!(setup.hides(&source, BEFORE) && setup.hides(&source, NOW));
    assert!(!setup.hides(&source, AFTER));
    assert!(
        invalidations.hides(&source, before) && !invalidations.hides(&source, invalidations.now())
    );
    assert!(!setup.hides(key(2).source(), BEFORE));

    setup.settled().await;
    assert!(setup.store.head(&key(1)).await.unwrap().is_none());
    assert!(setup.store.head(&key(2)).await.unwrap().is_some());
    // What is there now came after the invalidation; a fill from before may still be running.
    assert!(!setup.hides(&source, NOW));
    assert!(invalidations.hides(&source, before));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_fails_is_tried_again_and_hides_until_then() {
    let setup = Setup::new(2);
    setup.put(&key(1)).await;
    setup.store.set(Operation::DeleteSource, Fault::Fails);
    let source = key(1).source().clone();
    setup.invalidations.set(vec![source.clone()]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(setup.hides(&source, BEFORE));
    assert!(setup.store.head(&key(1)).await.unwrap().is_some());
    setup.store.heal(Operation::DeleteSource);
    setup.settled().await;
    assert!(setup.store.head(&key(1)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_mark_during_a_deletion_has_its_own() {
    let setup = Setup::new(2);
    let source = key(1).source().clone();
    setup
        .invalidations
        .set(vec![source.clone(), source.clone()]);
    setup.put(&key(1)).await;
    setup.settled().await;
    assert!(setup.store.head(&key(1)).await.unwrap().is_none());
    assert!(!setup.hides(&source, NOW));
}

#[tokio::test]
async fn beyond_their_number_everything_from_before_is_hidden() {
    let setup = Setup::new(1);
    let invalidations = &setup.invalidations;
    let before = invalidations.now();
    invalidations.set(vec![key(1).source().clone(), key(2).source().clone()]);
    for source in [2, 3] {
        assert!(setup.hides(key(source).source(), BEFORE));
        assert!(invalidations.hides(key(source).source(), before));
        assert!(!setup.hides(key(source).source(), AFTER));
    }
    setup.settled().await;
    assert!(!setup.hides(key(3).source(), AFTER));
}

#[tokio::test]
async fn beyond_their_number_another_namespace_is_left_alone() {
    let setup = Setup::new(1);
    let before = setup.invalidations.now();
    let sources: Vec<_> = (1..=3).map(|source| key(source).source().clone()).collect();
    setup.invalidations.set(sources);
    let other = Key::from_parts("other", 1, [9; 32], [2; 32]);
    assert!(!setup.hides(other.source(), BEFORE));
    assert!(!setup.invalidations.hides(other.source(), before));
    // It has as much room of its own.
    setup.invalidations.set(vec![other.source().clone()]);
    let third = Key::from_parts("other", 1, [8; 32], [2; 32]);
    assert!(!setup.hides(third.source(), BEFORE));
    setup.settled().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_invalidated_after_its_deletion_was_given_up_is_deleted_for() {
    let setup = Setup::with_patience(2, Duration::ZERO);
    setup.store.set(Operation::DeleteSource, Fault::Fails);
    setup.put(&key(1)).await;
    let source = key(1).source().clone();
    setup.invalidations.set(vec![source.clone()]);
    setup.settled().await;
    assert!(setup.hides(&source, BEFORE));
    // The store is back, and the source is invalidated once more.
    setup.store.heal(Operation::DeleteSource);
    setup.invalidations.set(vec![source.clone()]);
    setup.settled().await;
    assert!(setup.store.head(&key(1)).await.unwrap().is_none());
}
