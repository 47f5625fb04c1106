//! What an operator decided: plain data, with nothing that could be wrong in it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;

use super::{Imgproxy, Upstream, Validators};

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
    /// What to do with a request that has `Authorization`.
    pub authorization: Authorization,
    /// Whose `Cache-Control` and `Pragma` in requests are obeyed.
    pub clients: Clients,
    /// Fields that stand in the place of `Cache-Control` where they are given, first wins
    /// (RFC 9213).
    pub targeted: Vec<HeaderName>,
    /// Whose entity tags clients see.
    pub validators: Validators,
    /// What `Via` says about us (RFC 9110 section 7.6.3), such as `1.1 afterimage`; `None`: nothing.
    pub via: Option<HeaderValue>,
    /// Whether `Cache-Status` says why, in our own words.
    pub shows_detail: bool,
    /// Whether requests for the same wait for the first one.
    pub collapses: bool,
    /// Whom this cache asks by itself; `None`: nobody.
    pub upstream: Option<Arc<Upstream>>,
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
    /// Whether a successful answer to a method that is not safe invalidates what is stored
    /// (RFC 9111 section 4.4).
    pub invalidates: bool,
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

/// What an `Authorization` in the request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authorization {
    /// The request is not looked up and its answer is not stored.
    Bypass,
    /// RFC 9111 section 3.5: the answer is stored where it says that it may be shared.
    Rfc9111,
}

/// Whose cache directives in requests are obeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clients {
    /// Nobody's.
    Ignored,
    /// Everybody's.
    Obeyed,
    /// Those of peers in these networks.
    Trusted(Vec<IpNet>),
}

impl Clients {
    pub(super) fn are_obeyed(&self, peer: Option<IpAddr>) -> bool {
        match self {
            Self::Ignored => false,
            Self::Obeyed => true,
            Self::Trusted(networks) => {
                // An IPv4 client of an IPv6 socket is the same client.
                let peer = peer.map(|peer| peer.to_canonical());
                peer.is_some_and(|peer| networks.iter().any(|network| network.contains(&peer)))
            }
        }
    }
}

/// Which responses are stored.
#[derive(Debug, Clone)]
pub struct StoreRules {
    /// Which statuses, where the response has explicit freshness.
    pub statuses: Statuses,
    /// Whether a response with a content coding is stored as it is.
    pub content_codings: bool,
    /// How many responses that differ by request fields outside the key are stored for one primary
    /// key (RFC 9111 section 4.1); 0: none.
    pub variants: usize,
    /// After a response that may not be stored, how long requests for the same do not wait for each
    /// other (hit-for-miss).
    pub hit_for_miss: Duration,
    /// Media types without parameters; a subtype of `*` takes the whole type. `image/svg+xml` is
    /// never meant by `image/*`, only by its own name, because it can carry script.
    pub content_types: Vec<MediaRange>,
    /// Whether the first bytes must be those of the declared image format.
    pub verify: Verify,
    /// Response headers that are not kept.
    pub exclude_headers: Vec<HeaderName>,
}

/// Statuses that are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statuses {
    /// These.
    Only(Vec<StatusCode>),
    /// Every final status but 206 and 304, which are no whole responses.
    Any,
}

/// A media type without parameters, all subtypes of one type, or everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaRange {
    /// Lower case, for example `image`; `*` stands for anything, no type included.
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreshnessRules {
    /// For responses without explicit freshness; `None`: such responses are not stored.
    pub default: Option<Duration>,
    /// At least this long, where the response may be stored at all.
    pub floor: Duration,
    /// At most this long.
    pub ceiling: Duration,
    /// For responses that say nothing but when they changed last; `None`: not guessed.
    pub heuristic: Option<Heuristic>,
    /// For statuses without explicit freshness, such as 404.
    pub negative: Vec<(StatusCode, Duration)>,
    /// After it was fresh, served while it is refreshed, unless the response says otherwise
    /// (RFC 5861 section 3).
    pub stale_while_revalidate: Option<Duration>,
    /// After it was fresh, served in place of an error, unless the response says otherwise
    /// (RFC 5861 section 4).
    pub stale_if_error: Option<Duration>,
    /// The `max-age` of what is probably not the image (`IMGPROXY_FALLBACK_IMAGE_TTL`): such an
    /// answer is kept no longer, whatever floor or stale window says.
    pub fallback_max_age: Option<Duration>,
}

/// A guess at how long a response stays fresh (RFC 9111 section 4.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heuristic {
    /// Of the time since its last change, in percent.
    pub percent: u32,
    /// At most this long.
    pub ceiling: Duration,
}
