//! How a request ended. Outcome word, reason, `Cache-Status` and what others learn of it follow from one
//! value.

use std::time::Duration;

use http::StatusCode;

use super::fill::AbortReason;
use crate::policy::{BypassReason, CacheStatus, MissReason, NotStorable, Outcome};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// It was not looked up.
    Bypass(BypassReason),
    /// It was answered from the store.
    Hit {
        /// Seconds that the entry stays fresh.
        ttl: u64,
    },
    /// It was answered from the store although the entry is stale.
    Stale(Staleness),
    /// It was answered with what another request for the same got meanwhile.
    Collapsed,
    /// It was answered from the store, after the upstream confirmed the entry.
    Revalidated,
    /// It was sent on, or refused because it could not be.
    Miss {
        /// Why there was no hit.
        reason: MissReason,
        /// Status of the answer; `None` until there is one.
        status: Option<StatusCode>,
        /// What became of the copy.
        copy: Copied,
    },
    /// It was sent on because of its method.
    Method {
        /// Whether its answer invalidated something.
        invalidates: bool,
    },
    /// The client left before there was an answer.
    Left,
}

/// Why a stale entry was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staleness {
    /// It is being refreshed (RFC 5861 section 3), or the client takes it (`max-stale`).
    WhileRevalidate {
        /// Seconds since it was fresh last.
        seconds: u64,
    },
    /// The upstream failed with this status (RFC 5861 section 4).
    IfError(StatusCode),
}

/// What became of the copy of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// The request could not lead.
    NotWanted,
    /// The response may not be stored.
    Refused(NotStorable),
    /// It is under way.
    Begun,
    /// It was whole and verified, and went to the store.
    Whole,
    /// It was given up.
    Aborted(AbortReason),
}

/// What those that wait for a request learn of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is something to look up.
    Stored,
    /// There is nothing for them. For so long requests for the same do not wait for each other (hit-for-miss).
    NotWorthWaiting(Duration),
    /// It left without an end. One of them takes its place.
    Left,
}

impl Verdict {
    /// There is nothing for those that wait, which says nothing about the next request.
    pub const NOTHING: Self = Self::NotWorthWaiting(Duration::ZERO);
}

impl Report {
    /// The one word for it.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Bypass(_) => Outcome::Bypass,
            Self::Hit { .. } => Outcome::Hit,
            Self::Stale(_) => Outcome::Stale,
            Self::Collapsed => Outcome::Collapsed,
            Self::Revalidated => Outcome::Revalidated,
            Self::Method { .. } => Outcome::Method,
            Self::Miss { .. } | Self::Left => Outcome::Miss,
        }
    }

    /// Why, in one word; empty for a hit.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Bypass(reason) => reason.as_str(),
            Self::Hit { .. }
            | Self::Stale(_)
            | Self::Collapsed
            | Self::Revalidated
            | Self::Method { invalidates: false } => "",
            Self::Method { invalidates: true } => "invalidates",
            Self::Miss { reason, .. } => reason.as_str(),
            Self::Left => "client_left",
        }
    }

    /// What became of the copy, in one word; empty where there could be none.
    pub fn copy(self) -> &'static str {
        match self {
            Self::Bypass(_)
            | Self::Hit { .. }
            | Self::Stale(_)
            | Self::Collapsed
            | Self::Revalidated
            | Self::Method { .. }
            | Self::Left => "",
            Self::Miss { copy, .. } => match copy {
                Copied::NotWanted => "",
                Copied::Refused(refusal) => refusal.as_str(),
                Copied::Begun => "begun",
                Copied::Whole => "whole",
                Copied::Aborted(reason) => reason.as_str(),
            },
        }
    }

    /// Our member of `Cache-Status`; `None` where there is none.
    pub fn cache_status(self) -> Option<CacheStatus> {
        Some(match self {
            Self::Bypass(_) | Self::Left => return None,
            Self::Hit { ttl } => CacheStatus::Hit { ttl },
            Self::Stale(Staleness::WhileRevalidate { seconds }) => {
                CacheStatus::StaleHit { staleness: seconds }
            }
            Self::Stale(Staleness::IfError(status)) => CacheStatus::Stale {
                status: status.as_u16(),
                stored: false,
            },
            Self::Collapsed => CacheStatus::Collapsed,
            Self::Revalidated => CacheStatus::Stale {
                status: StatusCode::NOT_MODIFIED.as_u16(),
                stored: false,
            },
            Self::Method { .. } => CacheStatus::Method,
            Self::Miss {
                reason,
                status,
                copy,
            } => {
                let stored = matches!(copy, Copied::Begun | Copied::Whole);
                match (reason, status.map(|status| status.as_u16())) {
                    (MissReason::OnlyIfCached, _) => CacheStatus::Refused,
                    (MissReason::Stale, Some(status)) => CacheStatus::Stale { status, stored },
                    (MissReason::Client, Some(status)) => CacheStatus::Request { status, stored },
                    (MissReason::Variant, _) => CacheStatus::VaryMiss { stored },
                    (
                        MissReason::Stale
                        | MissReason::Client
                        | MissReason::Absent
                        | MissReason::Corrupt
                        | MissReason::StoreUnavailable
                        | MissReason::StoreTimeout
                        | MissReason::StoreDenied
                        | MissReason::Budget
                        | MissReason::Invalidated
                        | MissReason::TooLarge,
                        _,
                    ) => CacheStatus::Miss { stored },
                }
            }
        })
    }
}
