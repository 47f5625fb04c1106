//! The conversation with Envoy: a shell around [`crate::session`].
//!
//! `service.rs` accepts one gRPC stream for each request, `driver.rs` turns its messages into events
//! and effects into answers, `wire.rs` is the only file that names what is in Envoy's messages. Their bytes
//! are read by `incoming.rs` and written by `answer.rs`, and leave through `gathered.rs`.

mod answer;
mod driver;
mod gathered;
mod incoming;
mod log;
mod route_metadata;
mod sending;
mod service;
mod shared;
mod wire;

#[cfg(any(test, fuzzing))]
pub(crate) use self::route_metadata::fuzzing;
pub use self::service::{Routes, serve};
pub use self::shared::{Patience, Shared};
