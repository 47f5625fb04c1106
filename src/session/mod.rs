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
mod fill;
mod filling;
mod forwarded;
mod keyed_request;
mod looking_up;
mod report;
mod step;

use std::sync::Arc;

pub use self::effect::{Effect, Hit, HitBody, Passed, Refresh, Reply};
pub use self::event::{CollapseRole, Event, FetchOutcome, LookupAnswer};
pub use self::fill::{AbortReason, CopyStep, FillPlan, Freshened, StoredBody, VaryIndex};
use self::filling::{Beginning, Draining, Filling, Finishing};
use self::forwarded::{Forwarded, Watching};
use self::keyed_request::KeyedRequest;
use self::looking_up::{AwaitingFetch, Claiming, FollowingAnother, Joining, LookingUp, Start};
pub use self::report::{Copied, Report, Staleness, Verdict};
pub use self::step::Step;
use self::step::{Done, done};
use crate::clock::Timestamp;
use crate::policy::{BypassReason, Policy};

/// Where a request stands.
#[derive(Debug)]
pub enum Session {
    /// No message has come.
    Start(Start),
    /// The request was sent on because of its method; its answer may invalidate something.
    Watching(Watching),
    /// The lookup is under way.
    LookingUp(LookingUp),
    /// Nothing usable is stored; another request for the same may be under way.
    Joining(Joining),
    /// Another request for the same is under way.
    Following(FollowingAnother),
    /// The entry is stale, and another request may be refreshing it.
    Claiming(Claiming),
    /// The entry is stale and too large to be held; a request of our own asks about it.
    AwaitingFetch(AwaitingFetch),
    /// The request was sent on.
    Forwarded(Forwarded),
    /// The response may be stored; the shell was asked for a copy.
    Beginning(Beginning),
    /// The body passes, and its copy is kept.
    Filling(Filling),
    /// The copy is whole; the shell was asked to hand it over.
    Finishing(Finishing),
    /// The body passes, and nothing of it is kept any more.
    Draining(Draining),
    /// The request is over.
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

impl Session {
    /// A request of a route with this policy. `largest_bytes` is the largest body that can be
    /// served again, and so the largest that is stored.
    pub fn new(policy: Arc<Policy>, largest_bytes: u64) -> Self {
        Self::Start(Start {
            policy,
            largest_bytes,
        })
    }

    /// A request that is over before it began.
    pub fn over(report: Report) -> Self {
        Self::Done(Done {
            report,
            verdict: Verdict::NOTHING,
        })
    }

    /// Leaves a request alone.
    fn bypassed(reason: BypassReason) -> Step {
        let effect = Effect::Reply(Reply::Bypass);
        done(Report::Bypass(reason), Verdict::NOTHING, effect)
    }

    /// Takes what happened at `now`, and stays at the state that follows.
    ///
    /// # Errors
    /// [`Unexpected`] when it cannot happen here; the session is over then.
    pub fn advance(&mut self, event: Event, now: Timestamp) -> Result<Effect, Unexpected> {
        let over = Self::over(self.report());
        let (next, effect) = std::mem::replace(self, over).handle(event, now)?;
        *self = next;
        Ok(effect)
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
        Ok(match (self, event) {
            (Self::Start(state), Event::Request(head)) => state.request(head, now),
            (Self::Watching(state), Event::Response(head)) => state.response(&head),
            (Self::LookingUp(state), Event::LookedUp(answer)) => state.answered(answer, now),
            (Self::Joining(state), Event::Joined(role)) => state.joined(role, now),
            (Self::Following(state), Event::Followed { again }) => state.ended(again),
            (Self::Claiming(state), Event::RefreshClaimed) => state.claimed(now),
            (Self::Claiming(state), Event::RefreshTaken) => state.taken(now),
            (Self::AwaitingFetch(state), Event::Fetched(end)) => state.ended(end, now),
            (Self::Forwarded(state), Event::Response(head)) => state.response(&head, now),
            (Self::Beginning(state), Event::CopyBegun { is_held }) => state.begun(is_held),
            (Self::Beginning(state), Event::CopyLost(reason)) => state.lost(reason),
            (Self::Filling(state), Event::Body { bytes, is_end }) => state.body(bytes, is_end),
            (Self::Filling(state), Event::Trailers) => state.trailers(),
            (Self::Filling(state), Event::CopyPassesOn) => state.passes_on(),
            (Self::Filling(state), Event::CopyLost(reason)) => state.lost(reason),
            (
                Self::Filling(state),
                Event::Expired {
                    reason,
                    is_followed,
                },
            ) => {
                // Whoever waits should not have to begin anew.
                let wanted = state.completable.as_ref().filter(|_| is_followed);
                let refresh = wanted.and_then(|request| request.completion(true, now));
                let (next, effect) = state.lost(reason);
                (next, completing(refresh, effect))
            }
            (Self::Finishing(state), Event::CopyFinished) => state.finished(),
            (Self::Finishing(state), Event::CopyLost(reason)) => state.lost(reason),
            (Self::Draining(state), Event::Body { is_end, .. }) => state.body(is_end),
            (Self::Draining(state), Event::Trailers) => state.body(true),
            (state, Event::ClientLeft { is_followed }) if !state.is_done() => {
                let completable = state.completable();
                let refresh = completable.and_then(|request| request.completion(is_followed, now));
                let over = Self::Done(Done {
                    report: state.report(),
                    verdict: Verdict::Left,
                });
                (over, completing(refresh, Effect::Nothing))
            }
            (
                Self::Start(_)
                | Self::Watching(_)
                | Self::LookingUp(_)
                | Self::Joining(_)
                | Self::Following(_)
                | Self::Claiming(_)
                | Self::AwaitingFetch(_)
                | Self::Forwarded(_)
                | Self::Beginning(_)
                | Self::Filling(_)
                | Self::Finishing(_)
                | Self::Draining(_)
                | Self::Done(_),
                _,
            ) => return Err(unexpected),
        })
    }

    /// Whether the request is over.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }

    /// How the request ended, if nothing more comes.
    pub fn report(&self) -> Report {
        let cut = Copied::Aborted(AbortReason::Cut);
        match self {
            Self::Start(_)
            | Self::LookingUp(_)
            | Self::Joining(_)
            | Self::Following(_)
            | Self::Claiming(_)
            | Self::AwaitingFetch(_) => Report::Left,
            Self::Watching(_) => Report::Method { invalidates: false },
            Self::Forwarded(state) => state.report(None, cut),
            Self::Beginning(state) => state.filling.report(cut),
            Self::Filling(state) => state.report(cut),
            Self::Finishing(state) => state.filling.report(cut),
            Self::Draining(state) => state.0.report,
            Self::Done(state) => state.report,
        }
    }

    /// What those that wait for this request learn by now; `None` while they have to go on waiting.
    pub fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::Start(_)
            | Self::Watching(_)
            | Self::LookingUp(_)
            | Self::Joining(_)
            | Self::Following(_)
            | Self::Claiming(_)
            | Self::AwaitingFetch(_)
            | Self::Forwarded(_)
            | Self::Beginning(_)
            | Self::Finishing(_) => None,
            Self::Filling(state) => state.verdict(),
            Self::Draining(state) => Some(state.0.verdict),
            Self::Done(state) => Some(state.verdict),
        }
    }

    /// What is asked for, where a request of our own could get it in the place of this one.
    fn completable(&self) -> Option<&KeyedRequest> {
        match self {
            Self::Forwarded(state) => state.completable(),
            Self::Beginning(state) => state.filling.completable.as_deref(),
            Self::Filling(state) => state.completable.as_deref(),
            Self::Start(_)
            | Self::Watching(_)
            | Self::LookingUp(_)
            | Self::Joining(_)
            | Self::Following(_)
            | Self::Claiming(_)
            | Self::AwaitingFetch(_)
            | Self::Finishing(_)
            | Self::Draining(_)
            | Self::Done(_) => None,
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
            Self::AwaitingFetch(_) => "waiting for a fetch",
            Self::Forwarded(_) => "waiting for a response",
            Self::Beginning(_) => "beginning a copy",
            Self::Filling(_) => "filling",
            Self::Finishing(_) => "finishing a copy",
            Self::Draining(_) => "draining",
            Self::Done(_) => "done",
        }
    }
}

fn completing(refresh: Option<Refresh>, otherwise: Effect) -> Effect {
    match refresh {
        Some(refresh) => Effect::Complete(Box::new(refresh)),
        None => otherwise,
    }
}

#[cfg(test)]
mod tests;
