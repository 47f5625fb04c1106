//! Everything that is tested from outside, as one binary.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers included"
)]

#[path = "../support/mod.rs"]
mod support;

// The bucket of a Garage as somebody else sees it.
mod bucket;
// Entries spread over several buckets.
mod buckets;
// What is cached, and what must not be, through real Envoy.
mod caching;
// Many requests for the same at once.
mod collapsing;
// Whole gRPC conversations in process.
mod conversation;
// What goes wrong around a fill: crashes, cuts, clients that leave, no room, no time.
mod failures;
// One Garage on free ports.
mod garage;
// One store in three zones.
mod geo;
// The test harness itself.
mod harness;
// Hits of every size and shape.
mod hits;
// The rules of HTTP caching: conditions, ranges, validation, stale answers.
mod http_caching;
// What Envoy itself answers.
mod local_replies;
// Hits that Envoy fetches.
mod large_hits;
// The memory tier.
mod memory;
// The files for Istio, Envoy Gateway and Kubernetes.
mod meshes;
// Answers that only pass.
mod not_stored;
// What is in the bucket.
mod objects;
// What an operator sees: pages, log, the end.
mod operations;
// `afterimage` as a process: what it needs to start, and how it says what is missing.
mod process;
// Answers of the real imgproxy, replayed.
mod recorded;
// Requests of our own to the upstream.
mod refreshing;
// Requests that are no plain GET.
mod requests;
// How a route chooses its policy, and what a misconfigured filter does.
mod routes;
// What a broken or hostile S3 service does to the store.
mod s3_faults;
// What the tests with a scripted origin share.
mod scripted;
// Which test shows which rule of the RFCs.
mod rules;
// An imgproxy with keys: what a signature decides, and what it does not.
mod signatures;
// imgproxy's stand-in, held against the recorded answers of the real one.
mod stand_in;
// Policies with the same URLs.
mod shared_urls;
// A store that is gone, that hangs, or that gives back something else.
mod store_failures;
// The contract of `Store`, on memory, on disk and on Garage.
mod store_suite;
// What strangers do to others.
mod strangers;
// Which answers are stored, and for how long.
mod storing;
// Much traffic of all kinds at once.
mod traffic;
// Methods that change things, and HEAD.
mod unsafe_methods;
// Whatever a client says beside the key changes nothing for the others.
mod unkeyed;
// Formats chosen by `Accept`.
mod variants;
// Responses that vary by request fields outside the key.
mod vary;
