//! Opens, renames and removes files below the cache directory. It goes by descriptors from the root
//! down, so that no symbolic link inside leads out.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, mkdirat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use super::OpenError;

const DIRECTORY_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// How often a rename is tried, when evictions remove the empty directory before it.
const RENAME_ATTEMPTS: u32 = 16;

#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    stage: OwnedFd,
    staged: AtomicU64,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

/// A file that is being written. It is removed on drop, unless it was published.
#[derive(Debug)]
pub(super) struct Stage {
    file: File,
    name: Option<String>,
    tree: Arc<Tree>,
}

impl Tree {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |source: io::Error| OpenError::Io {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock: File = openat(&root, ".lock", flags, FILE_MODE)
            .map_err(|errno| failed(errno.into()))?
            .into();
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::InUse {
                    path: path.to_owned(),
                    owner: owner(&lock),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        lock.set_len(0)
            .and_then(|()| (&lock).write_all(std::process::id().to_string().as_bytes()))
            .map_err(failed)?;
        let stage = directory(&root, ".stage", true).map_err(failed)?;
        clear(&stage).map_err(failed)?;
        Ok(Self {
            root,
            stage,
            staged: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// Opens a file for reading; `None` when there is none.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<File>> {
        let open = || {
            let (directory, file) = self.parent(name, false)?;
            // Without NONBLOCK, a pipe in the place of an entry would block the thread.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            Ok(openat(&directory, file, flags, Mode::empty())?.into())
        };
        present(open())
    }

    /// Removes a file, and its directory if that is empty then. Returns the file's length.
    pub(super) fn remove(&self, name: &str) -> io::Result<Option<u64>> {
        let remove = || {
            let (directory, file) = self.parent(name, false)?;
            let length = length_at(&directory, file)?;
            unlinkat(&directory, file, AtFlags::empty())?;
            Ok(length)
        };
        let removed = present(remove())?;
        if removed.is_some()
            && let Some((path, _)) = name.rsplit_once('/')
        {
            self.prune(path);
        }
        Ok(removed)
    }

    /// Removes the files of the directory `prefix`, which ends with a slash, and the directory if
    /// nothing is left in it. Calls `each` with the length of every removed file.
    pub(super) fn remove_below(&self, prefix: &str, mut each: impl FnMut(u64)) -> io::Result<()> {
        let Some((directory, _)) = present(self.parent(prefix, false))? else {
            return Ok(());
        };
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let remove = || {
                let stat = statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Ok(None);
                }
                unlinkat(&directory, entry.file_name(), AtFlags::empty())?;
                Ok(Some(u64::try_from(stat.st_size).unwrap_or(0)))
            };
            if let Some(length) = present(remove())?.flatten() {
                each(length);
            }
        }
        self.prune(prefix.trim_end_matches('/'));
        Ok(())
    }

    /// Makes an empty file in the stage.
    pub(super) fn stage(self: &Arc<Self>) -> io::Result<Stage> {
        let name = self.staged.fetch_add(1, Ordering::Relaxed).to_string();
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.stage, name.as_str(), flags, FILE_MODE)?;
        Ok(Stage {
            file: file.into(),
            name: Some(name),
            tree: Arc::clone(self),
        })
    }

    /// Removes a directory if it is empty.
    fn prune(&self, path: &str) {
        if let Ok((above, last)) = self.parent(path, false) {
            // It mostly fails, because other entries are in the directory.
            let _ = unlinkat(&above, last, AtFlags::REMOVEDIR);
        }
    }

    /// Opens the directory that `name` is in, and returns it with the last part of the name.
    fn parent<'a>(&self, name: &'a str, make: bool) -> io::Result<(OwnedFd, &'a str)> {
        let (above, last) = name.rsplit_once('/').ok_or(Errno::INVAL)?;
        let mut parts = above.split('/');
        let first = parts.next().ok_or(Errno::INVAL)?;
        let mut at = directory(&self.root, first, make)?;
        for part in parts {
            at = directory(&at, part, make)?;
        }
        Ok((at, last))
    }
}

impl Stage {
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the file and renames it to `name`. Returns its length, and that of the file it
    /// replaced.
    pub(super) fn publish(&mut self, name: &str) -> io::Result<(u64, Option<u64>)> {
        let Some(staged) = &self.name else {
            return Err(Errno::INVAL.into());
        };
        self.file.sync_data()?;
        let length = self.file.metadata()?.len();
        let mut attempts = RENAME_ATTEMPTS;
        loop {
            attempts -= 1;
            let renamed = self.tree.parent(name, true).and_then(|(directory, last)| {
                let replaced = present(length_at(&directory, last))?;
                renameat(&self.tree.stage, staged.as_str(), &directory, last)?;
                Ok(replaced)
            });
            match renamed {
                Ok(replaced) => {
                    self.name = None;
                    return Ok((length, replaced));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempts > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            // A file that stays behind is removed at the next start.
            let _ = unlinkat(&self.tree.stage, name, AtFlags::empty());
        }
    }
}

fn directory(at: &OwnedFd, part: &str, make: bool) -> io::Result<OwnedFd> {
    if matches!(part, "" | "." | "..") {
        return Err(Errno::INVAL.into());
    }
    let open = || {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(at, part, flags, Mode::empty())
    };
    match open() {
        Err(Errno::NOENT) if make => {
            match mkdirat(at, part, DIRECTORY_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            Ok(open()?)
        }
        opened => Ok(opened?),
    }
}

fn clear(stage: &OwnedFd) -> io::Result<()> {
    for entry in Dir::read_from(stage)? {
        let entry = entry?;
        if entry.file_name().to_bytes() != b"." && entry.file_name().to_bytes() != b".." {
            unlinkat(stage, entry.file_name(), AtFlags::empty())?;
        }
    }
    Ok(())
}

fn length_at(directory: &OwnedFd, file: &str) -> io::Result<u64> {
    let stat = statat(directory, file, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn owner(mut lock: &File) -> Option<u32> {
    let mut pid = String::new();
    lock.read_to_string(&mut pid).ok()?;
    pid.trim().parse().ok()
}
