//! The memory tier in front of the store.

use anyhow::Result;

use crate::scripted::{KIB, MIB, commits_reach, entries, generic, png, until};
use crate::support::metrics::Metrics;
use crate::support::origin::{Origin, Script};
use crate::support::stack::{Stack, Store};

/// A stack in whose store this body is, and which has just filled it.
async fn filled(origin: &Origin, store: Store, settings: &str, bytes: usize) -> Result<Stack> {
    let stack = generic(origin, store).settings(settings).start().await?;
    origin.respond("/a", Script::ok("image/png", png(bytes)));
    assert!(!stack.get("/a").await?.is_hit());
    commits_reach(&stack, 1).await?;
    Ok(stack)
}

fn lookups(metrics: &Metrics, result: &str) -> f64 {
    metrics.sum("afterimage_memory_lookups_total", &[("result", result)])
}

#[tokio::test]
async fn what_was_filled_is_served_without_the_store() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = filled(&origin, Store::Garage, "{}", MIB).await?;
    stack.garage().process.kill()?;
    for client in [stack.client.clone(), stack.http2()?] {
        let hit = client.get("/a").await?;
        assert!(hit.is_hit() && hit.body == png(MIB), "{hit:?}");
    }
    let metrics = stack.metrics().await?;
    assert_eq!(lookups(&metrics, "hit"), 2.0);
    assert_eq!(metrics.sum("afterimage_memory_entries", &[]), 1.0);
    let bytes = metrics.sum("afterimage_memory_bytes", &[]);
    assert!(
        (MIB as f64..MIB as f64 + 4096.0).contains(&bytes),
        "{bytes}"
    );
    Ok(())
}

#[tokio::test]
async fn what_was_read_from_the_store_is_served_without_it() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = filled(&origin, Store::Garage, "{}", 50 * KIB).await?;
    stack.afterimage().crash_and_restart().await?;
    assert!(stack.get("/a").await?.is_hit());
    stack.garage().process.kill()?;
    let hit = stack.get("/a").await?;
    assert!(hit.is_hit() && hit.body == png(50 * KIB), "{hit:?}");
    Ok(())
}

#[tokio::test]
async fn what_others_took_out_of_the_store_goes_with_the_next_comparison() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = filled(&origin, Store::Local, "memory: {recheck: 0s}", 50 * KIB).await?;
    for entry in entries(&stack)? {
        std::fs::remove_file(entry)?;
    }
    let hit = stack.get("/a").await?;
    assert!(hit.is_hit() && hit.body == png(50 * KIB), "{hit:?}");
    until(&stack, "an empty tier", |metrics| {
        metrics.sum("afterimage_memory_entries", &[]) == 0.0
    })
    .await?;
    assert!(!stack.get("/a").await?.is_hit());
    Ok(())
}

#[tokio::test]
async fn a_store_that_does_not_answer_the_comparison_changes_nothing() -> Result<()> {
    let origin = Origin::start().await?;
    let recheck = "memory: {recheck: 0s}";
    let mut stack = filled(&origin, Store::Garage, recheck, 50 * KIB).await?;
    stack.garage().process.kill()?;
    for _ in 0..5 {
        assert!(stack.get("/a").await?.is_hit());
    }
    let failed = [("operation", "head"), ("result", "unavailable")];
    until(&stack, "a comparison that failed", |metrics| {
        metrics.sum("afterimage_store_operation_duration_seconds_count", &failed) >= 1.0
    })
    .await?;
    assert!(stack.get("/a").await?.is_hit());
    Ok(())
}

#[tokio::test]
async fn what_goes_out_in_pieces_stays_in_the_store() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = filled(&origin, Store::Local, "{}", 2 * MIB).await?;
    let hit = stack.get("/a").await?;
    assert!(hit.is_hit() && hit.body == png(2 * MIB));
    let metrics = stack.metrics().await?;
    assert_eq!(metrics.sum("afterimage_memory_entries", &[]), 0.0);
    Ok(())
}
