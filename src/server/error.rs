//! Why the process cannot start, or had to stop.

use std::io;

/// Why the process cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error("{field}: cannot listen on {address}: {hint}")]
    Listen {
        /// The configuration's field.
        field: &'static str,
        /// Its value.
        address: String,
        /// What is wrong, and how to solve it.
        hint: String,
    },
    /// The store cannot be used.
    #[error("{field}: {error}")]
    Store {
        /// The configuration's field.
        field: &'static str,
        /// What is wrong, with its causes.
        error: String,
    },
    /// The system refused something that no configuration can repair.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
