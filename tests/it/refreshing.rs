//! Requests of our own: in the background, and for entries that are too large to be held while the upstream is asked.

use anyhow::{Context as _, Result};
use reqwest::Method;

use crate::scripted::{KIB, MIB, STORED, commits_reach, generic, png, until};
use crate::support::metrics::Metrics;
use crate::support::origin::{Cut, Gate, Origin, Script, Seen};
use crate::support::ports::Port;
use crate::support::stack::{Builder, Stack, Store};

const TAG: &str = "\"v1\"";
const IN_WINDOW: &str = "max-age=0, stale-while-revalidate=3600";

/// A stack whose policy names the origin as its upstream.
fn stack(origin: &Origin, store: Store) -> Builder {
    let policies = format!(
        "images: {{kind: generic, upstream: {{url: 'http://{}'}}}}",
        origin.address()
    );
    generic(origin, store).policies(&policies)
}

fn script(body: &bytes::Bytes, line: &str) -> Script {
    Script::status(200)
        .header("content-type", "image/png")
        .header("cache-control", line)
        .header("etag", TAG)
        .body(body.clone())
}

fn fetches(metrics: &Metrics, result: &str) -> f64 {
    metrics.sum("afterimage_upstream_fetches_total", &[("result", result)])
}

fn is_ours(seen: &Seen) -> bool {
    seen.header("afterimage-fetch").is_some()
}

#[tokio::test]
async fn inside_stale_while_revalidate_nobody_waits_and_we_ask_once() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = stack(&origin, Store::Local).start().await?;
    let old = png(50 * KIB);
    origin.respond("/a", script(&old, IN_WINDOW));
    assert_eq!(stack.get("/a").await?.cache_status(), STORED);
    commits_reach(&stack, 1).await?;

    let gate = Gate::closed();
    let new = png(60 * KIB);
    let fresh = script(&new, "max-age=3600").wait_before_head(&gate);
    origin.respond("/a", fresh);
    for client in [stack.client.clone(), stack.http2()?] {
        for method in [Method::GET, Method::HEAD, Method::GET] {
            let request = client.request(method.clone(), "/a");
            let stale = client.send(request.header("accept-language", "de")).await?;
            assert_eq!(stale.status, 200);
            assert!(method == Method::HEAD || stale.body == old);
            let status = stale.cache_status();
            assert!(status.starts_with("afterimage; hit; ttl="), "{status}");
        }
    }
    gate.reached_by(1).await?;
    gate.open();
    commits_reach(&stack, 2).await?;
    let hit = stack.get("/a").await?;
    assert!(hit.is_hit() && hit.body == new);
    let seen = origin.requests_for("/a");
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(!is_ours(&seen[0]) && is_ours(&seen[1]));
    assert_eq!(seen[1].header("if-none-match"), Some(TAG));
    assert_eq!(seen[1].header("host"), seen[0].header("host"));
    Ok(())
}

#[tokio::test]
async fn a_refresh_in_the_background_that_finds_nothing_new_freshens_the_entry() -> Result<()> {
    for store in [Store::Local, Store::Garage] {
        let origin = Origin::start().await?;
        let stack = stack(&origin, store).start().await?;
        let body = png(50 * KIB);
        origin.respond("/a", script(&body, IN_WINDOW));
        stack.get("/a").await?;
        commits_reach(&stack, 1).await?;
        let unchanged = Script::status(304)
            .header("etag", TAG)
            .header("cache-control", "max-age=3600");
        origin.respond("/a", unchanged);
        assert!(stack.get("/a").await?.is_hit());
        until(&stack, "a freshened entry", |metrics| {
            fetches(metrics, "freshened") == 1.0
        })
        .await?;
        let hit = stack.get("/a").await?;
        assert_eq!(hit.header("cache-control"), Some("max-age=3600"));
        assert!(hit.body == body);
        assert_eq!(origin.requests_for("/a").len(), 2);
    }
    Ok(())
}

#[tokio::test]
async fn an_upstream_that_fails_in_the_background_changes_nothing() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = stack(&origin, Store::Local).start().await?;
    let body = png(50 * KIB);
    let line = format!("{IN_WINDOW}, stale-if-error=3600");
    origin.respond("/a", script(&body, &line));
    stack.get("/a").await?;
    commits_reach(&stack, 1).await?;
    let answers = [
        ("failed", Script::status(503)),
        ("not_stored", script(&body, "no-store")),
        // Cut in its body.
        (
            "not_stored",
            script(&body, "max-age=3600").cut_after(10 * KIB, Cut::Reset),
        ),
    ];
    let mut not_stored = 0.0;
    for (result, script) in answers {
        origin.respond("/a", script);
        let stale = stack.get("/a").await?;
        assert!(stale.is_hit() && stale.body == body);
        not_stored += f64::from(u8::from(result == "not_stored"));
        let expected = if result == "failed" { 1.0 } else { not_stored };
        until(&stack, result, |metrics| {
            fetches(metrics, result) == expected
        })
        .await?;
    }
    let stale = stack.get("/a").await?;
    assert!(stale.is_hit() && stale.body == body);
    Ok(())
}

#[tokio::test]
async fn no_more_refreshes_run_at_a_time_than_configured() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = stack(&origin, Store::Local)
        .settings("limits: {upstream_fetches: 1}")
        .start()
        .await?;
    let body = png(10 * KIB);
    for path in ["/a", "/b"] {
        origin.respond(path, script(&body, IN_WINDOW));
        stack.get(path).await?;
    }
    commits_reach(&stack, 2).await?;
    let gate = Gate::closed();
    for path in ["/a", "/b"] {
        origin.respond(path, script(&body, IN_WINDOW).wait_before_head(&gate));
    }
    assert!(stack.get("/a").await?.is_hit());
    gate.reached_by(1).await?;
    assert!(stack.get("/b").await?.is_hit());
    until(&stack, "a refusal", |metrics| {
        fetches(metrics, "nothing") == 1.0
    })
    .await?;
    assert_eq!(origin.requests_for("/b").len(), 1);
    gate.open();
    Ok(())
}

#[tokio::test]
async fn a_large_stale_entry_is_asked_about_while_its_request_waits() -> Result<()> {
    for store in [Store::Local, Store::Garage] {
        let origin = Origin::start().await?;
        let stack = stack(&origin, store).start().await?;
        let body = png(3 * MIB);
        let line = "max-age=0, stale-if-error=3600";
        origin.respond("/a", script(&body, line));
        stack.get("/a").await?;
        commits_reach(&stack, 1).await?;

        // It takes longer than Envoy waits for an answer unless it is asked to.
        let gate = Gate::closed();
        let unchanged = || {
            Script::status(304)
                .header("etag", TAG)
                .header("cache-control", line)
        };
        origin.respond("/a", unchanged().wait_before_head(&gate));
        let waiting = tokio::spawn({
            let client = stack.client.clone();
            async move { client.get("/a").await }
        });
        gate.reached_by(1).await?;
        gate.open();
        let confirmed = waiting.await??;
        assert_eq!(
            confirmed.cache_status(),
            "afterimage; fwd=stale; fwd-status=304"
        );
        assert!(confirmed.body == body);
        let range = stack.client.request(Method::GET, "/a");
        let part = stack
            .client
            .send(range.header("range", "bytes=5-9"))
            .await?;
        assert_eq!((part.status, &part.body[..]), (206, &body[5..10]));

        origin.respond("/a", Script::status(503));
        let failed = stack.get("/a").await?;
        assert_eq!(
            failed.cache_status(),
            "afterimage; fwd=stale; fwd-status=503"
        );
        assert!(failed.status == 200 && failed.body == body);

        let other = png(4 * MIB);
        origin.respond("/a", script(&other, "max-age=3600"));
        let changed = stack.get("/a").await?;
        assert_eq!(
            changed.cache_status(),
            "afterimage; fwd=stale; fwd-status=200; stored"
        );
        assert!(changed.body == other);
        let hit = stack.get("/a").await?;
        assert!(hit.is_hit() && hit.body == other);
        let seen = origin.requests_for("/a");
        assert!(seen.len() == 5 && seen[1..].iter().all(is_ours), "{seen:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_large_stale_entry_that_may_not_be_stored_again_is_sent_on() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = stack(&origin, Store::Local).start().await?;
    origin.respond("/a", script(&png(3 * MIB), "max-age=0"));
    stack.get("/a").await?;
    commits_reach(&stack, 1).await?;
    let private = png(2 * MIB);
    origin.respond("/a", script(&private, "private"));
    let answer = stack.get("/a").await?;
    assert!(answer.body == private);
    assert_eq!(
        answer.cache_status(),
        "afterimage; fwd=stale; fwd-status=200"
    );
    let seen = origin.requests_for("/a");
    assert!(!is_ours(seen.last().expect("it was asked")));
    Ok(())
}

/// A stack whose policy names a second listener of the same Envoy as its upstream.
async fn circular(origin: &Origin, second: &Port) -> Result<Stack> {
    let port = second.number();
    let policies =
        format!("images: {{kind: generic, upstream: {{url: 'http://127.0.0.1:{port}'}}}}");
    generic(origin, Store::Local)
        .policies(&policies)
        .adjust_envoy(move |bootstrap| {
            let listeners = bootstrap.whole()["static_resources"]["listeners"]
                .as_array_mut()
                .context("there are listeners")?;
            let mut listener = listeners[0].clone();
            listener["name"] = "second".into();
            listener["address"]["socket_address"]["port_value"] = port.into();
            listeners.push(listener);
            Ok(())
        })
        .start()
        .await
}

#[tokio::test]
async fn an_upstream_that_is_envoy_itself_does_not_go_round_in_circles() -> Result<()> {
    let origin = Origin::start().await?;
    let second = Port::free()?;
    let stack = circular(&origin, &second).await?;
    let body = png(50 * KIB);
    origin.respond("/a", script(&body, IN_WINDOW));
    stack.get("/a").await?;
    commits_reach(&stack, 1).await?;
    let new = png(60 * KIB);
    origin.respond("/a", script(&new, "max-age=3600"));
    assert!(stack.get("/a").await?.is_hit());
    commits_reach(&stack, 2).await?;
    let hit = stack.get("/a").await?;
    assert!(hit.is_hit() && hit.body == new);
    assert_eq!(origin.requests_for("/a").len(), 2);
    let metrics = stack.metrics().await?;
    let own = [("outcome", "bypass"), ("reason", "own_fetch")];
    assert_eq!(metrics.sum("afterimage_requests_total", &own), 1.0);
    Ok(())
}
