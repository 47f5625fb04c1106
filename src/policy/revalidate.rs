//! Reads what an upstream's answer means for a stored response (RFC 9111 section 4.3.3, RFC 5861
//! section 4).

use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED, SET_COOKIE,
    VARY,
};
use http::{HeaderName, HeaderValue, StatusCode};

use super::cache_control::{CacheControl, Scope};
use super::freshness::initial_age;
use super::validators::is_same_tag;
use super::{Policy, Provenance, ResponseHead};
use crate::clock::Timestamp;
use crate::entry::Record;

/// Fields that describe the stored bytes, so that a 304 does not update them (RFC 9111 section
/// 3.2).
const OF_THE_BYTES: [HeaderName; 4] = [
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
];

/// What the answer to a request with a stored response's validators says about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Answered {
    /// It is still the one.
    Unchanged {
        /// The stored response with its fields from now on.
        record: Box<Record>,
        /// Whether it may stay stored with these fields.
        is_kept: bool,
    },
    /// The upstream failed, with a status that RFC 5861 section 4 names.
    Failed,
    /// There is another one.
    Changed,
}

/// What the answer to a HEAD says about a stored response.
#[derive(Debug, Clone, PartialEq)]
pub enum Checked {
    /// It is still the one, with these fields.
    Unchanged(Box<Record>),
    /// There is another one.
    Changed,
    /// Nothing.
    Nothing,
}

impl Policy {
    /// Reads the answer to a request with a stored response's validators, sent at `request_time`
    /// and answered `now`.
    pub fn answered(
        &self,
        stored: &Record,
        response: &ResponseHead,
        request_time: Timestamp,
        now: Timestamp,
    ) -> Answered {
        match (response.provenance, response.status.as_u16()) {
            // The 304 is about another response, so that only the stored one is left to answer
            // with.
            (Provenance::Upstream, 304) if !is_about(stored, response) => Answered::Unchanged {
                record: Box::new(Record {
                    response_time: now,
                    initial_age: stored
                        .initial_age
                        .saturating_add(now.seconds_since(stored.response_time)),
                    ..stored.clone()
                }),
                is_kept: false,
            },
            (Provenance::Upstream, 304) => Answered::Unchanged {
                record: Box::new(self.freshened(stored, response, request_time, now)),
                is_kept: self.may_stay(stored, response),
            },
            (_, 500 | 502 | 503 | 504) => Answered::Failed,
            _ => Answered::Changed,
        }
    }

    /// Reads the answer to a HEAD that was sent at `request_time` and answered `now` (RFC 9111
    /// section 4.3.5). Of the validators and the length, the answer must give at least one, and
    /// each one that it gives must be that of the stored response.
    pub fn checked(
        &self,
        stored: &Record,
        response: &ResponseHead,
        request_time: Timestamp,
        now: Timestamp,
    ) -> Checked {
        if response.provenance != Provenance::Upstream
            || response.status != StatusCode::OK
            || stored.status != StatusCode::OK
        {
            return Checked::Nothing;
        }
        let length = HeaderValue::from(stored.body.content_length);
        let pairs = [
            (ETAG, stored.headers.get(ETAG)),
            (LAST_MODIFIED, stored.headers.get(LAST_MODIFIED)),
            (CONTENT_LENGTH, Some(&length)),
        ];
        let given: Vec<bool> = pairs
            .iter()
            .filter_map(|(name, stored)| Some(Some(response.headers.get(name)?) == *stored))
            .collect();
        if given.is_empty() {
            return Checked::Nothing;
        }
        if given.contains(&false) || !self.may_stay(stored, response) {
            return Checked::Changed;
        }
        let record = self.freshened(stored, response, request_time, now);
        Checked::Unchanged(Box::new(record))
    }

    /// Whether the stored response may stay stored with the fields of this answer: with them it
    /// would be stored, and for the same requests (RFC 9111 sections 3 and 4.1).
    fn may_stay(&self, stored: &Record, response: &ResponseHead) -> bool {
        let headers = &response.headers;
        let control = CacheControl::directed_at_us(headers, &self.targeted).control;
        let varies_alike = !headers.contains_key(VARY)
            || self
                .varies_by(headers)
                .is_ok_and(|fields| self.varies_by(&stored.headers) == Ok(fields));
        !control.no_store
            && control.private != Scope::Response
            && !headers.contains_key(SET_COOKIE)
            && varies_alike
    }

    /// Freshens the stored response with the fields of an answer (RFC 9111 sections 3.2 and 4.3.4).
    /// Each field replaces all lines of its name.
    fn freshened(
        &self,
        stored: &Record,
        response: &ResponseHead,
        request_time: Timestamp,
        now: Timestamp,
    ) -> Record {
        let updates = self.kept_headers(&response.headers);
        let mut headers = stored.headers.clone();
        for name in updates.keys().filter(|name| !OF_THE_BYTES.contains(name)) {
            headers.remove(name);
            for value in updates.get_all(name) {
                headers.append(name, value.clone());
            }
        }
        // A field that it names now may have been stored before.
        let control = CacheControl::directed_at_us(&headers, &self.targeted).control;
        for name in control.unshared_fields() {
            headers.remove(name);
        }
        Record {
            headers,
            response_time: now,
            initial_age: initial_age(&response.headers, request_time, now),
            ..stored.clone()
        }
    }
}

/// Whether a 304 may update the stored response: it names no other entity tag (RFC 9111 section
/// 4.3.4).
fn is_about(stored: &Record, response: &ResponseHead) -> bool {
    match (stored.headers.get(ETAG), response.headers.get(ETAG)) {
        (Some(own), Some(given)) => is_same_tag(own, given),
        (None, _) | (_, None) => true,
    }
}

#[cfg(test)]
mod tests;
