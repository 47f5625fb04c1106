//! Validators and the conditions that use them (RFC 9110 sections 8.8 and 13, RFC 9111 section 4.3).

use data_encoding::BASE64URL_NOPAD;
use http::header::{DATE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE};
use http::{HeaderMap, HeaderValue};

use super::freshness::http_date;
use crate::clock::Timestamp;
use crate::entry::BodyProof;

/// Whose entity tags clients see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Validators {
    /// Ours, made of the bytes: strong, and different for every variant. A miss has none, because the
    /// bytes are not known yet.
    Content,
    /// The upstream's.
    Upstream,
}

/// The fields of a request that ask for less than the whole response.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    if_none_match: Vec<HeaderValue>,
    if_modified_since: Option<HeaderValue>,
    range: Option<HeaderValue>,
    if_range: Option<HeaderValue>,
}

/// What a request gets of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selected {
    /// All of it.
    Whole,
    /// Bytes `first` to `last`, both included, and `first <= last < length`.
    Part {
        /// Offset of the first byte.
        first: u64,
        /// Offset of the last byte.
        last: u64,
    },
    /// The client has it: 304.
    NotModified,
    /// Nothing of it: 416.
    Unsatisfiable,
}

/// What conditions are compared with.
#[derive(Debug, Clone, Copy)]
pub struct Representation<'a> {
    /// Its entity tag as clients see it.
    pub etag: Option<&'a HeaderValue>,
    /// All its fields.
    pub headers: &'a HeaderMap,
    /// Bytes of body.
    pub content_length: u64,
}

/// The strong entity tag of a body.
pub(super) fn content_etag(body: &BodyProof) -> HeaderValue {
    // 128 bits of the hash are more than enough to tell versions of one URL apart.
    let tag = format!("\"{}\"", BASE64URL_NOPAD.encode(&body.sha256[..16]));
    HeaderValue::try_from(tag).expect("base64 in quotes is visible ASCII")
}

impl Conditions {
    /// Takes them from a GET or HEAD. `Range` means something for GET alone (RFC 9110 section 14.2).
    pub fn of(headers: &HeaderMap, is_get: bool) -> Self {
        let only = |name| {
            let mut lines = headers.get_all(name).iter();
            match (lines.next(), lines.next()) {
                (Some(only), None) => Some(only.clone()),
                _ => None,
            }
        };
        Self {
            if_none_match: headers.get_all(IF_NONE_MATCH).iter().cloned().collect(),
            if_modified_since: only(IF_MODIFIED_SINCE),
            range: only(RANGE).filter(|_| is_get),
            if_range: only(IF_RANGE),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.if_none_match.is_empty() && self.if_modified_since.is_none() && self.range.is_none()
    }

    /// Evaluates them in the order of RFC 9110 section 13.2.2. `If-Match` and `If-Unmodified-Since`
    /// are the origin's business (RFC 9111 section 4.3.2).
    pub fn select(&self, stored: &Representation<'_>) -> Selected {
        if !self.if_none_match.is_empty() {
            if self
                .if_none_match
                .iter()
                .any(|list| is_any_of(list, stored.etag))
            {
                return Selected::NotModified;
            }
        } else if let Some(since) = &self.if_modified_since
            && is_unmodified_since(stored.headers, since)
        {
            return Selected::NotModified;
        }
        match &self.range {
            Some(range) if self.range_applies(stored) => ByteRange::parse(range.as_bytes())
                .map_or(Selected::Whole, |range| {
                    range.of_length(stored.content_length)
                }),
            Some(_) | None => Selected::Whole,
        }
    }

    /// `If-Range` needs the strong comparison (RFC 9110 section 13.1.5).
    fn range_applies(&self, stored: &Representation<'_>) -> bool {
        let Some(if_range) = &self.if_range else {
            return true;
        };
        match EntityTag::parse(if_range.as_bytes()) {
            Some((tag, b"")) => stored
                .etag
                .and_then(|etag| EntityTag::parse(etag.as_bytes()))
                .is_some_and(|(own, _)| !own.is_weak && own == tag),
            Some(_) => false,
            None => {
                let Some(date) = http_date(Some(if_range)) else {
                    return false;
                };
                stored.headers.get(LAST_MODIFIED) == Some(if_range)
                    && is_strong_date(stored.headers, date)
            }
        }
    }
}

/// A `Last-Modified` that lies a minute before `Date` cannot have changed twice within its second
/// (RFC 9110 section 8.8.2.2).
fn is_strong_date(headers: &HeaderMap, last_modified: Timestamp) -> bool {
    http_date(headers.get(DATE)).is_some_and(|date| date.seconds_since(last_modified) >= 60)
}

/// RFC 9110 section 13.1.3; without `Last-Modified` the response's own `Date` stands for it
/// (RFC 9111 section 4.3.2).
fn is_unmodified_since(headers: &HeaderMap, since: &HeaderValue) -> bool {
    let modified = http_date(headers.get(LAST_MODIFIED)).or_else(|| http_date(headers.get(DATE)));
    match (modified, http_date(Some(since))) {
        (Some(modified), Some(since)) => modified <= since,
        _ => false,
    }
}

/// Whether `list` has `*` or a tag that is weakly equal to `etag` (RFC 9110 section 13.1.2). A list
/// that is malformed somewhere has the tags before that place.
fn is_any_of(list: &HeaderValue, etag: Option<&HeaderValue>) -> bool {
    let mut rest = list.as_bytes().trim_ascii();
    if rest == b"*" {
        return true;
    }
    let Some((own, _)) = etag.and_then(|etag| EntityTag::parse(etag.as_bytes())) else {
        return false;
    };
    loop {
        while let [b' ' | b'\t' | b',', after @ ..] = rest {
            rest = after;
        }
        let Some((tag, after)) = EntityTag::parse(rest) else {
            return false;
        };
        if tag.opaque == own.opaque {
            return true;
        }
        rest = after;
    }
}

/// The weak comparison (RFC 9110 section 8.8.3.2). A malformed tag equals the same bytes alone.
pub(super) fn is_same_tag(one: &HeaderValue, other: &HeaderValue) -> bool {
    let opaque = |etag| EntityTag::parse(etag).map(|(tag, _)| tag.opaque);
    one == other || opaque(one.as_bytes()).is_some_and(|one| opaque(other.as_bytes()) == Some(one))
}

#[derive(Debug, PartialEq, Eq)]
struct EntityTag<'a> {
    is_weak: bool,
    opaque: &'a [u8],
}

impl<'a> EntityTag<'a> {
    /// Reads one from the beginning of `text`, and gives what follows it.
    fn parse(text: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (is_weak, quoted) = match text.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, text),
        };
        let inner = quoted.strip_prefix(b"\"")?;
        let end = inner.iter().position(|&byte| byte == b'"')?;
        let is_valid = inner[..end]
            .iter()
            .all(|&byte| byte == 0x21 || byte > 0x22 && byte != 0x7f);
        is_valid.then_some((
            Self {
                is_weak,
                opaque: &inner[..end],
            },
            &inner[end + 1..],
        ))
    }
}

/// One range of `Range: bytes=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteRange {
    From { first: u64, last: Option<u64> },
    Suffix { length: u64 },
}

impl ByteRange {
    /// `None` for other units, several ranges and malformed ones: then there is no range
    /// (RFC 9110 section 14.2). Several ranges are an easy way to ask for much work.
    fn parse(range: &[u8]) -> Option<Self> {
        let unit = range.get(..6)?;
        if !unit.eq_ignore_ascii_case(b"bytes=") {
            return None;
        }
        let spec = range[6..].trim_ascii();
        let dash = spec.iter().position(|&byte| byte == b'-')?;
        let (first, last) = (&spec[..dash], &spec[dash + 1..]);
        match (first.is_empty(), last.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Self::Suffix {
                length: position(last)?,
            }),
            (false, true) => Some(Self::From {
                first: position(first)?,
                last: None,
            }),
            (false, false) => {
                let (first, last) = (position(first)?, position(last)?);
                (first <= last).then_some(Self::From {
                    first,
                    last: Some(last),
                })
            }
        }
    }

    fn of_length(self, length: u64) -> Selected {
        let Some(end) = length.checked_sub(1) else {
            return Selected::Unsatisfiable;
        };
        match self {
            Self::Suffix { length: 0 } => Selected::Unsatisfiable,
            Self::Suffix { length: suffix } => Selected::Part {
                first: length.saturating_sub(suffix),
                last: end,
            },
            Self::From { first, .. } if first > end => Selected::Unsatisfiable,
            Self::From { first, last } => Selected::Part {
                first,
                last: last.map_or(end, |last| last.min(end)),
            },
        }
    }
}

/// Digits; more than fit are as far as there is.
fn position(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0_u64, |sum, digit| {
        sum.saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    }))
}

/// The fields by which an upstream can tell that a stored response is still the one
/// (RFC 9111 section 4.3.1): the upstream's own, never ours.
pub fn forwarded_validators(headers: &HeaderMap) -> Vec<(http::HeaderName, HeaderValue)> {
    let pairs = [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)];
    pairs
        .into_iter()
        .filter_map(|(stored, condition)| Some((condition, headers.get(stored)?.clone())))
        .collect()
}

#[cfg(test)]
mod tests;
