//! Afterimage: an Envoy external processor that remembers every image imgproxy has made.
//!
//! Arrows go one way: [`policy`] decides about HTTP, [`entry`] is what is stored, [`session`] follows
//! one request, [`extproc`] carries it out. [`store`] and [`cache`] know keys and
//! entries, never sessions. [`policy`], [`entry`] and [`session`] do no I/O and read no clock.
//!
//! What always holds:
//! - The client's bytes are the upstream's, whatever happens here: whole and identical, or visibly
//!   broken off, and the latter only for a hit that streams.
//! - What is not in the key cannot change what is stored under it; what is partial, private or not
//!   verified is neither stored nor served.
//! - The stream of Envoy's messages is never left unread; every queue, buffer, wait and retry has a
//!   bound from the configuration.
//! - One terminal answer, then silence. No early end inside a streamed hit.
//! - No secret, signature or URL in a log line or a label.

pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod endpoint;
pub mod entry;
pub mod exchange;
pub mod extproc;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod large_hits;
pub mod policy;
pub mod secret;
pub mod server;
pub mod session;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod upstream;
mod written;
