//! The copy of one response: a fill with its begin, its pace and its end.

use std::sync::Arc;
use std::time::Duration;

use super::fill::{Fill, FinishedCopy};
use super::in_flight::Published;
use super::{Cache, InvalidationSeq};
use crate::clock::Stopwatch;
use crate::config::Limits;
use crate::session::{AbortReason, CopyStep, FillPlan};

/// The copy of one response, from before its begin to its end.
#[derive(Debug)]
pub enum ResponseCopy {
    /// There is none: not yet, not any more, or never.
    None,
    /// Its bytes are coming.
    Open(Box<OpenCopy>),
    /// It was handed over.
    Finished(FinishedCopy),
}

/// A copy whose bytes are coming. Dropping it counts it as cut.
#[derive(Debug)]
pub struct OpenCopy {
    cache: Cache,
    since: Stopwatch,
    received: u64,
    /// `None` only while a step is under way, and at its end.
    fill: Option<Fill>,
}

impl ResponseCopy {
    /// Does the next step, if the copy is open.
    ///
    /// # Errors
    /// Why the copy is gone, other than by [`CopyStep::Abort`].
    pub fn step(&mut self, step: CopyStep) -> Result<(), AbortReason> {
        let Self::Open(open) = self else {
            return Ok(());
        };
        match open.step(step) {
            Ok(Stepped::Open) => Ok(()),
            Ok(Stepped::Finished(finished)) => {
                *self = Self::Finished(finished);
                Ok(())
            }
            Ok(Stepped::Aborted) => {
                *self = Self::None;
                Ok(())
            }
            Err(reason) => {
                *self = Self::None;
                Err(reason)
            }
        }
    }

    /// How long an open copy may go on with what has come of it, and what it is then; `None` without
    /// one.
    pub fn time_left(&self) -> Option<(Duration, AbortReason)> {
        let Self::Open(open) = self else {
            return None;
        };
        Some(open.time_left())
    }

    /// Gives up an open copy.
    pub fn abort(&mut self, reason: AbortReason) {
        if let Self::Open(open) = self {
            open.abort(reason);
            *self = Self::None;
        }
    }

    /// Whether its bytes are coming.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// Whether the copy is open and held in memory, so that others can be served from it as soon as it is
    /// whole.
    pub fn is_held(&self) -> bool {
        let Self::Open(open) = self else {
            return false;
        };
        let fill = open.fill.as_ref();
        fill.is_some_and(Fill::is_held)
    }

    /// Keeps a finished copy visible to lookups; `None` before it is finished, and for one that is not held.
    pub fn published(&self) -> Option<Arc<Published>> {
        match self {
            Self::Finished(finished) => finished.published.clone(),
            Self::None | Self::Open(_) => None,
        }
    }

    /// Waits until a finished copy is committed, and tells whether it is.
    pub async fn committed(self) -> bool {
        match self {
            // The task only ends early with the runtime.
            Self::Finished(finished) => matches!(finished.commit.await, Ok(Ok(()))),
            Self::None | Self::Open(_) => false,
        }
    }
}

/// What a step has made of an open copy.
enum Stepped {
    Open,
    Finished(FinishedCopy),
    Aborted,
}

impl OpenCopy {
    fn step(&mut self, step: CopyStep) -> Result<Stepped, AbortReason> {
        let Some(fill) = self.fill.take() else {
            return Ok(Stepped::Aborted);
        };
        let stepped = match step {
            CopyStep::Append(bytes) => {
                self.received += bytes.len() as u64;
                self.cache.append(fill, bytes).map(|fill| {
                    self.fill = Some(fill);
                    Stepped::Open
                })
            }
            CopyStep::Finish(bytes) => self
                .cache
                .append(fill, bytes)
                .map(|fill| Stepped::Finished(self.cache.finish(fill))),
            CopyStep::Abort(reason) => {
                self.cache.0.fill_metrics.aborted(reason);
                Ok(Stepped::Aborted)
            }
        };
        stepped.inspect_err(|&reason| self.cache.0.fill_metrics.aborted(reason))
    }

    fn time_left(&self) -> (Duration, AbortReason) {
        let Limits {
            fill_deadline,
            fill_rate,
            fill_grace,
            ..
        } = self.cache.0.limits;
        let longest = (fill_deadline, AbortReason::Deadline);
        let (limit, reason) = match self.received.checked_div(fill_rate) {
            None => longest,
            Some(seconds) => {
                let slowest = fill_grace + Duration::from_secs(seconds);
                if slowest < fill_deadline {
                    (slowest, AbortReason::Slow)
                } else {
                    longest
                }
            }
        };
        (limit.saturating_sub(self.since.elapsed()), reason)
    }

    fn abort(&mut self, reason: AbortReason) {
        if self.fill.take().is_some() {
            self.cache.0.fill_metrics.aborted(reason);
        }
    }
}

impl Drop for OpenCopy {
    fn drop(&mut self) {
        self.abort(AbortReason::Cut);
    }
}

impl Cache {
    /// Begins the copy of a response that was asked for at this moment.
    ///
    /// # Errors
    /// [`AbortReason::Invalidated`] when that was too early, [`AbortReason::Budget`] when there is no room for it,
    /// [`AbortReason::RecordTooLarge`] when its headers are more than is kept.
    pub fn begin(
        &self,
        plan: FillPlan,
        asked: InvalidationSeq,
    ) -> Result<ResponseCopy, AbortReason> {
        let fill = self
            .begin_fill(plan, asked)
            .inspect_err(|&reason| self.0.fill_metrics.aborted(reason))?;
        Ok(ResponseCopy::Open(Box::new(OpenCopy {
            cache: self.clone(),
            since: Stopwatch::start(),
            received: 0,
            fill: Some(fill),
        })))
    }
}
