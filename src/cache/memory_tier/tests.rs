use proptest::prelude::*;
use tokio_util::task::TaskTracker;

use super::*;
use crate::cache::invalidations::Bounds;
use crate::clock::{Clock, Timestamp};
use crate::entry::{BodyProof, Identity};
use crate::store::MemoryStore;

const MIB: u64 = 1 << 20;

fn invalidations() -> Invalidations {
    let bounds = Bounds {
        count: 10,
        patience: Duration::from_secs(60),
        fill: Duration::from_secs(60),
    };
    let store = Arc::new(MemoryStore::new(MIB));
    let clock = Clock::manual(Timestamp::from_unix(1));
    Invalidations::new(store, clock, TaskTracker::new(), bounds)
}

fn memory(max_bytes: u64) -> MemoryTier {
    MemoryTier::new(
        max_bytes,
        MIB,
        Duration::from_secs(60),
        invalidations(),
        &Metrics::new(),
    )
}

fn key(number: u64) -> Key {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&number.to_be_bytes());
    Key::from_parts("test", 1, [1; 32], digest)
}

fn body(length: usize) -> Vec<Bytes> {
    vec![Bytes::from(vec![7; length])]
}

fn record(key: &Key, body: &[Bytes]) -> Arc<Record> {
    Arc::new(Record {
        variants: None,
        identity: Identity::of(key),
        status: http::StatusCode::OK,
        headers: http::HeaderMap::new(),
        response_time: Timestamp::from_unix(1),
        initial_age: 0,
        body: BodyProof::of(body),
    })
}

fn put(memory: &MemoryTier, number: u64, length: usize) {
    let (key, body) = (key(number), body(length));
    memory.put(&key, record(&key, &body), &body, InvalidationSeq::default());
}

fn has(memory: &MemoryTier, number: u64) -> bool {
    memory.get(&key(number)).is_some()
}

#[test]
fn what_was_kept_is_there_and_shared() {
    let memory = memory(MIB);
    put(&memory, 1, 1000);
    let first = memory.get(&key(1)).unwrap().entry;
    let second = memory.get(&key(1)).unwrap().entry;
    assert_eq!(first.body.as_ptr(), second.body.as_ptr());
    assert_eq!(memory.usage(), (1000 + ENTRY_BYTES, 1));
}

#[test]
fn what_was_read_late_does_not_take_the_place_of_a_later_response() {
    let memory = memory(MIB);
    let (key, old, new) = (key(1), body(10), body(20));
    let mut later = Record::clone(&record(&key, &new));
    later.response_time = Timestamp::from_unix(2);
    memory.put(&key, Arc::new(later), &new, InvalidationSeq::default());
    memory.put(&key, record(&key, &old), &old, InvalidationSeq::default());
    assert_eq!(memory.get(&key).unwrap().entry.body, new[0]);
}

#[test]
fn what_goes_out_in_pieces_is_not_kept() {
    let memory = MemoryTier::new(
        64 * MIB,
        1000,
        Duration::from_secs(60),
        invalidations(),
        &Metrics::new(),
    );
    put(&memory, 1, 1001);
    put(&memory, 2, 1000);
    assert!(!has(&memory, 1) && has(&memory, 2));
}

#[test]
fn without_bytes_there_is_no_tier() {
    let memory = memory(0);
    put(&memory, 1, 10);
    assert!(!memory.is_on() && !has(&memory, 1));
}

#[test]
fn one_off_images_do_not_push_out_what_is_asked_for_again() {
    let memory = memory(64 * MIB);
    for _ in 0..3 {
        for number in 0..300 {
            if !has(&memory, number) {
                put(&memory, number, 50_000);
            }
        }
    }
    for number in 1000..6000 {
        assert!(!has(&memory, number));
        put(&memory, number, 50_000);
    }
    let left = (0..300).filter(|number| has(&memory, *number)).count();
    assert!(left >= 290, "{left} of 300 are left");
}

#[test]
fn an_entry_is_compared_with_the_store_by_one_caller_at_a_time() {
    let due = MemoryTier::new(MIB, MIB, Duration::ZERO, invalidations(), &Metrics::new());
    put(&due, 1, 10);
    assert!(due.get(&key(1)).unwrap().is_due);
    let memory = memory(MIB);
    put(&memory, 1, 10);
    assert!(!memory.get(&key(1)).unwrap().is_due);
}

#[test]
fn only_the_entry_that_was_compared_is_taken_out() {
    let memory = memory(MIB);
    put(&memory, 1, 10);
    let old = memory.get(&key(1)).unwrap().entry;
    put(&memory, 1, 20);
    memory.remove_this(&key(1), &old);
    assert_eq!(memory.get(&key(1)).unwrap().entry.body.len(), 20);
    let new = memory.get(&key(1)).unwrap().entry;
    memory.remove_this(&key(1), &new);
    assert!(!has(&memory, 1));
}

#[test]
fn a_new_record_needs_the_same_body() {
    let memory = memory(MIB);
    put(&memory, 1, 10);
    let fresh = |length| {
        let mut record = Record::clone(&record(&key(1), &body(length)));
        record.initial_age = 7;
        record
    };
    memory.freshen(&key(1), fresh(11), InvalidationSeq::default());
    assert_eq!(memory.get(&key(1)).unwrap().entry.record.initial_age, 0);
    memory.freshen(&key(1), fresh(10), InvalidationSeq::default());
    assert_eq!(memory.get(&key(1)).unwrap().entry.record.initial_age, 7);
    memory.freshen(&key(2), fresh(10), InvalidationSeq::default());
    assert!(!has(&memory, 2));
}

#[tokio::test]
async fn what_was_asked_for_before_it_was_invalidated_is_not_kept() {
    let invalidations = invalidations();
    let memory = MemoryTier::new(
        MIB,
        MIB,
        Duration::from_secs(60),
        invalidations.clone(),
        &Metrics::new(),
    );
    let asked = invalidations.now();
    put(&memory, 1, 10);
    let source = key(1).source().clone();
    invalidations.set(vec![source.clone()]);
    memory.remove_source(&source);
    assert!(!has(&memory, 1));
    let body = body(10);
    memory.put(&key(1), record(&key(1), &body), &body, asked);
    assert!(!has(&memory, 1));
    memory.put(&key(1), record(&key(1), &body), &body, invalidations.now());
    assert!(has(&memory, 1));
}

proptest! {
    /// However entries come and go, they never weigh more than they may.
    #[test]
    fn the_bound_holds(steps in proptest::collection::vec((0_u64..50, 0_usize..100_000), 1..200)) {
        let memory = memory(MIB);
        for (number, length) in steps {
            put(&memory, number, length);
            prop_assert!(memory.usage().0 <= MIB);
        }
    }
}
