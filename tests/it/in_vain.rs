//! Nobody waits for what will not come, and no word is said of what was not done.

use anyhow::Result;
use bytes::Bytes;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::scripted::{KIB, MIB, NOT_STORED, STORED, aborted, commits_reach, generic, png, until};
use crate::support::client::Answer;
use crate::support::envoy::Bootstrap;
use crate::support::metrics::Metrics;
use crate::support::origin::{Framing, Gate, Origin, Script};
use crate::support::stack::{Builder, Stack, Store};

const TAG: &str = "\"v1\"";

fn script(body: &Bytes, line: &str) -> Script {
    Script::status(200)
        .header("content-type", "image/png")
        .header("cache-control", line)
        .header("etag", TAG)
        .body(body.clone())
}

/// A policy that names the origin as its upstream, with these fields beside it.
fn with_upstream(origin: &Origin, more: &str) -> Builder {
    let url = format!("url: 'http://{}'", origin.address());
    let policies = format!("images: {{kind: generic, upstream: {{{url}}}{more}}}");
    generic(origin, Store::Local).policies(&policies)
}

fn ask(stack: &Stack, path: &'static str) -> JoinHandle<Result<Answer>> {
    let client = stack.client.clone();
    tokio::spawn(async move { client.get(path).await })
}

fn followers(metrics: &Metrics) -> f64 {
    metrics.sum("afterimage_followers_total", &[]) + metrics.sum("afterimage_following", &[])
}

#[tokio::test]
async fn a_request_does_not_follow_itself() -> Result<()> {
    let origin = Origin::start().await?;
    // What is stale as it comes would not be waited for again.
    let stack = with_upstream(&origin, ", store: {hit_for_miss: 0s}")
        .start()
        .await?;
    let body = png(3 * MIB);
    origin.respond("/a", script(&body, "max-age=0"));
    stack.get("/a").await?;
    commits_reach(&stack, 1).await?;
    // The entry is confirmed by an answer that may not be stored, so it is forgotten.
    let whole = script(&body, "max-age=60");
    origin.respond_with("/a", move |seen| match seen.header("if-none-match") {
        Some(_) => Script::status(304)
            .header("etag", TAG)
            .header("set-cookie", "a=b"),
        None => whole.clone(),
    });
    let answer = stack.get("/a").await?;
    assert!(answer.status == 200 && answer.body == body);
    assert_eq!(followers(&stack.metrics().await?), 0.0);
    assert_eq!(origin.requests_for("/a").len(), 3);
    Ok(())
}

/// Envoy passes trailers of HTTP/1.1 on.
fn with_trailers(bootstrap: &mut Bootstrap) -> Result<()> {
    bootstrap.processor()?["message_timeout"] = "20s".into();
    bootstrap.cluster("imgproxy")?["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http_protocol_options": {"enable_trailers": true}},
        }
    });
    Ok(())
}

#[tokio::test]
async fn nobody_waits_for_what_is_not_storable_by_its_bytes_or_its_trailers() -> Result<()> {
    let body = png(50 * KIB);
    let mislabelled = Script::ok("image/jpeg", body.clone());
    let trailers = script(&body, "max-age=60").framing(Framing::Trailers);
    for (script, reason) in [(mislabelled, "not_declared_image"), (trailers, "trailers")] {
        let origin = Origin::start().await?;
        let stack = generic(&origin, Store::Local)
            .adjust_envoy(with_trailers)
            .start()
            .await?;
        origin.respond("/a", script.clone());
        let first = stack.get("/a").await?;
        assert!(first.cut.is_none() && first.body == body, "{reason}");
        until(&stack, reason, |metrics| aborted(metrics, reason) == 1.0).await?;
        // Each of the next wave goes on at once, although none of those before it is answered.
        let gate = Gate::closed();
        origin.respond("/a", script.wait_before_head(&gate));
        let wave: Vec<_> = (0..6).map(|_| ask(&stack, "/a")).collect();
        gate.reached_by(6).await?;
        gate.open();
        for answer in wave {
            assert!(answer.await??.body == body, "{reason}");
        }
        assert_eq!(followers(&stack.metrics().await?), 0.0, "{reason}");
    }
    Ok(())
}

#[tokio::test]
async fn the_first_storable_answer_lets_requests_wait_again() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let body = png(50 * KIB);
    origin.respond("/a", Script::ok("image/jpeg", body.clone()));
    stack.get("/a").await?;
    until(&stack, "the refusal", |metrics| {
        aborted(metrics, "not_declared_image") == 1.0
    })
    .await?;
    origin.respond("/a", script(&body, "max-age=60"));
    assert_eq!(stack.get("/a").await?.cache_status(), STORED);
    commits_reach(&stack, 1).await?;
    // What is stored goes, so that there is something to wait for.
    let post = stack.client.request(reqwest::Method::POST, "/a");
    stack.client.send(post).await?;
    let gate = Gate::closed();
    origin.respond("/a", script(&body, "max-age=60").wait_before_head(&gate));
    let first = ask(&stack, "/a");
    gate.reached_by(1).await?;
    let second = ask(&stack, "/a");
    until(&stack, "a follower", |metrics| followers(metrics) == 1.0).await?;
    gate.open();
    assert!(first.await??.body == body && second.await??.body == body);
    Ok(())
}

#[tokio::test]
async fn followers_do_not_wait_for_the_completion_of_a_large_body() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = with_upstream(&origin, "")
        .settings("limits: {stream_cap: 16MiB, budget: 64MiB}")
        .start()
        .await?;
    let (body, before_head, in_body) = (png(12 * MIB), Gate::closed(), Gate::closed());
    origin.respond(
        "/a",
        script(&body, "max-age=60").wait_before_head(&before_head),
    );
    let leader = ask(&stack, "/a");
    before_head.reached_by(1).await?;
    let waiting: Vec<_> = (0..3).map(|_| ask(&stack, "/a")).collect();
    until(&stack, "followers", |metrics| followers(metrics) == 3.0).await?;
    // The leader leaves, and a request of our own takes over, whose body does not come to its end.
    origin.respond("/a", script(&body, "max-age=60").wait_at(MIB, &in_body));
    leader.abort();
    // Those that waited are sent on at its begin.
    in_body.reached_by(4).await?;
    in_body.open();
    before_head.open();
    for answer in waiting {
        assert!(answer.await??.body == body);
    }
    // None of them has waited until its time was over.
    stack
        .metric_reaches("afterimage_followers_total", &[("result", "turn")], 3)
        .await
}

#[tokio::test]
async fn what_the_store_has_no_room_for_is_not_said_to_be_stored_again() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local)
        .settings("store: {local: {max_bytes: 40KiB}}")
        .start()
        .await?;
    let body = png(50 * KIB);
    origin.respond("/a", script(&body, "max-age=60"));
    assert_eq!(stack.get("/a").await?.cache_status(), STORED);
    until(&stack, "the refusal", |metrics| {
        aborted(metrics, "store") == 1.0
    })
    .await?;
    for count in [1.0, 2.0] {
        let answer = stack.get("/a").await?;
        assert!(answer.body == body);
        assert_eq!(answer.cache_status(), NOT_STORED);
        until(&stack, "no fill", |metrics| {
            aborted(metrics, "refused") == count
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_refresh_that_the_store_does_not_take_has_stored_nothing() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = with_upstream(&origin, "")
        .settings("store: {local: {max_bytes: 40KiB}}")
        .start()
        .await?;
    let line = "max-age=0, stale-while-revalidate=3600";
    let old = png(10 * KIB);
    origin.respond("/a", script(&old, line));
    stack.get("/a").await?;
    commits_reach(&stack, 1).await?;
    origin.respond("/a", script(&png(50 * KIB), line));
    let stale = stack.get("/a").await?;
    assert!(stale.is_hit() && stale.body == old);
    let fetches = |metrics: &Metrics, result| {
        metrics.sum("afterimage_upstream_fetches_total", &[("result", result)])
    };
    until(&stack, "the fetch", |metrics| {
        fetches(metrics, "not_stored") == 1.0
    })
    .await?;
    assert_eq!(fetches(&stack.metrics().await?, "stored"), 0.0);
    Ok(())
}
