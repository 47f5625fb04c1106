use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use http::{HeaderMap, StatusCode};
use tempfile::TempDir;

use super::*;
use crate::entry::{BodyProof, Identity};
use crate::store::read_whole;

const GIB: u64 = 1024 * 1024 * 1024;

struct Fixture {
    directory: TempDir,
    clock: Clock,
    max_bytes: u64,
}

impl Fixture {
    fn new(max_bytes: u64) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            clock: Clock::manual(Timestamp::from_unix(1_700_000_000)),
            max_bytes,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    async fn open(&self) -> LocalStore {
        let config = LocalConfig {
            path: self.path().to_owned(),
            max_bytes: self.max_bytes,
        };
        LocalStore::open(config, self.clock.clone()).await.unwrap()
    }

    fn file_of(&self, key: &Key) -> PathBuf {
        self.path().join(key.object_name())
    }

    /// Bytes of all files and directories below `v1`, as the disk counts them.
    fn blocks(&self) -> u64 {
        fn of(path: &Path) -> u64 {
            let Ok(entries) = fs::read_dir(path) else {
                return 0;
            };
            entries
                .map(|entry| {
                    let entry = entry.unwrap();
                    let metadata = entry.metadata().unwrap();
                    metadata.len().next_multiple_of(4096) + of(&entry.path())
                })
                .sum()
        }
        of(&self.path().join("v1"))
    }

    fn staged(&self) -> usize {
        fs::read_dir(self.path().join(".stage")).unwrap().count()
    }
}

fn key(number: u8) -> Key {
    Key::from_parts("images", 1, [number; 32], [number; 32])
}

fn entry(number: u8, length: usize) -> (Key, Record, Bytes) {
    let key = key(number);
    let body = Bytes::from(vec![number; length]);
    let record = Record {
        variants: None,
        identity: Identity::of(&key),
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        response_time: Timestamp::from_unix(1_700_000_000),
        initial_age: 0,
        body: BodyProof::of(std::slice::from_ref(&body)),
    };
    (key, record, body)
}

async fn put(store: &LocalStore, number: u8, length: usize) -> Result<(), Error> {
    let (key, record, body) = entry(number, length);
    store.put(&key, &record, &[body]).await
}

async fn is_there(store: &LocalStore, number: u8) -> bool {
    let Some(found) = store.get(&key(number)).await.unwrap() else {
        return false;
    };
    read_whole(&found.record, found.body).await.unwrap();
    true
}

#[tokio::test]
async fn entries_outlive_the_store() {
    let fixture = Fixture::new(GIB);
    let store = fixture.open().await;
    put(&store, 1, 100).await.unwrap();
    drop(store);
    assert!(is_there(&fixture.open().await, 1).await);
}

#[tokio::test]
async fn files_and_directories_are_the_owners_alone() {
    let fixture = Fixture::new(GIB);
    let store = fixture.open().await;
    put(&store, 1, 100).await.unwrap();
    let mut path = fixture.file_of(&key(1));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    while path.pop() && path != fixture.path() {
        assert_eq!(mode(&path), 0o700, "{}", path.display());
    }
}

#[tokio::test]
async fn a_second_owner_is_refused_by_name() {
    let fixture = Fixture::new(GIB);
    let first = fixture.open().await;
    let config = LocalConfig {
        path: fixture.path().to_owned(),
        max_bytes: GIB,
    };
    let refused = LocalStore::open(config, Clock::system()).await.unwrap_err();
    let told = refused.to_string();
    assert!(
        told.contains(&fixture.path().display().to_string()),
        "{told}"
    );
    assert!(
        told.contains(&format!("pid {}", std::process::id())),
        "{told}"
    );
    drop(first);
    fixture.open().await;
}

#[tokio::test]
async fn what_was_left_in_the_stage_is_removed_at_start() {
    let fixture = Fixture::new(GIB);
    drop(fixture.open().await);
    fs::write(fixture.path().join(".stage/17"), "half a body").unwrap();
    let _store = fixture.open().await;
    assert_eq!(fixture.staged(), 0);
}

#[tokio::test]
async fn neither_failure_nor_drop_leaves_a_staged_file() {
    let fixture = Fixture::new(GIB);
    let store = fixture.open().await;
    let (key, record, body) = entry(1, 300_000);
    // A file where a directory is needed makes the rename fail.
    fs::create_dir_all(fixture.path().join("v1")).unwrap();
    fs::write(fixture.path().join("v1/images"), "").unwrap();
    assert!(
        store
            .put(&key, &record, std::slice::from_ref(&body))
            .await
            .is_err()
    );
    let mut writer = store.begin(&key, &record).await.unwrap();
    writer.append(body.clone()).await.unwrap();
    assert!(writer.commit(&record).await.is_err());
    let mut writer = store.begin(&key, &record).await.unwrap();
    writer.append(body).await.unwrap();
    assert_eq!(fixture.staged(), 1);
    drop(writer);
    while fixture.staged() > 0 {
        tokio::task::yield_now().await;
    }
    while store.directory.space.reserved() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_file_that_was_cut_or_changed_is_corrupt() {
    for length in [0, 50_000, 2_000_000] {
        let fixture = Fixture::new(GIB);
        let store = fixture.open().await;
        put(&store, 1, length).await.unwrap();
        let path = fixture.file_of(&key(1));
        let whole = fs::read(&path).unwrap();
        let mut zeroed = whole.clone();
        zeroed[length..].fill(0);
        let mut longer = whole.clone();
        longer.insert(0, 0);
        for torn in [
            &whole[..whole.len() - 1],
            &whole[..whole.len() / 2],
            &whole[1..],
            &[],
            &zeroed,
            &longer,
        ] {
            fs::write(&path, torn).unwrap();
            let got = store.get(&key(1)).await;
            assert!(matches!(got, Err(Error::Corrupt(_))), "{got:?}");
            let head = store.head(&key(1)).await;
            assert!(matches!(head, Err(Error::Corrupt(_))), "{head:?}");
        }
        put(&store, 1, length).await.unwrap();
        assert!(is_there(&store, 1).await);
    }
}

#[tokio::test]
async fn a_record_of_another_version_is_absent() {
    let fixture = Fixture::new(GIB);
    let store = fixture.open().await;
    put(&store, 1, 10).await.unwrap();
    let encoded = data_encoding::BASE64_NOPAD.encode(&[0x08, 0x02]);
    fs::write(fixture.file_of(&key(1)), footer(&encoded)).unwrap();
    assert!(!is_there(&store, 1).await);
}

#[tokio::test]
async fn symbolic_links_lead_nowhere() {
    let fixture = Fixture::new(GIB);
    let outside = tempfile::tempdir().unwrap();
    let store = fixture.open().await;
    put(&store, 1, 100).await.unwrap();
    put(&store, 2, 100).await.unwrap();

    // A link in the place of a file is not read, and replaced by a put.
    let (path, moved) = (fixture.file_of(&key(1)), outside.path().join("entry"));
    fs::rename(&path, &moved).unwrap();
    symlink(&moved, &path).unwrap();
    let got = store.get(&key(1)).await;
    assert!(matches!(got, Err(Error::Corrupt(_))), "{got:?}");
    put(&store, 1, 200).await.unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
    assert!(fs::metadata(&moved).unwrap().len() < 4096);

    // A link in the place of a directory is neither read nor written through.
    let directory = fixture.file_of(&key(2)).parent().unwrap().to_owned();
    let moved = outside.path().join("directory");
    fs::rename(&directory, &moved).unwrap();
    symlink(&moved, &directory).unwrap();
    let got = store.get(&key(2)).await;
    assert!(matches!(got, Err(Error::Corrupt(_))), "{got:?}");
    assert!(put(&store, 2, 5).await.is_err());
    assert!(store.delete(&key(2)).await.is_err());
    assert_eq!(fs::read_dir(&moved).unwrap().count(), 1);
}

#[tokio::test]
async fn a_name_cannot_lead_out() {
    let fixture = Fixture::new(GIB);
    let store = fixture.open().await;
    for namespace in ["..", ".", "", "../.."] {
        let (_, record, body) = entry(1, 10);
        let key = Key::from_parts(namespace, 1, [1; 32], [1; 32]);
        assert!(store.put(&key, &record, &[body]).await.is_err());
        assert!(store.get(&key).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_used_for_longest_goes_first() {
    // Five entries of 20000 bytes, each counted with six blocks.
    let fixture = Fixture::new(6 * 6 * 4096);
    let store = fixture.open().await;
    for number in 1..=5 {
        put(&store, number, 20_000).await.unwrap();
        fixture.clock.advance(TOUCH_SECONDS);
    }
    // The oldest is used, so the second goes.
    assert!(is_there(&store, 1).await);
    fixture.clock.advance(TOUCH_SECONDS);
    put(&store, 6, 20_000).await.unwrap();
    put(&store, 7, 20_000).await.unwrap();
    assert!(is_there(&store, 1).await);
    assert!(!is_there(&store, 2).await);
    for number in 4..=7 {
        assert!(is_there(&store, number).await, "{number}");
    }
    let emptied = fixture.file_of(&key(2)).parent().unwrap().to_owned();
    assert!(!emptied.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directory_never_holds_more_than_its_bound() {
    let fixture = Fixture::new(400_000);
    let mut store = fixture.open().await;
    for round in 0..200_u8 {
        put(&store, round % 40, 1_000 * usize::from(round))
            .await
            .unwrap();
        fixture.clock.advance(1);
        // Two levels above the sources are not counted.
        assert!(
            fixture.blocks() <= 400_000 + 2 * 4096,
            "{}",
            fixture.blocks()
        );
        if round % 50 == 49 {
            // A restart counts again what is stored.
            drop(store);
            store = fixture.open().await;
            while store.directory.space.stored() == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
    assert!(is_there(&store, 199 % 40).await);
}

#[tokio::test]
async fn what_cannot_fit_is_refused_and_evicts_nothing() {
    let fixture = Fixture::new(100_000);
    let store = fixture.open().await;
    put(&store, 1, 50_000).await.unwrap();
    let refused = put(&store, 2, 100_001).await;
    assert!(matches!(refused, Err(Error::TooLarge(_))), "{refused:?}");
    let (key, record, body) = entry(2, 300_000);
    let mut writer = store.begin(&key, &record).await.unwrap();
    let refused = writer.append(body).await;
    assert!(matches!(refused, Err(Error::TooLarge(_))), "{refused:?}");
    drop(writer);
    assert_eq!(fixture.staged(), 0);
    assert!(is_there(&store, 1).await);
}

#[tokio::test]
async fn room_is_given_back() {
    let fixture = Fixture::new(100_000);
    let store = fixture.open().await;
    for _ in 0..20 {
        put(&store, 1, 60_000).await.unwrap();
        let (key, record, _) = entry(1, 60_000);
        // With both versions of the file there would be too much.
        let replaced = store.replace_record(&key, &record).await;
        assert!(matches!(replaced, Ok(_) | Err(Error::TooLarge(_))));
        store.delete(&key).await.unwrap();
    }
    assert_eq!(store.directory.space.reserved(), 0);
    put(&store, 2, 90_000).await.unwrap();
}

#[tokio::test]
async fn a_deleted_source_leaves_its_room_and_no_directory() {
    let fixture = Fixture::new(GIB);
    let store = fixture.open().await;
    put(&store, 2, 5_000).await.unwrap();
    drop(store);
    // A file that is written while the start counts may count twice.
    let store = fixture.open().await;
    while store.directory.space.stored() == 0 {
        tokio::task::yield_now().await;
    }
    let before = store.directory.space.stored();
    for digest in 1..=3 {
        let (_, mut record, body) = entry(1, 20_000 * usize::from(digest));
        let key = Key::from_parts("images", 1, [1; 32], [digest; 32]);
        record.identity = Identity::of(&key);
        store.put(&key, &record, &[body]).await.unwrap();
    }
    assert!(store.directory.space.stored() > before + 120_000);
    for removed in [3, 0] {
        let source = key(1).source().clone();
        assert_eq!(store.delete_source(&source).await.unwrap(), removed);
        assert_eq!(store.directory.space.stored(), before);
    }
    assert!(!fixture.file_of(&key(1)).parent().unwrap().exists());
    assert!(is_there(&store, 2).await);
}

#[tokio::test]
async fn a_source_is_deleted_without_what_is_no_entry() {
    let fixture = Fixture::new(GIB);
    let outside = tempfile::tempdir().unwrap();
    let store = fixture.open().await;
    put(&store, 1, 100).await.unwrap();
    let directory = fixture.file_of(&key(1)).parent().unwrap().to_owned();
    let kept = outside.path().join("kept");
    fs::write(&kept, "").unwrap();
    symlink(&kept, directory.join("link")).unwrap();
    fs::create_dir(directory.join("directory")).unwrap();
    assert_eq!(store.delete_source(key(1).source()).await.unwrap(), 1);
    assert!(!is_there(&store, 1).await);
    assert!(kept.exists());
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);

    // A link in the place of the directory is not followed.
    fs::remove_dir_all(&directory).unwrap();
    symlink(outside.path(), &directory).unwrap();
    assert!(store.delete_source(key(1).source()).await.is_err());
    assert!(kept.exists());
}

#[test]
fn a_full_disk_is_too_large() {
    for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
        let meant = by_meaning(errno.into());
        assert!(matches!(meant, Error::TooLarge(_)), "{meant:?}");
    }
}
