//! Computes the age, the freshness lifetime (RFC 9111 section 4.2) and the stale windows (RFC 5861)
//! of a response.

use std::time::{Duration, UNIX_EPOCH};

use http::header::{AGE, DATE, EXPIRES, LAST_MODIFIED};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::cache_control::{CacheControl, Scope, delta_seconds};
use super::{FreshnessRules, Policy, Storable};
use crate::clock::Timestamp;
use crate::entry::Record;

/// Whether a stored response may be used without asking the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It may be used.
    Fresh {
        /// Current age in seconds (RFC 9111 section 4.2.3).
        age: u64,
        /// Seconds for which it stays fresh.
        ttl: u64,
    },
    /// It may be used only as the last three fields allow.
    Stale {
        /// Current age in seconds.
        age: u64,
        /// Seconds since it was fresh last.
        staleness: u64,
        /// Whether it may be served while it is refreshed in the background (section 3).
        while_revalidate: bool,
        /// Whether it may be served in place of an error (section 4).
        if_error: bool,
        /// Whether it may be served to a client that accepts stale responses (RFC 9111 section
        /// 4.2.4).
        if_taken: bool,
    },
}

/// How long a response may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    /// Freshness lifetime in seconds (RFC 9111 section 4.2.1).
    pub(super) lifetime: u64,
    /// Seconds after the lifetime in which it may be served while it is refreshed.
    pub(super) stale_while_revalidate: u64,
    /// Seconds after the lifetime in which it may be served in place of an error.
    pub(super) stale_if_error: u64,
    /// Whether it may be served after the lifetime to a client that accepts stale responses.
    if_taken: bool,
}

impl Policy {
    /// Judges a stored record at `now` by today's policy.
    pub fn freshness(&self, record: &Record, now: Timestamp) -> Freshness {
        let age = record
            .initial_age
            .saturating_add(now.seconds_since(record.response_time));
        let terms = self
            .terms(record.status, &record.headers, record.response_time)
            .unwrap_or(Terms {
                if_taken: true,
                ..Terms::NONE
            });
        if age < terms.lifetime {
            return Freshness::Fresh {
                age,
                ttl: terms.lifetime - age,
            };
        }
        let staleness = age - terms.lifetime;
        Freshness::Stale {
            age,
            staleness,
            while_revalidate: staleness < terms.stale_while_revalidate,
            if_error: staleness < terms.stale_if_error,
            if_taken: terms.if_taken,
        }
    }

    /// Whether a response is fresh when it arrives.
    pub fn is_fresh(&self, storable: &Storable) -> bool {
        self.terms(storable.status, &storable.headers, storable.response_time)
            .is_some_and(|terms| storable.initial_age < terms.lifetime)
    }

    /// The terms of a response, within the policy's bounds; `None` when neither the response nor
    /// the policy gives a lifetime.
    pub(super) fn terms(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        response_time: Timestamp,
    ) -> Option<Terms> {
        let rules = &self.freshness;
        let directed = CacheControl::directed_at_us(headers, &self.targeted);
        let control = &directed.control;
        if control.no_cache == Scope::Response {
            return Some(Terms::NONE);
        }
        let explicit = control
            .s_maxage
            .or(control.max_age)
            .or_else(|| (!directed.is_targeted).then(|| expires(headers, response_time))?);
        // A response that looks like a fallback image gets its own lifetime: no floor and no stale
        // window extends it.
        let fallback = rules.fallback_max_age.map(|max_age| max_age.as_secs());
        if fallback.is_some() && control.max_age == fallback {
            return explicit.map(|lifetime| Terms {
                lifetime: lifetime.min(rules.ceiling.as_secs()),
                if_taken: !control.forbids_stale(),
                ..Terms::NONE
            });
        }
        let negative = rules.negative_lifetime(status);
        let lifetime = explicit
            .or(negative)
            .or_else(|| rules.heuristic_lifetime(status, control.public, headers, response_time))
            .or(rules.default.map(|default| default.as_secs()))?;
        let window = |own: Option<u64>, of_policy: Option<Duration>| {
            if control.forbids_stale() {
                return 0;
            }
            own.or(of_policy.map(|window| window.as_secs()))
                .unwrap_or(0)
        };
        // What the operator says about a status holds over what the response says, and over the floor:
        // imgproxy says a year about its errors, too.
        let floor = match negative {
            Some(_) => 0,
            None => rules.floor.min(rules.ceiling).as_secs(),
        };
        Some(Terms {
            lifetime: lifetime
                .min(negative.unwrap_or(u64::MAX))
                .clamp(floor, rules.ceiling.as_secs()),
            stale_while_revalidate: window(
                control.stale_while_revalidate,
                rules.stale_while_revalidate,
            ),
            stale_if_error: window(control.stale_if_error, rules.stale_if_error),
            if_taken: !control.forbids_stale(),
        })
    }
}

impl Terms {
    /// The response is never used without asking the upstream.
    const NONE: Self = Self {
        lifetime: 0,
        stale_while_revalidate: 0,
        stale_if_error: 0,
        if_taken: false,
    };
}

impl FreshnessRules {
    fn negative_lifetime(&self, status: StatusCode) -> Option<u64> {
        self.negative
            .iter()
            .find(|(negative, _)| *negative == status)
            .map(|(_, lifetime)| lifetime.as_secs())
    }

    /// Guesses the lifetime as a share of the time since the last change (RFC 9111 section 4.2.2),
    /// for statuses that allow it (RFC 9110 section 15.1) and for responses declared `public`.
    fn heuristic_lifetime(
        &self,
        status: StatusCode,
        is_public: bool,
        headers: &HeaderMap,
        response_time: Timestamp,
    ) -> Option<u64> {
        const CACHEABLE: [u16; 12] = [200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501];
        let heuristic = self.heuristic?;
        if !(is_public || CACHEABLE.contains(&status.as_u16())) {
            return None;
        }
        let date = http_date(headers.get(DATE)).unwrap_or(response_time);
        let unchanged = date.seconds_since(http_date(headers.get(LAST_MODIFIED))?);
        let lifetime = unchanged / 100 * u64::from(heuristic.percent)
            + unchanged % 100 * u64::from(heuristic.percent) / 100;
        Some(lifetime.min(heuristic.ceiling.as_secs()))
    }
}

/// Lifetime by `Expires`. A malformed or repeated field means that the response has expired (RFC
/// 9111 section 5.3).
fn expires(headers: &HeaderMap, response_time: Timestamp) -> Option<u64> {
    let mut lines = headers.get_all(EXPIRES).iter();
    let first = lines.next()?;
    if lines.next().is_some() {
        return Some(0);
    }
    let date = http_date(headers.get(DATE)).unwrap_or(response_time);
    Some(http_date(Some(first)).map_or(0, |expires| expires.seconds_since(date)))
}

/// Corrected initial age in seconds (RFC 9111 section 4.2.3).
pub(super) fn initial_age(
    headers: &HeaderMap,
    request_time: Timestamp,
    response_time: Timestamp,
) -> u64 {
    let apparent_age =
        http_date(headers.get(DATE)).map_or(0, |date| response_time.seconds_since(date));
    // Only the first member of the first line counts (RFC 9111 section 5.1).
    let age_value = headers
        .get(AGE)
        .and_then(|age| age.as_bytes().split(|&byte| byte == b',').next())
        .and_then(|age| delta_seconds(age.trim_ascii()))
        .unwrap_or(0);
    let response_delay = response_time.seconds_since(request_time);
    apparent_age.max(age_value.saturating_add(response_delay))
}

/// Reads an HTTP date (RFC 9110 section 5.6.7) in the current form or one of the two obsolete ones,
/// whatever the case of its letters (RFC 9111 section 4.2).
pub(super) fn http_date(value: Option<&HeaderValue>) -> Option<Timestamp> {
    let text = value?.to_str().ok()?;
    httpdate::parse_http_date(text)
        .or_else(|_| httpdate::parse_http_date(&in_usual_case(text)))
        .ok()
        .map(Timestamp::from)
}

/// Writes every word with one capital letter, and `GMT` with three.
fn in_usual_case(text: &str) -> String {
    let mut is_within = false;
    let usual: String = text
        .chars()
        .map(|letter| {
            let was_within = std::mem::replace(&mut is_within, letter.is_ascii_alphabetic());
            if was_within {
                letter.to_ascii_lowercase()
            } else {
                letter.to_ascii_uppercase()
            }
        })
        .collect();
    usual.replace("Gmt", "GMT")
}

/// Writes an HTTP date in the current form.
///
/// # Panics
/// If `time` is later than the year 9999.
pub(super) fn to_http_date(time: Timestamp) -> HeaderValue {
    let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(time.as_unix()));
    HeaderValue::try_from(date).expect("a date is visible ASCII")
}

#[cfg(test)]
mod tests;
