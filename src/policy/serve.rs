//! Makes the answer to a request from a stored response, without reading its body.

use http::header::{
    AGE, CACHE_CONTROL, CONTENT_LOCATION, CONTENT_RANGE, DATE, ETAG, EXPIRES, LAST_MODIFIED, VARY,
    VIA,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::cache_control::limited_cache_control;
use super::freshness::{http_date, to_http_date};
use super::validators::{Representation, Selected, Validators, content_etag};
use super::{Lookup, LookupMethod, Policy};
use crate::clock::Timestamp;
use crate::entry::Record;

/// `Cache-Status` (RFC 9211).
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The fields of a stored response that a 304 repeats (RFC 9110 section 15.4.5). `Last-Modified` is
/// added if there is no entity tag.
const OF_NOT_MODIFIED: [HeaderName; 6] =
    [CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, VARY];

/// An answer without the bytes of its body.
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    /// Its status.
    pub status: StatusCode,
    /// All its fields but `content-length`.
    pub headers: HeaderMap,
    /// The bytes of the stored body that are its body.
    pub body: ServedBody,
}

/// Which bytes of the stored body are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedBody {
    /// None, and the answer has no length: 304, 416.
    Nothing,
    /// None, and the length is that of a body: HEAD.
    Length(u64),
    /// From `first` to `last`, both included.
    Part {
        /// Offset of the first byte.
        first: u64,
        /// Offset of the last byte.
        last: u64,
    },
    /// All.
    Whole,
}

impl Policy {
    /// Makes the answer to `lookup` from a stored response. `age` is in seconds; `status` is our
    /// member of `Cache-Status`.
    ///
    /// Conditions and ranges are evaluated here (RFC 9111 section 4.3.2, RFC 9110 sections 13
    /// and 14); they apply to a stored 200 alone.
    pub fn serve(
        &self,
        lookup: &Lookup,
        record: &Record,
        age: u64,
        status: &HeaderValue,
        now: Timestamp,
    ) -> Served {
        let mut headers = record.headers.clone();
        self.own_fields(&mut headers, lookup, record, age, status, now);
        let length = record.body.content_length;
        let selected = if record.status == StatusCode::OK {
            lookup.conditions.select(&Representation {
                etag: headers.get(ETAG),
                headers: &headers,
                content_length: length,
            })
        } else {
            Selected::Whole
        };
        let (status, body) = match selected {
            Selected::NotModified => {
                headers = not_modified(&headers);
                (StatusCode::NOT_MODIFIED, ServedBody::Nothing)
            }
            Selected::Unsatisfiable => {
                headers = of_ours(&headers);
                headers.insert(CONTENT_RANGE, content_range(format_args!("*/{length}")));
                (StatusCode::RANGE_NOT_SATISFIABLE, ServedBody::Nothing)
            }
            Selected::Part { first, last } => {
                let range = content_range(format_args!("{first}-{last}/{length}"));
                headers.insert(CONTENT_RANGE, range);
                (
                    StatusCode::PARTIAL_CONTENT,
                    ServedBody::Part { first, last },
                )
            }
            Selected::Whole => match lookup.method {
                LookupMethod::Get => (record.status, ServedBody::Whole),
                LookupMethod::Head => (record.status, ServedBody::Length(length)),
            },
        };
        Served {
            status,
            headers,
            body,
        }
    }

    /// Adds the fields that belong to this answer and not to the stored response.
    fn own_fields(
        &self,
        headers: &mut HeaderMap,
        lookup: &Lookup,
        record: &Record,
        age: u64,
        status: &HeaderValue,
        now: Timestamp,
    ) {
        if let Some(end) = lookup.expires {
            limit_copies(headers, end, age, now);
        }
        if self.validators == Validators::Content && record.status == StatusCode::OK {
            headers.insert(ETAG, content_etag(&record.body));
        }
        headers.insert(AGE, HeaderValue::from(age));
        // Members of caches between the upstream and us come before ours (RFC 9211 section 2).
        headers.append(CACHE_STATUS, status.clone());
        if let Some(via) = &self.via {
            headers.append(VIA, via.clone());
        }
    }
}

/// Shortens the lifetimes in `headers`, so that no downstream cache takes the answer for fresh
/// after `end`.
fn limit_copies(headers: &mut HeaderMap, end: Timestamp, age: u64, now: Timestamp) {
    // A downstream cache subtracts the age from the lifetime.
    let seconds = end.seconds_since(now).saturating_add(age);
    if let Some(lines) = limited_cache_control(headers, seconds) {
        headers.remove(CACHE_CONTROL);
        for line in lines {
            headers.append(CACHE_CONTROL, line);
        }
        headers.remove(EXPIRES);
    }
    // `end` is before a date that was read, so it is early enough to be written.
    if http_date(headers.get(EXPIRES)).is_some_and(|expires| expires > end) {
        headers.insert(EXPIRES, to_http_date(end));
    }
}

fn not_modified(headers: &HeaderMap) -> HeaderMap {
    let mut kept = of_ours(headers);
    for name in OF_NOT_MODIFIED {
        for value in headers.get_all(&name) {
            kept.append(&name, value.clone());
        }
    }
    if !headers.contains_key(ETAG)
        && let Some(value) = headers.get(LAST_MODIFIED)
    {
        kept.insert(LAST_MODIFIED, value.clone());
    }
    kept
}

/// The fields that this cache adds, which say where an answer comes from.
fn of_ours(headers: &HeaderMap) -> HeaderMap {
    [AGE, CACHE_STATUS, VIA]
        .into_iter()
        .flat_map(|name| {
            let values = headers.get_all(&name).iter().cloned();
            values
                .map(move |value| (name.clone(), value))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn content_range(range: std::fmt::Arguments<'_>) -> HeaderValue {
    HeaderValue::try_from(format!("bytes {range}")).expect("digits are visible ASCII")
}

#[cfg(test)]
mod tests;
