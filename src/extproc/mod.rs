//! The conversation with Envoy, and nothing else: a shell around [`crate::exchange`].
//!
//! `service.rs` accepts one gRPC stream for each request, `conversation.rs` tells the exchange of its messages and
//! says what the exchange answers. `codec/` reads and writes Envoy's messages, which leave through
//! `write_buffer.rs`.

mod codec;
mod conversation;
mod route_metadata;
mod routes;
mod service;
mod write_buffer;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

#[cfg(any(test, fuzzing))]
pub(crate) use self::route_metadata::fuzzing;
pub use self::routes::Routes;
pub use self::service::serve;
use crate::exchange::Core;
use crate::large_hits::LargeHits;
use crate::telemetry::Metrics;

/// What all conversations share.
#[derive(Debug)]
pub struct Processor {
    core: Arc<Core>,
    routes: Routes,
    /// Where the proxy fetches large hits; `None`: all are sent to it.
    large_hits: Option<LargeHits>,
    /// How long Envoy is asked to wait, once for a request; `None` where it would refuse.
    extension: Option<Duration>,
    unexpected_messages: Counter,
}

impl Processor {
    /// Answers for `core` on routes that name these policies. Envoy fetches large hits where there is a listener for
    /// them, and waits for `extension` when it is asked to.
    pub fn new(
        core: Arc<Core>,
        routes: Routes,
        large_hits: Option<LargeHits>,
        extension: Option<Duration>,
        metrics: &Metrics,
    ) -> Self {
        Self {
            core,
            routes,
            large_hits,
            extension,
            unexpected_messages: metrics.counter(
                "unexpected_messages",
                "Messages of Envoy that do not fit the conversation; compare the filter with envoy/envoy.yaml",
            ),
        }
    }
}
