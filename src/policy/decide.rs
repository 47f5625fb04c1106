//! From a request to the key of its entry (RFC 9111 sections 2 and 4.1).
//!
//! What is common to all kinds of policy: which requests have a key at all, how key material is
//! hashed, and what a decision looks like. What the URL means is the business of the kind.

use std::sync::Arc;

use bytes::Bytes;
use http::header::VIA;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::cache_control::RequestControl;
use super::validators::Conditions;
use super::{Kind, Policy, RequestHead};
use crate::clock::Timestamp;
use crate::entry::{Key, Source};

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

    /// The source with this digest in the policy's namespace and epoch.
    pub(super) fn source(&self, digest: [u8; 32]) -> Source {
        Source::new(Arc::clone(&self.namespace), self.epoch, digest)
    }

    fn lookup(&self, request: &RequestHead, now: Timestamp) -> Result<Lookup, BypassReason> {
        let method = request.lookup_method(self)?;
        let keyed = match &self.kind {
            Kind::Imgproxy(imgproxy) => imgproxy.keyed(request, self.key_host, now)?,
            Kind::Generic(generic) => generic.keyed(request)?,
        };
        Ok(Lookup {
            key: Key::new(self.source(keyed.source), keyed.digest),
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

#[cfg(test)]
mod tests;
