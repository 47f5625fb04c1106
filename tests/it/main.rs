//! Everything that is tested from outside, as one binary.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers included"
)]

#[path = "../support/mod.rs"]
mod support;

// What is cached, and what must not be, through real Envoy.
mod caching;
// Whole gRPC conversations in process.
mod conversation;
// One Garage on free ports.
mod garage;
// The test harness itself.
mod harness;
// What a broken or hostile S3 service does to the store.
mod s3_faults;
// The contract of `Store`, on memory, on disk and on Garage.
mod store_suite;
// Much traffic of all kinds at once.
mod traffic;
