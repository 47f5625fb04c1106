//! How a route chooses its policy, and that nothing else does; what a filter that is configured wrongly costs.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use reqwest::Method;
use serde_json::{Value, json};

use crate::scripted::{
    KIB, MIB, STORED, commits_reach, entries, generic, is_quiet, png, requests, until,
};
use crate::support::envoy::{Bootstrap, route};
use crate::support::origin::{Origin, Script};
use crate::support::stack::{Builder, Stack, Store};

const NAMED: &str = "
by-grpc: {kind: generic}
by-metadata: {kind: generic}
by-annotation: {kind: generic}
by-name: {kind: generic}
by-default: {kind: generic}
";

/// A route that says nothing about a policy.
fn silent(prefix: &str, name: &str) -> Value {
    json!({
        "name": name,
        "match": {"prefix": prefix},
        "route": {"cluster": "imgproxy", "timeout": "30s"},
    })
}

/// Adds the metadata of our own namespace.
fn with_metadata(mut route: Value, policy: impl Into<Value>) -> Value {
    route["metadata"]["filter_metadata"]["afterimage"] = json!({"policy": policy.into()});
    route
}

/// Adds the metadata that Envoy Gateway makes of an annotation of an `HTTPRoute`.
fn with_annotation(mut route: Value, policy: &str) -> Value {
    route["metadata"]["filter_metadata"]["envoy-gateway"] = json!({"resources": [{
        "kind": "HTTPRoute",
        "name": "images",
        "namespace": "default",
        "annotations": {"afterimage-policy": policy},
    }]});
    route
}

/// Adds what the filter says when it opens the stream.
fn with_grpc(mut other: Value, policy: &str) -> Value {
    other["typed_per_filter_config"] =
        route("/", "imgproxy", Some(policy))["typed_per_filter_config"].clone();
    other
}

/// A stack whose every path has the same image.
fn stack(origin: &Origin, body: &Bytes) -> Builder {
    let script = Script::ok("image/png", body.clone());
    origin.otherwise(move |_| script.clone());
    generic(origin, Store::Local).policies(NAMED)
}

/// Requests with this policy and this reason.
async fn counted(stack: &Stack, policy: &str, reason: &str) -> Result<f64> {
    let labels = [("policy", policy), ("reason", reason)];
    let metrics = stack.metrics().await?;
    Ok(metrics.sum("afterimage_requests_total", &labels))
}

#[tokio::test]
async fn a_route_names_its_policy_in_four_ways_and_the_first_of_them_counts() -> Result<()> {
    let origin = Origin::start().await?;
    let body = png(3 * KIB);
    let named = |prefix| silent(prefix, "mapped");
    let annotated = |prefix| with_annotation(named(prefix), "by-annotation");
    let tagged = |prefix| with_metadata(annotated(prefix), "by-metadata");
    let stack = stack(&origin, &body)
        .settings("{routes: {mapped: by-name}, default_policy: by-default}")
        .route(with_grpc(tagged("/by-grpc/"), "by-grpc"))
        .route(tagged("/by-metadata/"))
        .route(annotated("/by-annotation/"))
        .route(named("/by-name/"))
        .route(silent("/by-default/", "not mapped"))
        .start()
        .await?;
    for (commits, policy) in [
        "by-grpc",
        "by-metadata",
        "by-annotation",
        "by-name",
        "by-default",
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/{policy}/a");
        assert_eq!(stack.get(&path).await?.cache_status(), STORED, "{policy}");
        commits_reach(&stack, commits + 1).await?;
        let hit = stack.get(&path).await?;
        assert!(hit.is_hit(), "{policy}: {}", hit.cache_status());
        assert_eq!(hit.body, body);
        assert_eq!(counted(&stack, policy, "absent").await?, 1.0, "{policy}");
        assert_eq!(counted(&stack, policy, "").await?, 1.0, "{policy}");
    }
    Ok(())
}

#[tokio::test]
async fn one_way_alone_is_enough() -> Result<()> {
    let origin = Origin::start().await?;
    let body = png(3 * KIB);
    let stack = stack(&origin, &body)
        .route(with_grpc(silent("/grpc/", "a"), "by-grpc"))
        .route(with_metadata(silent("/metadata/", "b"), "by-metadata"))
        .route(with_annotation(
            silent("/annotation/", "c"),
            "by-annotation",
        ))
        .start()
        .await?;
    for policy in ["grpc", "metadata", "annotation"] {
        let answer = stack.get(&format!("/{policy}/a")).await?;
        assert_eq!(answer.cache_status(), STORED, "{policy}");
        let policy = format!("by-{policy}");
        assert_eq!(counted(&stack, &policy, "absent").await?, 1.0, "{policy}");
    }
    Ok(())
}

#[tokio::test]
async fn a_route_without_a_good_name_is_bypassed_and_does_not_touch_the_others() -> Result<()> {
    let origin = Origin::start().await?;
    let body = png(3 * KIB);
    let metadata = |prefix: &str| with_metadata(silent(prefix, "mapped"), "by-metadata");
    let stack = stack(&origin, &body)
        .settings("routes: {mapped: by-name}")
        .route(silent("/nothing/", "not mapped"))
        .route(with_metadata(silent("/number/", "number"), 3))
        // What comes first counts, also when it is wrong.
        .route(with_grpc(metadata("/unknown-grpc/"), "nobody"))
        .route(with_metadata(silent("/unknown/", "mapped"), "nobody"))
        .route(with_annotation(silent("/annotated/", "mapped"), "nobody"))
        .route(with_grpc(metadata("/opted-out/"), "bypass"))
        .route(with_metadata(silent("/opted-out-too/", "mapped"), "bypass"))
        .route(metadata("/good/"))
        .start()
        .await?;
    assert_eq!(stack.get("/good/a").await?.cache_status(), STORED);
    commits_reach(&stack, 1).await?;
    for (route, reason) in [
        ("nothing", "no_policy"),
        ("number", "no_policy"),
        ("unknown-grpc", "unknown_policy"),
        ("unknown", "unknown_policy"),
        ("annotated", "unknown_policy"),
        ("opted-out", "no_policy"),
        ("opted-out-too", "no_policy"),
    ] {
        let before = counted(&stack, "none", reason).await?;
        for _ in 0..2 {
            let answer = stack.get(&format!("/{route}/a")).await?;
            assert_eq!((answer.status, answer.cache_status()), (200, ""), "{route}");
            assert_eq!(answer.body, body, "{route}");
            assert!(stack.get("/good/a").await?.is_hit(), "beside {route}");
        }
        assert_eq!(origin.requests_for(&format!("/{route}/a")).len(), 2);
        until(&stack, "both to be counted", |metrics| {
            requests(metrics, reason) == before + 2.0
        })
        .await?;
        assert_eq!(counted(&stack, "none", reason).await?, before + 2.0);
    }
    assert_eq!(entries(&stack)?.len(), 1);
    is_quiet(&stack).await
}

#[tokio::test]
async fn a_client_selects_nothing() -> Result<()> {
    let origin = Origin::start().await?;
    let body = png(3 * KIB);
    let stack = stack(&origin, &body)
        .route(silent("/silent/", "silent"))
        .route(with_grpc(silent("/named/", "named"), "by-grpc"))
        .start()
        .await?;
    for client in [stack.client.clone(), stack.http2()?] {
        for route in ["silent", "named"] {
            for name in ["by-name", "bypass", "nobody"] {
                let path = format!("/{route}/{name}");
                let request = client
                    .request(Method::GET, &path)
                    .header("x-afterimage-policy", name)
                    .header("afterimage-policy", name)
                    .header("x-envoy-afterimage-policy", name);
                assert_eq!(client.send(request).await?.status, 200);
            }
        }
    }
    is_quiet(&stack).await?;
    assert_eq!(counted(&stack, "none", "no_policy").await?, 6.0);
    let metrics = stack.metrics().await?;
    let named = metrics.sum("afterimage_requests_total", &[("policy", "by-grpc")]);
    assert_eq!(named, 6.0);
    assert_eq!(metrics.sum("afterimage_requests_total", &[]), 12.0);
    Ok(())
}

#[tokio::test]
async fn a_policy_behind_a_rewrite_knows_its_prefix() -> Result<()> {
    const IMAGE: &str = "/insecure/rs:fill:300:200/plain/local:///coffee.png@png";
    let origin = Origin::start().await?;
    let body = png(3 * KIB);
    let stack = stack(&origin, &body)
        .policies(
            "
images: {kind: imgproxy, unsigned: true, namespace: shared}
thumbs: {kind: imgproxy, unsigned: true, namespace: shared, path_prefix: /thumbs}
",
        )
        .route(with_grpc(silent("/elsewhere/", "elsewhere"), "thumbs"))
        .start()
        .await?;
    let thumb = stack.get(&format!("/thumbs{IMAGE}")).await?;
    assert_eq!(thumb.cache_status(), STORED);
    commits_reach(&stack, 1).await?;
    assert_eq!(origin.requests_for(IMAGE).len(), 1);
    // The same image of the same imgproxy, by its other name.
    for path in [format!("/thumbs{IMAGE}"), IMAGE.to_owned()] {
        assert!(stack.get(&path).await?.is_hit(), "{path}");
    }
    let elsewhere = stack.get(&format!("/elsewhere{IMAGE}")).await?;
    assert_eq!((elsewhere.status, elsewhere.cache_status()), (200, ""));
    is_quiet(&stack).await?;
    assert_eq!(counted(&stack, "thumbs", "path_prefix").await?, 1.0);
    Ok(())
}

#[tokio::test]
async fn a_disabled_route_opens_no_stream() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = stack(&origin, &png(3 * KIB))
        .settings("default_policy: by-default")
        .start()
        .await?;
    for client in [stack.client.clone(), stack.http2()?] {
        assert_eq!(client.get("/uncached/a").await?.cache_status(), "");
    }
    let started = async || {
        let metrics = stack.envoy_metrics().await?;
        let name = metrics
            .names()
            .find(|name| name.contains("ext_proc") && name.ends_with("streams_started"))
            .context("Envoy counts streams")?;
        anyhow::Ok(metrics.sum(name, &[]))
    };
    assert_eq!(started().await?, 0.0);
    let metrics = stack.metrics().await?;
    assert_eq!(metrics.sum("afterimage_requests_total", &[]), 0.0);
    assert_eq!(entries(&stack)?.len(), 0);
    // The count does count.
    stack.get("/a").await?;
    assert_eq!(started().await?, 1.0);
    Ok(())
}

/// What may become of responses behind a filter that is configured wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Nothing,
    Whole,
}

#[tokio::test]
async fn behind_a_misconfigured_filter_clients_are_fine() -> Result<()> {
    type Change = fn(&mut Value);
    let changes: [(&str, Stored, Change); 7] = [
        ("no mode override", Stored::Nothing, |filter| {
            filter["allow_mode_override"] = json!(false);
        }),
        ("no response attributes", Stored::Nothing, |filter| {
            filter["response_attributes"] = json!([]);
        }),
        ("other response attributes", Stored::Nothing, |filter| {
            filter["response_attributes"] = json!(["response.flags"]);
        }),
        ("no response headers", Stored::Nothing, |filter| {
            filter["processing_mode"]["response_header_mode"] = json!("SKIP");
        }),
        ("response body from the start", Stored::Whole, |filter| {
            filter["processing_mode"]["response_body_mode"] = json!("STREAMED");
        }),
        ("trailers", Stored::Whole, |filter| {
            filter["processing_mode"]["response_trailer_mode"] = json!("SEND");
        }),
        ("no outcome for the access log", Stored::Whole, |filter| {
            filter["metadata_options"] = json!({});
        }),
    ];
    let origin = Origin::start().await?;
    for (what, stored, change) in changes {
        let stack = generic(&origin, Store::Local)
            .adjust_envoy(move |bootstrap: &mut Bootstrap| {
                change(bootstrap.processor()?);
                Ok(())
            })
            .start()
            .await?;
        for size in [3 * KIB, 50 * KIB, 2 * MIB] {
            let body = png(size);
            let path = format!("/{size}");
            origin.respond(&path, Script::ok("image/png", body.clone()));
            for client in [stack.client.clone(), stack.http2()?] {
                for _ in 0..2 {
                    let answer = client.get(&path).await?;
                    assert_eq!((answer.status, &answer.cut), (200, &None), "{what}");
                    assert!(answer.body == body, "{what}: other bytes for {path}");
                    assert!(stored == Stored::Whole || !answer.is_hit(), "{what}");
                    is_quiet(&stack).await?;
                }
            }
        }
        let expected = match stored {
            Stored::Nothing => 0,
            Stored::Whole => 3,
        };
        assert_eq!(entries(&stack)?.len(), expected, "{what}");
    }
    Ok(())
}

#[tokio::test]
async fn without_route_attributes_only_the_streams_metadata_names_a_policy() -> Result<()> {
    let origin = Origin::start().await?;
    let body = png(3 * KIB);
    let stack = stack(&origin, &body)
        .settings("routes: {mapped: by-name}")
        .route(with_metadata(silent("/metadata/", "mapped"), "by-metadata"))
        .route(with_grpc(silent("/grpc/", "mapped"), "by-grpc"))
        .adjust_envoy(|bootstrap| {
            bootstrap.processor()?["request_attributes"] = json!([]);
            Ok(())
        })
        .start()
        .await?;
    assert_eq!(stack.get("/metadata/a").await?.cache_status(), "");
    assert_eq!(stack.get("/grpc/a").await?.cache_status(), STORED);
    Ok(())
}
