//! The conversation with Envoy: a shell around [`crate::session`].
//!
//! `service.rs` accepts one gRPC stream for each request, `conversation.rs` turns its messages into
//! events and effects into answers. `codec/` reads and writes Envoy's messages, which leave through
//! `write_buffer.rs`.

mod codec;
mod conversation;
mod log;
mod route_metadata;
mod routes;
mod sending;
mod service;
mod shared;
mod write_buffer;

#[cfg(any(test, fuzzing))]
pub(crate) use self::route_metadata::fuzzing;
pub use self::routes::Routes;
pub use self::service::serve;
pub use self::shared::{Patience, Shared};
