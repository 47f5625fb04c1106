//! What goes wrong around a fill: whatever it is, the client's bytes are whole or visibly cut, and nothing partial is stored.

use afterimage::clock::Stopwatch;
use anyhow::{Context as _, Result};
use bytes::Bytes;
use reqwest::Method;
use tokio::task::JoinHandle;

use crate::scripted::{
    KIB, MIB, NO_MEMORY, NOT_STORED, SHORT_LOOKUPS, STORED, aborted, commits_reach, entries,
    generic, is_quiet, png, requests, until,
};
use crate::support::client::{Answer, Client};
use crate::support::metrics::Metrics;
use crate::support::origin::{Cut, Framing, Gate, Origin, Script};
use crate::support::stack::{Stack, Store};

/// Begins a GET that the test goes on beside.
fn begin(client: &Client, path: &str) -> JoinHandle<Result<Answer>> {
    let (client, path) = (client.clone(), path.to_owned());
    tokio::spawn(async move { client.get(&path).await })
}

/// Lets the origin hold `body` back from its middle on, until the gate that comes back is opened.
fn hold_half(origin: &Origin, path: &str, body: &Bytes) -> Gate {
    let gate = Gate::closed();
    let script = Script::ok("image/png", body.clone()).wait_at(body.len() / 2, &gate);
    origin.respond(path, script);
    gate
}

async fn open_fills_are(stack: &Stack, count: usize) -> Result<()> {
    until(stack, &format!("{count} open fills"), |metrics| {
        metrics.sum("afterimage_open_fills", &[]) == count as f64
            && (count == 0) == (metrics.sum("afterimage_budget_reserved_bytes", &[]) == 0.0)
    })
    .await
}

/// A miss that stores, then a hit, both with these bytes.
async fn fills_then_hits(stack: &Stack, client: &Client, path: &str, body: &Bytes) -> Result<()> {
    let commits = crate::scripted::committed(&stack.metrics().await?);
    let miss = client.get(path).await?;
    assert_eq!((miss.cache_status(), &miss.cut), (STORED, &None), "{path}");
    assert!(miss.body == *body, "{path}: other bytes");
    commits_reach(stack, commits as usize + 1).await?;
    let hit = client.get(path).await?;
    assert!(hit.is_hit(), "{path}: {}", hit.cache_status());
    assert!(hit.body == *body, "{path}: other bytes");
    Ok(())
}

#[tokio::test]
async fn a_killed_afterimage_leaves_the_clients_bytes_whole_and_the_store_empty() -> Result<()> {
    let origin = Origin::start().await?;
    for store in [Store::Local, Store::Garage] {
        let mut stack = generic(&origin, store).start().await?;
        for (name, size) in [("small", 50 * KIB), ("large", 3 * MIB)] {
            for (version, client) in [("1", stack.client.clone()), ("2", stack.http2()?)] {
                let path = format!("/{store:?}/{name}/{version}");
                let body = png(size);
                let gate = hold_half(&origin, &path, &body);
                let answer = begin(&client, &path);
                gate.reached_by(1).await?;
                open_fills_are(&stack, 1).await?;

                stack.afterimage().process.kill()?;
                gate.open();
                let answer = answer.await??;
                assert_eq!((answer.status, &answer.cut), (200, &None), "{path}");
                assert_eq!(answer.header("content-length"), Some(&*size.to_string()));
                assert!(answer.body == body, "{path}: other bytes");

                stack.afterimage().process.start_again()?;
                stack.afterimage().wait_until_ready().await?;
                fills_then_hits(&stack, &client, &path, &body).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_afterimage_that_is_away_is_not_missed() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = generic(&origin, Store::Local).start().await?;
    let body = png(50 * KIB);
    origin.respond("/a", Script::ok("image/png", body.clone()));
    fills_then_hits(&stack, &stack.client, "/a", &body).await?;
    stack.afterimage().process.kill()?;
    let away = stack.get("/a").await?;
    assert_eq!((away.status, away.cache_status()), (200, ""));
    assert_eq!(away.body, body);
    stack.afterimage().process.start_again()?;
    stack.afterimage().wait_until_ready().await?;
    let back = stack.get("/a").await?;
    assert!(back.is_hit(), "{}", back.cache_status());
    assert_eq!(back.body, body);
    Ok(())
}

#[tokio::test]
async fn a_response_that_its_upstream_cuts_short_is_seen_as_cut_and_not_stored() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let body = png(300 * KIB);
    let whole = Script::ok("image/png", body.clone());
    let chunked = whole.clone().framing(Framing::Chunked);
    let short = Framing::WrongLength(301 * KIB);
    let mut cuts = 0;
    for (version, client) in [("1", stack.client.clone()), ("2", stack.http2()?)] {
        for (name, script) in [
            ("fin", whole.clone().cut_after(200 * KIB, Cut::Close)),
            ("rst", whole.clone().cut_after(200 * KIB, Cut::Reset)),
            ("short", whole.clone().framing(short)),
            (
                "chunked-fin",
                chunked.clone().cut_after(200 * KIB, Cut::Close),
            ),
            (
                "chunked-rst",
                chunked.clone().cut_after(200 * KIB, Cut::Reset),
            ),
        ] {
            let path = format!("/{name}/{version}");
            // Were it cut before the client has the head, Envoy would answer 502 itself.
            let gate = Gate::closed();
            origin.respond(&path, script.wait_at(100 * KIB, &gate));
            let response = client.request(Method::GET, &path).send().await?;
            gate.open();
            let answer = Answer::read(response, Stopwatch::start()).await;
            assert!(answer.cut.is_some(), "{path} seems whole");
            cuts += 1;
            until(&stack, "the fill to be given up", |metrics| {
                aborted(metrics, "cut") == f64::from(cuts)
            })
            .await?;
            let before = usize::try_from(cuts)? - 1;
            assert_eq!(entries(&stack)?.len(), before, "{path} is stored");
            origin.respond(&path, whole.clone());
            fills_then_hits(&stack, &client, &path, &body).await?;
        }
    }
    is_quiet(&stack).await
}

#[tokio::test]
async fn a_response_that_is_cut_at_once_is_an_error_or_a_cut_and_not_stored() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let script = Script::ok("image/png", png(300 * KIB));
    for (name, how) in [("fin", Cut::Close), ("rst", Cut::Reset)] {
        for bytes in [0, 1, 100 * KIB] {
            let path = format!("/{name}/{bytes}");
            origin.respond(&path, script.clone().cut_after(bytes, how));
            let answer = stack.get(&path).await?;
            assert!(answer.status == 502 || answer.cut.is_some(), "{answer:?}");
        }
    }
    is_quiet(&stack).await?;
    assert_eq!(entries(&stack)?.len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_is_not_stored() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let body = png(50 * KIB);
    let script = Script::ok("image/png", body.clone()).framing(Framing::Close);
    origin.respond("/whole", script.clone());
    origin.respond("/cut", script.cut_after(20 * KIB, Cut::Close));
    for path in ["/whole", "/cut"] {
        assert_eq!(stack.get(path).await?.cache_status(), NOT_STORED);
    }
    assert_eq!(stack.get("/whole").await?.body, body);
    assert_eq!(entries(&stack)?.len(), 0);
    let metrics = stack.metrics().await?;
    let refused = metrics.sum("afterimage_not_storable_total", &[("reason", "no_length")]);
    assert_eq!(refused, 3.0);
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_leaves_nothing_behind() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local)
        .settings("limits: {held_cap: 1MiB}")
        .start()
        .await?;
    let mut left = 0;
    // The last one goes to the store while it passes.
    for size in [50 * KIB, 900 * KIB, 4 * MIB] {
        for (version, client) in [("1", stack.client.clone()), ("2", stack.http2()?)] {
            let path = format!("/{size}/{version}");
            let body = png(size);
            let gate = hold_half(&origin, &path, &body);
            let mut response = client.request(Method::GET, &path).send().await?;
            response.chunk().await?.context("the first half")?;
            gate.reached_by(1).await?;
            until(&stack, "an open fill", |metrics| {
                metrics.sum("afterimage_open_fills", &[]) == 1.0
            })
            .await?;
            drop((response, client));
            left += 1;
            until(&stack, "the fill to be given up", |metrics| {
                aborted(metrics, "cut") == f64::from(left)
            })
            .await?;
            is_quiet(&stack).await?;
            gate.open();
        }
    }
    assert_eq!(entries(&stack)?.len(), 0);
    assert_eq!(
        std::fs::read_dir(stack.local_store().join(".stage"))?.count(),
        0
    );
    Ok(())
}

#[tokio::test]
async fn many_fills_that_are_given_up_leave_all_gauges_at_zero() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let body = png(200 * KIB);
    let cut = Script::ok("image/png", body.clone()).cut_after(100 * KIB, Cut::Reset);
    let wrong = Script::ok("image/png", body.slice(1..));
    let gate = Gate::closed();
    let held = Script::ok("image/png", body.clone()).wait_at(100 * KIB, &gate);
    origin.otherwise(move |request| match request.path.as_bytes()[1] {
        b'c' => cut.clone(),
        b'w' => wrong.clone(),
        _ => held.clone(),
    });
    let http2 = stack.http2()?;
    for round in 0..10 {
        let mut answers = tokio::task::JoinSet::new();
        for (name, client) in [("c", &stack.client), ("w", &stack.client), ("w2", &http2)] {
            for number in 0..5 {
                let client = client.clone();
                let path = format!("/{name}/{round}/{number}");
                answers.spawn(async move { client.get(&path).await });
            }
        }
        let mut held = Vec::new();
        for number in 0..5 {
            let client = if number % 2 == 0 {
                &stack.client
            } else {
                &http2
            };
            let request = client.request(Method::GET, &format!("/h/{round}/{number}"));
            held.push(request.send().await?);
        }
        drop(held);
        answers.join_all().await;
    }
    // Where the upstream was cut before its head was answered, no fill had begun.
    until(&stack, "all fills to be given up", |metrics| {
        aborted(metrics, "cut") >= 50.0 && aborted(metrics, "not_declared_image") == 100.0
    })
    .await?;
    is_quiet(&stack).await?;
    assert_eq!(entries(&stack)?.len(), 0);
    gate.open();
    Ok(())
}

#[tokio::test]
async fn a_fill_without_room_is_dropped_and_its_client_is_served_whole() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local)
        .settings("limits: {budget: 1MiB}")
        .start()
        .await?;
    let body = png(600 * KIB);
    let gate = hold_half(&origin, "/first", &body);
    let first = begin(&stack.client, "/first");
    gate.reached_by(1).await?;
    open_fills_are(&stack, 1).await?;

    origin.respond("/length", Script::ok("image/png", body.clone()));
    let second = stack.get("/length").await?;
    assert_eq!((second.cache_status(), &second.cut), (NOT_STORED, &None));
    assert!(second.body == body);
    // How much it will be is not known when it begins.
    let chunked = Script::ok("image/png", body.clone()).framing(Framing::Chunked);
    origin.respond("/chunked", chunked);
    let third = stack.get("/chunked").await?;
    assert_eq!((third.cache_status(), &third.cut), (STORED, &None));
    assert!(third.body == body);
    until(&stack, "two fills without room", |metrics| {
        aborted(metrics, "budget") == 2.0
    })
    .await?;

    gate.open();
    assert!(first.await??.body == body);
    commits_reach(&stack, 1).await?;
    assert_eq!(entries(&stack)?.len(), 1);
    is_quiet(&stack).await?;
    fills_then_hits(&stack, &stack.client, "/chunked", &body).await
}

#[tokio::test]
async fn copies_of_tiny_images_need_room_beside_their_bytes() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local)
        .settings("limits: {budget: 1MiB}")
        .start()
        .await?;
    let body = png(100);
    // With 100 bytes each there would be room for ten thousand; a copy takes 16 KiB beside them.
    let gates: Vec<_> = (0..80)
        .map(|number| hold_half(&origin, &format!("/{number}"), &body))
        .collect();
    let answers: Vec<_> = (0..80)
        .map(|number| begin(&stack.client, &format!("/{number}")))
        .collect();
    until(&stack, "as many copies as there is room for", |metrics| {
        metrics.sum("afterimage_open_fills", &[]) == 63.0 && aborted(metrics, "budget") == 17.0
    })
    .await?;
    for gate in &gates {
        gate.open();
    }
    for answer in answers {
        assert!(answer.await??.body == body);
    }
    commits_reach(&stack, 63).await?;
    is_quiet(&stack).await?;
    assert_eq!(entries(&stack)?.len(), 63);
    Ok(())
}

#[tokio::test]
async fn what_a_large_copy_has_not_sent_yet_needs_room() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Garage)
        .settings("limits: {budget: 1MiB, held_cap: 64KiB}")
        .start()
        .await?;
    // It goes to the store in parts of 8 MiB; each piece finds what came before it already on that way.
    let body = png(2 * MIB);
    let mut script = Script::ok("image/png", body.clone());
    let mut gates = Vec::new();
    for sent in (256 * KIB..body.len()).step_by(256 * KIB) {
        let gate = Gate::closed();
        script = script.wait_at(sent, &gate);
        gates.push(gate);
    }
    origin.respond("/a", script);
    let answer = begin(&stack.client, "/a");
    for (pieces, gate) in (1..).zip(&gates) {
        until(&stack, "the next piece", |metrics| {
            appended(metrics) >= f64::from(pieces) || aborted(metrics, "budget") == 1.0
        })
        .await?;
        gate.open();
    }
    let answer = answer.await??;
    assert_eq!((answer.cache_status(), &answer.cut), (STORED, &None));
    assert!(answer.body == body);
    is_quiet(&stack).await?;
    let metrics = stack.metrics().await?;
    assert_eq!(aborted(&metrics, "budget"), 1.0);
    Ok(())
}

/// Pieces of large copies that the store's writer has taken.
fn appended(metrics: &Metrics) -> f64 {
    let name = "afterimage_store_operation_duration_seconds_count";
    metrics.sum(name, &[("operation", "append")])
}

#[tokio::test]
async fn a_hit_without_room_is_forwarded() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local)
        .settings("limits: {budget: 1MiB}")
        .settings(SHORT_LOOKUPS)
        .settings(NO_MEMORY)
        .start()
        .await?;
    let body = png(600 * KIB);
    origin.respond("/a", Script::ok("image/png", body.clone()));
    fills_then_hits(&stack, &stack.client, "/a", &body).await?;
    is_quiet(&stack).await?;

    let gate = hold_half(&origin, "/held", &body);
    let held = begin(&stack.client, "/held");
    gate.reached_by(1).await?;
    open_fills_are(&stack, 1).await?;
    let crowded = stack.get("/a").await?;
    assert_eq!((crowded.cache_status(), &crowded.cut), (NOT_STORED, &None));
    assert!(crowded.body == body);
    assert_eq!(requests(&stack.metrics().await?, "budget"), 1.0);

    gate.open();
    assert!(held.await??.body == body);
    is_quiet(&stack).await?;
    assert!(stack.get("/a").await?.is_hit());
    Ok(())
}

#[tokio::test]
async fn a_fill_that_takes_too_long_is_dropped_and_its_client_is_served_whole() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local)
        .settings("limits: {fill_deadline: 100ms, held_cap: 1MiB}")
        .start()
        .await?;
    // The last one goes to the store while it passes.
    for (late, size) in [(1, 50 * KIB), (2, 4 * MIB)] {
        let path = format!("/{size}");
        let body = png(size);
        let gate = hold_half(&origin, &path, &body);
        let answer = begin(&stack.client, &path);
        gate.reached_by(1).await?;
        until(&stack, "the deadline", |metrics| {
            aborted(metrics, "deadline") == f64::from(late)
        })
        .await?;
        open_fills_are(&stack, 0).await?;
        gate.open();
        let answer = answer.await??;
        assert_eq!((answer.cache_status(), &answer.cut), (STORED, &None));
        assert!(answer.body == body, "{path}: other bytes");
    }
    is_quiet(&stack).await?;
    assert_eq!(entries(&stack)?.len(), 0);
    Ok(())
}
