//! Keeps entries in a directory on disk. Unlike S3, it needs no other service.
//!
//! ```text
//! <path>/.lock                          held by the one process that owns the directory
//! <path>/.stage/<n>                     files being written; cleared at start
//! <path>/v1/<namespace>/<epoch>/<source>/<digest>
//! ```
//!
//! An entry is one file (see `file.rs`), which one `rename` replaces. Files are synced before they
//! are renamed: after a power loss, a name leads to the whole file or to nothing. The directories
//! are not synced, so the latest entries may be gone.
//!
//! An entry takes its length in whole blocks of 4 KiB, plus one block for its directory. There is
//! no index in memory: a write that finds no space reads the tree and evicts the entries that were
//! used least recently, until a twentieth of `max_bytes` is free. The time of last use is the
//! file's modification time, which a read renews when it is over an hour old.

mod file;
mod space;
mod tree;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use futures_util::{StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use self::file::{Body, TAIL_BYTES, file_bytes, footer, read_at, read_entry, read_record};
use self::space::{Reservation, Space};
use self::tree::{Stage, Tree};
use super::{Error, Found, Store, Writer, expect_length, length_of};
use crate::clock::{Clock, Timestamp};
use crate::entry::Record;
use crate::entry::{Key, Source};

/// Bytes of a body that are read or written by one call.
const CHUNK_BYTES: u64 = 256 * 1024;
/// Age at which a read renews the time of last use.
const TOUCH_SECONDS: u64 = 3600;
/// Blocking calls at a time, so that a disk that hangs does not take every thread of the runtime.
/// Writes have their own number, because they may wait for evictions.
const CONCURRENT_READS: usize = 64;
const CONCURRENT_WRITES: usize = 16;

/// Where a [`LocalStore`] keeps its entries, and how many.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// The directory, which is made with mode 0700 if it is absent. Nothing else may be kept in it.
    pub path: PathBuf,
    /// The most bytes of disk that all entries together take (default 10 GiB).
    pub max_bytes: u64,
}

impl LocalConfig {
    /// 10 GiB: weeks of derivatives for most sites, and little on the disk of a container host.
    pub const DEFAULT_MAX_BYTES: u64 = 10 * 1024 * 1024 * 1024;
}

/// Why a directory cannot be used as a [`LocalStore`].
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process owns it.
    #[error(
        "cache directory {} is in use by another process{}; stop that process, or give this one a directory of its own",
        path.display(),
        owner.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Id of that process, if it could be read.
        owner: Option<u32>,
    },
    /// The directory cannot be made or opened.
    #[error("cache directory {} cannot be used", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Keeps each entry as one file. Clones share the directory; the last one releases it.
#[derive(Debug, Clone)]
pub struct LocalStore {
    directory: Arc<Directory>,
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

#[derive(Debug)]
struct Directory {
    tree: Arc<Tree>,
    space: Arc<Space>,
    clock: Clock,
}

struct LocalWriter {
    store: LocalStore,
    key: Key,
    /// `None` while a blocking call has it, and after that call failed.
    staged: Option<Staged>,
    waiting: Vec<Bytes>,
    waiting_bytes: u64,
    length: u64,
}

/// A file in the stage with the space that is reserved for it.
struct Staged {
    stage: Stage,
    reservation: Reservation,
}

impl LocalStore {
    /// Locks the directory, removes what an earlier process left unfinished, and begins to measure
    /// in the background how much is stored.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when another process owns the directory, [`OpenError::Io`] when it
    /// cannot be made or opened.
    pub async fn open(config: LocalConfig, clock: Clock) -> Result<Self, OpenError> {
        let LocalConfig { path, max_bytes } = config;
        let root = path.clone();
        let opened = tokio::task::spawn_blocking(move || Tree::open(&root)).await;
        let tree = opened.map_err(|error| OpenError::Io {
            path: path.clone(),
            source: io::Error::other(error),
        })??;
        let space = Arc::new(Space::new(path.clone(), max_bytes));
        let measured = Arc::clone(&space);
        std::thread::Builder::new()
            .name("afterimage-scan".to_owned())
            .spawn(move || measured.measure())
            .map_err(|source| OpenError::Io { path, source })?;
        Ok(Self {
            directory: Arc::new(Directory {
                tree: Arc::new(tree),
                space,
                clock,
            }),
            reads: Arc::new(Semaphore::new(CONCURRENT_READS)),
            writes: Arc::new(Semaphore::new(CONCURRENT_WRITES)),
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Directory) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let directory = Arc::clone(&self.directory);
        blocking(&self.reads, move || call(&directory)).await
    }

    async fn write<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Directory) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let directory = Arc::clone(&self.directory);
        blocking(&self.writes, move || call(&directory)).await
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn head(&self, key: &Key) -> Result<Option<Record>, Error> {
        let name = key.object_name();
        self.read(move |directory| {
            let Some((file, length)) = directory.open(&name)? else {
                return Ok(None);
            };
            read_record(&file, length)
        })
        .await
    }

    async fn get(&self, key: &Key) -> Result<Option<Found>, Error> {
        let name = key.object_name();
        let found = self
            .read(move |directory| {
                let Some((file, length)) = directory.open(&name)? else {
                    return Ok(None);
                };
                read_entry(file, length)
            })
            .await?;
        Ok(found.map(|(record, body)| {
            let body = match body {
                Body::Whole(bytes) => {
                    stream::iter((!bytes.is_empty()).then_some(Ok(bytes))).boxed()
                }
                Body::InFile { file, length } => chunks(Arc::clone(&self.reads), file, length),
            };
            Found { record, body }
        }))
    }

    async fn put(&self, key: &Key, record: &Record, body: &[Bytes]) -> Result<(), Error> {
        let length = length_of(body);
        expect_length(record, length)?;
        let encoded = record.encode()?;
        let name = key.object_name();
        let body = body.to_vec();
        self.write(move |directory| {
            let mut staged = directory.stage(file_bytes(length, &encoded))?;
            staged.write(&body)?;
            directory.publish(staged, &encoded, &name)
        })
        .await
    }

    async fn begin(&self, key: &Key, _draft: &Record) -> Result<Box<dyn Writer>, Error> {
        let staged = self.write(|directory| directory.stage(TAIL_BYTES)).await?;
        Ok(Box::new(LocalWriter {
            store: self.clone(),
            key: key.clone(),
            staged: Some(staged),
            waiting: Vec::new(),
            waiting_bytes: 0,
            length: 0,
        }))
    }

    async fn replace_record(&self, key: &Key, record: &Record) -> Result<bool, Error> {
        let encoded = record.encode()?;
        let proof = record.body;
        let name = key.object_name();
        self.write(move |directory| {
            let Some((file, length)) = directory.open(&name)? else {
                return Ok(false);
            };
            match read_record(&file, length)? {
                Some(stored) if stored.body == proof => {}
                Some(_) | None => return Ok(false),
            }
            let staged = directory.stage(file_bytes(proof.content_length, &encoded))?;
            let mut body = io::Read::take(&file, proof.content_length);
            let mut copy = staged.stage.file();
            io::copy(&mut body, &mut copy).map_err(by_meaning)?;
            directory.publish(staged, &encoded, &name)?;
            Ok(true)
        })
        .await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        let name = key.object_name();
        self.write(move |directory| {
            if let Some(length) = directory.tree.remove(&name).map_err(by_meaning)? {
                directory.space.removed(length);
            }
            Ok(())
        })
        .await
    }

    async fn delete_source(&self, source: &Source) -> Result<u64, Error> {
        let prefix = source.prefix();
        self.write(move |directory| {
            let mut removed = 0;
            let each = |length| {
                directory.space.removed(length);
                removed += 1;
            };
            directory
                .tree
                .remove_below(&prefix, each)
                .map_err(by_meaning)?;
            Ok(removed)
        })
        .await
    }

    async fn check(&self) -> Result<(), Error> {
        self.write(|directory| directory.stage(0).map(drop)).await
    }
}

impl LocalWriter {
    /// Writes the chunks that wait, and calls `then` in the same blocking call.
    async fn flush<T: Send + 'static>(
        &mut self,
        then: impl FnOnce(&Directory, Staged) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let Some(mut staged) = self.staged.take() else {
            return Err(Error::Unavailable("the writer failed earlier".into()));
        };
        let chunks = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let needed_bytes = self.length + TAIL_BYTES;
        self.store
            .write(move |directory| {
                staged
                    .reservation
                    .grow_to(needed_bytes, |name| directory.tree.remove(name))?;
                staged.write(&chunks)?;
                then(directory, staged)
            })
            .await
    }
}

#[async_trait]
impl Writer for LocalWriter {
    async fn append(&mut self, chunk: Bytes) -> Result<u64, Error> {
        self.length += chunk.len() as u64;
        self.waiting_bytes += chunk.len() as u64;
        self.waiting.push(chunk);
        if self.waiting_bytes >= CHUNK_BYTES {
            let staged = self.flush(|_, staged| Ok(staged)).await?;
            self.staged = Some(staged);
        }
        Ok(self.waiting_bytes)
    }

    async fn commit(mut self: Box<Self>, record: &Record) -> Result<(), Error> {
        expect_length(record, self.length)?;
        let encoded = record.encode()?;
        let name = self.key.object_name();
        self.flush(move |directory, staged| directory.publish(staged, &encoded, &name))
            .await
    }
}

impl Drop for LocalWriter {
    fn drop(&mut self) {
        let Some(staged) = self.staged.take() else {
            return;
        };
        // Dropping removes the file, which must not block a thread of the runtime.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(staged))),
            Err(_) => drop(staged),
        }
    }
}

impl Directory {
    /// Opens the file of an entry and renews its time of last use. Returns the file and its length.
    fn open(&self, name: &str) -> Result<Option<(File, u64)>, Error> {
        let Some(file) = self.tree.read(name).map_err(by_meaning)? else {
            return Ok(None);
        };
        let metadata = file.metadata().map_err(by_meaning)?;
        if !metadata.is_file() {
            return Err(Error::Corrupt("the entry is not a file".to_owned()));
        }
        let now = self.clock.now();
        let used = metadata.modified().map_err(by_meaning)?;
        if now.seconds_since(Timestamp::from(used)) >= TOUCH_SECONDS {
            // If this fails, the entry is at worst evicted early.
            let _ = set_used(&file, now);
        }
        Ok(Some((file, metadata.len())))
    }

    fn stage(&self, length: u64) -> Result<Staged, Error> {
        let mut reservation = Reservation::of(&self.space);
        reservation.grow_to(length, |name| self.tree.remove(name))?;
        Ok(Staged {
            stage: self.tree.stage().map_err(by_meaning)?,
            reservation,
        })
    }

    fn publish(&self, mut staged: Staged, encoded: &str, name: &str) -> Result<(), Error> {
        staged.write(&[footer(encoded)])?;
        set_used(staged.stage.file(), self.clock.now()).map_err(by_meaning)?;
        let (length, replaced) = staged.stage.publish(name).map_err(by_meaning)?;
        staged.reservation.keep(length);
        if let Some(replaced) = replaced {
            self.space.removed(replaced);
        }
        Ok(())
    }
}

impl Staged {
    fn write(&mut self, chunks: &[Bytes]) -> Result<(), Error> {
        let mut slices: Vec<_> = chunks.iter().map(|chunk| io::IoSlice::new(chunk)).collect();
        write_all_vectored(self.stage.file(), &mut slices).map_err(by_meaning)
    }
}

/// Runs `call` on a blocking thread. `call` goes on if the caller goes away, so it holds the
/// permit.
async fn blocking<T: Send + 'static>(
    permits: &Arc<Semaphore>,
    call: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let permit = Arc::clone(permits)
        .acquire_owned()
        .await
        .map_err(|closed| Error::Unavailable(closed.into()))?;
    tokio::task::spawn_blocking(move || {
        let result = call();
        drop(permit);
        result
    })
    .await
    .map_err(|failed| Error::Unavailable(failed.into()))?
}

/// Maps an I/O error to what it means. Nothing else does.
fn by_meaning(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Error::TooLarge(format!("the disk takes no more: {error}"))
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::Denied(error.into())
        }
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory => Error::Corrupt(error.to_string()),
        // `ELOOP`: a symbolic link where an entry should be. Its `ErrorKind` is not stable.
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            Error::Corrupt(error.to_string())
        }
        _ => Error::Unavailable(error.into()),
    }
}

fn chunks(reads: Arc<Semaphore>, file: File, length: u64) -> super::BodyStream {
    stream::try_unfold((file, 0), move |(file, offset)| {
        let reads = Arc::clone(&reads);
        async move {
            if offset == length {
                return Ok(None);
            }
            let end = length.min(offset + CHUNK_BYTES);
            blocking(&reads, move || {
                let chunk = Bytes::from(read_at(&file, offset, end - offset)?);
                Ok(Some((chunk, (file, end))))
            })
            .await
        }
    })
    .into_stream()
    .boxed()
}

fn set_used(file: &File, now: Timestamp) -> io::Result<()> {
    file.set_modified(UNIX_EPOCH + Duration::from_secs(now.as_unix()))
}

fn write_all_vectored(mut file: &File, mut slices: &mut [io::IoSlice<'_>]) -> io::Result<()> {
    io::IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match io::Write::write_vectored(&mut file, slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => io::IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
