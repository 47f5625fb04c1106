//! What processes use: CPU time to the nanosecond and the peak of their memory.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::time::ClockId;
use nix::unistd::Pid;

use super::support::wait;

/// Written to `clear_refs` it resets the peak of the resident set (proc_pid_clear_refs(5)).
const RESET_PEAK: &str = "5";
/// Processes that use less than this between two looks have come to rest; timers go on.
const AT_REST: Duration = Duration::from_micros(500);
const REST_WITHIN: Duration = Duration::from_secs(2);

/// A part of a system under test: a process, or several that count as one.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// The name in the results.
    pub(crate) name: &'static str,
    pids: Vec<u32>,
}

impl Part {
    /// One process.
    pub(crate) fn new(name: &'static str, pid: u32) -> Self {
        Self {
            name,
            pids: vec![pid],
        }
    }

    /// Several processes that last as long as their system.
    pub(crate) fn group(name: &'static str, pids: Vec<u32>) -> Self {
        Self { name, pids }
    }

    /// CPU time since its start, with that of threads that have ended.
    ///
    /// # Errors
    /// When a process has ended.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.pids
            .iter()
            .map(|pid| {
                let pid = Pid::from_raw(i32::try_from(*pid)?);
                let time = ClockId::pid_cpu_clock_id(pid)
                    .and_then(ClockId::now)
                    .with_context(|| format!("{} has ended", self.name))?;
                Ok(Duration::from(time))
            })
            .sum()
    }

    /// Lets the peak of the resident set begin anew.
    ///
    /// # Errors
    /// When a process has ended.
    pub(crate) fn reset_peak(&self) -> Result<()> {
        for pid in &self.pids {
            let path = PathBuf::from(format!("/proc/{pid}/clear_refs"));
            std::fs::write(&path, RESET_PEAK).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Bytes of the largest resident set since [`Part::reset_peak`].
    ///
    /// # Errors
    /// When a process has ended.
    pub(crate) fn peak_rss(&self) -> Result<u64> {
        self.pids.iter().map(|pid| status(*pid, "VmHWM:")).sum()
    }

    /// Bytes of the resident set now.
    ///
    /// # Errors
    /// When a process has ended.
    pub(crate) fn rss(&self) -> Result<u64> {
        self.pids.iter().map(|pid| status(*pid, "VmRSS:")).sum()
    }
}

/// Waits until the work that answers left behind is done: copies on their way to a store. After some seconds it gives up,
/// because a process may have work of its own.
///
/// # Errors
/// When a process has ended.
pub(crate) async fn come_to_rest(parts: &[Part]) -> Result<()> {
    let total = || parts.iter().map(Part::cpu).sum::<Result<Duration>>();
    let mut before = total()?;
    let mut quiet = 0;
    let rested = wait::until("rest", REST_WITHIN, async || {
        let now = total().unwrap_or(before);
        let is_quiet = now.saturating_sub(before) < AT_REST;
        quiet = if is_quiet { quiet + 1 } else { 0 };
        before = now;
        quiet == 4
    });
    drop(rested.await);
    Ok(())
}

/// A field of `/proc/PID/status` that is given in kB.
fn status(pid: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).context(path)?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .with_context(|| format!("process {pid} has no {field}"))?;
    Ok(value.parse::<u64>()? * 1024)
}
