//! Starts the real components, Envoy, imgproxy, Garage and Afterimage, as native processes for the tests and for `make up`.
//!
//! Everything a test starts gets ports of its own and a directory of its own, so any number of stacks run side by side and
//! beside the one of `make up`. Nothing outlives the test process, not even when it is killed.
//!
//! ```text
//! stack ── ties them together for a test
//!   ├─ afterimage, envoy, imgproxy, garage   how each is configured, started, and known to be ready
//!   ├─ zones                                 several Garages as one store
//!   ├─ client, metrics, fate                 asks, reads the answers, and knows what became of them
//!   ├─ s3                                    signs requests to a Garage
//!   └─ origin                                a scripted upstream in imgproxy's place
//! launch (what to run) ─ process (a running child) ─ ports, wait, tools
//! ```

#![allow(
    dead_code,
    reason = "each of the programs that share this module uses a part of it"
)]

pub(crate) mod afterimage;
pub(crate) mod client;
pub(crate) mod envoy;
pub(crate) mod fate;
pub(crate) mod garage;
pub(crate) mod imgproxy;
pub(crate) mod launch;
pub(crate) mod metrics;
pub(crate) mod origin;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod s3;
pub(crate) mod settings;
pub(crate) mod stack;
pub(crate) mod tools;
pub(crate) mod wait;
pub(crate) mod zones;
