//! What every store must keep, on memory, on disk and on Garage (TCP and Unix socket).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use afterimage::clock::{Clock, Timestamp};
use afterimage::entry::Key;
use afterimage::entry::{BodyProof, Identity, Record};
use afterimage::store::{
    Error, Limits, LocalConfig, LocalStore, MemoryStore, Metered, S3Store, Store, Unobserved,
    read_whole,
};
use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::garage::Garage;
use crate::support::garage::Transport;

/// Defines the suite: each case once for memory and once for disk, and all of them on one Garage.
macro_rules! contract {
    ($($case:ident),* $(,)?) => {
        async fn every_case(store: &Arc<dyn Store>) {
            $(
                eprintln!("case {}", stringify!($case));
                $case(store).await;
            )*
        }

        mod memory {
            $(
                #[tokio::test]
                async fn $case() {
                    let store = afterimage::store::MemoryStore::new(64 * 1024 * 1024);
                    let store: std::sync::Arc<dyn afterimage::store::Store> =
                        std::sync::Arc::new(store);
                    super::$case(&store).await;
                }
            )*
        }

        mod local {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let directory = tempfile::tempdir().unwrap();
                    super::$case(&super::on_disk(directory.path()).await).await;
                }
            )*
        }
    };
}

contract! {
    an_entry_comes_back_as_it_was_put,
    an_entry_comes_back_as_it_was_streamed,
    what_was_never_put_is_absent,
    a_second_put_replaces_the_first,
    a_deleted_entry_is_absent,
    a_body_of_another_length_than_its_record_is_refused,
    a_writer_dropped_without_commit_leaves_what_was_there,
    a_new_record_keeps_the_body,
    a_new_record_for_another_body_is_refused,
    head_gives_the_record_that_get_gives,
    header_values_need_not_be_utf8,
    header_values_need_not_be_fit_for_objects,
    a_record_that_is_too_large_is_refused_and_nothing_is_stored,
    of_concurrent_puts_one_wins_whole,
    a_get_during_overwrites_never_mixes,
    keys_of_one_source_are_apart,
    a_deleted_source_takes_all_its_entries_and_no_others,
    the_store_can_be_checked,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garage_over_tcp() {
    let garage = Garage::start(Transport::Tcp).await;
    on_garage(&garage, "some/prefix").await;
    a_source_may_have_more_entries_than_a_page(&garage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garage_over_a_unix_socket() {
    let garage = Garage::start(Transport::Unix).await;
    on_garage(&garage, "").await;
}

/// The wrapper must not change what a store does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metered() {
    let store = Metered::new(
        Arc::new(MemoryStore::new(64 * 1024 * 1024)),
        Limits::default(),
        Arc::new(Unobserved),
    );
    let store: Arc<dyn Store> = Arc::new(store);
    every_case(&store).await;
}

async fn on_garage(garage: &Garage, prefix: &str) {
    let store: Arc<dyn Store> = Arc::new(S3Store::new(garage.config(prefix)).unwrap());
    every_case(&store).await;
    // Uploads are aborted and staged objects deleted in the background; nothing else waits.
    let everything = async {
        loop {
            let (objects, uploads) = garage.contents().await;
            if objects == KEPT.len() as u64 && uploads == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(30), everything)
        .await
        .is_err()
    {
        panic!(
            "left behind (objects, uploads): {:?}",
            garage.contents().await
        );
    }
}

/// Cases that end with an entry under a key of their own.
const KEPT: [u8; 31] = [
    10, 11, 12, 13, 14, 15, 16, 20, 21, 22, 23, 24, 25, 26, 27, 40, 71, 80, 81, 90, 100, 110, 112,
    130, 140, 150, 151, 61, 160, 161, 162,
];

pub(crate) async fn on_disk(path: &std::path::Path) -> Arc<dyn Store> {
    let config = LocalConfig {
        path: path.to_owned(),
        max_bytes: LocalConfig::DEFAULT_MAX_BYTES,
    };
    Arc::new(LocalStore::open(config, Clock::system()).await.unwrap())
}

pub(crate) fn key(number: u8) -> Key {
    Key::from_parts("suite", 1, [number; 32], [number; 32])
}

pub(crate) fn body(length: usize, seed: u64) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..))
        .take(length)
        .collect()
}

pub(crate) fn record(key: &Key, body: &[Bytes]) -> Record {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("image/webp"));
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("max-age=31536000, public"),
    );
    Record {
        variants: None,
        identity: Identity::of(key),
        status: StatusCode::OK,
        headers,
        response_time: Timestamp::from_unix(1_700_000_000),
        initial_age: 3,
        body: BodyProof::of(body),
    }
}

/// The entry, proven; `None` when absent.
pub(crate) async fn read(store: &dyn Store, key: &Key) -> Option<(Record, Bytes)> {
    let found = store.get(key).await.unwrap()?;
    assert!(found.record.is_for(key));
    let body = read_whole(&found.record, found.body).await.unwrap();
    Some((found.record, body))
}

async fn an_entry_comes_back_as_it_was_put(store: &Arc<dyn Store>) {
    let lengths = [0, 1, 3071, 3072, 65_536, 1_048_576, 1_048_577];
    for (number, length) in (10..).zip(lengths) {
        let key = key(number);
        let body = body(length, u64::from(number));
        // As chunks of unequal size, some of them empty.
        let (head, tail) = (body.slice(..length / 3), body.slice(length / 3..));
        let chunks = [Bytes::new(), head, Bytes::new(), tail];
        let record = record(&key, &chunks);
        store.put(&key, &record, &chunks).await.unwrap();
        assert!(
            read(&**store, &key).await == Some((record, body)),
            "{length}"
        );
    }
}

async fn an_entry_comes_back_as_it_was_streamed(store: &Arc<dyn Store>) {
    const MIB: usize = 1024 * 1024;
    let lengths = [0, 1, 3072, 65_536, MIB + 1, 8 * MIB, 9 * MIB, 16 * MIB];
    for (number, length) in (20..).zip(lengths) {
        let key = key(number);
        let body = body(length, u64::from(number));
        let record = record(&key, std::slice::from_ref(&body));
        let mut writer = store.begin(&key, &record).await.unwrap();
        let mut rest = body.clone();
        while !rest.is_empty() {
            let chunk = rest.split_to(rest.len().min(100_003));
            writer.append(chunk).await.unwrap();
        }
        assert!(
            read(&**store, &key).await.is_none(),
            "{length} before commit"
        );
        writer.commit(&record).await.unwrap();
        assert!(
            read(&**store, &key).await == Some((record, body)),
            "{length}"
        );
    }
}

async fn what_was_never_put_is_absent(store: &Arc<dyn Store>) {
    let key = key(30);
    assert!(store.head(&key).await.unwrap().is_none());
    assert!(store.get(&key).await.unwrap().is_none());
    store.delete(&key).await.unwrap();
    let record = record(&key, &[]);
    assert!(!store.replace_record(&key, &record).await.unwrap());
    assert!(store.get(&key).await.unwrap().is_none());
}

async fn a_second_put_replaces_the_first(store: &Arc<dyn Store>) {
    let key = key(40);
    for length in [50_000, 2_000_000, 10] {
        let body = body(length, length as u64);
        let record = record(&key, std::slice::from_ref(&body));
        store
            .put(&key, &record, std::slice::from_ref(&body))
            .await
            .unwrap();
        assert!(read(&**store, &key).await == Some((record, body)));
    }
}

async fn a_deleted_entry_is_absent(store: &Arc<dyn Store>) {
    let key = key(50);
    let body = [body(5_000, 50)];
    let record = record(&key, &body);
    store.put(&key, &record, &body).await.unwrap();
    store.delete(&key).await.unwrap();
    assert!(store.head(&key).await.unwrap().is_none());
    assert!(store.get(&key).await.unwrap().is_none());
}

async fn a_body_of_another_length_than_its_record_is_refused(store: &Arc<dyn Store>) {
    let (absent, present) = (key(60), key(61));
    let whole = [body(5_000, 60)];
    let short = [whole[0].slice(1..)];
    let record = record(&absent, &whole);
    let refused = store.put(&absent, &record, &short).await;
    assert!(matches!(refused, Err(Error::Corrupt(_))), "{refused:?}");
    let mut writer = store.begin(&absent, &record).await.unwrap();
    writer.append(short[0].clone()).await.unwrap();
    let refused = writer.commit(&record).await;
    assert!(matches!(refused, Err(Error::Corrupt(_))), "{refused:?}");
    assert!(store.get(&absent).await.unwrap().is_none());

    let record = self::record(&present, &whole);
    store.put(&present, &record, &whole).await.unwrap();
    assert!(store.put(&present, &record, &short).await.is_err());
    let kept = read(&**store, &present).await;
    assert!(kept == Some((record, whole[0].clone())));
}

async fn a_writer_dropped_without_commit_leaves_what_was_there(store: &Arc<dyn Store>) {
    let (absent, present) = (key(70), key(71));
    let old = [body(50_000, 70)];
    let old_record = record(&present, &old);
    store.put(&present, &old_record, &old).await.unwrap();
    for key in [&absent, &present] {
        for length in [0, 1_000, 300_000, 9 * 1024 * 1024] {
            let new = body(length, 71);
            let record = record(key, std::slice::from_ref(&new));
            let mut writer = store.begin(key, &record).await.unwrap();
            writer.append(new).await.unwrap();
            drop(writer);
        }
    }
    assert!(store.head(&absent).await.unwrap().is_none());
    assert!(store.get(&absent).await.unwrap().is_none());
    let kept = read(&**store, &present).await;
    assert!(kept == Some((old_record, old[0].clone())));
}

async fn a_new_record_keeps_the_body(store: &Arc<dyn Store>) {
    for (number, length) in [(80, 2_000), (81, 2_000_000)] {
        let key = key(number);
        let body = [body(length, 80)];
        let mut record = record(&key, &body);
        store.put(&key, &record, &body).await.unwrap();
        record.response_time = record.response_time.plus_seconds(1000);
        record.headers.insert(
            "x-new",
            HeaderValue::from_static("a longer record than before"),
        );
        assert!(store.replace_record(&key, &record).await.unwrap());
        let kept = read(&**store, &key).await;
        assert!(kept == Some((record, body[0].clone())));
    }
}

async fn a_new_record_for_another_body_is_refused(store: &Arc<dyn Store>) {
    let key = key(90);
    let (old, new) = ([body(3_000, 90)], [body(3_000, 91)]);
    let record = record(&key, &new);
    store.put(&key, &record, &new).await.unwrap();
    let freshened = self::record(&key, &old);
    assert!(!store.replace_record(&key, &freshened).await.unwrap());
    assert!(read(&**store, &key).await == Some((record, new[0].clone())));
}

async fn head_gives_the_record_that_get_gives(store: &Arc<dyn Store>) {
    let key = key(100);
    let body = [body(2_000_000, 100)];
    let record = record(&key, &body);
    store.put(&key, &record, &body).await.unwrap();
    let head = store.head(&key).await.unwrap();
    let found = store.get(&key).await.unwrap().unwrap();
    assert_eq!(head.as_ref(), Some(&found.record));
    assert_eq!(head, Some(record));
}

async fn header_values_need_not_be_utf8(store: &Arc<dyn Store>) {
    let key = key(110);
    let body = [body(100, 110)];
    let mut record = record(&key, &body);
    let latin1 = HeaderValue::from_bytes(b"inline; filename=\"caf\xe9.jpg\"").unwrap();
    record.headers.insert(CONTENT_DISPOSITION, latin1);
    record
        .headers
        .append("x-twice", HeaderValue::from_static("1"));
    record
        .headers
        .append("x-twice", HeaderValue::from_static("2"));
    store.put(&key, &record, &body).await.unwrap();
    assert!(read(&**store, &key).await == Some((record, body[0].clone())));
}

async fn header_values_need_not_be_fit_for_objects(store: &Arc<dyn Store>) {
    let key = key(112);
    let body = [body(100, 112)];
    for value in [
        "inline; filename=\"a  b.jpg\"",
        "",
        "inline;\tfilename=x",
        "a, b;c=\"%2F+ü\"",
    ] {
        let mut record = record(&key, &body);
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        record.headers.insert(CONTENT_DISPOSITION, value.clone());
        record.headers.insert(CACHE_CONTROL, value.clone());
        record.headers.insert(CONTENT_TYPE, value);
        store.put(&key, &record, &body).await.unwrap();
        assert!(store.replace_record(&key, &record).await.unwrap());
        assert!(read(&**store, &key).await == Some((record, body[0].clone())));
    }
}

async fn a_record_that_is_too_large_is_refused_and_nothing_is_stored(store: &Arc<dyn Store>) {
    let (absent, present) = (key(120), key(130));
    let body = [body(100, 120)];
    let too_large = |key: &Key| {
        let mut record = record(key, &body);
        let value = HeaderValue::from_str(&"x".repeat(3000)).unwrap();
        record.headers.insert("x-long", value);
        record
    };
    let is_refused = |result: Result<(), Error>| match result {
        Err(Error::TooLarge(reason)) => reason.contains("record_too_large"),
        _ => false,
    };
    let record = too_large(&absent);
    assert!(is_refused(store.put(&absent, &record, &body).await));
    let mut writer = store.begin(&absent, &record).await.unwrap();
    writer.append(body[0].clone()).await.unwrap();
    assert!(is_refused(writer.commit(&record).await));
    assert!(store.head(&absent).await.unwrap().is_none());

    let small = self::record(&present, &body);
    store.put(&present, &small, &body).await.unwrap();
    let replaced = store.replace_record(&present, &too_large(&present)).await;
    assert!(is_refused(replaced.map(drop)));
    assert!(read(&**store, &present).await == Some((small, body[0].clone())));
}

async fn of_concurrent_puts_one_wins_whole(store: &Arc<dyn Store>) {
    let key = key(140);
    let mut bodies = HashSet::new();
    let mut puts = tokio::task::JoinSet::new();
    for seed in 0..8_u64 {
        // Some of one length, so that only the bytes can tell them apart.
        let body = body(
            if seed < 4 {
                60_000
            } else {
                1_000 + seed as usize
            },
            seed,
        );
        bodies.insert(body.clone());
        let (store, key) = (Arc::clone(store), key.clone());
        puts.spawn(async move {
            let record = record(&key, std::slice::from_ref(&body));
            store.put(&key, &record, &[body]).await
        });
    }
    while let Some(put) = puts.join_next().await {
        put.unwrap().unwrap();
    }
    let (_, body) = read(&**store, &key).await.unwrap();
    assert!(bodies.contains(&body));
}

async fn a_get_during_overwrites_never_mixes(store: &Arc<dyn Store>) {
    let key = key(150);
    let writer = (Arc::clone(store), key.clone());
    let put = async move |round: u64| {
        let (store, key) = &writer;
        let length = if round.is_multiple_of(2) {
            60_000
        } else {
            1_200_000
        };
        let body = [body(length, round)];
        let record = record(key, &body);
        store.put(key, &record, &body).await.unwrap();
        tokio::task::yield_now().await;
    };
    put(0).await;
    let overwrites = tokio::spawn(async move {
        for round in 1..30 {
            put(round).await;
        }
    });
    let mut whole = 0;
    while !overwrites.is_finished() {
        let found = store.get(&key).await.unwrap().unwrap();
        tokio::task::yield_now().await;
        match read_whole(&found.record, found.body).await {
            Ok(_) => whole += 1,
            // An S3 service may break off; what it gave is known not to be whole.
            Err(Error::Unavailable(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    overwrites.await.unwrap();
    assert!(whole > 0);
}

async fn keys_of_one_source_are_apart(store: &Arc<dyn Store>) {
    let key = |digest| Key::from_parts("suite", 1, [151; 32], [digest; 32]);
    let (one, other) = (key(1), key(2));
    let body = [body(100, 151)];
    let record = record(&one, &body);
    store.put(&one, &record, &body).await.unwrap();
    assert!(store.head(&other).await.unwrap().is_none());
    store.delete(&other).await.unwrap();
    assert!(read(&**store, &one).await == Some((record, body[0].clone())));
}

async fn a_deleted_source_takes_all_its_entries_and_no_others(store: &Arc<dyn Store>) {
    let body = [body(100, 160)];
    let record_of = |key: &Key| record(key, &body);
    let key = |namespace, epoch, source, digest| {
        Key::from_parts(namespace, epoch, [source; 32], [digest; 32])
    };
    let entries: Vec<_> = (1..=5).map(|digest| key("suite", 1, 160, digest)).collect();
    let others = [
        key("suite", 1, 161, 1),
        key("suite", 11, 160, 1),
        key("suite-2", 1, 160, 1),
    ];
    for key in entries.iter().chain(&others) {
        store.put(key, &record_of(key), &body).await.unwrap();
    }
    let source = entries[0].source();
    assert_eq!(store.delete_source(source).await.unwrap(), 5);
    for key in &entries {
        assert!(store.get(key).await.unwrap().is_none(), "{key:?}");
    }
    for key in &others {
        let kept = read(&**store, key).await;
        assert!(kept == Some((record_of(key), body[0].clone())), "{key:?}");
    }
    assert_eq!(store.delete_source(source).await.unwrap(), 0);
}

async fn a_source_may_have_more_entries_than_a_page(garage: &Garage) {
    const ENTRIES: u16 = 1001;
    let store = S3Store::new(garage.config("pages")).unwrap();
    let key = |number: u16| {
        let mut digest = [0; 32];
        digest[..2].copy_from_slice(&number.to_be_bytes());
        Key::from_parts("suite", 1, [170; 32], digest)
    };
    futures_util::stream::iter(0..ENTRIES)
        .for_each_concurrent(32, async |number| {
            let key = key(number);
            store.put(&key, &record(&key, &[]), &[]).await.unwrap();
        })
        .await;
    let removed = store.delete_source(key(0).source()).await.unwrap();
    assert_eq!(removed, u64::from(ENTRIES));
    for number in [0, 999, 1000] {
        assert!(store.head(&key(number)).await.unwrap().is_none());
    }
}

async fn the_store_can_be_checked(store: &Arc<dyn Store>) {
    store.check().await.unwrap();
}
