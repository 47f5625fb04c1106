//! The cores of the store.

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps a process to the last half of our cores, of which there are two at least; the others stay with everybody.
///
/// A store has a machine of its own, as a rule. Here Garage hands every read of a file from thread to thread a dozen times,
/// and on each of its cores the kernel takes the core from whoever works there.
///
/// # Errors
/// When the process has ended, or may not be confined.
pub(crate) fn confine(pid: u32) -> Result<()> {
    let ours = sched_getaffinity(Pid::from_raw(0))?;
    let cores = (0..CpuSet::count()).filter(|core| ours.is_set(*core).unwrap_or(false));
    let cores: Vec<_> = cores.collect();
    if cores.len() < 2 {
        return Ok(());
    }
    let mut last = CpuSet::new();
    for core in &cores[cores.len().div_ceil(2)..] {
        last.set(*core)?;
    }
    // A thread begins where the one is that starts it; the second pass finds those that began during the first.
    for _ in 0..2 {
        let threads = format!("/proc/{pid}/task");
        for thread in std::fs::read_dir(&threads).context(threads)? {
            let number: i32 = thread?.file_name().to_string_lossy().parse()?;
            match sched_setaffinity(Pid::from_raw(number), &last) {
                // It has ended meanwhile.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => {
                    return Err(error).context("Garage cannot be kept to some of the cores");
                }
            }
        }
    }
    Ok(())
}
