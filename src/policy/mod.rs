//! Decides everything about HTTP caching: keys, storage, freshness, revalidation and invalidation.
//!
//! Each decision is a function of request heads, response heads, stored records and `now`. Nothing
//! here does I/O, reads a clock or knows Envoy. A [`Policy`] is plain data: the operator names it,
//! and a route chooses it.

mod cache_control;
mod decide;
mod freshness;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod generic;
mod image;
mod imgproxy;
mod invalidate;
mod outcome;
#[cfg(test)]
mod properties;
mod request;
mod revalidate;
mod rules;
mod serve;
mod storable;
#[cfg(any(test, fuzzing))]
pub(crate) mod testing;
mod upstream;
mod validators;
mod vary;
mod written;

pub use self::cache_control::{CacheControl, RequestControl};
pub use self::decide::{BypassReason, Decision, Forward, Lookup, LookupMethod};
pub use self::freshness::Freshness;
pub use self::image::MAGIC_BYTES;
pub use self::imgproxy::{ImageFormat, Imgproxy, KeyPair, Signing};
pub use self::outcome::{CacheStatus, MissReason, Outcome};
pub use self::request::RequestHead;
pub use self::revalidate::{Answered, Checked};
pub use self::rules::{
    Authorization, Clients, Cookies, FreshnessRules, Generic, Heuristic, Kind, MediaRange, Policy,
    Query, Statuses, StoreRules, Verify,
};
pub use self::serve::{CACHE_STATUS, Served, ServedBody};
pub use self::storable::{Content, NotStorable, Provenance, ResponseHead, Storable};
pub use self::upstream::{Completion, Fetch, Upstream};
pub use self::validators::{Conditions, Selected, Validators, forwarded_validators};
pub(crate) use self::written::FieldName;
