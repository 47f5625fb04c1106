//! How much of `max_bytes` is taken, and which entries go when there is no room.

use std::collections::BinaryHeap;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::Error;

const BLOCK_BYTES: u64 = 4096;
/// Oldest entries remembered by one walk: 3 MiB of names at most.
const CANDIDATES: usize = 16 * 1024;
/// Levels of `v1/<namespace>/<epoch>/<source>/<digest>`.
const DEPTH: u32 = 5;

#[derive(Debug)]
pub(super) struct Space {
    path: PathBuf,
    max_bytes: u64,
    /// Bytes of entries; none until the first walk has ended, so that what is written meanwhile
    /// may exceed the bound for as long. Writes during a walk are counted twice until the next one, so that it
    /// errs on the side of too early evictions.
    stored: AtomicI64,
    /// Bytes promised to files that are being written.
    reserved: AtomicU64,
    /// Held while room is looked for, so that entries go once only.
    search: Mutex<()>,
}

/// Room for one file; given back on drop unless it was kept.
#[derive(Debug)]
pub(super) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

/// An entry found by a walk. Ordered by its last use, the one to go first being least.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    used: SystemTime,
    name: String,
}

impl Space {
    pub(super) fn new(path: PathBuf, max_bytes: u64) -> Self {
        Self {
            path,
            max_bytes,
            stored: AtomicI64::new(0),
            reserved: AtomicU64::new(0),
            search: Mutex::new(()),
        }
    }

    /// Counts what is there.
    pub(super) fn measure(&self) {
        let _alone = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        self.walk();
    }

    /// Notes that a file of `length` is gone.
    pub(super) fn removed(&self, length: u64) {
        self.stored
            .fetch_sub(signed(cost(length)), Ordering::SeqCst);
    }

    #[cfg(test)]
    pub(super) fn stored(&self) -> i64 {
        self.stored.load(Ordering::SeqCst)
    }

    #[cfg(test)]
    pub(super) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::SeqCst)
    }

    fn free(&self) -> u64 {
        let stored = u64::try_from(self.stored.load(Ordering::SeqCst)).unwrap_or(0);
        let reserved = self.reserved.load(Ordering::SeqCst);
        self.max_bytes
            .saturating_sub(stored.saturating_add(reserved))
    }

    fn take(&self, bytes: u64) -> bool {
        self.reserved.fetch_add(bytes, Ordering::SeqCst);
        let stored = u64::try_from(self.stored.load(Ordering::SeqCst)).unwrap_or(0);
        let fits = stored.saturating_add(self.reserved.load(Ordering::SeqCst)) <= self.max_bytes;
        if !fits {
            self.reserved.fetch_sub(bytes, Ordering::SeqCst);
        }
        fits
    }

    /// Frees a twentieth of the whole and `bytes` more, by taking what was not used for longest.
    fn make_room(&self, bytes: u64, remove: impl Fn(&str) -> io::Result<Option<u64>>) {
        let wanted = bytes.saturating_add(self.max_bytes / 20);
        for candidate in self.walk() {
            if self.free() >= wanted {
                return;
            }
            match remove(&candidate.name) {
                Ok(Some(length)) => self.removed(length),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "an entry could not be evicted"),
            }
        }
    }

    /// Reads the whole tree: corrects `stored`, and finds the entries that were used least
    /// recently, first of them first.
    fn walk(&self) -> Vec<Candidate> {
        let before = self.stored.load(Ordering::SeqCst);
        let mut total = 0;
        let mut oldest = BinaryHeap::new();
        visit(&self.path.join("v1"), DEPTH - 1, &mut |path, metadata| {
            total += signed(cost(metadata.len()));
            let Some(name) = path.strip_prefix(&self.path).ok().and_then(Path::to_str) else {
                return;
            };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if oldest.len() == CANDIDATES {
                let youngest: Option<&Candidate> = oldest.peek();
                if youngest.is_some_and(|youngest| youngest.used <= used) {
                    return;
                }
                oldest.pop();
            }
            oldest.push(Candidate {
                used,
                name: name.to_owned(),
            });
        });
        self.stored.fetch_add(total - before, Ordering::SeqCst);
        oldest.into_sorted_vec()
    }
}

impl Reservation {
    pub(super) fn of(space: &Arc<Space>) -> Self {
        Self {
            space: Arc::clone(space),
            bytes: 0,
        }
    }

    /// Sees that there is room for a file of `length`, evicting with `remove` if need be.
    pub(super) fn grow_to(
        &mut self,
        length: u64,
        remove: impl Fn(&str) -> io::Result<Option<u64>>,
    ) -> Result<(), Error> {
        let wanted = cost(length);
        if wanted > self.space.max_bytes {
            return Err(Error::TooLarge(format!(
                "entry of {length} bytes, the directory keeps {}",
                self.space.max_bytes
            )));
        }
        let more = wanted.saturating_sub(self.bytes);
        if !self.space.take(more) {
            let search = self.space.search.lock();
            let _alone = search.unwrap_or_else(PoisonError::into_inner);
            // Whoever searched before may have made room enough.
            if !self.space.take(more) {
                self.space.make_room(more, remove);
                if !self.space.take(more) {
                    return Err(Error::TooLarge("the directory is full".to_owned()));
                }
            }
        }
        self.bytes += more;
        Ok(())
    }

    /// The file has become an entry of `length`.
    pub(super) fn keep(self, length: u64) {
        // Added before the promise is given back, so that the sum is never too small.
        self.space
            .stored
            .fetch_add(signed(cost(length)), Ordering::SeqCst);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.reserved.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// What a file takes on disk: whole blocks, and one for the directory that it may be alone in.
fn cost(length: u64) -> u64 {
    length
        .checked_next_multiple_of(BLOCK_BYTES)
        .and_then(|bytes| bytes.checked_add(BLOCK_BYTES))
        .unwrap_or(u64::MAX)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Calls `each` with every regular file at most `depth` directories down. Symbolic links are not
/// followed, and what cannot be read is passed over.
fn visit(directory: &Path, depth: u32, each: &mut impl FnMut(&Path, &Metadata)) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_file() {
            each(&entry.path(), &metadata);
        } else if metadata.is_dir() && depth > 1 {
            visit(&entry.path(), depth - 1, each);
        }
    }
}
