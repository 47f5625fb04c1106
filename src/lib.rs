//! Afterimage: an Envoy external processor that remembers every image imgproxy has made.

pub mod clock;
pub mod entry;
pub mod policy;
pub mod session;
pub mod store;
