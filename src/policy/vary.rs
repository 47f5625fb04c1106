//! Reads which request fields a response varies by beyond its primary key (RFC 9111 section 4.1).

use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, ORIGIN, VARY};
use http::{HeaderMap, HeaderName};

use super::Policy;
use crate::entry::members;

/// The most fields by which a stored response may vary.
const MOST_FIELDS: usize = 8;

/// `Vary` names `*`, a malformed field name, or more than [`MOST_FIELDS`] fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MatchesNothing;

impl Policy {
    /// The request fields by which a response varies beyond its primary key, sorted, each once.
    pub(super) fn varies_by(
        &self,
        response: &HeaderMap,
    ) -> Result<Vec<HeaderName>, MatchesNothing> {
        let mut fields = Vec::new();
        for field in members(response, &VARY) {
            let name = HeaderName::from_bytes(field).map_err(|_| MatchesNothing)?;
            // `*` is a token, too, and matches no request.
            if name == "*" {
                return Err(MatchesNothing);
            }
            if !self.controls(&name) && !fields.contains(&name) {
                fields.push(name);
            }
        }
        // An origin that answers for one `Origin` varies by it, whether it says so or not.
        let is_for_one_origin = response
            .get(ACCESS_CONTROL_ALLOW_ORIGIN)
            .is_some_and(|origin| origin != "*");
        if is_for_one_origin && !self.controls(&ORIGIN) && !fields.contains(&ORIGIN) {
            fields.push(ORIGIN);
        }
        if fields.len() > MOST_FIELDS {
            return Err(MatchesNothing);
        }
        fields.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(fields)
    }
}

#[cfg(test)]
mod tests;
