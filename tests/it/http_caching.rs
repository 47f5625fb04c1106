//! The rules of HTTP caching, through Envoy on both protocols: conditions, ranges, validation, stale answers.

use anyhow::{Context as _, Result};
use reqwest::Method;

use crate::scripted::{KIB, MIB, STORED, commits_reach, generic, png};
use crate::support::client::{Answer, Client};
use crate::support::origin::{Gate, Origin, Script};
use crate::support::stack::{Stack, Store};

const TAG: &str = "\"v1\"";
const MODIFIED: &str = "Wed, 01 Jan 2025 00:00:00 GMT";

/// A client on each protocol, with a word for paths.
fn clients(stack: &Stack) -> Result<[(&'static str, Client); 2]> {
    Ok([("h1", stack.client.clone()), ("h2", stack.http2()?)])
}

async fn ask(client: &Client, path: &str, fields: &[(&str, &str)]) -> Result<Answer> {
    let mut request = client.request(Method::GET, path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    client.send(request).await
}

/// Fresh for a second, with validators, and 304 for whoever has the tag.
fn short_lived(origin: &Origin, path: &str, body: &bytes::Bytes) {
    let body = body.clone();
    origin.respond_with(path, move |seen| {
        let script = if seen.header("if-none-match") == Some(TAG) {
            Script::status(304).header("x-version", "confirmed")
        } else {
            Script::status(200)
                .header("content-type", "image/png")
                .header("x-version", "first")
                .body(body.clone())
        };
        script
            .header("etag", TAG)
            .header("cache-control", "max-age=1")
    });
}

#[tokio::test]
async fn conditions_and_ranges_are_answered_from_the_store() -> Result<()> {
    for store in [Store::Local, Store::Garage] {
        let origin = Origin::start().await?;
        let stack = generic(&origin, store).start().await?;
        for (size, name) in [(50 * KIB, "small"), (3 * MIB, "large")] {
            let body = png(size);
            for (protocol, client) in clients(&stack)? {
                let path = format!("/{name}/{protocol}");
                let script = Script::ok("image/png", body.clone())
                    .header("etag", TAG)
                    .header("last-modified", MODIFIED);
                origin.respond(&path, script);
                let commits = crate::scripted::committed(&stack.metrics().await?) as usize;
                assert_eq!(client.get(&path).await?.cache_status(), STORED);
                commits_reach(&stack, commits + 1).await?;

                for condition in [
                    ("if-none-match", TAG),
                    ("if-none-match", "\"x\", W/\"v1\""),
                    ("if-modified-since", MODIFIED),
                ] {
                    let answer = ask(&client, &path, &[condition]).await?;
                    assert_eq!(answer.status, 304, "{path} {condition:?}");
                    assert_eq!(answer.header("etag"), Some(TAG));
                    assert!(answer.is_hit() && answer.body.is_empty());
                    assert_eq!(answer.cut, None);
                }
                let other = ask(&client, &path, &[("if-none-match", "\"x\"")]).await?;
                assert_eq!((other.status, &other.body), (200, &body));

                for (range, first, last) in [
                    ("bytes=0-99", 0, 99),
                    ("bytes=1000-", 1000, size - 1),
                    ("bytes=-70000", size.saturating_sub(70000), size - 1),
                ] {
                    let answer = ask(&client, &path, &[("range", range)]).await?;
                    assert_eq!(answer.status, 206, "{path} {range}");
                    assert_eq!(answer.body, body.slice(first..=last), "{path} {range}");
                    let expected = format!("bytes {first}-{last}/{size}");
                    assert_eq!(answer.header("content-range"), Some(&*expected));
                    let length = answer.body.len().to_string();
                    assert_eq!(answer.header("content-length"), Some(&*length));
                }
                let beyond = format!("bytes={size}-");
                let answer = ask(&client, &path, &[("range", &beyond)]).await?;
                assert_eq!(answer.status, 416);
                let expected = format!("bytes */{size}");
                assert_eq!(answer.header("content-range"), Some(&*expected));
                let several = ask(&client, &path, &[("range", "bytes=0-1,4-5")]).await?;
                assert_eq!((several.status, &several.body), (200, &body));
                let changed = [("range", "bytes=0-1"), ("if-range", "\"x\"")];
                assert_eq!(ask(&client, &path, &changed).await?.status, 200);
                assert_eq!(origin.requests_for(&path).len(), 1, "{path}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_stale_entry_is_confirmed_by_the_upstream_and_freshened() -> Result<()> {
    for store in [Store::Local, Store::Garage] {
        let origin = Origin::start().await?;
        let stack = generic(&origin, store).start().await?;
        let body = png(50 * KIB);
        for (protocol, client) in clients(&stack)? {
            let path = format!("/{protocol}");
            short_lived(&origin, &path, &body);
            let commits = crate::scripted::committed(&stack.metrics().await?) as usize;
            assert_eq!(client.get(&path).await?.cache_status(), STORED);
            commits_reach(&stack, commits + 1).await?;
            let patience = std::time::Duration::from_secs(10);
            let mut confirmed = None;
            crate::support::wait::until("the entry to be stale", patience, async || {
                let Ok(answer) = client.get(&path).await else {
                    return false;
                };
                assert_eq!((answer.status, &answer.body), (200, &body));
                let is_over = !answer.is_hit();
                confirmed = Some(answer);
                is_over
            })
            .await?;
            let answer = confirmed.context("waited for it")?;
            assert_eq!(
                answer.cache_status(),
                "afterimage; fwd=stale; fwd-status=304"
            );
            assert_eq!(answer.header("x-version"), Some("confirmed"));
            assert_eq!(answer.header("content-type"), Some("image/png"));
            let seen = origin.requests_for(&path);
            let last = seen.last().context("it was asked")?;
            assert_eq!(last.header("if-none-match"), Some(TAG));
            // The freshened record arrives in the background.
            crate::support::wait::until("the freshened entry", patience, async || {
                client.get(&path).await.is_ok_and(|answer| {
                    answer.is_hit() && answer.header("x-version") == Some("confirmed")
                })
            })
            .await?;
        }
        let metrics = stack.metrics().await?;
        let revalidated = [("outcome", "revalidated")];
        assert!(metrics.sum("afterimage_requests_total", &revalidated) >= 2.0);
    }
    Ok(())
}

#[tokio::test]
async fn a_stale_entry_gives_way_to_a_new_body() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    short_lived(&origin, "/a", &png(50 * KIB));
    stack.get("/a").await?;
    let other = png(60 * KIB);
    origin.respond(
        "/a",
        Script::ok("image/png", other.clone()).header("etag", "\"v2\""),
    );
    let patience = std::time::Duration::from_secs(10);
    crate::support::wait::until("the new body", patience, async || {
        let Ok(answer) = stack.get("/a").await else {
            return false;
        };
        if answer.is_hit() {
            return false;
        }
        assert_eq!(
            answer.cache_status(),
            "afterimage; fwd=stale; fwd-status=200; stored"
        );
        assert_eq!(answer.body, other);
        true
    })
    .await?;
    let hit = stack.get("/a").await?;
    assert!(hit.is_hit());
    assert_eq!(hit.body, other);
    Ok(())
}

#[tokio::test]
async fn a_stale_entry_stands_in_for_an_upstream_that_is_gone() -> Result<()> {
    let policies = "images: {kind: imgproxy, unsigned: true, freshness: {stale_if_error: 1h}}";
    let mut stack = Stack::builder()
        .policies(policies)
        .imgproxy_env("IMGPROXY_TTL", "1")
        .start()
        .await?;
    let path = "/insecure/rs:fill:30:20/plain/local:///coffee.png@webp";
    let first = stack.get(path).await?;
    assert_eq!(first.status, 200);
    stack.imgproxy().process.kill()?;
    let patience = std::time::Duration::from_secs(10);
    for client in [stack.client.clone(), stack.http2()?] {
        crate::support::wait::until("a stale answer", patience, async || {
            let Ok(answer) = client.get(path).await else {
                return false;
            };
            assert_eq!((answer.status, &answer.body), (200, &first.body));
            answer.cache_status() == "afterimage; fwd=stale; fwd-status=503"
        })
        .await?;
    }
    let other = stack
        .get("/insecure/rs:fill:31:20/plain/local:///coffee.png@webp")
        .await?;
    assert_eq!(other.status, 503);
    Ok(())
}

#[tokio::test]
async fn clients_see_entity_tags_of_the_bytes_of_imgproxys_images() -> Result<()> {
    let stack = Stack::builder().start().await?;
    let path = |format| format!("/insecure/rs:fill:30:20/plain/local:///coffee.png@{format}");
    let mut tags = Vec::new();
    for format in ["webp", "png"] {
        let path = path(format);
        let miss = stack.get(&path).await?;
        assert_eq!(miss.header("etag"), None, "the bytes are not known yet");
        let hit = stack.get(&path).await?;
        let tag = hit.header("etag").context("a hit has a tag")?.to_owned();
        let again = ask(&stack.client, &path, &[("if-none-match", &tag)]).await?;
        assert_eq!(again.status, 304);
        tags.push(tag);
    }
    assert_ne!(tags[0], tags[1]);
    Ok(())
}

#[tokio::test]
async fn inside_stale_while_revalidate_one_request_asks_and_the_others_do_not_wait() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let line = "max-age=1, stale-while-revalidate=3600";
    let old = Script::ok("image/png", png(50 * KIB))
        .without("cache-control")
        .header("cache-control", line);
    origin.respond("/a", old);
    let first = stack.get("/a").await?;
    assert_eq!(first.cache_status(), STORED);

    // The upstream keeps whoever asks waiting.
    let gate = Gate::closed();
    let new = png(60 * KIB);
    origin.respond(
        "/a",
        Script::ok("image/png", new.clone()).wait_before_head(&gate),
    );
    let asking = tokio::spawn({
        let client = stack.client.clone();
        async move {
            loop {
                let answer = client.get("/a").await?;
                if !answer.is_hit() {
                    return anyhow::Ok(answer);
                }
            }
        }
    });
    gate.reached_by(1).await?;
    for client in [stack.client.clone(), stack.http2()?] {
        for _ in 0..20 {
            let stale = client.get("/a").await?;
            assert_eq!((stale.status, &stale.body), (200, &first.body));
            let status = stale.cache_status();
            let is_stale =
                status.starts_with("afterimage; hit; ttl=-") || status.ends_with("ttl=0");
            assert!(is_stale, "{status}");
        }
    }
    gate.open();
    let asked = asking.await??;
    assert_eq!(asked.body, new);
    assert_eq!(
        asked.cache_status(),
        "afterimage; fwd=stale; fwd-status=200; stored"
    );
    let hit = stack.get("/a").await?;
    assert!(hit.is_hit() && hit.body == new);
    assert_eq!(origin.requests_for("/a").len(), 2);
    Ok(())
}
