//! The head of a request, from which a policy decides.

use std::borrow::Cow;
use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, header};

use super::{Authorization, BypassReason, Cookies, LookupMethod, Policy};

/// A request's head, as a client sent it to Envoy and before Envoy's router rewrote anything.
#[derive(Debug, Clone)]
pub struct RequestHead {
    /// Request method.
    pub method: Method,
    /// `:authority`, as received; empty when there was none.
    pub authority: Bytes,
    /// `:path` with its query, as received.
    pub path: Bytes,
    /// Field lines without pseudo-headers, in the order received.
    pub headers: HeaderMap,
    /// Whether a body follows the head.
    pub has_body: bool,
    /// Address of the peer that connected to Envoy; `None` when Envoy does not say.
    pub peer: Option<IpAddr>,
}

impl RequestHead {
    /// Returns the method to look up with, unless something outside the URL forbids a lookup.
    ///
    /// # Errors
    ///
    /// The first that applies of `Upgrade`, `Method`, `RequestBody`, `Authorization`, `Cookie`.
    pub(super) fn lookup_method(&self, policy: &Policy) -> Result<LookupMethod, BypassReason> {
        if self.is_upgrade() {
            return Err(BypassReason::Upgrade);
        }
        let method = match self.method {
            Method::GET => LookupMethod::Get,
            Method::HEAD => LookupMethod::Head,
            _ => return Err(BypassReason::Method),
        };
        if self.has_body {
            return Err(BypassReason::RequestBody);
        }
        if policy.authorization == Authorization::Bypass
            && self.headers.contains_key(header::AUTHORIZATION)
        {
            return Err(BypassReason::Authorization);
        }
        if policy.cookies == Cookies::Bypass && self.headers.contains_key(header::COOKIE) {
            return Err(BypassReason::Cookie);
        }
        Ok(method)
    }

    /// Whether the request asks for another protocol.
    pub(super) fn is_upgrade(&self) -> bool {
        self.method == Method::CONNECT || self.headers.contains_key(header::UPGRADE)
    }

    /// The authority as it stands in keys: lower case, with its port if it has one
    /// (RFC 9110 section 4.2.3).
    pub(super) fn key_host(&self) -> Cow<'_, [u8]> {
        if self.authority.iter().any(u8::is_ascii_uppercase) {
            self.authority.to_ascii_lowercase().into()
        } else {
            self.authority.as_ref().into()
        }
    }

    /// The path, and the query if there is a `?`.
    pub(super) fn path_and_query(&self) -> (&[u8], Option<&[u8]>) {
        match self.path.iter().position(|byte| *byte == b'?') {
            Some(at) => (&self.path[..at], Some(&self.path[at + 1..])),
            None => (&self.path, None),
        }
    }
}

/// Whether field `name` can make the answer something other than the whole response (RFC 9110
/// sections 13.1 and 14.2). A leader is forwarded without such fields.
pub(super) fn is_precondition_or_range(name: &HeaderName) -> bool {
    [
        header::IF_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_NONE_MATCH,
        header::IF_RANGE,
        header::IF_UNMODIFIED_SINCE,
        header::RANGE,
    ]
    .contains(name)
}

/// Whether Envoy forbids external processors to change field `name`.
pub(super) fn is_untouchable(name: &HeaderName) -> bool {
    name == header::HOST || name.as_str().starts_with("x-envoy-")
}
