//! Opens the sockets that the process listens on.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::Error;
use crate::config::Listen;

/// The mode bit of a directory that gives its group to its files.
const SETGID: u32 = 0o2000;

/// The mode of a socket that its group may connect to.
const OWNER_AND_GROUP: u32 = 0o660;

/// A socket that Envoy connects to.
pub(super) enum Incoming {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener, String),
}

/// The file of a socket. It is removed on drop, unless a successor has put its own in its place.
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode; `None` if the file was gone as soon as it was made.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            identity: identity(path),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

impl Incoming {
    pub(super) async fn bind(field: &'static str, listen: &Listen) -> Result<Self, Error> {
        let failed = |address: String, hint: String| Error::Listen {
            field,
            address,
            hint,
        };
        match listen {
            Listen::Tcp(address) => TcpListener::bind(address)
                .await
                .map(|listener| Self::Tcp(listener, address.to_string()))
                .map_err(|error| failed(address.to_string(), listen_hint(&error))),
            Listen::Unix(path) => bind_unix(path)
                .await
                .map(|listener| Self::Unix(listener, SocketFile::of(path)))
                .map_err(|hint| failed(format!("unix:{}", path.display()), hint)),
        }
    }

    pub(super) fn address(&self) -> String {
        match self {
            Self::Unix(_, file) => format!("unix:{}", file.path.display()),
            Self::Tcp(_, address) => address.clone(),
        }
    }
}

/// Binds a Unix socket. It replaces a socket that nobody listens on, and nothing else.
async fn bind_unix(path: &Path) -> Result<UnixListener, String> {
    if let Some(directory) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(
                "something that is no socket is in its place; remove it or choose another path"
                    .to_owned(),
            );
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err("another process listens there; stop it or choose another path".to_owned());
        }
        Ok(_) => std::fs::remove_file(path)
            .map_err(|error| format!("cannot remove the socket of an earlier process: {error}"))?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(|error| error.to_string())?;
    open_to_group(path).map_err(|error| format!("cannot open it to its group: {error}"))?;
    Ok(listener)
}

/// Lets the socket's group connect if the directory gives its group to its files (setgid), as the
/// volume of a pod with `fsGroup` does. There Envoy runs as another user of that group, and
/// connecting needs write permission.
fn open_to_group(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    if directory.metadata()?.mode() & SETGID == 0 {
        return Ok(());
    }
    std::fs::set_permissions(path, Permissions::from_mode(OWNER_AND_GROUP))
}

pub(super) fn listen_hint(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there; stop it or choose another address".to_owned()
        }
        _ => error.to_string(),
    }
}
