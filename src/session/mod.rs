//! One request, from its head to the end of its response.
//!
//! ```text
//!          request head            answer: fresh entry
//!  Start ───────────────► LookingUp ─────────────────────────────► Done (hit)
//!    │                        │  │      stale, in its window     another request refreshes it
//!    │                        │  └─────► Claiming ───────────────► Done (stale)
//!    │                        │             │ this one does
//!    │                        │ ◄───────────┘
//!    │                        │ nothing usable, or stale
//!    │                        ▼           another one for the same is under way
//!    │                     Joining ──────► Following ────────────► LookingUp
//!    │                        │ this one is sent on
//!    │ no key                 ▼           response head: not modified, or an error
//!    │                    Forwarded ─────────────────────────────► Done (revalidated, stale)
//!    │                        │           response head: not to be stored
//!    │                        │ ─────────────────────────────────► Done (miss)
//!    │                        │ response head: storable
//!    │                        ▼           no copy to be had
//!    │                    Beginning ─────────────────────────────► Done (miss, given up)
//!    │                        │ copy begun
//!    │                        ▼           end, whole and verified
//!    │                     Filling ──────────────────────────────► Done (miss, kept)
//!    │                        │ wrong, too large, or the copy lost
//!    ▼                        ▼           end
//!  Done (bypass)           Draining ─────────────────────────────► Done (miss, given up)
//! ```
//!
//! A session does no I/O, reads no clock, and is deterministic: the same events at the same times
//! give the same effects. It knows HTTP and stored records, but neither the proxy's protocol nor the
//! store. Each event consumes the session and gives the next one with one [`Effect`], so that a
//! state that is over cannot be touched again. A session that is dropped before `Done` was cut:
//! whoever holds the copy of its body must abort it.

mod effect;
mod event;
mod state;

use std::sync::Arc;

pub use self::effect::{
    CopyStep, Effect, FillPlan, Freshened, Hit, HitBody, Passed, Refresh, Reply, Signpost,
    StoredBody,
};
pub use self::event::{AbortReason, Answer, Event, Fetched, Part};
use self::state::{
    Beginning, Claiming, Done, Draining, Fetching, Filling, Following, Forwarded, Joining,
    LookingUp, Start, Watching,
};
pub use self::state::{Copied, Step};
use crate::clock::Timestamp;
use crate::policy::{BypassReason, MissReason, Outcome, Policy};

/// Where a request stands.
#[derive(Debug)]
pub enum Session {
    /// No message yet.
    Start(Start),
    /// The request was sent on because of its method; its answer may invalidate something.
    Watching(Watching),
    /// The store was asked.
    LookingUp(LookingUp),
    /// Nothing usable is stored; another request for the same may be under way.
    Joining(Joining),
    /// Another request for the same is under way.
    Following(Following),
    /// The entry is stale, and another request may be refreshing it.
    Claiming(Claiming),
    /// The entry is stale and too large to be held; we ask about it ourselves.
    Fetching(Fetching),
    /// The request was sent on.
    Forwarded(Forwarded),
    /// The response may be stored; the shell was asked for a copy.
    Beginning(Beginning),
    /// The body passes, and its copy is kept.
    Filling(Filling),
    /// The body passes, and nothing of it is kept any more.
    Draining(Draining),
    /// The last answer was given.
    Done(Done),
}

/// An event that cannot happen in this state: the proxy broke its protocol, or the shell ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unexpected {event} while {state}")]
pub struct Unexpected {
    /// What the session was doing.
    pub state: &'static str,
    /// What came.
    pub event: &'static str,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// Not looked up.
    Bypass(BypassReason),
    /// Answered from the store.
    Hit,
    /// Answered from the store, stale, because another request refreshes the entry, or because the
    /// upstream failed.
    Stale,
    /// Answered with what another request for the same got meanwhile.
    Collapsed,
    /// Answered from the store, after the upstream confirmed it.
    Revalidated,
    /// Sent on.
    Miss {
        /// Why there was no hit.
        reason: MissReason,
        /// What became of the copy.
        copy: Copied,
    },
    /// Sent on because of its method.
    Method {
        /// Whether its answer invalidated something.
        invalidates: bool,
    },
    /// The client left before there was an answer.
    Left,
}

impl Report {
    /// The one word for it.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Bypass(_) => Outcome::Bypass,
            Self::Hit => Outcome::Hit,
            Self::Stale => Outcome::Stale,
            Self::Collapsed => Outcome::Collapsed,
            Self::Revalidated => Outcome::Revalidated,
            Self::Method { .. } => Outcome::Method,
            Self::Miss { .. } | Self::Left => Outcome::Miss,
        }
    }

    /// What became of the copy, in one word; empty where there could be none.
    pub fn copy(self) -> &'static str {
        match self {
            Self::Bypass(_)
            | Self::Hit
            | Self::Stale
            | Self::Collapsed
            | Self::Revalidated
            | Self::Method { .. }
            | Self::Left => "",
            Self::Miss { copy, .. } => match copy {
                Copied::NotWanted => "",
                Copied::Refused(refusal) => refusal.as_str(),
                Copied::Whole => "whole",
                Copied::Aborted(reason) => reason.as_str(),
            },
        }
    }

    /// Takes back that the copy was whole: the shell lost it with its last bytes.
    pub fn lose_copy(&mut self, reason: AbortReason) {
        match self {
            Self::Miss { copy, .. } => *copy = Copied::Aborted(reason),
            Self::Bypass(_)
            | Self::Hit
            | Self::Stale
            | Self::Collapsed
            | Self::Revalidated
            | Self::Method { .. }
            | Self::Left => {}
        }
    }

    /// Why, in one word; empty for a hit.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Bypass(reason) => reason.as_str(),
            Self::Hit
            | Self::Stale
            | Self::Collapsed
            | Self::Revalidated
            | Self::Method { invalidates: false } => "",
            Self::Method { invalidates: true } => "invalidates",
            Self::Miss { reason, .. } => reason.as_str(),
            Self::Left => "client_left",
        }
    }
}

impl Session {
    /// A request of a route with this policy. `largest_bytes` is the largest body that can be
    /// served again, and so the largest that is stored.
    pub fn new(policy: Arc<Policy>, largest_bytes: u64) -> Self {
        Self::Start(Start {
            policy,
            largest_bytes,
        })
    }

    /// Takes what happened at `now`.
    ///
    /// # Errors
    /// [`Unexpected`] when it cannot happen here; the session is over then.
    pub fn handle(self, event: Event, now: Timestamp) -> Result<Step, Unexpected> {
        let unexpected = Unexpected {
            state: self.name(),
            event: event.name(),
        };
        match (self, event) {
            (Self::Start(state), Event::Request(head)) => Ok(state.request(head, now)),
            (Self::Watching(state), Event::Response(head)) => Ok(state.response(&head)),
            (Self::LookingUp(state), Event::Answer(answer)) => Ok(state.answer(answer, now)),
            (Self::Joining(state), Event::Part(part)) => Ok(state.joined(part, now)),
            (Self::Following(state), Event::Followed { again }) => Ok(state.ended(again)),
            (Self::Claiming(state), Event::RefreshClaimed) => Ok(state.claimed(now)),
            (Self::Claiming(state), Event::RefreshTaken) => Ok(state.taken(now)),
            (Self::Fetching(state), Event::Fetched(end)) => Ok(state.ended(end, now)),
            (Self::Forwarded(state), Event::Response(head)) => Ok(state.response(&head, now)),
            (Self::Filling(state), Event::Body { bytes, is_end }) => Ok(state.body(bytes, is_end)),
            (Self::Beginning(state), Event::CopyBegun) => Ok(state.begun()),
            (Self::Beginning(state), Event::CopyLost(reason)) => Ok(state.lost(reason)),
            (Self::Filling(state), Event::CopyLost(reason)) => Ok(state.lost(reason)),
            (Self::Draining(state), Event::Body { is_end, .. }) => Ok(state.body(is_end)),
            (
                Self::Start(_)
                | Self::Watching(_)
                | Self::LookingUp(_)
                | Self::Joining(_)
                | Self::Following(_)
                | Self::Claiming(_)
                | Self::Fetching(_)
                | Self::Forwarded(_)
                | Self::Beginning(_)
                | Self::Filling(_)
                | Self::Draining(_)
                | Self::Done(_),
                _,
            ) => Err(unexpected),
        }
    }

    /// A request of our own for what this one was sent on for, which is cut now; `None` where the policy
    /// names no upstream, or wants it only where others wait.
    pub fn completion(&self, is_followed: bool, now: Timestamp) -> Option<Refresh> {
        let asked = match self {
            Self::Forwarded(state) => state.asked(),
            Self::Beginning(state) => state.filling.asked(),
            Self::Filling(state) => state.asked(),
            Self::Start(_)
            | Self::Watching(_)
            | Self::LookingUp(_)
            | Self::Joining(_)
            | Self::Following(_)
            | Self::Claiming(_)
            | Self::Fetching(_)
            | Self::Draining(_)
            | Self::Done(_) => None,
        };
        asked?.completion(is_followed, now)
    }

    /// Whether the last answer was given.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }

    /// How the request ended, if nothing more comes.
    pub fn report(&self) -> Report {
        match self {
            Self::Start(_)
            | Self::LookingUp(_)
            | Self::Joining(_)
            | Self::Following(_)
            | Self::Claiming(_)
            | Self::Fetching(_) => Report::Left,
            Self::Watching(_) => Report::Method { invalidates: false },
            Self::Forwarded(state) => Report::Miss {
                reason: state.reason,
                copy: Copied::Aborted(AbortReason::Cut),
            },
            Self::Beginning(state) => state.filling.cut(),
            Self::Filling(state) => state.cut(),
            Self::Draining(state) => state.report(),
            Self::Done(state) => state.report,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Start(_) => "waiting for a request",
            Self::Watching(_) => "watching",
            Self::LookingUp(_) => "looking up",
            Self::Joining(_) => "joining",
            Self::Following(_) => "following",
            Self::Claiming(_) => "claiming a refresh",
            Self::Fetching(_) => "fetching",
            Self::Forwarded(_) => "waiting for a response",
            Self::Beginning(_) => "beginning a copy",
            Self::Filling(_) => "filling",
            Self::Draining(_) => "draining",
            Self::Done(_) => "done",
        }
    }
}

#[cfg(test)]
mod tests;
