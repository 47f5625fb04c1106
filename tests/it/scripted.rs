//! What the tests with a scripted origin share: bodies, stacks, and waiting for what the metrics tell.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;

use crate::support::metrics::Metrics;
use crate::support::origin::Origin;
use crate::support::stack::{Builder, Stack, Store};
use crate::support::wait;

/// The policy of the route `/` for an origin that is no imgproxy.
pub(crate) const GENERIC: &str = "images: {kind: generic}";

pub(crate) const KIB: usize = 1024;
pub(crate) const MIB: usize = 1024 * KIB;

/// `Cache-Status` of a miss whose answer is being stored, and of one whose answer is not.
pub(crate) const STORED: &str = "afterimage; fwd=miss; stored";
/// See [`STORED`].
pub(crate) const NOT_STORED: &str = "afterimage; fwd=miss";

const PATIENCE: Duration = Duration::from_secs(30);

/// A body that begins like a PNG and goes on like noise, the same for the same size.
pub(crate) fn png(size: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ size as u64;
    let noise = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    b"\x89PNG\r\n\x1a\n"
        .iter()
        .copied()
        .chain(noise.flatten())
        .take(size)
        .collect()
}

/// A stack in front of `origin`, with [`GENERIC`] as its only policy. A busy machine does not make its lookups miss: the
/// deadline is [`SHORT_LOOKUPS`]'s for tests that want it to pass.
pub(crate) fn generic(origin: &Origin, store: Store) -> Builder {
    Stack::builder()
        .store(store)
        .upstream(origin.address())
        .policies(GENERIC)
        .settings("{envoy: {message_timeout: 20s}, limits: {lookup_timeout: 10s}}")
        .adjust_envoy(|bootstrap| {
            bootstrap.processor()?["message_timeout"] = "20s".into();
            Ok(())
        })
}

/// Every hit comes out of the store.
pub(crate) const NO_MEMORY: &str = "memory: {max_bytes: 0B}";

/// Lookups give up early, as they do by default.
pub(crate) const SHORT_LOOKUPS: &str = "limits: {lookup_timeout: 300ms}";

/// Waits until the metrics are as they should be.
pub(crate) async fn until(
    stack: &Stack,
    what: &str,
    holds: impl Fn(&Metrics) -> bool,
) -> Result<()> {
    let mut last = None;
    wait::until(what, PATIENCE, async || {
        last = stack.metrics().await.ok();
        last.as_ref().is_some_and(&holds)
    })
    .await
    .with_context(|| match &last {
        Some(last) => format!("the last metrics were {}", last.summary()),
        None => "there were no metrics".to_owned(),
    })
}

/// Waits until so many fills were committed since Afterimage started.
pub(crate) async fn commits_reach(stack: &Stack, count: usize) -> Result<()> {
    until(stack, &format!("{count} commits"), |metrics| {
        committed(metrics) >= count as f64
    })
    .await
}

/// Waits until no request is present, no fill is open, and nothing of the budget is held.
pub(crate) async fn is_quiet(stack: &Stack) -> Result<()> {
    let held = [
        "afterimage_streams",
        "afterimage_open_fills",
        "afterimage_budget_reserved_bytes",
    ];
    until(stack, "all gauges at zero", |metrics| {
        held.iter().all(|gauge| metrics.sum(gauge, &[]) == 0.0)
    })
    .await
}

/// Fills that were committed.
pub(crate) fn committed(metrics: &Metrics) -> f64 {
    metrics.sum("afterimage_fills_total", &[("result", "committed")])
}

/// Fills that were given up for this reason.
pub(crate) fn aborted(metrics: &Metrics, reason: &str) -> f64 {
    let labels = [("result", "aborted"), ("reason", reason)];
    metrics.sum("afterimage_fills_total", &labels)
}

/// Requests that ended for this reason.
pub(crate) fn requests(metrics: &Metrics, reason: &str) -> f64 {
    metrics.sum("afterimage_requests_total", &[("reason", reason)])
}

/// The files of all entries in the stack's local store.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn entries(stack: &Stack) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories = vec![stack.local_store().join("v1")];
    while let Some(directory) = directories.pop() {
        if !directory.exists() {
            continue;
        }
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}
