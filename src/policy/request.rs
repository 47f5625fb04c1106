//! The part of a request that decisions are made from.

use bytes::Bytes;
use http::{HeaderMap, Method};

/// A request's head, as a client sent it to Envoy and before Envoy's router rewrote anything.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// Request method.
    pub method: Method,
    /// `:authority`, as received; empty when there was none.
    pub authority: Bytes,
    /// `:path` with its query, as received.
    pub path: Bytes,
    /// Field lines without pseudo-headers, in the order received.
    pub headers: HeaderMap,
    /// Whether a body follows the head.
    pub has_body: bool,
}
