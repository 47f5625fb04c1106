//! From a request to the key of its entry (RFC 9111 sections 2 and 4.1).
//!
//! What is common to all kinds of policy: which requests have a key at all, how key material is
//! hashed, and what a decision looks like. What the URL means is the business of the kind.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::header::VIA;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest as _, Sha256};

use super::cache_control::RequestControl;
use super::validators::Conditions;
use super::{Kind, Policy, RequestHead, vary};
use crate::clock::Timestamp;

impl Policy {
    /// What is to be done with `request`, which arrived at `now`.
    ///
    /// The same request always gets the same key; two requests share one only where the upstream
    /// gives both the same answer, provided that requests which lead are changed as
    /// [`Lookup::forward`] says.
    pub fn decide(&self, request: &RequestHead, now: Timestamp) -> Decision {
        if self.watches(&request.method) && !request.is_upgrade() {
            return Decision::Watch;
        }
        match self.lookup(request, now) {
            Ok(lookup) => Decision::Lookup(Box::new(lookup)),
            Err(reason) => Decision::Bypass(reason),
        }
    }

    /// Whether responses of the upstream may vary by request field `name` and still be what their key
    /// stands for: the field is in the key, or requests that lead carry it normalised or not at all.
    pub fn controls(&self, name: &HeaderName) -> bool {
        match &self.kind {
            Kind::Imgproxy(_) if name == header::HOST => self.key_host,
            Kind::Imgproxy(imgproxy) => imgproxy.controls(name),
            Kind::Generic(_) if name == header::HOST => true,
            Kind::Generic(generic) => generic.controls(name),
        }
    }

    fn lookup(&self, request: &RequestHead, now: Timestamp) -> Result<Lookup, BypassReason> {
        let method = request.lookup_method(self)?;
        let keyed = match &self.kind {
            Kind::Imgproxy(imgproxy) => imgproxy.keyed(request, self.key_host, now)?,
            Kind::Generic(generic) => generic.keyed(request)?,
        };
        Ok(Lookup {
            key: Key {
                source: Source {
                    namespace: Arc::clone(&self.namespace),
                    epoch: self.epoch,
                    digest: keyed.source,
                },
                digest: keyed.digest,
            },
            method,
            expires: keyed.expires,
            forward: keyed.forward,
            conditions: Conditions::of(&request.headers, method == LookupMethod::Get),
            is_authorized: request.headers.contains_key(header::AUTHORIZATION),
            control: if self.clients.are_obeyed(request.peer) {
                RequestControl::of(&request.headers)
            } else {
                RequestControl::default()
            },
        })
    }
}

/// No object name is longer.
const LONGEST_NAME_BYTES: usize = 180;

/// Names one entry: where it is kept, and the proof of what it is for.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    source: Source,
    digest: [u8; 32],
}

/// Hashes the digest alone, which nearly always differs where the key does; equality compares all of it.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

/// What the entries made of one source image (or of one generic URL without its query) share: a
/// prefix of their object names.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Source {
    pub(super) namespace: Arc<str>,
    pub(super) epoch: u32,
    pub(super) digest: [u8; 32],
}

impl Key {
    /// SHA-256 of the length-prefixed, versioned key material: everything that the answer may
    /// depend on.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Which entries it belongs with.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// `v1/<namespace>/<epoch>/<source, 32 hex digits>/<digest, 64 hex digits>`, at most 180 bytes.
    pub fn object_name(&self) -> String {
        let mut name = self.source.prefix();
        HEXLOWER.encode_append(&self.digest, &mut name);
        name
    }

    /// The key of the response to `request` among those of this primary key that vary by `fields`
    /// (RFC 9111 section 4.1).
    pub fn variant(&self, fields: &[HeaderName], request: &HeaderMap) -> Self {
        Self {
            digest: vary::digest(&self.digest, fields, request),
            ..self.clone()
        }
    }

    /// A key made of its parts, for tests of stores.
    #[doc(hidden)]
    pub fn from_parts(namespace: &str, epoch: u32, source: [u8; 32], digest: [u8; 32]) -> Self {
        let source = Source {
            namespace: namespace.into(),
            epoch,
            digest: source,
        };
        Self { source, digest }
    }
}

impl Source {
    /// SHA-256 of the length-prefixed, versioned material that names the source.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The namespace of its policy.
    pub fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }

    /// The epoch of its policy.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// `v1/<namespace>/<epoch>/<digest, 32 hex digits>/`: what the object names of its entries begin
    /// with, and no others.
    pub fn prefix(&self) -> String {
        let mut prefix = String::with_capacity(LONGEST_NAME_BYTES);
        prefix.push_str("v1/");
        prefix.push_str(&self.namespace);
        prefix.push('/');
        prefix.push_str(&self.epoch.to_string());
        prefix.push('/');
        HEXLOWER.encode_append(&self.digest[..16], &mut prefix);
        prefix.push('/');
        prefix
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.object_name())
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.prefix())
    }
}

/// What is to be done with a request before there is any response.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Not looked up, not stored.
    Bypass(BypassReason),
    /// Not looked up, and its answer may invalidate what is stored.
    Watch,
    /// Looked up; on a miss it may lead a fill.
    Lookup(Box<Lookup>),
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
    /// What it asks for less than the whole.
    pub conditions: Conditions,
    /// Whether it has `Authorization`.
    pub is_authorized: bool,
    /// Its cache directives; none where the policy does not obey them.
    pub control: RequestControl,
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
    /// The path with its query in place of the request's, where part of the query is not in the key.
    pub path: Option<Bytes>,
}

impl Forward {
    /// Adds to `Via` of a request with these fields what the policy says about us.
    pub fn with_via(mut self, policy: &Policy, request: &HeaderMap) -> Self {
        let Some(via) = &policy.via else {
            return self;
        };
        let lines = request.get_all(VIA).iter().chain([via]);
        let value = lines
            .map(HeaderValue::as_bytes)
            .collect::<Vec<_>>()
            .join(&b", "[..]);
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
            self.remove.retain(|name| name != VIA);
            self.set.push((VIA, value));
        }
        self
    }
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
    /// A request of our own to an upstream has come back to us.
    OwnFetch,
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
            Self::OwnFetch => "own_fetch",
        }
    }
}

/// What a kind of policy makes of a request.
pub(super) struct Keyed {
    pub(super) source: [u8; 32],
    pub(super) digest: [u8; 32],
    pub(super) expires: Option<Timestamp>,
    pub(super) forward: Forward,
}

/// SHA-256 over fields and lists that can be read back in one way only, whatever bytes they hold,
/// because the label and what stands in front say which of the two comes next.
///
/// A field is its length as 64 bits, most significant byte first, and its bytes. A list is a byte 1
/// and a field for each item, then a byte 0.
pub(super) struct KeyHasher(Sha256);

impl KeyHasher {
    /// Begins with `label` as the first field: what is hashed, and the version of its layout.
    pub(super) fn new(label: &str) -> Self {
        let mut hasher = Self(Sha256::new());
        hasher.field(label.as_bytes());
        hasher
    }

    pub(super) fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    /// An `Option` is a list of at most one item.
    pub(super) fn list<'a>(&mut self, items: impl IntoIterator<Item = &'a [u8]>) {
        for item in items {
            self.0.update([1]);
            self.field(item);
        }
        self.0.update([0]);
    }

    pub(super) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests;
