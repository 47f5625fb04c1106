//! From a request to the key of its entry (RFC 9111 sections 2 and 4.1).

use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use http::{HeaderName, HeaderValue};

use crate::clock::Timestamp;

/// Names one entry: where it is kept, and the proof of what it is for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    namespace: Arc<str>,
    epoch: u32,
    source: [u8; 32],
    digest: [u8; 32],
}

impl Key {
    /// SHA-256 of the length-prefixed, versioned key material: everything that the answer may
    /// depend on.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// SHA-256 of the source alone, so that all derivatives of a source image share a prefix.
    pub fn source(&self) -> &[u8; 32] {
        &self.source
    }

    /// `v1/<namespace>/<epoch>/<source, 32 hex digits>/<digest, 64 hex digits>`, at most 180 bytes.
    pub fn object_name(&self) -> String {
        format!(
            "v1/{}/{}/{}/{}",
            self.namespace,
            self.epoch,
            HEXLOWER.encode(&self.source[..16]),
            HEXLOWER.encode(&self.digest)
        )
    }

    /// A key made of its parts, for tests of stores.
    #[doc(hidden)]
    pub fn from_parts(namespace: &str, epoch: u32, source: [u8; 32], digest: [u8; 32]) -> Self {
        Self {
            namespace: namespace.into(),
            epoch,
            source,
            digest,
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.object_name())
    }
}

/// What is to be done with a request before there is any response.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Not looked up, not stored.
    Bypass(BypassReason),
    /// Looked up; on a miss it may lead a fill.
    Lookup(Lookup),
}

/// A request that has a key.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// Its key.
    pub key: Key,
    /// Its method.
    pub method: LookupMethod,
    /// When the URL stops being valid, where it says so.
    pub expires: Option<Timestamp>,
    /// How its head is changed when it goes to the upstream.
    pub forward: Forward,
}

/// The methods that are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupMethod {
    /// GET.
    Get,
    /// HEAD: answered from the stored GET, never fills.
    Head,
}

/// Changes to the head of a request that leads a fill, so that what is not in the key cannot reach
/// the upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forward {
    /// Fields to be set, in place of any of the same name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields of the request to be taken out.
    pub remove: Vec<HeaderName>,
}

/// Why a request is not looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BypassReason {
    /// The route names no policy, and there is no default one.
    NoPolicy,
    /// The route names a policy that is not configured.
    UnknownPolicy,
    /// The route's metadata is not readable.
    RouteMetadata,
    /// Neither GET nor HEAD.
    Method,
    /// `Upgrade` or CONNECT.
    Upgrade,
    /// GET or HEAD with a body.
    RequestBody,
    /// `Authorization` in the request.
    Authorization,
    /// `Cookie` in the request, and the policy does not ignore it.
    Cookie,
    /// The path does not begin with the policy's prefix.
    PathPrefix,
    /// The path is not one that this kind of policy can read.
    Unparsable,
    /// The signature is not one of the policy's.
    Signature,
    /// The URL's `expires` has passed.
    Expired,
}

impl BypassReason {
    /// The word for labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoPolicy => "no_policy",
            Self::UnknownPolicy => "unknown_policy",
            Self::RouteMetadata => "route_metadata",
            Self::Method => "method",
            Self::Upgrade => "upgrade",
            Self::RequestBody => "request_body",
            Self::Authorization => "authorization",
            Self::Cookie => "cookie",
            Self::PathPrefix => "path_prefix",
            Self::Unparsable => "unparsable",
            Self::Signature => "signature",
            Self::Expired => "expired",
        }
    }
}

impl super::Policy {
    /// stub
    pub fn decide(&self, _request: &super::RequestHead, _now: Timestamp) -> Decision {
        Decision::Bypass(BypassReason::Method)
    }
    /// stub
    pub fn passes_unkeyed(&self, _name: &HeaderName) -> bool {
        false
    }
}
