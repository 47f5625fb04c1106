//! Ports for processes that cannot be handed a socket.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

/// Below the range from which Linux takes ports for outgoing connections (32768 and up), so that no connection lands on a
/// port between our looking and the process's binding; above the fixed ports of `make up`.
const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;

/// A loopback port that is free and stays ours until this is dropped: a lock file keeps other harnesses of this user off it.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Takes a port that nobody listens on.
    ///
    /// # Errors
    /// When the lock directory cannot be written, or no port is free.
    pub(crate) fn free() -> Result<Self> {
        static GIVEN: AtomicU32 = AtomicU32::new(0);
        // Processes that start together begin to look in different places.
        let start = std::process::id().wrapping_mul(97);
        let locks = lock_directory()?;
        for _ in 0..COUNT {
            let offset = start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
            let number = u16::try_from(FIRST + offset)?;
            let path = locks.join(number.to_string());
            let lock =
                File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
            if lock.try_lock().is_ok() && is_free(number) {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        bail!("no free port from {FIRST} to {}", FIRST + COUNT);
    }

    /// Its number.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1` with this port.
    pub(crate) fn address(&self) -> SocketAddr {
        loopback(self.number)
    }
}

/// `127.0.0.1:port`.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Can somebody listen on this loopback port now?
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind(loopback(port)).is_ok()
}

fn lock_directory() -> Result<PathBuf> {
    let user = rustix::process::getuid().as_raw();
    let path = std::env::temp_dir().join(format!("afterimage-ports-{user}"));
    std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}
