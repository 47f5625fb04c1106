//! The outcome, which is the final word for a request, and `Cache-Status`, the field that says it
//! (RFC 9211).

use std::fmt;

use http::HeaderValue;

/// How a request of a caching policy ended. Each outcome has one word, the same in the log, the
/// metric and the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered from the store, fresh.
    Hit,
    /// Answered from the store although it is stale: it is being refreshed, or the upstream failed.
    Stale,
    /// Answered with what another request for the same key got meanwhile.
    Collapsed,
    /// Answered from the store after the upstream confirmed the entry.
    Revalidated,
    /// Forwarded, because no usable entry was stored.
    Miss,
    /// Forwarded because of its unsafe method; the answer may invalidate entries.
    Method,
    /// Not looked up.
    Bypass,
}

impl Outcome {
    /// The word for labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Collapsed => "collapsed",
            Self::Revalidated => "revalidated",
            Self::Miss => "miss",
            Self::Method => "method",
            Self::Bypass => "bypass",
        }
    }
}

/// Why a lookup found nothing that could be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MissReason {
    /// Nothing is stored.
    Absent,
    /// Variants are stored, but none for what this request has in the fields that `Vary` names.
    Variant,
    /// The entry is no longer fresh.
    Stale,
    /// The entry is not whole, or not for this key.
    Corrupt,
    /// The store could not answer.
    StoreUnavailable,
    /// The store did not answer within the deadline.
    StoreTimeout,
    /// The store denied the request.
    StoreDenied,
    /// The memory budget has no room for the body.
    Budget,
    /// The entry is larger than this configuration can serve.
    TooLarge,
    /// The entry was invalidated.
    Invalidated,
    /// The client's `Cache-Control` does not accept the entry, and the policy obeys clients.
    Client,
    /// The client wants nothing that is not stored (`only-if-cached`), and the policy obeys clients.
    OnlyIfCached,
}

impl MissReason {
    /// The word for labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Variant => "variant",
            Self::Stale => "stale",
            Self::Corrupt => "corrupt",
            Self::StoreUnavailable => "store_unavailable",
            Self::StoreTimeout => "store_timeout",
            Self::StoreDenied => "store_denied",
            Self::Budget => "budget",
            Self::TooLarge => "too_large",
            Self::Invalidated => "invalidated",
            Self::Client => "client",
            Self::OnlyIfCached => "only_if_cached",
        }
    }
}

/// One member of `Cache-Status`, named `afterimage` (RFC 9211 section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheStatus {
    /// Served from the store.
    Hit {
        /// Seconds for which the entry stays fresh.
        ttl: u64,
    },
    /// Served from the store although it is stale.
    StaleHit {
        /// Seconds since it was fresh last.
        staleness: u64,
    },
    /// Not forwarded: another request for the same key was (RFC 9211 section 2.6).
    Collapsed,
    /// Neither answered from the store nor forwarded.
    Refused,
    /// Forwarded because of its method.
    Method,
    /// Forwarded, because nothing usable was stored.
    Miss {
        /// Whether a fill has begun.
        stored: bool,
    },
    /// Forwarded, because no variant was stored for what the request has in the fields of `Vary`.
    VaryMiss {
        /// Whether a fill has begun.
        stored: bool,
    },
    /// Forwarded although the entry was fresh, because the request asked for that.
    Request {
        /// Status of the upstream's answer.
        status: u16,
        /// Whether a fill has begun.
        stored: bool,
    },
    /// Forwarded because the entry was stale.
    Stale {
        /// Status of the upstream's answer.
        status: u16,
        /// Whether a fill has begun.
        stored: bool,
    },
}

impl CacheStatus {
    /// Writes the field value; `detail` adds a word of ours (RFC 9211 section 2.8).
    pub fn to_value(self, detail: Option<&'static str>) -> HeaderValue {
        let value = match detail {
            None | Some("") => self.to_string(),
            Some(detail) => format!("{self}; detail={detail}"),
        };
        HeaderValue::try_from(value).expect("a Cache-Status member is visible ASCII")
    }
}

impl fmt::Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stored = |stored: bool| if stored { "; stored" } else { "" };
        match *self {
            Self::Hit { ttl } => write!(f, "afterimage; hit; ttl={ttl}"),
            Self::StaleHit { staleness: 0 } => write!(f, "afterimage; hit; ttl=0"),
            Self::StaleHit { staleness } => write!(f, "afterimage; hit; ttl=-{staleness}"),
            Self::Collapsed => write!(f, "afterimage; fwd=miss; collapsed"),
            Self::Refused => write!(f, "afterimage"),
            Self::Method => write!(f, "afterimage; fwd=method"),
            Self::Miss { stored: s } => write!(f, "afterimage; fwd=miss{}", stored(s)),
            Self::VaryMiss { stored: s } => write!(f, "afterimage; fwd=vary-miss{}", stored(s)),
            Self::Request { status, stored: s } => {
                write!(
                    f,
                    "afterimage; fwd=request; fwd-status={status}{}",
                    stored(s)
                )
            }
            Self::Stale { status, stored: s } => {
                write!(f, "afterimage; fwd=stale; fwd-status={status}{}", stored(s))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(status: CacheStatus) -> String {
        status.to_value(None).to_str().unwrap().to_owned()
    }

    #[test]
    fn rfc9211_2_1_and_4_a_hit_says_for_how_long() {
        for (status, expected) in [
            (CacheStatus::Hit { ttl: 30 }, "afterimage; hit; ttl=30"),
            (
                CacheStatus::StaleHit { staleness: 0 },
                "afterimage; hit; ttl=0",
            ),
            (
                CacheStatus::StaleHit { staleness: 7 },
                "afterimage; hit; ttl=-7",
            ),
            // An answer of our own is neither a hit nor forwarded.
            (CacheStatus::Refused, "afterimage"),
        ] {
            assert_eq!(value(status), expected);
        }
    }

    #[test]
    fn rfc9211_2_2_and_3_and_5_what_was_sent_on_says_why_and_what_came_and_whether_it_is_kept() {
        for (stored, after) in [(false, ""), (true, "; stored")] {
            for (status, expected) in [
                (CacheStatus::Method, "afterimage; fwd=method".to_owned()),
                (
                    CacheStatus::Miss { stored },
                    format!("afterimage; fwd=miss{after}"),
                ),
                (
                    CacheStatus::VaryMiss { stored },
                    format!("afterimage; fwd=vary-miss{after}"),
                ),
                (
                    CacheStatus::Request {
                        status: 200,
                        stored,
                    },
                    format!("afterimage; fwd=request; fwd-status=200{after}"),
                ),
                (
                    CacheStatus::Stale {
                        status: 304,
                        stored,
                    },
                    format!("afterimage; fwd=stale; fwd-status=304{after}"),
                ),
            ] {
                assert_eq!(value(status), expected);
            }
        }
    }

    #[test]
    fn rfc9211_2_8_detail_is_a_word_of_ours() {
        let miss = CacheStatus::Miss { stored: false };
        for (detail, expected) in [
            (None, "afterimage; fwd=miss"),
            (Some(""), "afterimage; fwd=miss"),
            (Some("absent"), "afterimage; fwd=miss; detail=absent"),
        ] {
            assert_eq!(miss.to_value(detail), expected);
        }
    }
}
