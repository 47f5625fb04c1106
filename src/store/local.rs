//! Entries in a directory on disk: the store that needs nothing installed.
//!
//! ```text
//! <path>/.lock                          held by the one process that owns the directory
//! <path>/.stage/<n>                     files being written; cleared at start
//! <path>/v1/<namespace>/<epoch>/<source>/<digest>
//! ```
//!
//! An entry is one file: body, then the encoded record, then a footer of the record's length (four
//! bytes, big endian) and a magic number. So record and body are replaced together by one `rename`,
//! a body can be written before its record is known, and a file that was cut short is known by its
//! missing end. Files are synced before they are renamed: after a power loss a name leads to the
//! whole file or to nothing. The directories are not synced, so the last entries may be gone.
//!
//! Room: an entry counts with its length in whole blocks of 4 KiB, plus one block for its
//! directory. There is no index in memory; the write that finds no room reads the tree, takes the
//! entries that were not used for longest, and frees a twentieth of `max_bytes` in one go. Use is
//! kept in the file's modification time, which a read renews when it is over an hour old.

mod space;
mod tree;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use futures_util::{StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use self::space::{Reservation, Space};
use self::tree::{Stage, Tree};
use super::{Error, Found, Store, Writer, decode_stored, expect_length, length_of};
use crate::clock::{Clock, Timestamp};
use crate::entry::{Key, Source};
use crate::entry::{MAX_ENCODED_BYTES, Record};

/// Ends every entry; raised when the layout of the file changes.
const MAGIC: &[u8; 12] = b"afterimage/1";
const FOOTER_BYTES: usize = 4 + MAGIC.len();
/// Enough of a file's end to hold every record with its footer.
const TAIL_BYTES: u64 = (MAX_ENCODED_BYTES + FOOTER_BYTES) as u64;
/// Files up to this size are read by one call; larger bodies are read in pieces.
const WHOLE_BYTES: u64 = 1024 * 1024 + TAIL_BYTES;
const PIECE_BYTES: u64 = 256 * 1024;
/// Age at which the time of last use is renewed.
const TOUCH_SECONDS: u64 = 3600;
/// Blocking calls at a time, so that a disk that hangs does not take every thread of the runtime.
/// Writes have their own, because they may wait for room to be made.
const CONCURRENT_READS: usize = 64;
const CONCURRENT_WRITES: usize = 16;

/// Where a [`LocalStore`] keeps its entries, and how many.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// The directory; made with mode 0700 when it is absent. Nothing else may be kept in it.
    pub path: PathBuf,
    /// The most that all entries together take, in bytes of disk (default 10 GiB).
    pub max_bytes: u64,
}

impl LocalConfig {
    /// 10 GiB: weeks of derivatives for most sites, and little beside an image of a container host.
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
        /// The process, where it could be read.
        owner: Option<u32>,
    },
    /// It cannot be made or opened.
    #[error("cache directory {} cannot be used", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Keeps each entry as one file. Clones share the directory, which is released with the last.
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

/// A body as it lies in its file.
enum Body {
    Whole(Bytes),
    InFile { file: File, length: u64 },
}

struct LocalWriter {
    store: LocalStore,
    key: Key,
    /// Absent only while a blocking call has it, and after that call failed.
    staged: Option<Staged>,
    waiting: Vec<Bytes>,
    waiting_bytes: u64,
    length: u64,
}

/// A file in the stage with the room that is kept for it.
struct Staged {
    stage: Stage,
    reservation: Reservation,
}

impl LocalStore {
    /// Takes possession of the directory, removes what an earlier process left unfinished, and
    /// begins to measure in the background how much is in it.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when another process has it, [`OpenError::Io`] when it cannot be made.
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
                Body::InFile { file, length } => pieces(Arc::clone(&self.reads), file, length),
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
    /// Writes what waits, and `then` does the rest in the same blocking call.
    async fn flush<T: Send + 'static>(
        &mut self,
        then: impl FnOnce(&Directory, Staged) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let Some(mut staged) = self.staged.take() else {
            return Err(Error::Unavailable("the writer has failed before".into()));
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
        if self.waiting_bytes >= PIECE_BYTES {
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
        // Dropping removes the file, which is not for this thread if it is one of the runtime's.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(staged))),
            Err(_) => drop(staged),
        }
    }
}

impl Directory {
    /// The file of an entry and its length; notes that it was used.
    fn open(&self, name: &str) -> Result<Option<(File, u64)>, Error> {
        let Some(file) = self.tree.read(name).map_err(by_meaning)? else {
            return Ok(None);
        };
        let metadata = file.metadata().map_err(by_meaning)?;
        if !metadata.is_file() {
            return Err(Error::Corrupt("entry is not a file".to_owned()));
        }
        let now = self.clock.now();
        let used = metadata.modified().map_err(by_meaning)?;
        if now.seconds_since(Timestamp::from(used)) >= TOUCH_SECONDS {
            // A use that is not noted costs at worst an early eviction.
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

/// Runs `call` on a blocking thread. A caller that goes away does not stop it, so the permit goes
/// with it.
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

/// The only place where an I/O error gets its meaning.
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

fn file_bytes(body: u64, encoded: &str) -> u64 {
    body + (encoded.len() + FOOTER_BYTES) as u64
}

fn footer(encoded: &str) -> Bytes {
    let length = u32::try_from(encoded.len()).expect("a record has at most MAX_ENCODED_BYTES");
    let mut end = Vec::with_capacity(encoded.len() + FOOTER_BYTES);
    end.extend_from_slice(encoded.as_bytes());
    end.extend_from_slice(&length.to_be_bytes());
    end.extend_from_slice(MAGIC);
    end.into()
}

fn read_record(file: &File, file_length: u64) -> Result<Option<Record>, Error> {
    let tail = read_at(
        file,
        file_length.saturating_sub(TAIL_BYTES),
        file_length.min(TAIL_BYTES),
    )?;
    record_at_end(&tail, file_length)
}

fn read_entry(file: File, file_length: u64) -> Result<Option<(Record, Body)>, Error> {
    if file_length > WHOLE_BYTES {
        return Ok(read_record(&file, file_length)?.map(|record| {
            let length = record.body.content_length;
            (record, Body::InFile { file, length })
        }));
    }
    let mut bytes = Bytes::from(read_at(&file, 0, file_length)?);
    let Some(record) = record_at_end(&bytes, file_length)? else {
        return Ok(None);
    };
    let length = usize::try_from(record.body.content_length).expect("it was read into memory");
    bytes.truncate(length);
    Ok(Some((record, Body::Whole(bytes))))
}

/// The record in `tail`, the last bytes of a file of `file_length`; proves that the file is whole.
fn record_at_end(tail: &[u8], file_length: u64) -> Result<Option<Record>, Error> {
    let cut_short = || Error::Corrupt("file has no end".to_owned());
    let rest = tail.strip_suffix(MAGIC).ok_or_else(cut_short)?;
    let (rest, length) = rest.split_last_chunk::<4>().ok_or_else(cut_short)?;
    let start = usize::try_from(u32::from_be_bytes(*length))
        .ok()
        .and_then(|length| rest.len().checked_sub(length))
        .ok_or_else(cut_short)?;
    let encoded = std::str::from_utf8(&rest[start..])
        .map_err(|_| Error::Corrupt("record is not text".to_owned()))?;
    let Some(record) = decode_stored(encoded)? else {
        return Ok(None);
    };
    if Some(file_length)
        != record
            .body
            .content_length
            .checked_add((encoded.len() + FOOTER_BYTES) as u64)
    {
        return Err(Error::Corrupt(
            "file has not the length of its record".to_owned(),
        ));
    }
    Ok(Some(record))
}

fn read_at(file: &File, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
    let length = usize::try_from(length).map_err(|error| Error::TooLarge(error.to_string()))?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).map_err(by_meaning)?;
    Ok(bytes)
}

fn pieces(reads: Arc<Semaphore>, file: File, length: u64) -> super::BodyStream {
    stream::try_unfold((file, 0), move |(file, offset)| {
        let reads = Arc::clone(&reads);
        async move {
            if offset == length {
                return Ok(None);
            }
            let end = length.min(offset + PIECE_BYTES);
            blocking(&reads, move || {
                let piece = Bytes::from(read_at(&file, offset, end - offset)?);
                Ok(Some((piece, (file, end))))
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
