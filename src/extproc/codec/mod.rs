//! Envoy's messages: their bytes, and what they say.

pub(super) mod convert;
pub(super) mod request;
pub(super) mod response;
