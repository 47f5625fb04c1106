//! Reads the time. No other module does.
//!
//! Code that decides takes `now` as an argument, and its caller asks a [`Clock`]. A [`Stopwatch`]
//! measures latencies, so that no other module needs the standard library's clocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A wall-clock time in whole seconds since the Unix epoch, which is the resolution of HTTP dates
/// (RFC 9110 section 5.6.7). A time before the epoch counts as the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The time `unix_seconds` after the epoch.
    pub const fn from_unix(unix_seconds: u64) -> Self {
        Self(unix_seconds)
    }

    /// Seconds since the epoch.
    pub const fn as_unix(self) -> u64 {
        self.0
    }

    /// Whole seconds from `earlier` to `self`; zero when `earlier` is later, so that no age is ever
    /// negative.
    pub const fn seconds_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The time `seconds` later, at most the largest one that can be represented.
    pub const fn plus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(
            time.duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        )
    }
}

/// Gives the wall-clock time: that of the system, or one that a test sets.
#[derive(Debug, Clone, Default)]
pub struct Clock(TimeSource);

#[derive(Debug, Clone, Default)]
enum TimeSource {
    #[default]
    System,
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(TimeSource::System)
    }

    /// A clock that stands at `start` until [`Clock::advance`] moves it. Clones move together.
    pub fn manual(start: Timestamp) -> Self {
        Self(TimeSource::Manual(Arc::new(AtomicU64::new(
            start.as_unix(),
        ))))
    }

    /// The time now.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the time"
    )]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            TimeSource::System => SystemTime::now().into(),
            TimeSource::Manual(seconds) => Timestamp(seconds.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock on by `seconds`. It does nothing to the system's clock.
    pub fn advance(&self, seconds: u64) {
        match &self.0 {
            TimeSource::System => {}
            TimeSource::Manual(now) => {
                now.fetch_add(seconds, Ordering::SeqCst);
            }
        }
    }
}

/// Measures how long something took. The earlier start is the lesser one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts to measure.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the time"
    )]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_never_negative() {
        let early = Timestamp::from_unix(10);
        assert_eq!(early.seconds_since(Timestamp::from_unix(20)), 0);
    }

    #[test]
    fn clones_of_a_manual_clock_move_together() {
        let clock = Clock::manual(Timestamp::from_unix(5));
        let other = clock.clone();
        clock.advance(7);
        assert_eq!(other.now(), Timestamp::from_unix(12));
    }
}
