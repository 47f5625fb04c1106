//! Decides whether a response may be stored, and what is kept of it (RFC 9111 section 3).

use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED,
    SET_COOKIE, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, StatusCode};

use super::cache_control::{CacheControl, Scope};
use super::freshness::initial_age;
use super::image::is_declared_image;
use super::{Kind, MediaRange, Policy, Statuses, StoreRules, Verify};
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
    /// Length of the body in bytes. Without it, the framing shows the end.
    pub content_length: Option<u64>,
    /// What the first bytes of the body are compared with.
    pub content: Content,
    /// Request fields that select it beyond the primary key, sorted, each once.
    pub varies_by: Vec<HeaderName>,
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
    /// The policy does not store the status.
    Status,
    /// `no-store`.
    NoStore,
    /// `private`.
    Private,
    /// `no-cache`, and no validator to ask the upstream with.
    NoCache,
    /// `Set-Cookie`.
    SetCookie,
    /// `Vary` names `*`, or too many fields, or a field outside the key while the policy stores no
    /// variants.
    Vary,
    /// As many variants as the policy allows are stored already.
    Variants,
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
    /// Several lengths, or an unreadable one.
    BadLength,
    /// The body is too long to be served again.
    TooLarge,
    /// No body at all.
    NoBody,
    /// The request had `Authorization`, and the response does not say that it may be shared.
    Authorized,
    /// The request said `no-store`, and the policy obeys clients.
    Client,
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
            Self::Variants => "variants",
            Self::ContentType => "content_type",
            Self::ContentEncoding => "content_encoding",
            Self::ContentRange => "content_range",
            Self::NoFreshness => "no_freshness",
            Self::Stale => "stale",
            Self::NoLength => "no_length",
            Self::BadLength => "bad_length",
            Self::TooLarge => "too_large",
            Self::NoBody => "no_body",
            Self::Authorized => "authorized",
            Self::Client => "client",
        }
    }
}

/// The fields of imgproxy that later clients must get, too. All others are Envoy's or the
/// transport's, or describe one exchange.
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

/// The statuses whose caching rules this cache knows: the final ones of RFC 9110 section 15 except
/// 206 and 304.
const UNDERSTOOD: [u16; 41] = [
    200, 201, 202, 203, 204, 205, 300, 301, 302, 303, 305, 307, 308, 400, 401, 402, 403, 404, 405,
    406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 421, 422, 426, 500, 501, 502, 503,
    504, 505, 451,
];

/// Fields that belong to one connection (RFC 9111 section 3.1, RFC 9110 section 7.6.1), and those
/// that this cache writes itself.
const NOT_KEPT: &[&str] = &[
    "age",
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
    /// Decides whether the answer to a leader's GET is stored.
    ///
    /// `request_time` is when the request was forwarded, `now` when the head arrived;
    /// `is_authorized` says whether the request had `Authorization`; `largest_bytes` is the largest
    /// body that can be served again.
    ///
    /// # Errors
    /// The first reason against storing it.
    pub fn storable(
        &self,
        response: &ResponseHead,
        request_time: Timestamp,
        now: Timestamp,
        is_authorized: bool,
        largest_bytes: u64,
    ) -> Result<Storable, NotStorable> {
        let headers = &response.headers;
        let control = CacheControl::directed_at_us(headers, &self.targeted).control;
        self.may_share(response, &control, is_authorized)?;
        let varies_by = self.varies_by(headers).map_err(|_| NotStorable::Vary)?;
        if !varies_by.is_empty() && self.store.variants == 0 {
            return Err(NotStorable::Vary);
        }
        if response.status == StatusCode::OK
            && self.store.verify == Verify::Image
            && headers.contains_key(CONTENT_RANGE)
        {
            return Err(NotStorable::ContentRange);
        }
        if !self.store.content_codings && has_content_coding(headers) {
            return Err(NotStorable::ContentEncoding);
        }
        let content = self.content(response.status, headers)?;
        let initial_age = self.useful_age(response, &control, request_time, now)?;
        let content_length = if response.has_body {
            self.content_length(headers)?
        } else {
            Some(0)
        };
        if content_length.is_some_and(|length| length > largest_bytes) {
            return Err(NotStorable::TooLarge);
        }
        // An empty image does not exist; an empty text may.
        if !response.has_body && content != Content::Unverified {
            return Err(NotStorable::NoBody);
        }
        let mut kept = self.kept_headers(headers);
        for name in control.unshared_fields() {
            kept.remove(name);
        }
        Ok(Storable {
            status: response.status,
            headers: kept,
            response_time: now,
            initial_age,
            content_length,
            content,
            varies_by,
        })
    }

    /// Whether a response may be stored for others at all: by its maker, its status and its
    /// directives.
    fn may_share(
        &self,
        response: &ResponseHead,
        control: &CacheControl,
        is_authorized: bool,
    ) -> Result<(), NotStorable> {
        match response.provenance {
            Provenance::Upstream => {}
            Provenance::Local | Provenance::Unknown => return Err(NotStorable::NotUpstream),
        }
        self.accepts_status(response.status)?;
        let is_understood = UNDERSTOOD.contains(&response.status.as_u16());
        if control.must_understand && !is_understood {
            return Err(NotStorable::Status);
        }
        // A cache that understands the status may ignore `no-store` (RFC 9111 section 5.2.2.3).
        if control.no_store && !(control.must_understand && is_understood) {
            return Err(NotStorable::NoStore);
        }
        if control.private == Scope::Response {
            return Err(NotStorable::Private);
        }
        if is_authorized && !control.shares_authorized() {
            return Err(NotStorable::Authorized);
        }
        if response.headers.contains_key(SET_COOKIE) {
            return Err(NotStorable::SetCookie);
        }
        Ok(())
    }

    /// The response's initial age in seconds, if the response can be used again.
    fn useful_age(
        &self,
        response: &ResponseHead,
        control: &CacheControl,
        request_time: Timestamp,
        now: Timestamp,
    ) -> Result<u64, NotStorable> {
        let headers = &response.headers;
        let has_validator = headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED);
        let terms = self
            .terms(response.status, headers, now)
            .ok_or(NotStorable::NoFreshness)?;
        let initial_age = initial_age(headers, request_time, now);
        // A response that is stale at once is kept only if it can be revalidated or served stale.
        let last = terms.lifetime + terms.stale_while_revalidate.max(terms.stale_if_error);
        if has_validator || last > initial_age {
            return Ok(initial_age);
        }
        Err(if control.no_cache == Scope::Response {
            NotStorable::NoCache
        } else {
            NotStorable::Stale
        })
    }

    fn accepts_status(&self, status: StatusCode) -> Result<(), NotStorable> {
        let is_negative = self
            .freshness
            .negative
            .iter()
            .any(|(negative, _)| *negative == status);
        let is_accepted = match &self.store.statuses {
            Statuses::Only(statuses) => statuses.contains(&status),
            // Neither is a whole response (RFC 9111 section 3.3): a 304 updates a stored one.
            Statuses::Any => !matches!(status.as_u16(), 206 | 304),
        };
        if is_accepted || is_negative {
            Ok(())
        } else {
            Err(NotStorable::Status)
        }
    }

    /// What the body claims to be, if the policy stores that. Types concern a 200 only: any type
    /// may describe an error.
    fn content(&self, status: StatusCode, headers: &HeaderMap) -> Result<Content, NotStorable> {
        if status != StatusCode::OK {
            return Ok(Content::Unverified);
        }
        let media_type = media_type(headers);
        if !self.store.accepts(media_type.as_deref()) {
            return Err(NotStorable::ContentType);
        }
        match (self.store.verify, media_type) {
            (Verify::None, _) => Ok(Content::Unverified),
            (Verify::Image, Some(media_type)) => Ok(Content::Image(media_type)),
            (Verify::Image, None) => Err(NotStorable::ContentType),
        }
    }

    /// The length that the body must have; `None` if the framing shows its end. imgproxy always
    /// sends a length, so its policies require one.
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

    pub(super) fn kept_headers(&self, headers: &HeaderMap) -> HeaderMap {
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
                // A targeted field decides about freshness later, too.
                Kind::Imgproxy(_) => {
                    IMGPROXY_HEADERS.contains(&name.as_str()) || self.targeted.contains(name)
                }
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
    fn accepts(&self, media_type: Option<&str>) -> bool {
        let Some(media_type) = media_type else {
            return self.content_types.iter().any(|range| range.main == "*");
        };
        let (main, sub) = media_type.split_once('/').unwrap_or((media_type, ""));
        self.content_types
            .iter()
            .any(|range| range.covers(main, sub))
    }
}

impl MediaRange {
    fn covers(&self, main: &str, sub: &str) -> bool {
        if self.main == "*" {
            return true;
        }
        self.main == main
            && match &self.sub {
                Some(own) => own == sub,
                // SVG can carry script, so only its own name stands for it.
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
