//! Reads and writes Envoy's messages: their bytes, and what they say. It decides nothing.

pub(super) mod convert;
mod field;
pub(super) mod request;
pub(super) mod response;
