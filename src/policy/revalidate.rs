//! What an upstream's answer means for a stored response (RFC 9111 section 4.3.3, RFC 5861
//! section 4).

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderName, StatusCode};

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
    /// It is still the one, with these fields.
    Unchanged(Box<Record>),
    /// Nothing: the upstream could not answer. `RFC 5861 section 4` names these statuses.
    Failed,
    /// There is another one.
    Changed,
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
            (Provenance::Upstream, 304) => Answered::Unchanged(Box::new(self.freshened(
                stored,
                response,
                request_time,
                now,
            ))),
            (_, 500 | 502 | 503 | 504) => Answered::Failed,
            _ => Answered::Changed,
        }
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
        debug_assert_eq!(response.status, StatusCode::NOT_MODIFIED);
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
