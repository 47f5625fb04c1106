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
// What Envoy itself answers.
mod local_replies;
// Answers that only pass.
mod not_stored;
// What is in the bucket.
mod objects;
// Answers of the real imgproxy, replayed.
mod recorded;
// Requests that are no plain GET.
mod requests;
// What a broken or hostile S3 service does to the store.
mod s3_faults;
// An imgproxy with keys: what a signature decides, and what it does not.
mod signatures;
// The contract of `Store`, on memory, on disk and on Garage.
mod store_suite;
// Which answers are stored, and for how long.
mod storing;
// Much traffic of all kinds at once.
mod traffic;
// Whatever a client says beside the key changes nothing for the others.
mod unkeyed;
// Formats chosen by `Accept`.
mod variants;
