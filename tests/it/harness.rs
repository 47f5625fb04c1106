//! The test harness itself, without Afterimage: real Envoy, imgproxy and Garage, and the scripted origin.

use anyhow::{Context as _, Result};
use reqwest::Method;
use serde_json::json;

use crate::support::envoy;
use crate::support::origin::{Cut, Framing, Gate, Origin, Script};
use crate::support::stack::{Stack, Store};
use crate::support::wait;

const COFFEE: &str = "/insecure/rs:fill:300:200/plain/local:///coffee.png@webp";

/// The size of a body that takes many reads and writes.
const LARGE: usize = 1 << 20;

#[tokio::test]
async fn an_image_through_envoy_is_imgproxys_own() -> Result<()> {
    let stack = Stack::builder().without_afterimage().start().await?;
    let own = stack.imgproxy_client()?.get(COFFEE).await?;
    assert_eq!(own.status, 200);
    assert_eq!(&own.body[8..12], b"WEBP");
    for route in ["", "/uncached", "/thumbs"] {
        let through = stack.get(&format!("{route}{COFFEE}")).await?;
        assert_eq!(through.status, 200, "{route}");
        assert_eq!(through.header("content-type"), Some("image/webp"));
        assert_eq!(through.body, own.body, "{route}");
        assert_eq!(through.cut, None);
    }
    let http2 = stack.http2()?.get(COFFEE).await?;
    assert_eq!(http2.body, own.body);
    Ok(())
}

#[tokio::test]
async fn the_access_log_has_one_line_for_each_request() -> Result<()> {
    let stack = Stack::builder().without_afterimage().start().await?;
    let size = stack.get(COFFEE).await?.body.len();
    let patience = std::time::Duration::from_secs(5);
    wait::until("the line", patience, async || {
        !stack.envoy.access_log().is_empty()
    })
    .await?;
    let log = stack.envoy.access_log();
    let line = log.first().context("waited for it")?;
    assert_eq!(log.len(), 1);
    assert!(
        line.contains(&format!("status=200 bytes={size} duration_ms="))
            && line.contains("outcome=- details=via_upstream flags=-"),
        "{line}"
    );
    Ok(())
}

#[tokio::test]
async fn stacks_run_side_by_side() -> Result<()> {
    let builder = || Stack::builder().without_afterimage();
    let (one, other) = tokio::try_join!(builder().start(), builder().start())?;
    assert_ne!(one.envoy.base_url(), other.envoy.base_url());
    assert_eq!(one.get(COFFEE).await?.status, 200);
    assert_eq!(other.get(COFFEE).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_killed_imgproxy_comes_back_on_its_port() -> Result<()> {
    let mut stack = Stack::builder().without_afterimage().start().await?;
    stack.imgproxy().process.kill()?;
    assert_eq!(stack.get(COFFEE).await?.status, 503);
    stack.imgproxy().process.start_again()?;
    let patience = std::time::Duration::from_secs(20);
    wait::until("an image", patience, async || {
        stack
            .get(COFFEE)
            .await
            .is_ok_and(|answer| answer.status == 200)
    })
    .await
}

#[tokio::test]
async fn garage_has_its_bucket_and_its_rules() -> Result<()> {
    for store in [Store::Garage, Store::GarageOverUnix] {
        let origin = Origin::start().await?;
        let mut stack = Stack::builder()
            .store(store)
            .upstream(origin.address())
            .without_afterimage()
            .start()
            .await?;
        let bucket = stack.garage().bucket().await?;
        assert_eq!(bucket["objects"], 0);
        let rules = bucket["lifecycleRules"].as_array().context("rules")?;
        assert_eq!(rules[0]["Expiration"], json!({"Days": 40}));
        let abort = json!({"DaysAfterInitiation": 1});
        assert_eq!(rules[1]["AbortIncompleteMultipartUpload"], abort);
        assert_eq!(rules[2]["Filter"]["Prefix"], "staging/");

        stack.garage().process.kill()?;
        stack.garage().process.start_again()?;
        stack.garage().wait_until_ready().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_origin_answers_as_it_is_told_and_remembers() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = Stack::builder()
        .upstream(origin.address())
        .without_afterimage()
        .start()
        .await?;
    let body = vec![7; LARGE];
    let whole = Script::ok("image/png", body.clone());
    origin.respond("/length", whole.clone());
    origin.respond("/chunked", whole.clone().framing(Framing::Chunked));
    origin.respond("/close", whole.clone().framing(Framing::Close));
    origin.respond_with("/conditional", move |request| {
        match request.header("if-none-match") {
            Some("\"v1\"") => Script::status(304).header("etag", "\"v1\""),
            _ => whole.clone().header("etag", "\"v1\""),
        }
    });
    for path in ["/length", "/chunked", "/close", "/conditional"] {
        let answer = stack.get(path).await?;
        assert_eq!((answer.status, &answer.cut), (200, &None), "{path}");
        assert_eq!(answer.body, body, "{path}");
    }
    let request = stack.client.request(Method::GET, "/conditional");
    let answer = stack.client.send(request.header("if-none-match", "\"v1\""));
    assert_eq!(answer.await?.status, 304);
    let post = stack
        .client
        .request(Method::POST, "/unknown")
        .body("a body");
    assert_eq!(stack.client.send(post).await?.status, 404);
    let head = stack.client.request(Method::HEAD, "/length");
    assert_eq!(stack.client.send(head).await?.body.len(), 0);

    let conditional = origin.requests_for("/conditional");
    assert_eq!(conditional.len(), 2);
    assert_eq!(conditional[0].header("if-none-match"), None);
    assert_eq!(origin.requests_for("/unknown")[0].body, "a body");
    Ok(())
}

#[tokio::test]
async fn bodies_that_break_off_are_seen_as_cut() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = Stack::builder()
        .upstream(origin.address())
        .without_afterimage()
        .start()
        .await?;
    let whole = Script::ok("image/png", vec![7; LARGE]);
    let short = Framing::WrongLength(LARGE + 1);
    origin.respond("/short", whole.clone().framing(short));
    for (path, framing, how) in [
        ("/length", Framing::Length, Cut::Close),
        ("/length-reset", Framing::Length, Cut::Reset),
        ("/chunked", Framing::Chunked, Cut::Close),
        ("/chunked-reset", Framing::Chunked, Cut::Reset),
    ] {
        let script = whole.clone().framing(framing).cut_after(LARGE / 2, how);
        origin.respond(path, script);
    }
    for path in [
        "/short",
        "/length",
        "/length-reset",
        "/chunked",
        "/chunked-reset",
    ] {
        for client in [stack.client.clone(), stack.http2()?] {
            let answer = client.get(path).await?;
            assert_eq!(answer.status, 200, "{path}");
            assert!(answer.cut.is_some(), "{path}: {answer:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_gate_holds_a_body_until_it_is_opened() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = Stack::builder()
        .upstream(origin.address())
        .without_afterimage()
        .start()
        .await?;
    let (head, middle) = (Gate::closed(), Gate::closed());
    let script = Script::ok("image/png", vec![7; LARGE])
        .wait_before_head(&head)
        .wait_at(LARGE / 2, &middle);
    origin.respond("/held", script);

    let client = stack.client.clone();
    let answer = tokio::spawn(async move { client.get("/held").await });
    head.reached_by(1).await?;
    head.open();
    middle.reached_by(1).await?;
    assert!(!answer.is_finished());
    middle.open();
    assert_eq!(answer.await??.body.len(), LARGE);
    Ok(())
}

#[tokio::test]
async fn a_route_of_the_test_goes_to_its_own_cluster() -> Result<()> {
    let (origin, other) = tokio::try_join!(Origin::start(), Origin::start())?;
    let stack = Stack::builder()
        .upstream(origin.address())
        .cluster("other", other.address())
        .route(envoy::route("/other/", "other", Some("generic")))
        .without_afterimage()
        .start()
        .await?;
    stack.get("/other/a").await?;
    stack.get("/b").await?;
    assert_eq!(other.requests_for("/other/a").len(), 1);
    assert_eq!(origin.requests_for("/b").len(), 1);
    // The path arrives as it was written.
    let raw = b"GET /a/../b//c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stack.client.raw(raw).await?;
    assert_eq!(origin.requests_for("/a/../b//c").len(), 1);
    Ok(())
}
