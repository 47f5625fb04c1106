//! A store that is gone, that hangs, or that gives back something else than it got.

use std::path::{Path, PathBuf};

use afterimage::clock::Stopwatch;
use anyhow::{Context as _, Result};
use bytes::Bytes;
use reqwest::Method;

use crate::bucket::{Bucket, Object};
use crate::scripted::{
    KIB, MIB, NO_MEMORY, NOT_STORED, SHORT_LOOKUPS, STORED, aborted, commits_reach, committed,
    entries, generic, is_quiet, png, requests, until,
};
use crate::support::client::Answer;
use crate::support::metrics::Metrics;
use crate::support::origin::{Gate, Origin, Script};
use crate::support::stack::{Stack, Store};
use crate::support::wait;

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Requests a path until it is a hit with these bytes; every answer on the way has to have them, too.
async fn becomes_a_hit(stack: &Stack, path: &str, body: &Bytes) -> Result<()> {
    wait::until("a hit", PATIENCE, async || {
        let answer = stack.get(path).await.expect("there is always an answer");
        assert_eq!((answer.status, &answer.cut), (200, &None), "{path}");
        assert!(answer.body == *body, "{path}: other bytes");
        answer.is_hit()
    })
    .await
}

/// Stores each of these paths.
async fn fill(stack: &Stack, paths: &[String]) -> Result<()> {
    let before = committed(&stack.metrics().await?);
    for path in paths {
        assert_eq!(stack.get(path).await?.cache_status(), STORED, "{path}");
    }
    commits_reach(stack, before as usize + paths.len()).await
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("/{number}")).collect()
}

#[tokio::test]
async fn a_killed_garage_is_not_missed_and_serves_hits_when_it_is_back() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = generic(&origin, Store::Garage)
        .settings(NO_MEMORY)
        .start()
        .await?;
    let body = png(50 * KIB);
    let script = Script::ok("image/png", body.clone());
    origin.otherwise(move |_| script.clone());
    let paths = numbered(12);
    fill(&stack, &paths).await?;

    stack.garage().process.kill()?;
    for path in &paths {
        let answer = stack.get(path).await?;
        assert_eq!((answer.status, answer.cache_status()), (200, STORED));
        assert!(answer.body == body);
    }
    until(&stack, "the breaker to open", |metrics| {
        metrics.sum("afterimage_store_breaker_state", &[]) == 2.0
    })
    .await?;
    let metrics = stack.metrics().await?;
    assert_eq!(requests(&metrics, "store_unavailable"), 12.0);
    until(&stack, "the copies to be given up", |metrics| {
        aborted(metrics, "store") == 12.0
    })
    .await?;
    is_quiet(&stack).await?;

    stack.garage().process.start_again()?;
    stack.garage().wait_until_ready().await?;
    for path in &paths {
        becomes_a_hit(&stack, path, &body).await?;
    }
    let state = stack.metrics().await?;
    assert_eq!(state.sum("afterimage_store_breaker_state", &[]), 0.0);
    Ok(())
}

#[tokio::test]
async fn a_frozen_garage_costs_one_deadline_each_until_the_breaker_opens() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = generic(&origin, Store::Garage)
        .settings("limits: {breaker_failures: 3, breaker_wait: 8s}")
        .settings(SHORT_LOOKUPS)
        .settings(NO_MEMORY)
        .start()
        .await?;
    let body = png(50 * KIB);
    let script = Script::ok("image/png", body.clone());
    origin.otherwise(move |_| script.clone());
    let paths = numbered(6);
    fill(&stack, &paths).await?;

    stack.garage().process.freeze().await?;
    for path in &paths {
        let answer = stack.get(path).await?;
        assert_eq!((answer.status, answer.cache_status()), (200, STORED));
        assert!(answer.body == body);
    }
    let metrics = stack.metrics().await?;
    assert_eq!(requests(&metrics, "store_timeout"), 3.0);
    assert_eq!(requests(&metrics, "store_unavailable"), 3.0);
    let refused = [("operation", "get"), ("result", "refused")];
    let operations = "afterimage_store_operation_duration_seconds_count";
    assert_eq!(metrics.sum(operations, &refused), 3.0);
    assert_eq!(metrics.sum("afterimage_store_breaker_state", &[]), 2.0);

    stack.garage().process.thaw()?;
    for path in &paths {
        becomes_a_hit(&stack, path, &body).await?;
    }
    is_quiet(&stack).await
}

#[tokio::test]
async fn a_garage_killed_before_the_commit_leaves_the_client_whole_and_no_entry() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = generic(&origin, Store::Garage).start().await?;
    for size in [50 * KIB, 3 * MIB] {
        let path = format!("/{size}");
        let body = png(size);
        let gate = Gate::closed();
        let script = Script::ok("image/png", body.clone());
        origin.respond(&path, script.clone().wait_at(size / 2, &gate));
        let (client, held) = (stack.client.clone(), path.clone());
        let answer = tokio::spawn(async move { client.get(&held).await });
        gate.reached_by(1).await?;
        until(&stack, "an open fill", |metrics| {
            metrics.sum("afterimage_open_fills", &[]) == 1.0
        })
        .await?;

        let lost = aborted(&stack.metrics().await?, "store");
        stack.garage().process.freeze().await?;
        gate.open();
        let answer = answer.await??;
        assert_eq!((answer.cache_status(), &answer.cut), (STORED, &None));
        assert!(answer.body == body);
        // Its stream is over, and its commit cannot be.
        until(&stack, "a commit under way", |metrics| {
            metrics.sum("afterimage_streams", &[]) == 0.0
                && metrics.sum("afterimage_open_fills", &[]) == 1.0
        })
        .await?;
        stack.garage().process.kill()?;
        until(&stack, "the copy to be given up", |metrics| {
            aborted(metrics, "store") == lost + 1.0
        })
        .await?;
        is_quiet(&stack).await?;

        stack.garage().process.start_again()?;
        stack.garage().wait_until_ready().await?;
        origin.respond(&path, script);
        becomes_a_hit(&stack, &path, &body).await?;
        is_quiet(&stack).await?;
    }
    let bucket = Bucket::of(stack.garage())?;
    assert_eq!(bucket.names().await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_garage_killed_while_a_large_body_waits_for_it_is_counted() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = generic(&origin, Store::Garage)
        .settings("limits: {held_cap: 1MiB, stream_cap: 32MiB}")
        .start()
        .await?;
    // The first part is 8 MiB; what comes after it can wait.
    let size = 8 * MIB + 300 * KIB;
    let body = png(size);
    let gate = Gate::closed();
    let script = Script::ok("image/png", body.clone());
    origin.respond("/a", script.clone().wait_at(7 * MIB, &gate));
    let client = stack.client.clone();
    let answer = tokio::spawn(async move { client.get("/a").await });
    until(&stack, "the upload to be begun", |metrics| {
        let begun = [("operation", "begin"), ("result", "done")];
        metrics.sum("afterimage_store_operation_duration_seconds_count", &begun) == 1.0
    })
    .await?;
    gate.reached_by(1).await?;
    stack.garage().process.freeze().await?;
    gate.open();
    let answer = answer.await??;
    assert_eq!((answer.cache_status(), &answer.cut), (STORED, &None));
    assert!(answer.body == body);
    until(&stack, "an upload under way", |metrics| {
        metrics.sum("afterimage_streams", &[]) == 0.0
            && metrics.sum("afterimage_open_fills", &[]) == 1.0
    })
    .await?;
    stack.garage().process.kill()?;
    is_quiet(&stack).await?;
    let metrics = stack.metrics().await?;
    assert_eq!(aborted(&metrics, "store"), 1.0);
    assert_eq!(committed(&metrics), 0.0);

    stack.garage().process.start_again()?;
    stack.garage().wait_until_ready().await?;
    origin.respond("/a", script);
    becomes_a_hit(&stack, "/a", &body).await?;
    is_quiet(&stack).await?;
    assert_eq!(Bucket::of(stack.garage())?.names().await?.len(), 1);
    Ok(())
}

/// Fills `path` of a local store, and tells the entry's file.
async fn fill_one(stack: &Stack, path: &str) -> Result<PathBuf> {
    let before = entries(stack)?;
    fill(stack, &[path.to_owned()]).await?;
    let mut after = entries(stack)?;
    after.retain(|file| !before.contains(file));
    after.pop().context("a new entry")
}

/// How an entry's file is damaged; the second one is of another entry.
type Damage = fn(&Path, &Path) -> std::io::Result<()>;

fn flip_bit(bytes: &mut [u8], at: usize) {
    bytes[at] ^= 1;
}

const DAMAGES: [(&str, &str, Damage); 9] = [
    ("truncated", "corrupt", |file, _| {
        let bytes = std::fs::read(file)?;
        std::fs::write(file, &bytes[..bytes.len() / 2])
    }),
    ("last-byte-gone", "corrupt", |file, _| {
        let bytes = std::fs::read(file)?;
        std::fs::write(file, &bytes[..bytes.len() - 1])
    }),
    ("longer", "corrupt", |file, _| {
        let mut bytes = std::fs::read(file)?;
        bytes.insert(100, 0);
        std::fs::write(file, bytes)
    }),
    ("garbage", "corrupt", |file, _| {
        std::fs::write(file, vec![0xa5; 5000])
    }),
    ("empty", "corrupt", |file, _| std::fs::write(file, "")),
    ("bit-of-body", "corrupt", |file, _| {
        let mut bytes = std::fs::read(file)?;
        flip_bit(&mut bytes, 1000);
        std::fs::write(file, bytes)
    }),
    ("another-key", "corrupt", |file, other| {
        std::fs::copy(other, file).map(drop)
    }),
    ("link", "corrupt", |file, other| {
        std::fs::remove_file(file)?;
        std::os::unix::fs::symlink(other, file)
    }),
    ("gone", "absent", |file, _| std::fs::remove_file(file)),
];

#[tokio::test]
async fn a_damaged_file_is_never_served_and_is_replaced() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local)
        .settings(NO_MEMORY)
        .start()
        .await?;
    let body = png(50 * KIB);
    let script = Script::ok("image/png", body.clone());
    origin.otherwise(move |_| script.clone());
    origin.respond("/other", Script::ok("image/png", png(30 * KIB)));
    let other = fill_one(&stack, "/other").await?;
    for (name, reason, damage) in DAMAGES {
        let path = format!("/{name}");
        let file = fill_one(&stack, &path).await?;
        let before = stack.metrics().await?;
        damage(&file, &other)?;

        let answer = stack.get(&path).await?;
        assert_eq!(answer.cache_status(), STORED, "{name}");
        assert!(answer.body == body, "{name}: other bytes");
        let after = stack.metrics().await?;
        let counted = requests(&after, reason) - requests(&before, reason);
        assert_eq!(counted, 1.0, "{name}");
        commits_reach(&stack, committed(&before) as usize + 1).await?;
        let hit = stack.get(&path).await?;
        assert!(hit.is_hit(), "{name}: {}", hit.cache_status());
        assert!(hit.body == body, "{name}: other bytes");
    }
    assert!(stack.get("/other").await?.body == png(30 * KIB));
    Ok(())
}

#[tokio::test]
async fn a_changed_object_is_never_served_and_is_replaced() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = generic(&origin, Store::Garage)
        .settings(NO_MEMORY)
        .start()
        .await?;
    let bucket = Bucket::of(stack.garage())?;
    let body = png(50 * KIB);
    let script = Script::ok("image/png", body.clone());
    origin.otherwise(move |_| script.clone());
    fill(&stack, &["/other".to_owned()]).await?;
    let others = bucket.names().await?.pop().context("the other")?;
    let other = bucket.get(&others).await?;
    fill(&stack, &["/a".to_owned()]).await?;
    let mut names = bucket.names().await?;
    names.retain(|name| *name != others);
    let name = names.pop().context("the entry")?;
    let entry = bucket.get(&name).await?;
    assert_eq!(entry.body, body);

    let mut flipped = body.to_vec();
    flip_bit(&mut flipped, 1000);
    let with_body = |body| Object {
        body,
        ..entry.clone()
    };
    let with_record = |record: Option<&str>| Object {
        record: record.map(str::to_owned),
        ..entry.clone()
    };
    for (damage, reason, object) in [
        ("a plain object", "absent", with_record(None)),
        ("no record", "corrupt", with_record(Some("bm8gcmVjb3Jk"))),
        ("another key's", "corrupt", other),
        ("a shorter body", "corrupt", with_body(body.slice(..1000))),
        ("another bit", "corrupt", with_body(flipped.into())),
        ("an empty body", "corrupt", with_body(Bytes::new())),
    ] {
        bucket.put(&name, &object).await?;
        let before = stack.metrics().await?;
        let answer = stack.get("/a").await?;
        assert_eq!(answer.cache_status(), STORED, "{damage}");
        assert!(answer.body == body, "{damage}: other bytes");
        let after = stack.metrics().await?;
        let counted = requests(&after, reason) - requests(&before, reason);
        assert_eq!(counted, 1.0, "{damage}");
        commits_reach(&stack, committed(&before) as usize + 1).await?;
        let hit = stack.get("/a").await?;
        assert!(hit.is_hit(), "{damage}: {}", hit.cache_status());
        assert!(hit.body == body, "{damage}: other bytes");
    }
    Ok(())
}

#[tokio::test]
async fn a_large_hit_that_is_not_the_stored_body_is_broken_off_and_forgotten() -> Result<()> {
    let origin = Origin::start().await?;
    for store in [Store::Local, Store::Garage] {
        let mut stack = generic(&origin, store).start().await?;
        for (version, client) in [("1", stack.client.clone()), ("2", stack.http2()?)] {
            let path = format!("/{store:?}/{version}");
            let body = png(3 * MIB);
            origin.respond(&path, Script::ok("image/png", body.clone()));
            let last = body.len() - 1;
            match store {
                Store::Local => {
                    let file = fill_one(&stack, &path).await?;
                    let mut bytes = std::fs::read(&file)?;
                    flip_bit(&mut bytes, last);
                    std::fs::write(file, bytes)?;
                }
                Store::Garage | Store::GarageOverUnix => {
                    let bucket = Bucket::of(stack.garage())?;
                    let before = bucket.names().await?;
                    fill(&stack, std::slice::from_ref(&path)).await?;
                    let mut names = bucket.names().await?;
                    names.retain(|name| !before.contains(name));
                    let name = names.pop().context("a new entry")?;
                    let mut object = bucket.get(&name).await?;
                    let mut bytes = object.body.to_vec();
                    flip_bit(&mut bytes, last);
                    object.body = bytes.into();
                    bucket.put(&name, &object).await?;
                }
            }
            let broken = |metrics: &Metrics| metrics.sum("afterimage_broken_hits_total", &[]);
            let before = broken(&stack.metrics().await?);
            let answer = client.get(&path).await?;
            assert!(answer.is_hit(), "{path}: {}", answer.cache_status());
            assert!(answer.cut.is_some(), "{path} seems whole");
            assert!(answer.body.len() < body.len());
            assert_eq!(broken(&stack.metrics().await?), before + 1.0);

            // The next one does not meet it.
            let deleted = [("operation", "delete"), ("result", "done")];
            let operations = "afterimage_store_operation_duration_seconds_count";
            until(&stack, "the entry to be removed", |metrics| {
                metrics.sum(operations, &deleted) == before + 1.0
            })
            .await?;
            becomes_a_hit(&stack, &path, &body).await?;
        }
        is_quiet(&stack).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_large_hit_whose_garage_dies_is_broken_off() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = generic(&origin, Store::Garage)
        .settings("limits: {stream_cap: 64MiB, held_cap: 64MiB, budget: 200MiB}")
        .start()
        .await?;
    let body = png(48 * MIB);
    for (version, client) in [("1", stack.client.clone()), ("2", stack.http2()?)] {
        let path = format!("/{version}");
        origin.respond(&path, Script::ok("image/png", body.clone()));
        fill(&stack, std::slice::from_ref(&path)).await?;
        let mut is_cut = false;
        // Garage may have sent everything before it is dead; then the answer is whole.
        for _ in 0..10 {
            let mut response = client.request(Method::GET, &path).send().await?;
            let first = response.chunk().await?.context("the first piece")?;
            stack.garage().process.kill()?;
            let rest = Answer::read(response, Stopwatch::start()).await;
            stack.garage().process.start_again()?;
            stack.garage().wait_until_ready().await?;
            is_cut = rest.cut.is_some();
            if is_cut {
                break;
            }
            assert_eq!(first.len() + rest.body.len(), body.len(), "{path}");
        }
        assert!(is_cut, "{path} was never cut");
        becomes_a_hit(&stack, &path, &body).await?;
    }
    let metrics = stack.metrics().await?;
    assert_eq!(metrics.sum("afterimage_broken_hits_total", &[]), 2.0);
    Ok(())
}

#[tokio::test]
async fn a_denied_store_is_forwarded_and_counted() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Garage)
        .afterimage_env("AFTERIMAGE_S3_SECRET_ACCESS_KEY", "not-the-secret")
        .start()
        .await?;
    let body = png(50 * KIB);
    origin.respond("/a", Script::ok("image/png", body.clone()));
    for _ in 0..2 {
        let answer = stack.get("/a").await?;
        assert!([STORED, NOT_STORED].contains(&answer.cache_status()));
        assert_eq!(answer.body, body);
        is_quiet(&stack).await?;
    }
    let metrics = stack.metrics().await?;
    assert_eq!(requests(&metrics, "store_denied"), 2.0);
    // The second one need not be tried, if it comes soon enough.
    let (tried, refused) = (aborted(&metrics, "store"), aborted(&metrics, "refused"));
    assert!(tried >= 1.0 && tried + refused == 2.0, "{tried}, {refused}");
    Ok(())
}
