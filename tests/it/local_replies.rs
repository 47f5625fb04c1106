//! What Envoy itself answers is never stored, however much it looks like an image; it stands in nobody's way, either.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::envoy;
use crate::support::fate::Fate;
use crate::support::origin::{Gate, Origin, Script};
use crate::support::ports::Port;
use crate::support::stack::{Builder, Stack};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\nan image, as far as its first bytes say";
const NOT_UPSTREAM: Fate = Fate::Refused("not_upstream");

#[tokio::test]
async fn an_image_that_a_route_answers_by_itself_is_not_stored() -> Result<()> {
    let image = json!({"inline_bytes": BASE64.encode(PNG)});
    let stack = with_route("/direct/", |route| {
        route["direct_response"] = json!({"status": 200, "body": image});
    })
    .start()
    .await?;
    for path in ["/direct/a", "/direct/insecure/plain/local:///a@png"] {
        for count in 1..=3 {
            let answer = stack.get(path).await?;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.body, PNG);
            assert_eq!(answer.header("content-type"), Some("image/png"));
            assert_eq!(answer.cache_status(), "afterimage; fwd=miss", "{count}");
        }
    }
    is_refused(&stack, 6).await
}

#[tokio::test]
async fn a_redirect_of_a_route_is_not_stored() -> Result<()> {
    let stack = with_route("/redirect/", |route| {
        route["redirect"] = json!({"path_redirect": "/other", "response_code": "FOUND"});
    })
    .start()
    .await?;
    for _ in 0..2 {
        let answer = stack.get("/redirect/a").await?;
        assert_eq!(answer.status, 302);
        let location = answer.header("location").unwrap_or_default();
        assert!(location.ends_with("/other"), "{location}");
        assert_eq!(answer.cache_status(), "afterimage; fwd=miss");
    }
    is_refused(&stack, 2).await
}

#[tokio::test]
async fn envoys_503_is_not_stored_and_the_upstream_that_comes_back_is() -> Result<()> {
    // Nobody listens there.
    let port = Port::free()?;
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
    let stack = with_route("/dead/", |route| {
        route["route"] = json!({"cluster": "dead", "timeout": "30s"});
    })
    .cluster("dead", nowhere)
    .start()
    .await?;
    for _ in 0..2 {
        let answer = stack.get("/dead/a").await?;
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(answer.cache_status(), "afterimage; fwd=miss");
    }
    is_refused(&stack, 2).await
}

#[tokio::test]
async fn an_imgproxy_that_was_down_fills_as_soon_as_it_is_back() -> Result<()> {
    let path = "/insecure/rs:fill:120:80/plain/local:///coffee.png@webp";
    let mut stack = Stack::builder().start().await?;
    stack.imgproxy().process.kill()?;
    for _ in 0..2 {
        let answer = stack.get(path).await?;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.cache_status(), "afterimage; fwd=miss");
    }
    is_refused(&stack, 2).await?;
    stack.imgproxy().process.start_again()?;
    let own = stack.imgproxy_client()?;
    let patience = std::time::Duration::from_secs(30);
    crate::support::wait::until("an image", patience, async || {
        own.get(path).await.is_ok_and(|answer| answer.status == 200)
    })
    .await?;
    let miss = stack.get(path).await?;
    assert_eq!(miss.cache_status(), "afterimage; fwd=miss; stored");
    assert!(stack.get(path).await?.is_hit());
    stack.commits_reach(1).await
}

#[tokio::test]
async fn envoys_504_is_not_stored_and_the_answer_that_comes_in_time_is() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = with_route("/slow/", |route| {
        route["route"] = json!({"cluster": "slow", "timeout": "0.2s"});
    })
    .cluster("slow", origin.address())
    .start()
    .await?;
    let gate = Gate::closed();
    let image = Script::ok("image/png", PNG);
    origin.respond("/slow/a", image.clone().wait_before_head(&gate));
    for count in 1..=2 {
        let answer = stack.get("/slow/a").await?;
        assert_eq!(answer.status, 504, "{answer:?}");
        assert_eq!(answer.cache_status(), "afterimage; fwd=miss");
        assert_eq!(origin.requests_for("/slow/a").len(), count);
    }
    is_refused(&stack, 2).await?;
    gate.open();
    origin.respond("/slow/a", image);
    let miss = stack.get("/slow/a").await?;
    assert_eq!(miss.cache_status(), "afterimage; fwd=miss; stored");
    assert!(stack.get("/slow/a").await?.is_hit());
    stack.commits_reach(1).await
}

#[tokio::test]
async fn a_body_that_runs_into_the_timeout_of_its_route_is_not_stored() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = with_route("/slow/", |route| {
        route["route"] = json!({"cluster": "slow", "timeout": "0.2s"});
    })
    .cluster("slow", origin.address())
    .start()
    .await?;
    let gate = Gate::closed();
    origin.respond("/slow/a", Script::ok("image/png", PNG).wait_at(20, &gate));
    let answer = stack.get("/slow/a").await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.cut.is_some(), "{answer:?}");
    Fate::Aborted("cut").count_reaches(&stack, 1).await?;
    stack.commits_reach(0).await?;
    assert_eq!(stack.stored().await?, 0);
    Ok(())
}

/// A stack with a cached route whose answers all claim to be images, fresh for an hour.
fn with_route(prefix: &str, action: impl FnOnce(&mut Value)) -> Builder {
    let mut route = envoy::route(prefix, "", Some("generic"));
    if let Some(fields) = route.as_object_mut() {
        fields.remove("route");
    }
    let overwrite = |name: &str, value: &str| {
        json!({
            "header": {"key": name, "value": value},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        })
    };
    route["response_headers_to_add"] = json!([
        overwrite("content-type", "image/png"),
        overwrite("cache-control", "public, max-age=3600"),
    ]);
    action(&mut route);
    Stack::builder()
        .policies(
            "{images: { kind: imgproxy, unsigned: true },
              generic: { kind: generic }}",
        )
        .route(route)
}

/// All answers were refused because they are not the upstream's, and nothing is stored.
async fn is_refused(stack: &Stack, answers: usize) -> Result<()> {
    NOT_UPSTREAM.count_reaches(stack, answers).await?;
    stack.commits_reach(0).await?;
    assert_eq!(stack.stored().await?, 0);
    Ok(())
}
