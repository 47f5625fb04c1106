//! What an upstream's answer means for a stored response (RFC 9111 section 4.3.3, RFC 5861
//! section 4).

use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED,
};
use http::{HeaderName, HeaderValue, StatusCode};

use super::cache_control::{CacheControl, Scope};
use super::freshness::initial_age;
use super::{Policy, Provenance, ResponseHead};
use crate::clock::Timestamp;
use crate::entry::Record;

/// Fields that describe the stored bytes, which a 304 does not bring (RFC 9111 section 3.2).
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
        /// Its fields from now on.
        record: Box<Record>,
        /// Whether it may stay stored with them.
        is_kept: bool,
    },
    /// Nothing: the upstream could not answer. `RFC 5861 section 4` names these statuses.
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
    /// Reads the answer to a request that was sent at `request_time` and answered `now`.
    pub fn answered(
        &self,
        stored: &Record,
        response: &ResponseHead,
        request_time: Timestamp,
        now: Timestamp,
    ) -> Answered {
        match (response.provenance, response.status.as_u16()) {
            (Provenance::Upstream, 304) => Answered::Unchanged {
                record: Box::new(self.freshened(stored, response, request_time, now)),
                is_kept: self.may_stay(response),
            },
            (_, 500 | 502 | 503 | 504) => Answered::Failed,
            _ => Answered::Changed,
        }
    }

    /// Reads the answer to a HEAD that was sent at `request_time` and answered `now` (RFC 9111
    /// section 4.3.5). Each validator and the length, where they are given, must be those of what is
    /// stored, and at least one must be given.
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
        if given.contains(&false) || !self.may_stay(response) {
            return Checked::Changed;
        }
        let record = self.freshened(stored, response, request_time, now);
        Checked::Unchanged(Box::new(record))
    }

    /// Whether what is stored may stay so with the fields of this response.
    fn may_stay(&self, response: &ResponseHead) -> bool {
        let control = CacheControl::directed_at_us(&response.headers, &self.targeted).control;
        !control.no_store && control.private != Scope::Response
    }

    /// The stored response with the fields of a 304 (RFC 9111 sections 3.2 and 4.3.4). A field that
    /// comes takes the place of all lines of its name.
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
        Record {
            headers,
            response_time: now,
            initial_age: initial_age(&response.headers, request_time, now),
            ..stored.clone()
        }
    }
}

#[cfg(test)]
mod tests;
