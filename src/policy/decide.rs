//! Decides what happens to a request, and makes the key of its entry (RFC 9111 sections 2 and 4.1).
//!
//! This module holds what all kinds of policy share: which requests have a key, and what a decision
//! looks like. What a URL means is left to the kind.

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
    /// Decides what to do with `request`, which arrived at `now`.
    ///
    /// The same request always gets the same key. Two requests share a key only if the upstream
    /// answers both alike, provided that leaders are changed as [`Lookup::forward`] says.
    pub fn decide(&self, request: &RequestHead, now: Timestamp) -> Decision {
        if self.watches(&request.method) && !request.is_upgrade() {
            return Decision::Watch;
        }
        match self.lookup(request, now) {
            Ok(lookup) => Decision::Lookup(Box::new(lookup)),
            Err(reason) => Decision::Bypass(reason),
        }
    }

    /// Whether a response may vary by request field `name` without needing a variant: the field is
    /// in the key, or leaders carry it normalised or not at all.
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

/// What to do with a request, decided before there is a response.
#[derive(Debug, Clone)]
pub enum Decision {
    /// The request is not looked up, and its answer is not stored.
    Bypass(BypassReason),
    /// The request is not looked up, and its answer may invalidate entries.
    Watch,
    /// The request is looked up, and may lead a fill on a miss.
    Lookup(Box<Lookup>),
}

/// A request that has a key.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// Its key.
    pub key: Key,
    /// Its method.
    pub method: LookupMethod,
    /// When the URL expires, if it says so.
    pub expires: Option<Timestamp>,
    /// Changes to its head when it is forwarded.
    pub forward: Forward,
    /// Its preconditions and range, which may ask for less than the whole response.
    pub conditions: Conditions,
    /// Whether it has `Authorization`.
    pub is_authorized: bool,
    /// Its cache directives; empty where the policy does not obey this client.
    pub control: RequestControl,
}

/// The methods that are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupMethod {
    /// GET.
    Get,
    /// HEAD: it is answered from the stored GET and never fills.
    Head,
}

/// Changes to the head of a leader, so that what is not in the key cannot reach the upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forward {
    /// Fields to set; each replaces all fields of its name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields to remove from the request.
    pub remove: Vec<HeaderName>,
    /// The path and query to send instead, if part of the request's query is not in the key.
    pub path: Option<Bytes>,
}

impl Forward {
    /// Adds the policy's name for this cache to the `Via` field of a request that has these fields.
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

/// What a kind of policy reads from a request.
pub(super) struct Keyed {
    pub(super) source: [u8; 32],
    pub(super) digest: [u8; 32],
    pub(super) expires: Option<Timestamp>,
    pub(super) forward: Forward,
}

#[cfg(test)]
mod tests;
