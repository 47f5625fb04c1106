//! Waiting for a condition with a deadline; nothing in the harness sleeps and hopes.

use std::time::Duration;

use anyhow::{Context as _, Result};

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Asks `condition` again and again until it is true.
///
/// # Errors
/// When `deadline` passes first; the message says `what` was waited for.
pub(crate) async fn until(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> Result<()> {
    let reached = async {
        while !condition().await {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    tokio::time::timeout(deadline, reached)
        .await
        .ok()
        .with_context(|| format!("waited {deadline:?} in vain for {what}"))
}
