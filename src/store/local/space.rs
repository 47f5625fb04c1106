//! Counts the space that entries take, and evicts entries when it is used up.

use std::collections::BinaryHeap;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::Error;

const BLOCK_BYTES: u64 = 4096;
/// Candidates for eviction that one walk remembers: at most 3 MiB of names.
const CANDIDATES: usize = 16 * 1024;
/// Levels of `v1/<namespace>/<epoch>/<source>/<digest>`.
const DEPTH: u32 = 5;

#[derive(Debug)]
pub(super) struct Space {
    path: PathBuf,
    max_bytes: u64,
    /// Bytes of entries. It is zero until the first walk ends, so that entries may exceed the bound
    /// until then. Writes during a walk may count twice until the next walk, which evicts too early
    /// rather than too late.
    stored: AtomicI64,
    /// Bytes reserved for files that are being written.
    reserved: AtomicU64,
    /// Held while entries are evicted, so that two writes do not evict for the same space.
    search: Mutex<()>,
}

/// Space for one file. It is given back on drop, unless the file became an entry.
#[derive(Debug)]
pub(super) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

/// An entry found by a walk. The one to be evicted first is the least.
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

    /// Counts what is stored.
    pub(super) fn measure(&self) {
        let _alone = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        self.walk();
    }

    /// Notes that a file of `length` bytes is gone.
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

    /// Evicts the entries that were used least recently, until `bytes` and a twentieth of the whole
    /// are free.
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

    /// Reads the whole tree. It corrects `stored`, and returns the entries that were used least
    /// recently, in that order.
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

    /// Reserves space for a file of `length` bytes, evicting with `remove` if necessary.
    pub(super) fn grow_to(
        &mut self,
        length: u64,
        remove: impl Fn(&str) -> io::Result<Option<u64>>,
    ) -> Result<(), Error> {
        let wanted = cost(length);
        if wanted > self.space.max_bytes {
            return Err(Error::TooLarge(format!(
                "the entry takes {length} bytes, and the directory keeps at most {}",
                self.space.max_bytes
            )));
        }
        let more = wanted.saturating_sub(self.bytes);
        if !self.space.take(more) {
            let search = self.space.search.lock();
            let _alone = search.unwrap_or_else(PoisonError::into_inner);
            // Another write may have made room meanwhile.
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

    /// Counts the file as an entry of `length` bytes.
    pub(super) fn keep(self, length: u64) {
        // Added before the reservation is given back, so that the sum is never too small.
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

/// Bytes that a file takes on disk: whole blocks, and one for the directory that it may be alone
/// in.
fn cost(length: u64) -> u64 {
    length
        .checked_next_multiple_of(BLOCK_BYTES)
        .and_then(|bytes| bytes.checked_add(BLOCK_BYTES))
        .unwrap_or(u64::MAX)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Calls `each` with every regular file at most `depth` directories down. It does not follow
/// symbolic links, and passes over what cannot be read.
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
