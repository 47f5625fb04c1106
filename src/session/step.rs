//! What follows from an event.

use super::Session;
use super::effect::Effect;
use super::report::{Report, Verdict};

/// The next state, and what to do.
pub type Step = (Session, Effect);

pub(super) fn done(report: Report, verdict: Verdict, effect: Effect) -> Step {
    (Session::Done(Done { report, verdict }), effect)
}

/// The last reply was given, and nothing more is to come.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    pub(super) report: Report,
    pub(super) verdict: Verdict,
}
