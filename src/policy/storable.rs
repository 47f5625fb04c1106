//! Whether a response may be stored, and what is kept of it (RFC 9111 section 3).

use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, SET_COOKIE,
    TRANSFER_ENCODING, VARY,
};
use http::{HeaderMap, HeaderName, StatusCode};

use super::cache_control::CacheControl;
use super::freshness::{initial_age, lifetime};
use super::image::is_declared_image;
use super::{Kind, MediaRange, Policy, StoreRules, Verify};
use crate::clock::Timestamp;

/// A response's head and where it came from.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// Response status.
    pub status: StatusCode,
    /// Field lines without pseudo-headers, in the order received.
    pub headers: HeaderMap,
    /// Whether a body follows the head.
    pub has_body: bool,
    /// Who made it.
    pub provenance: Provenance,
}

/// Who made a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provenance {
    /// The upstream.
    Upstream,
    /// The proxy itself: an error page, a redirect, a direct response.
    Local,
    /// The proxy did not say.
    Unknown,
}

/// Everything about a response that is kept beside its body.
#[derive(Debug, Clone, PartialEq)]
pub struct Storable {
    /// Response status.
    pub status: StatusCode,
    /// The fields that are kept; `content-length` is not among them.
    pub headers: HeaderMap,
    /// When the head arrived.
    pub response_time: Timestamp,
    /// Corrected initial age in seconds (RFC 9111 section 4.2.3).
    pub initial_age: u64,
    /// Bytes of body, where the response says so. Without it, the framing shows the end.
    pub content_length: Option<u64>,
    /// What the first bytes of the body are compared with.
    pub content: Content,
}

/// What a body claims to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// An image of this media type: its first bytes must be that format's.
    Image(String),
    /// Anything.
    Unverified,
}

impl Content {
    /// Whether a body that begins with `head` may be what it claims to be. `head` is the first
    /// [`super::MAGIC_BYTES`] of the body, or all of a shorter one.
    pub fn agrees_with(&self, head: &[u8]) -> bool {
        match self {
            Self::Image(media_type) => is_declared_image(media_type, head),
            Self::Unverified => true,
        }
    }
}

/// Why a response is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotStorable {
    /// Not known to come from the upstream.
    NotUpstream,
    /// Status other than 200.
    Status,
    /// `no-store`.
    NoStore,
    /// `private`.
    Private,
    /// `no-cache`: it could not be used without asking each time.
    NoCache,
    /// `Set-Cookie`.
    SetCookie,
    /// `Vary` names `*`, or a request field that reaches the upstream without being in the key.
    Vary,
    /// A media type that the policy does not name, or none.
    ContentType,
    /// A content coding.
    ContentEncoding,
    /// `Content-Range`, although the status is 200.
    ContentRange,
    /// No explicit freshness, and the policy gives no default.
    NoFreshness,
    /// Already stale when it arrived.
    Stale,
    /// Neither a length nor a framing that shows the end.
    NoLength,
    /// Several or unreadable lengths.
    BadLength,
    /// Longer than what can be served again.
    TooLarge,
    /// No body at all.
    NoBody,
}

impl NotStorable {
    /// The word for labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotUpstream => "not_upstream",
            Self::Status => "status",
            Self::NoStore => "no_store",
            Self::Private => "private",
            Self::NoCache => "no_cache",
            Self::SetCookie => "set_cookie",
            Self::Vary => "vary",
            Self::ContentType => "content_type",
            Self::ContentEncoding => "content_encoding",
            Self::ContentRange => "content_range",
            Self::NoFreshness => "no_freshness",
            Self::Stale => "stale",
            Self::NoLength => "no_length",
            Self::BadLength => "bad_length",
            Self::TooLarge => "too_large",
            Self::NoBody => "no_body",
        }
    }
}

/// What imgproxy sends that a later client must get again. Everything else is Envoy's, the
/// transport's, or describes one exchange.
const IMGPROXY_HEADERS: &[&str] = &[
    "accept-ranges",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "cache-control",
    "content-disposition",
    "content-dpr",
    "content-language",
    "content-security-policy",
    "content-type",
    "cross-origin-resource-policy",
    "date",
    "etag",
    "expires",
    "last-modified",
    "link",
    "timing-allow-origin",
    "vary",
    "x-content-type-options",
    "x-origin-content-length",
    "x-origin-height",
    "x-origin-width",
    "x-result-height",
    "x-result-width",
];

/// Fields that belong to one connection (RFC 9111 section 3.1, RFC 9110 section 7.6.1), and those
/// that this cache writes itself.
const NOT_KEPT: &[&str] = &[
    "age",
    "cache-status",
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Policy {
    /// Decides on the answer to a GET that had a key and led.
    ///
    /// `request_time` is when the request was sent on, `now` when the head arrived;
    /// `largest_bytes` is the largest body that can be served again.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn storable(
        &self,
        response: &ResponseHead,
        request_time: Timestamp,
        now: Timestamp,
        largest_bytes: u64,
    ) -> Result<Storable, NotStorable> {
        let headers = &response.headers;
        match response.provenance {
            Provenance::Upstream => {}
            Provenance::Local | Provenance::Unknown => return Err(NotStorable::NotUpstream),
        }
        if response.status != StatusCode::OK {
            return Err(NotStorable::Status);
        }
        let control = CacheControl::of(headers);
        if control.no_store {
            return Err(NotStorable::NoStore);
        }
        if control.private {
            return Err(NotStorable::Private);
        }
        if control.no_cache {
            return Err(NotStorable::NoCache);
        }
        if headers.contains_key(SET_COOKIE) {
            return Err(NotStorable::SetCookie);
        }
        if self.varies_on_unkeyed(headers) {
            return Err(NotStorable::Vary);
        }
        if headers.contains_key(CONTENT_RANGE) {
            return Err(NotStorable::ContentRange);
        }
        if has_content_coding(headers) {
            return Err(NotStorable::ContentEncoding);
        }
        let media_type = media_type(headers)
            .filter(|media_type| self.store.accepts(media_type))
            .ok_or(NotStorable::ContentType)?;
        let initial_age = initial_age(headers, request_time, now);
        match lifetime(&self.freshness, headers, now) {
            None => return Err(NotStorable::NoFreshness),
            Some(lifetime) if lifetime <= initial_age => return Err(NotStorable::Stale),
            Some(_) => {}
        }
        let content_length = self.content_length(headers)?;
        if content_length.is_some_and(|length| length > largest_bytes) {
            return Err(NotStorable::TooLarge);
        }
        let content = match self.store.verify {
            Verify::Image => Content::Image(media_type),
            Verify::None => Content::Unverified,
        };
        // No body, no end of it at which a copy could be seen to be whole.
        if !response.has_body {
            return Err(NotStorable::NoBody);
        }
        Ok(Storable {
            status: response.status,
            headers: self.kept_headers(headers),
            response_time: now,
            initial_age,
            content_length,
            content,
        })
    }

    /// The length that the body must have. imgproxy always sends one, so its policies insist.
    fn content_length(&self, headers: &HeaderMap) -> Result<Option<u64>, NotStorable> {
        let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
        let Some(length) = lengths.next() else {
            let is_chunked = headers
                .get(TRANSFER_ENCODING)
                .is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
            return match self.kind {
                Kind::Generic(_) if is_chunked => Ok(None),
                Kind::Generic(_) | Kind::Imgproxy(_) => Err(NotStorable::NoLength),
            };
        };
        if lengths.next().is_some() || headers.contains_key(TRANSFER_ENCODING) {
            return Err(NotStorable::BadLength);
        }
        length
            .to_str()
            .ok()
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .map(Some)
            .ok_or(NotStorable::BadLength)
    }

    /// Whether `Vary` names something that could make the same key mean different bytes
    /// (RFC 9111 section 4.1).
    fn varies_on_unkeyed(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(VARY)
            .iter()
            .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|field| !field.is_empty())
            .any(|field| {
                HeaderName::from_bytes(field)
                    // `*` is a token, too, and matches no request.
                    .map_or(true, |name| name == "*" || !self.controls(&name))
            })
    }

    fn kept_headers(&self, headers: &HeaderMap) -> HeaderMap {
        let is_named_by_connection = |name: &HeaderName| {
            headers
                .get_all(CONNECTION)
                .iter()
                .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
                .any(|field| {
                    field
                        .trim_ascii()
                        .eq_ignore_ascii_case(name.as_str().as_bytes())
                })
        };
        let is_kept = |name: &HeaderName| {
            let of_this_kind = match self.kind {
                Kind::Imgproxy(_) => IMGPROXY_HEADERS.contains(&name.as_str()),
                Kind::Generic(_) => {
                    !NOT_KEPT.contains(&name.as_str()) && !name.as_str().starts_with("x-envoy-")
                }
            };
            of_this_kind
                && !self.store.exclude_headers.contains(name)
                && !is_named_by_connection(name)
        };
        headers
            .iter()
            .filter(|(name, _)| is_kept(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

impl StoreRules {
    fn accepts(&self, media_type: &str) -> bool {
        let (main, sub) = media_type.split_once('/').unwrap_or((media_type, ""));
        self.content_types
            .iter()
            .any(|range| range.covers(main, sub))
    }
}

impl MediaRange {
    fn covers(&self, main: &str, sub: &str) -> bool {
        self.main == main
            && match &self.sub {
                Some(own) => own == sub,
                // SVG can carry script: only its own name means it.
                None => !(main == "image" && sub == "svg+xml"),
            }
    }
}

/// The media type without parameters, in lower case; `None` when there is not exactly one.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(only), None) = (types.next(), types.next()) else {
        return None;
    };
    let text = only.to_str().ok()?;
    let media_type = text.split(';').next().unwrap_or_default().trim();
    (!media_type.is_empty()).then(|| media_type.to_ascii_lowercase())
}

fn has_content_coding(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|coding| {
        !coding
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"identity")
    })
}

#[cfg(test)]
mod tests;
