//! Hits of every size and shape, on both stores and both protocols.

use anyhow::{Context as _, Result};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::json;

use crate::bucket::Bucket;
use crate::scripted::{
    KIB, MIB, NOT_STORED, STORED, aborted, commits_reach, generic, is_quiet, png, until,
};
use crate::support::client::{Answer, Client};
use crate::support::envoy;
use crate::support::metrics::Metrics;
use crate::support::origin::{Framing, Gate, Origin, Script};
use crate::support::stack::{Stack, Store};
use crate::support::wait;

/// Anything is stored, whatever its first bytes are.
const UNVERIFIED: &str = "images: {kind: generic, store: {verify: none}}";

fn operations(metrics: &Metrics, operation: &str, result: &str) -> f64 {
    metrics.sum(
        "afterimage_store_operation_duration_seconds_count",
        &[("operation", operation), ("result", result)],
    )
}

fn assert_hit(answer: &Answer, what: &str) {
    assert_eq!((answer.status, &answer.cut), (200, &None), "{what}");
    let ttl = answer
        .cache_status()
        .rsplit_once("afterimage; hit; ttl=")
        .unwrap_or_else(|| panic!("{what}: {}", answer.cache_status()))
        .1;
    let age: u64 = answer.header("age").expect("an age").parse().expect(what);
    // Each is rounded to whole seconds.
    let sum = ttl.parse::<u64>().expect(what) + age;
    assert!((3599..=3601).contains(&sum), "{what}: ttl {ttl}, age {age}");
}

/// Fills a path and asserts that the same bytes are hits on both protocols.
async fn is_remembered(stack: &Stack, path: &str, body: &[u8]) -> Result<()> {
    let commits = crate::scripted::committed(&stack.metrics().await?);
    let miss = stack.get(path).await?;
    assert_eq!((miss.cache_status(), &miss.cut), (STORED, &None), "{path}");
    assert!(miss.body == body, "{path}: other bytes");
    commits_reach(stack, commits as usize + 1).await?;
    let length = body.len().to_string();
    for client in [stack.client.clone(), stack.http2()?] {
        let hit = client.get(path).await?;
        assert_hit(&hit, path);
        assert!(hit.body == body, "{path}: other bytes");
        assert_eq!(hit.header("content-length"), Some(&*length), "{path}");
        assert_eq!(hit.header("content-type"), Some("image/png"), "{path}");

        let head = client.send(client.request(Method::HEAD, path)).await?;
        assert_hit(&head, path);
        assert!(head.body.is_empty());
        let fields = |headers: &HeaderMap| {
            let mut fields = headers.clone();
            fields.remove("date");
            fields.remove("age");
            fields.remove("cache-status");
            fields
        };
        assert_eq!(fields(&head.headers), fields(&hit.headers), "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn bodies_of_every_size_are_hits_with_identical_bytes() -> Result<()> {
    let origin = Origin::start().await?;
    for store in [Store::Local, Store::Garage, Store::GarageOverUnix] {
        let stack = generic(&origin, store).policies(UNVERIFIED).start().await?;
        for size in [
            1,
            3 * KIB,
            50 * KIB,
            MIB - 1,
            MIB,
            MIB + 1,
            4 * MIB,
            8 * MIB,
        ] {
            let body = png(size);
            let script = Script::ok("image/png", body.clone());
            let path = format!("/length/{size}");
            origin.respond(&path, script.clone());
            is_remembered(&stack, &path, &body).await?;
            let path = format!("/chunked/{size}");
            origin.respond(&path, script.framing(Framing::Chunked));
            is_remembered(&stack, &path, &body).await?;
        }
        let metrics = stack.metrics().await?;
        assert_eq!(metrics.sum("afterimage_broken_hits_total", &[]), 0.0);
        let unexpected = metrics.sum("afterimage_unexpected_messages_total", &[]);
        assert_eq!(unexpected, 0.0);
        is_quiet(&stack).await?;
        let envoy = stack.envoy_metrics().await?;
        for name in envoy.names().filter(|name| {
            name.contains("ext_proc")
                && ["spurious", "failure", "rejected", "timeouts", "failed"]
                    .iter()
                    .any(|bad| name.contains(bad))
        }) {
            assert_eq!(envoy.sum(name, &[]), 0.0, "{name}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_empty_body_is_remembered_where_nothing_is_verified() -> Result<()> {
    for store in [Store::Local, Store::Garage] {
        let origin = Origin::start().await?;
        let stack = generic(&origin, store).policies(UNVERIFIED).start().await?;
        origin.respond("/empty", Script::ok("image/png", ""));
        is_remembered(&stack, "/empty", b"").await?;
        is_quiet(&stack).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_body_above_the_cap_is_not_stored() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let body = png(8 * MIB + 1);
    let script = Script::ok("image/png", body.clone());
    origin.respond("/length", script.clone());
    origin.respond("/chunked", script.framing(Framing::Chunked));
    for _ in 0..2 {
        let declared = stack.get("/length").await?;
        assert_eq!(declared.cache_status(), NOT_STORED);
        assert!(declared.body == body);
        // How much it will be is not known when it begins.
        let chunked = stack.get("/chunked").await?;
        assert_eq!(chunked.cache_status(), STORED);
        assert!(chunked.body == body);
    }
    let metrics = stack.metrics().await?;
    let refused = metrics.sum("afterimage_not_storable_total", &[("reason", "too_large")]);
    assert_eq!(refused, 2.0);
    assert_eq!(aborted(&metrics, "too_large"), 2.0);
    is_quiet(&stack).await
}

#[tokio::test]
async fn a_body_too_large_to_be_held_goes_to_the_store_while_it_passes() -> Result<()> {
    let origin = Origin::start().await?;
    for store in [Store::Local, Store::Garage] {
        let mut stack = generic(&origin, store)
            .settings("limits: {held_cap: 1MiB, stream_cap: 32MiB}")
            .start()
            .await?;
        let mut count = 0;
        for size in [MIB + 1, 12 * MIB, 30 * MIB] {
            let body = png(size);
            let script = Script::ok("image/png", body.clone());
            for (name, framing) in [("length", Framing::Length), ("chunked", Framing::Chunked)] {
                let path = format!("/{name}/{size}");
                origin.respond(&path, script.clone().framing(framing));
                is_remembered(&stack, &path, &body).await?;
                count += 1;
            }
        }
        is_quiet(&stack).await?;
        let metrics = stack.metrics().await?;
        assert_eq!(operations(&metrics, "commit", "done"), f64::from(count));
        assert_eq!(operations(&metrics, "put", "done"), 0.0);
        if store == Store::Garage {
            let bucket = Bucket::of(stack.garage())?;
            let names = bucket.names().await?;
            assert_eq!(names.len(), usize::try_from(count)?, "{names:?}");
            assert!(
                names.iter().all(|name| name.starts_with("v1/")),
                "{names:?}"
            );
            let object = bucket.get(&names[0]).await?;
            assert_eq!(object.content_type, "image/png");
            wait::until(
                "no upload to be left",
                std::time::Duration::from_secs(10),
                async || {
                    let bucket = stack.garage().bucket().await;
                    bucket.is_ok_and(|bucket| bucket["unfinishedMultipartUploads"] == 0)
                },
            )
            .await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_hit_comes_out_of_the_held_bytes_until_the_commit_is_confirmed() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = generic(&origin, Store::Garage).start().await?;
    for size in [50 * KIB, 3 * MIB] {
        let path = format!("/{size}");
        let body = png(size);
        let gate = Gate::closed();
        let script = Script::ok("image/png", body.clone()).wait_at(size / 2, &gate);
        origin.respond(&path, script);
        let (client, held) = (stack.client.clone(), path.clone());
        let miss = tokio::spawn(async move { client.get(&held).await });
        until(&stack, "an open fill", |metrics| {
            metrics.sum("afterimage_open_fills", &[]) == 1.0
        })
        .await?;
        let commits = crate::scripted::committed(&stack.metrics().await?);
        stack.garage().process.freeze().await?;
        gate.open();
        assert!(miss.await??.body == body);
        for client in [stack.client.clone(), stack.http2()?] {
            let hit = client.get(&path).await?;
            assert_hit(&hit, &path);
            assert!(hit.body == body, "{path}: other bytes");
            let head = client.send(client.request(Method::HEAD, &path)).await?;
            assert_hit(&head, &path);
        }
        let metrics = stack.metrics().await?;
        assert_eq!(crate::scripted::committed(&metrics), commits);
        stack.garage().process.thaw()?;
        commits_reach(&stack, commits as usize + 1).await?;
        is_quiet(&stack).await?;
        assert_hit(&stack.get(&path).await?, &path);
    }
    assert_eq!(origin.requests().len(), 2);
    Ok(())
}

#[tokio::test]
async fn cache_status_says_what_happened() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let script = Script::ok("image/png", png(3 * KIB)).without("cache-control");
    let fresh_for = |seconds: &str| {
        script
            .clone()
            .header("cache-control", &format!("max-age={seconds}"))
    };
    origin.respond("/short", fresh_for("1"));
    origin.respond(
        "/private",
        fresh_for("60").header("cache-control", "private"),
    );

    let head = stack.client.request(Method::HEAD, "/short");
    assert_eq!(stack.client.send(head).await?.cache_status(), NOT_STORED);
    assert_eq!(stack.get("/private").await?.cache_status(), NOT_STORED);
    assert_eq!(stack.get("/unknown").await?.cache_status(), NOT_STORED);
    let post = stack.client.request(Method::POST, "/short").body("a body");
    assert_eq!(
        stack.client.send(post).await?.cache_status(),
        "afterimage; fwd=method"
    );

    assert_eq!(stack.get("/short").await?.cache_status(), STORED);
    let mut seen = String::new();
    let patience = std::time::Duration::from_secs(10);
    wait::until("the entry to be stale", patience, async || {
        let answer = stack.get("/short").await.expect("there is an answer");
        seen = answer.cache_status().to_owned();
        !answer.is_hit()
    })
    .await?;
    assert_eq!(seen, "afterimage; fwd=stale; fwd-status=200; stored");
    Ok(())
}

#[tokio::test]
async fn a_hit_has_the_headers_of_its_miss() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Garage).start().await?;
    for size in [3 * KIB, 2 * MIB] {
        let path = format!("/{size}");
        let script = Script::ok("image/png", png(size))
            .header("content-disposition", "inline; filename=\"kä se.png\"")
            .header("x-note", "\u{fffd} caf\u{e9}")
            .header("x-empty", "")
            .header("etag", "\"v1\"")
            .header("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")
            .header("link", "</a>; rel=preload")
            .header("link", "</b>; rel=preload")
            .header("connection", "x-hop")
            .header("x-hop", "one connection only")
            .header("cache-status", "other; fwd=miss");
        origin.respond(&path, script);
        let miss = stack.get(&path).await?;
        commits_reach(&stack, 1).await?;
        is_quiet(&stack).await?;
        for client in [stack.client.clone(), stack.http2()?] {
            let hit = client.get(&path).await?;
            assert_hit(&hit, &path);
            for name in [
                "content-disposition",
                "x-note",
                "x-empty",
                "etag",
                "last-modified",
                "cache-control",
                "content-type",
            ] {
                let value = miss.headers.get(name).context(name)?;
                let values: Vec<_> = hit.headers.get_all(name).iter().collect();
                assert_eq!(values, [value], "{name}");
            }
            assert_eq!(
                hit.header("link"),
                Some("</a>; rel=preload, </b>; rel=preload")
            );
            assert_eq!(hit.headers.get("x-hop"), None);
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_a_route_adds_is_there_once_on_misses_and_small_hits() -> Result<()> {
    let origin = Origin::start().await?;
    let mut route = envoy::route("/added/", "imgproxy", Some("images"));
    route["response_headers_to_add"] =
        json!([{"header": {"key": "x-route", "value": "of the route"}}]);
    let stack = generic(&origin, Store::Local)
        .policies("images: {kind: generic, store: {exclude_headers: [x-route]}}")
        .route(route)
        .start()
        .await?;
    for (size, added) in [(3 * KIB, Some("of the route")), (2 * MIB, None)] {
        let path = format!("/added/{size}");
        origin.respond(&path, Script::ok("image/png", png(size)));
        let miss = stack.get(&path).await?;
        assert_eq!(miss.header("x-route"), Some("of the route"));
        is_quiet(&stack).await?;
        let hit = stack.get(&path).await?;
        assert_hit(&hit, &path);
        // Envoy adds it to an immediate response, and not to a streamed one.
        assert_eq!(hit.header("x-route"), added, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_hundred_hits_at_a_time_are_all_whole() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Garage).start().await?;
    for size in [3 * KIB, 50 * KIB, 2 * MIB] {
        let path = format!("/{size}");
        let body = png(size);
        origin.respond(&path, Script::ok("image/png", body.clone()));
        stack.get(&path).await?;
        is_quiet(&stack).await?;
        let clients: [Client; 2] = [stack.client.clone(), stack.http2()?];
        let mut hits = tokio::task::JoinSet::new();
        for number in 0..100 {
            let (client, path) = (clients[number % 2].clone(), path.clone());
            hits.spawn(async move { client.get(&path).await });
        }
        for answer in hits.join_all().await {
            let answer = answer?;
            assert_eq!((answer.status, &answer.cut), (200, &None), "{path}");
            assert!(answer.body == body, "{path}: other bytes");
        }
        is_quiet(&stack).await?;
    }
    // A hit that found no room in time was forwarded, which is as good for its client.
    let metrics = stack.metrics().await?;
    let hits = metrics.sum("afterimage_requests_total", &[("outcome", "hit")]);
    assert!(hits >= 200.0, "{hits} hits");
    Ok(())
}
