//! From a response that may be stored to its end.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::Session;
use super::effect::{Effect, Passed, Reply};
use super::fill::{AbortReason, CopyStep};
use super::keyed_request::KeyedRequest;
use super::report::{Copied, Report, Verdict};
use crate::policy::{Content, MAGIC_BYTES, MissReason};

/// What follows from an event: the next state, and what to do.
pub type Step = (Session, Effect);

pub(super) fn done(report: Report, verdict: Verdict, effect: Effect) -> Step {
    (Session::Done(Done { report, verdict }), effect)
}

/// The response may be stored; the shell was asked for a copy.
#[derive(Debug)]
pub struct Beginning {
    pub(super) has_body: bool,
    pub(super) mirrored: Passed,
    pub(super) lost: Passed,
    pub(super) filling: Filling,
}

impl Beginning {
    pub(super) fn begun(self, is_held: bool) -> Step {
        let mut filling = self.filling;
        filling.is_held = is_held;
        if self.has_body {
            return (
                Session::Filling(filling),
                Effect::Reply(Reply::Mirror(self.mirrored)),
            );
        }
        let finishing = Finishing {
            filling,
            reply: Some((self.mirrored, self.lost)),
        };
        (
            Session::Finishing(finishing),
            Effect::Copy(CopyStep::Finish(Bytes::new())),
        )
    }

    pub(super) fn lost(self, reason: AbortReason) -> Step {
        let filling = self.filling;
        let report = filling.report(Copied::Aborted(reason));
        let effect = Effect::Reply(Reply::Pass(self.lost));
        done(report, filling.verdict_of(reason), effect)
    }
}

/// The body passes, and its copy is kept.
#[derive(Debug)]
pub struct Filling {
    pub(super) reason: MissReason,
    pub(super) status: StatusCode,
    pub(super) received: u64,
    pub(super) content_length: Option<u64>,
    pub(super) largest_bytes: u64,
    pub(super) content: Content,
    /// The first [`MAGIC_BYTES`] of the body, as far as they have come.
    pub(super) magic: Vec<u8>,
    /// Whether the response answers others, too: it is fresh as it comes.
    pub(super) is_fresh: bool,
    /// Whether the copy is held in memory, so that others can be served from it as soon as it is whole.
    pub(super) is_held: bool,
    /// How long requests for the same do not wait for each other when the response turns out not to be storable.
    pub(super) hit_for_miss: Duration,
    /// What is asked for, where a request of our own could get it in the place of this one.
    pub(super) completable: Option<Box<KeyedRequest>>,
}

impl Filling {
    pub(super) fn body(mut self, bytes: Bytes, is_end: bool) -> Step {
        self.received += bytes.len() as u64;
        let missing = MAGIC_BYTES.saturating_sub(self.magic.len());
        self.magic
            .extend_from_slice(&bytes[..missing.min(bytes.len())]);
        match self.objection(is_end) {
            Some(reason) => {
                let effect = Effect::Copy(CopyStep::Abort(reason));
                (self.give_up(reason, is_end), effect)
            }
            None if is_end => {
                let finishing = Finishing {
                    filling: self,
                    reply: None,
                };
                let effect = Effect::Copy(CopyStep::Finish(bytes));
                (Session::Finishing(finishing), effect)
            }
            None => (
                Session::Filling(self),
                Effect::Copy(CopyStep::Append(bytes)),
            ),
        }
    }

    pub(super) fn trailers(self) -> Step {
        let reason = AbortReason::Trailers;
        (
            self.give_up(reason, true),
            Effect::Copy(CopyStep::Abort(reason)),
        )
    }

    pub(super) fn lost(self, reason: AbortReason) -> Step {
        (self.give_up(reason, false), Effect::Nothing)
    }

    /// How the request stands when this has become of its copy.
    pub(super) fn report(&self, copy: Copied) -> Report {
        Report::Miss {
            reason: self.reason,
            status: Some(self.status),
            copy,
        }
    }

    /// The copy has outgrown what is held.
    pub(super) fn passes_on(mut self) -> Step {
        self.is_held = false;
        (Session::Filling(self), Effect::Nothing)
    }

    /// What those that wait learn before the end.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        let is_waited_for = self.is_fresh && self.is_held;
        (!is_waited_for).then_some(Verdict::NotWorthWaiting(self.hit_for_miss))
    }

    fn verdict_of(&self, reason: AbortReason) -> Verdict {
        if reason.lies_in_the_response() {
            Verdict::NotWorthWaiting(self.hit_for_miss)
        } else {
            Verdict::NOTHING
        }
    }

    fn give_up(self, reason: AbortReason, is_end: bool) -> Session {
        let done = Done {
            report: self.report(Copied::Aborted(reason)),
            verdict: self.verdict_of(reason),
        };
        if is_end {
            Session::Done(done)
        } else {
            Session::Draining(Draining(done))
        }
    }

    /// What speaks against what has come so far.
    fn objection(&self, is_end: bool) -> Option<AbortReason> {
        let promised = self.content_length;
        if promised.is_some_and(|length| self.received > length) {
            return Some(AbortReason::Length);
        }
        if self.received > self.largest_bytes {
            return Some(AbortReason::TooLarge);
        }
        if !is_end {
            return None;
        }
        if promised.is_some_and(|length| self.received < length) {
            return Some(AbortReason::Length);
        }
        (!self.content.agrees_with(&self.magic)).then_some(AbortReason::NotDeclaredImage)
    }
}

/// The copy has its last bytes; the shell was asked to hand it over.
#[derive(Debug)]
pub struct Finishing {
    pub(super) filling: Filling,
    /// For a response without a body: what its head is answered with when the copy was finished, and when it
    /// was lost.
    reply: Option<(Passed, Passed)>,
}

impl Finishing {
    pub(super) fn finished(self) -> Step {
        let report = self.filling.report(Copied::Whole);
        let effect = match self.reply {
            Some((mirrored, _)) => Effect::Reply(Reply::Pass(mirrored)),
            None => Effect::Nothing,
        };
        let verdict = if self.filling.is_fresh {
            Verdict::Stored
        } else {
            Verdict::NotWorthWaiting(self.filling.hit_for_miss)
        };
        done(report, verdict, effect)
    }

    pub(super) fn lost(self, reason: AbortReason) -> Step {
        let report = self.filling.report(Copied::Aborted(reason));
        let effect = match self.reply {
            Some((_, lost)) => Effect::Reply(Reply::Pass(lost)),
            None => Effect::Nothing,
        };
        done(report, self.filling.verdict_of(reason), effect)
    }
}

/// The body passes, and nothing of it is kept any more.
#[derive(Debug)]
pub struct Draining(pub(super) Done);

impl Draining {
    pub(super) fn body(self, is_end: bool) -> Step {
        let next = if is_end {
            Session::Done(self.0)
        } else {
            Session::Draining(self)
        };
        (next, Effect::Nothing)
    }
}

/// The last reply was given, and nothing more is to come.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    pub(super) report: Report,
    pub(super) verdict: Verdict,
}
