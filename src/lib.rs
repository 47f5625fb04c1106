//! Afterimage: an Envoy external processor that remembers every image imgproxy has made.

pub mod budget;
pub mod cli;
pub mod clock;
pub mod collapse;
pub mod config;
pub mod entry;
pub mod extproc;
pub mod fill;
pub mod policy;

pub mod secret;
pub mod server;
pub mod session;
pub mod store;
pub mod telemetry;
