//! What an operator decided: plain data, with nothing that could be wrong in it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;
use serde::Deserialize;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

use super::written::{FieldName, MediaType, Negative, ViaName};
use super::{Imgproxy, Upstream, Validators};
use crate::written::{As, Each, HumanDuration, Optional};

/// What an operator decided for the routes that name this policy.
///
/// It is read from the configuration. Fields that are skipped there depend on the kind of policy, and
/// whoever reads it fills them in.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Its name in the configuration: 1 to 63 of `a-z`, `0-9` and `-`.
    #[serde(skip)]
    pub name: Arc<str>,
    /// First part of its object names, same alphabet; the policy's name unless set, so that two
    /// policies can share entries.
    #[serde(skip)]
    pub namespace: Arc<str>,
    /// Part of every object name. Raise it to forget everything under the namespace at once.
    pub epoch: u32,
    /// Whether the host is in the key.
    #[serde(skip)]
    pub key_host: bool,
    /// What the URLs mean.
    #[serde(skip)]
    pub kind: Kind,
    /// What to do with a request that has a `Cookie`.
    #[serde(skip)]
    pub cookies: Cookies,
    /// What a request's `Authorization` does.
    pub authorization: Authorization,
    /// Whose cache directives in requests are obeyed (`no-cache`, `Pragma` too, `no-store`,
    /// `max-age`, `min-fresh`, `max-stale`, `only-if-cached`): `ignore` means nobody's, `obey`
    /// everybody's, `{trusted: [10.0.0.0/8]}` those of Envoy's peers in these networks, for which Envoy
    /// must send the attribute `source.address`. By default nobody's, because whoever is obeyed can
    /// make the upstream work.
    #[serde(rename = "client_cache_control")]
    pub clients: Clients,
    /// Response fields that stand in the place of `Cache-Control` (RFC 9213). The first one that a
    /// response has wins.
    #[serde(rename = "targeted_cache_control", with = "Each::<FieldName>")]
    pub targeted: Vec<HeaderName>,
    /// Whose entity tags clients see.
    #[serde(skip)]
    pub validators: Validators,
    /// The name that `Via` gives this cache (RFC 9110 section 7.6.3), such as `afterimage`. Without it
    /// no `Via` is added.
    #[serde(with = "Optional::<ViaName>")]
    pub via: Option<HeaderValue>,
    /// Whether `Cache-Status` has a `detail` that says why. It is for debugging, because it tells
    /// clients how the cache decides.
    #[serde(rename = "cache_status_detail")]
    pub shows_detail: bool,
    /// Whether requests for the same entry wait for the first one and get what it gets, so that
    /// the upstream renders once.
    #[serde(rename = "collapse")]
    pub collapses: bool,
    /// Whom this cache asks by itself; `None`: nobody.
    #[serde(skip)]
    pub upstream: Option<Arc<Upstream>>,
    /// Which responses are stored.
    #[serde(skip)]
    pub store: StoreRules,
    /// How long an entry stays fresh.
    pub freshness: FreshnessRules,
}

/// A generic policy without a name.
impl Default for Policy {
    fn default() -> Self {
        Self {
            name: Arc::default(),
            namespace: Arc::default(),
            epoch: 1,
            key_host: false,
            kind: Kind::Generic(Generic::default()),
            cookies: Cookies::Bypass,
            authorization: Authorization::Bypass,
            clients: Clients::Ignored,
            targeted: vec![HeaderName::from_static("cdn-cache-control")],
            validators: Validators::Upstream,
            via: None,
            shows_detail: false,
            collapses: true,
            upstream: None,
            store: StoreRules::default(),
            freshness: FreshnessRules::default(),
        }
    }
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
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Generic {
    /// Which part of the query is in the key.
    #[serde(skip)]
    pub query: Query,
    /// Request headers in the key, by name; an absent header and an empty one differ.
    #[serde(skip)]
    pub headers: Vec<HeaderName>,
    /// Whether a successful answer to POST, PUT, DELETE, PATCH or an unknown method invalidates what
    /// is stored for its path, all queries included, and for `Location` and `Content-Location` on the
    /// same host (RFC 9111 section 4.4).
    #[serde(rename = "invalidate_on_unsafe")]
    pub invalidates: bool,
}

impl Default for Generic {
    fn default() -> Self {
        Self {
            query: Query::All,
            headers: Vec::new(),
            invalidates: true,
        }
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Cookies {
    /// The request is not looked up and its answer is not stored.
    Bypass,
    /// It plays no role, and requests that fill are sent on without it.
    Ignore,
}

/// What an `Authorization` in the request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Authorization {
    /// The request is not looked up and its answer is not stored.
    Bypass,
    /// The request is looked up, and its answer is stored where it says that it may be shared (RFC
    /// 9111 section 3.5).
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
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct StoreRules {
    /// Statuses that are stored where the response has explicit freshness: a list out of 200 to 599
    /// without 206 and 304, which are no whole responses. `kind: generic` also takes `any`.
    pub statuses: Statuses,
    /// Whether a response with `Content-Encoding` is stored as it is. By default it is not, because
    /// images do not gain by it and clients may not understand it.
    pub content_codings: bool,
    /// How many responses that differ by request fields outside the key are stored for one primary
    /// key (RFC 9111 section 4.1); 0: none.
    #[serde(skip)]
    pub variants: usize,
    /// After a response that may not be stored, how long requests for the same do not wait for each
    /// other (hit-for-miss), because waiting would be in vain. Errors of the upstream (408, 429, 5xx)
    /// do not count.
    #[serde(with = "As::<HumanDuration>")]
    pub hit_for_miss: Duration,
    /// Media types that are stored, such as `image/*` or `text/css`; `*/*` is everything.
    /// `image/svg+xml` is never meant by `image/*`, only by its own name, because it can carry script.
    #[serde(with = "Each::<MediaType>")]
    pub content_types: Vec<MediaRange>,
    /// What a body is compared with before it is stored.
    pub verify: Verify,
    /// Response headers that are not kept, for example those that a route adds.
    #[serde(with = "Each::<FieldName>")]
    pub exclude_headers: Vec<HeaderName>,
}

impl Default for StoreRules {
    fn default() -> Self {
        Self {
            statuses: Statuses::Only(vec![StatusCode::OK]),
            content_codings: false,
            variants: 0,
            hit_for_miss: Duration::from_secs(30),
            content_types: vec![MediaRange {
                main: "image".to_owned(),
                sub: None,
            }],
            verify: Verify::Image,
            exclude_headers: Vec::new(),
        }
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// The first bytes must be those of the declared image format.
    Image,
    /// Only the length is checked.
    None,
}

/// How long an entry stays fresh.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct FreshnessRules {
    /// How long a response stays fresh that says nothing about it. Without it such responses are not
    /// stored.
    #[serde(with = "Optional::<HumanDuration>")]
    pub default: Option<Duration>,
    /// An entry stays fresh at least this long, where the response may be stored at all.
    #[serde(with = "As::<HumanDuration>")]
    pub floor: Duration,
    /// An entry stays fresh at most this long. imgproxy says a year about anything, and nobody
    /// should have to wait that long for a mistake to go.
    #[serde(with = "As::<HumanDuration>")]
    pub ceiling: Duration,
    /// Guesses from `Last-Modified` how long a response stays fresh that says nothing about it (RFC
    /// 9111 section 4.2.2).
    pub heuristic: Option<Heuristic>,
    /// How long responses with these statuses stay fresh at most, and when they say nothing about it,
    /// such as `{404: 10s}`; `floor` does not lengthen it. Statuses that one client could provoke for others (400, 403, 405, 408, 413, 414,
    /// 429, 431) and 5xx are refused.
    #[serde(with = "Negative")]
    pub negative: Vec<(StatusCode, Duration)>,
    /// After an entry was fresh, how long one request at a time asks the upstream about it while the
    /// others get the stale entry at once (RFC 5861 section 3), where the response does not say.
    /// Without it nobody gets a stale entry that way.
    #[serde(with = "Optional::<HumanDuration>")]
    pub stale_while_revalidate: Option<Duration>,
    /// After an entry was fresh, how long it may stand in for an error of the upstream (RFC 5861
    /// section 4), where the response does not say. Without it clients get the error.
    #[serde(with = "Optional::<HumanDuration>")]
    pub stale_if_error: Option<Duration>,
    /// The value of imgproxy's `IMGPROXY_FALLBACK_IMAGE_TTL`. An answer with this `max-age` is probably
    /// not the image, and is kept no longer, whatever `floor` and the stale windows say.
    #[serde(with = "Optional::<HumanDuration>")]
    pub fallback_max_age: Option<Duration>,
}

impl Default for FreshnessRules {
    fn default() -> Self {
        Self {
            default: None,
            floor: Duration::ZERO,
            ceiling: Duration::from_secs(30 * 24 * 3600),
            heuristic: None,
            negative: Vec::new(),
            stale_while_revalidate: None,
            stale_if_error: None,
            fallback_max_age: None,
        }
    }
}

/// A guess at how long a response stays fresh (RFC 9111 section 4.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Heuristic {
    /// How much of the time since the last change, 1 to 100 percent. RFC 9111 section 4.2.2 suggests
    /// 10.
    pub percent: u32,
    /// The guess is at most this long.
    #[serde(with = "As::<HumanDuration>")]
    pub ceiling: Duration,
}
