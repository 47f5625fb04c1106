//! Decisions about HTTP caching, and nothing else.
//!
//! Functions from request heads, response heads, stored records and `now` to enums. They do no I/O
//! and read no clock, and know nothing of Envoy. A [`Policy`] is plain data, named by the operator
//! and chosen by a route.

mod cache_control;
mod freshness;
mod generic;
mod image;
mod imgproxy;
mod key;
mod outcome;
mod request;
mod storable;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

pub use self::cache_control::{CacheControl, limited_cache_control};
pub use self::freshness::Freshness;
pub use self::image::MAGIC_BYTES;
pub use self::imgproxy::{ImageFormat, Imgproxy, KeyPair, Signing};
pub use self::key::{BypassReason, Decision, Forward, Key, Lookup, LookupMethod};
pub use self::outcome::{CacheStatus, MissReason, Outcome};
pub use self::request::RequestHead;
pub use self::storable::{Content, NotStorable, Provenance, ResponseHead, Storable};

/// What an operator decided for the routes that name this policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Its name in the configuration: 1 to 63 of `a-z`, `0-9` and `-`.
    pub name: Arc<str>,
    /// First part of its object names, same alphabet; the policy's name unless set, so that two
    /// policies can share entries.
    pub namespace: Arc<str>,
    /// Raised to forget the whole namespace at once.
    pub epoch: u32,
    /// Whether the host is in the key.
    pub key_host: bool,
    /// What the URLs mean.
    pub kind: Kind,
    /// What to do with a request that has a `Cookie`.
    pub cookies: Cookies,
    /// Which responses are stored.
    pub store: StoreRules,
    /// For how long.
    pub freshness: FreshnessRules,
}

/// What a policy's URLs mean.
#[derive(Debug, Clone)]
pub enum Kind {
    /// imgproxy's URLs.
    Imgproxy(Imgproxy),
    /// Any other origin's.
    Generic(Generic),
}

/// Key rules for an ordinary origin.
#[derive(Debug, Clone)]
pub struct Generic {
    /// Which part of the query is in the key.
    pub query: Query,
    /// Request headers in the key, by name; an absent header and an empty one differ.
    pub headers: Vec<HeaderName>,
}

/// Which part of the query is in the key of a generic policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The raw query as it is.
    All,
    /// None of it, and it is not sent on with requests that lead.
    None,
    /// The parameters with these names, in the order of the request; one that an upstream may take
    /// for one of them is meant, too. Others are not sent on with requests that lead.
    Only(Vec<String>),
}

/// What a `Cookie` in the request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cookies {
    /// The request is not looked up and its answer is not stored.
    Bypass,
    /// It plays no role: requests that lead are sent on without it.
    Ignore,
}

/// Which responses are stored.
#[derive(Debug, Clone)]
pub struct StoreRules {
    /// Media types without parameters; a subtype of `*` takes the whole type. `image/svg+xml` is
    /// never meant by `image/*`, only by its own name, because it can carry script.
    pub content_types: Vec<MediaRange>,
    /// Whether the first bytes must be those of the declared image format.
    pub verify: Verify,
    /// Response headers that are not kept.
    pub exclude_headers: Vec<HeaderName>,
}

/// A media type without parameters, or all subtypes of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaRange {
    /// Lower case, for example `image`.
    pub main: String,
    /// Lower case; `None` stands for `*`.
    pub sub: Option<String>,
}

/// What a body is compared with before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Its magic number with its content type.
    Image,
    /// Nothing; only its length is known to be right.
    None,
}

/// How long an entry stays fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreshnessRules {
    /// For responses without explicit freshness; `None`: such responses are not stored.
    pub default: Option<Duration>,
    /// At least this long, where the response may be stored at all.
    pub floor: Duration,
    /// At most this long.
    pub ceiling: Duration,
}
