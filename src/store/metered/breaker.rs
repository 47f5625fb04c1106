//! The circuit breaker: it stops operations while the store fails.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Sleep;

use super::Observe;

/// The breaker refused an operation without asking the store. It is the source of an
/// [`Error::Unavailable`](crate::store::Error::Unavailable).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store failed repeatedly, so it is not asked for a while")]
pub struct BreakerOpen;

/// Whether operations reach the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// All operations do.
    Closed,
    /// No operation does.
    Open,
    /// One operation does, to see whether the store is back.
    HalfOpen,
}

impl BreakerState {
    /// The word for labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

pub(super) struct Breaker {
    threshold: u32,
    wait: Duration,
    observe: Arc<dyn Observe>,
    state: Mutex<State>,
}

enum State {
    Closed {
        failures: u32,
    },
    /// Until the timer has run out. It is polled, and never waited for.
    Open(Pin<Box<Sleep>>),
    /// The probe is under way; or, if it was dropped without an answer, the next operation may
    /// probe.
    HalfOpen {
        is_probed: bool,
    },
}

/// Permission to ask the store, returned with [`Admitted::answered`].
pub(super) struct Admitted {
    breaker: Arc<Breaker>,
    is_probe: bool,
}

impl Breaker {
    pub(super) fn new(threshold: u32, wait: Duration, observe: Arc<dyn Observe>) -> Self {
        Self {
            threshold: threshold.max(1),
            wait,
            observe,
            state: Mutex::new(State::Closed { failures: 0 }),
        }
    }

    pub(super) fn admit(self: &Arc<Self>) -> Result<Admitted, BreakerOpen> {
        let is_probe = self.with(|state| match state {
            State::Closed { .. } => Ok(false),
            State::Open(timer) => {
                let mut context = Context::from_waker(Waker::noop());
                if timer.as_mut().poll(&mut context).is_pending() {
                    return Err(BreakerOpen);
                }
                *state = State::HalfOpen { is_probed: true };
                Ok(true)
            }
            State::HalfOpen { is_probed: true } => Err(BreakerOpen),
            State::HalfOpen { is_probed } => {
                *is_probed = true;
                Ok(true)
            }
        })?;
        Ok(Admitted {
            breaker: Arc::clone(self),
            is_probe,
        })
    }

    /// Counts a failure of an operation that was admitted earlier.
    pub(super) fn failed(&self) {
        self.answer(false, false);
    }

    fn answer(&self, is_there: bool, is_probe: bool) {
        self.with(|state| match state {
            State::Closed { failures } if is_there => *failures = 0,
            State::Closed { failures } => {
                *failures += 1;
                if *failures >= self.threshold {
                    *state = self.open();
                }
            }
            State::HalfOpen { .. } if is_probe && is_there => {
                *state = State::Closed { failures: 0 };
            }
            State::HalfOpen { .. } if is_probe => *state = self.open(),
            // The operation was admitted before the breaker opened, and only the probe decides.
            State::Open(_) | State::HalfOpen { .. } => {}
        });
    }

    fn open(&self) -> State {
        State::Open(Box::pin(tokio::time::sleep(self.wait)))
    }

    /// Changes the state, and tells the observer if it is another one now.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.seen();
        let result = change(&mut state);
        let after = state.seen();
        // The observer is told under the lock, so that it hears the changes in order.
        if before != after {
            self.observe.breaker(after);
        }
        result
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_tuple("Breaker").field(&state.seen()).finish()
    }
}

impl State {
    fn seen(&self) -> BreakerState {
        match self {
            Self::Closed { .. } => BreakerState::Closed,
            Self::Open(_) => BreakerState::Open,
            Self::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }
}

impl Admitted {
    /// Tells the breaker whether the store is there.
    pub(super) fn answered(mut self, is_there: bool) {
        self.breaker.answer(is_there, self.is_probe);
        self.is_probe = false;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if !self.is_probe {
            return;
        }
        self.breaker.with(|state| match state {
            State::HalfOpen { is_probed } => *is_probed = false,
            State::Closed { .. } | State::Open(_) => {}
        });
    }
}
