//! Where others connect.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

use crate::written::{As, Written};

/// An address for gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// The pages for operators.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawAdmin {
    /// Where `/healthz`, `/readyz` and `/metrics` are. They tell nothing that is secret, but belong
    /// to operators, so the default is not reachable from outside.
    #[serde(with = "As::<AdminAddress>")]
    pub(super) listen: SocketAddr,
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9911)),
        }
    }
}

/// `unix:PATH`, or a loopback `IP:PORT`: whoever can connect can fill the cache.
pub(super) struct ListenAddress;

impl ListenAddress {
    /// The kernel's limit on the path of a socket, without its end mark.
    const MOST_BYTES: usize = 107;
}

impl Written for ListenAddress {
    type Value = Listen;

    #[cfg(test)]
    const NAME: &'static str = "address";
    const EXPECTED: &'static str = "`unix:PATH` with 1 to 107 bytes of path, or a loopback \
        address `127.0.0.1:PORT`, because whoever can connect can fill the cache";

    fn read(text: &str) -> Option<Listen> {
        if let Some(path) = text.strip_prefix("unix:") {
            let fits = (1..=Self::MOST_BYTES).contains(&path.len());
            return fits.then(|| Listen::Unix(path.into()));
        }
        let address = text.parse::<SocketAddr>().ok()?;
        address.ip().is_loopback().then_some(Listen::Tcp(address))
    }

    #[cfg(test)]
    fn write(value: &Listen) -> String {
        match value {
            Listen::Unix(path) => format!("unix:{}", path.display()),
            Listen::Tcp(address) => address.to_string(),
        }
    }
}

/// `IP:PORT`.
struct AdminAddress;

impl Written for AdminAddress {
    type Value = SocketAddr;

    #[cfg(test)]
    const NAME: &'static str = "`IP:PORT`";
    const EXPECTED: &'static str = "`IP:PORT`";

    fn read(text: &str) -> Option<SocketAddr> {
        text.parse().ok()
    }

    #[cfg(test)]
    fn write(value: &SocketAddr) -> String {
        value.to_string()
    }
}
