//! Everything that is tested from outside, as one binary.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers included"
)]

// One Garage on free ports.
mod garage;
// What a broken or hostile S3 service does to the store.
mod s3_faults;
// The contract of `Store`, on memory, on disk and on Garage.
mod store_suite;
