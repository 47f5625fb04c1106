//! Age and freshness lifetime (RFC 9111 section 4.2).

use http::HeaderMap;
use http::header::{AGE, DATE, EXPIRES};

use super::cache_control::{CacheControl, delta_seconds};
use super::{FreshnessRules, Policy};
use crate::clock::Timestamp;
use crate::entry::Record;

/// Whether a stored response may be used without asking the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It may.
    Fresh {
        /// Current age in seconds (RFC 9111 section 4.2.3).
        age: u64,
        /// Seconds that it stays fresh.
        ttl: u64,
    },
    /// It may not.
    Stale {
        /// Current age in seconds.
        age: u64,
        /// Seconds since it was fresh last.
        staleness: u64,
    },
}

impl Policy {
    /// Judges a stored record at `now`, by the policy as it is today.
    pub fn freshness(&self, record: &Record, now: Timestamp) -> Freshness {
        let age = record
            .initial_age
            .saturating_add(now.seconds_since(record.response_time));
        let lifetime =
            lifetime(&self.freshness, &record.headers, record.response_time).unwrap_or(0);
        if age < lifetime {
            Freshness::Fresh {
                age,
                ttl: lifetime - age,
            }
        } else {
            Freshness::Stale {
                age,
                staleness: age - lifetime,
            }
        }
    }
}

/// Freshness lifetime in seconds (RFC 9111 section 4.2.1), within the policy's bounds; `None` when
/// neither the response nor the policy gives one.
pub(super) fn lifetime(
    rules: &FreshnessRules,
    headers: &HeaderMap,
    response_time: Timestamp,
) -> Option<u64> {
    let explicit = explicit_lifetime(headers, response_time);
    let lifetime = explicit.or(rules.default.map(|default| default.as_secs()))?;
    Some(lifetime.clamp(
        rules.floor.as_secs().min(rules.ceiling.as_secs()),
        rules.ceiling.as_secs(),
    ))
}

/// `s-maxage` before `max-age` before `Expires` (RFC 9111 section 4.2.1). A malformed `Expires`
/// means already expired (section 5.3).
fn explicit_lifetime(headers: &HeaderMap, response_time: Timestamp) -> Option<u64> {
    let control = CacheControl::of(headers);
    control.s_maxage.or(control.max_age).or_else(|| {
        let expires = headers.get(EXPIRES)?;
        let date = http_date(headers.get(DATE)).unwrap_or(response_time);
        Some(http_date(Some(expires)).map_or(0, |expires| expires.seconds_since(date)))
    })
}

/// Corrected initial age in seconds (RFC 9111 section 4.2.3).
pub(super) fn initial_age(
    headers: &HeaderMap,
    request_time: Timestamp,
    response_time: Timestamp,
) -> u64 {
    let apparent_age =
        http_date(headers.get(DATE)).map_or(0, |date| response_time.seconds_since(date));
    let age_value = headers
        .get(AGE)
        .and_then(|age| delta_seconds(age.as_bytes().trim_ascii()))
        .unwrap_or(0);
    let response_delay = response_time.seconds_since(request_time);
    apparent_age.max(age_value.saturating_add(response_delay))
}

fn http_date(value: Option<&http::HeaderValue>) -> Option<Timestamp> {
    let text = value?.to_str().ok()?;
    httpdate::parse_http_date(text).ok().map(Timestamp::from)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

    const RULES: FreshnessRules = FreshnessRules {
        default: None,
        floor: Duration::ZERO,
        ceiling: Duration::from_secs(30 * 24 * 3600),
    };

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    http::HeaderName::from_static(name),
                    http::HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    fn date(time: Timestamp) -> String {
        httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(time.as_unix()))
    }

    #[test]
    fn rfc9111_4_2_1_s_maxage_wins_over_max_age_over_expires() {
        let expires = date(NOW.plus_seconds(50));
        let all = headers(&[
            ("cache-control", "max-age=10, s-maxage=99"),
            ("expires", &expires),
        ]);
        assert_eq!(lifetime(&RULES, &all, NOW), Some(99));
        let two = headers(&[("cache-control", "max-age=10"), ("expires", &expires)]);
        assert_eq!(lifetime(&RULES, &two, NOW), Some(10));
        let one = headers(&[("expires", &expires)]);
        assert_eq!(lifetime(&RULES, &one, NOW), Some(50));
    }

    #[test]
    fn rfc9111_5_3_malformed_expires_is_already_expired() {
        assert_eq!(
            lifetime(&RULES, &headers(&[("expires", "0")]), NOW),
            Some(0)
        );
    }

    #[test]
    fn expires_counts_from_date() {
        let headers = headers(&[
            ("date", &date(NOW.plus_seconds(20))),
            ("expires", &date(NOW.plus_seconds(50))),
        ]);
        assert_eq!(lifetime(&RULES, &headers, NOW), Some(30));
    }

    #[test]
    fn without_explicit_freshness_the_default_counts_if_there_is_one() {
        assert_eq!(lifetime(&RULES, &HeaderMap::new(), NOW), None);
        let rules = FreshnessRules {
            default: Some(Duration::from_secs(5)),
            ..RULES
        };
        assert_eq!(lifetime(&rules, &HeaderMap::new(), NOW), Some(5));
    }

    #[test]
    fn floor_and_ceiling_bound_what_the_response_says() {
        let rules = FreshnessRules {
            floor: Duration::from_secs(60),
            ..RULES
        };
        let short = headers(&[("cache-control", "max-age=1")]);
        assert_eq!(lifetime(&rules, &short, NOW), Some(60));
        let year = headers(&[("cache-control", "max-age=31536000, public")]);
        assert_eq!(lifetime(&RULES, &year, NOW), Some(30 * 24 * 3600));
    }

    #[test]
    fn rfc9111_4_2_3_initial_age_is_the_larger_of_date_and_age_with_delay() {
        let sent = NOW;
        let received = NOW.plus_seconds(3);
        let by_age = headers(&[("age", "10"), ("date", &date(NOW))]);
        assert_eq!(initial_age(&by_age, sent, received), 13);
        let by_date = headers(&[
            ("age", "1"),
            ("date", &date(Timestamp::from_unix(NOW.as_unix() - 100))),
        ]);
        assert_eq!(initial_age(&by_date, sent, received), 103);
    }

    #[test]
    fn a_date_in_the_future_makes_no_negative_age() {
        let future = headers(&[("date", &date(NOW.plus_seconds(1000)))]);
        assert_eq!(initial_age(&future, NOW, NOW), 0);
    }
}
