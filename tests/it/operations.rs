//! What an operator sees of a running Afterimage: its pages, its log, its end.

use std::time::Duration;

use anyhow::{Context as _, Result};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::Method;
use serde_json::Value;
use sha2::Sha256;

use crate::bucket::Bucket;
use crate::scripted::{KIB, MIB, STORED, commits_reach, entries, generic, is_quiet, png, until};
use crate::support::garage::SECRET_ACCESS_KEY;
use crate::support::origin::{Gate, Origin, Script};
use crate::support::stack::{Stack, Store};
use crate::support::wait;

const PATIENCE: Duration = Duration::from_secs(30);

async fn page(admin: &str, path: &str) -> Result<(u16, String, String)> {
    let answer = reqwest::get(format!("{admin}{path}")).await?;
    let status = answer.status().as_u16();
    let media_type = answer.headers().get("content-type");
    let media_type = media_type.context("a content type")?.to_str()?.to_owned();
    Ok((status, media_type, answer.text().await?))
}

#[tokio::test]
async fn a_stop_lets_an_open_response_end_and_its_fill_commit() -> Result<()> {
    let origin = Origin::start().await?;
    for (size, held_cap) in [(50 * KIB, "8MiB"), (3 * MIB, "8MiB"), (3 * MIB, "1MiB")] {
        let mut stack = generic(&origin, Store::Local)
            .settings(&format!("limits: {{held_cap: {held_cap}}}"))
            .start()
            .await?;
        let path = format!("/{size}/{held_cap}");
        let body = png(size);
        let gate = Gate::closed();
        let script = Script::ok("image/png", body.clone());
        origin.respond(&path, script.clone().wait_at(size / 2, &gate));
        origin.respond("/meanwhile", script);
        let (client, held) = (stack.client.clone(), path.clone());
        let answer = tokio::spawn(async move { client.get(&held).await });
        until(&stack, "an open fill", |metrics| {
            metrics.sum("afterimage_open_fills", &[]) == 1.0
        })
        .await?;

        let client = stack.client.clone();
        let admin = stack.afterimage().admin_url();
        assert_eq!(page(&admin, "/readyz").await?.0, 200);
        let (stopped, answered) = tokio::join!(stack.afterimage().stop(), async {
            wait::until("/readyz to turn", PATIENCE, async || {
                page(&admin, "/readyz")
                    .await
                    .is_ok_and(|page| page.0 == 503)
            })
            .await?;
            assert_eq!(page(&admin, "/healthz").await?.0, 200);
            // New requests do without.
            let meanwhile = client.get("/meanwhile").await?;
            assert!(meanwhile.body == body);
            gate.open();
            answer.await?
        });
        let answer = answered?;
        assert_eq!((answer.cache_status(), &answer.cut), (STORED, &None));
        assert!(answer.body == body);
        assert_eq!(stopped?.code(), Some(0));
        let log = stack.afterimage().process.stderr();
        assert!(log.contains("outcome=\"miss\""), "{log}");
        assert!(log.trim_end().ends_with("stopped"), "{log}");

        stack.afterimage().process.start_again()?;
        stack.afterimage().wait_until_ready().await?;
        let hit = stack.get(&path).await?;
        assert!(hit.is_hit(), "{path}: {}", hit.cache_status());
        assert!(hit.body == body);
    }
    Ok(())
}

#[tokio::test]
async fn a_response_that_does_not_end_delays_a_stop_by_the_drain_time_only() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = generic(&origin, Store::Local)
        .settings("drain: 200ms")
        .start()
        .await?;
    let body = png(50 * KIB);
    let gate = Gate::closed();
    let script = Script::ok("image/png", body.clone()).wait_at(KIB, &gate);
    origin.respond("/a", script);
    let client = stack.client.clone();
    let answer = tokio::spawn(async move { client.get("/a").await });
    until(&stack, "an open fill", |metrics| {
        metrics.sum("afterimage_open_fills", &[]) == 1.0
    })
    .await?;
    assert_eq!(stack.afterimage().stop().await?.code(), Some(0));
    assert!(!answer.is_finished());
    gate.open();
    let answer = answer.await??;
    assert_eq!(answer.cut, None);
    assert!(answer.body == body);
    assert_eq!(entries(&stack)?.len(), 0);
    Ok(())
}

#[tokio::test]
async fn every_metric_is_described() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = generic(&origin, Store::Local).start().await?;
    origin.respond("/a", Script::ok("image/png", png(50 * KIB)));
    stack.get("/a").await?;
    commits_reach(&stack, 1).await?;
    stack.get("/a").await?;
    stack.get("/uncached/a").await?;
    is_quiet(&stack).await?;

    let admin = stack.afterimage().admin_url();
    let (status, media_type, text) = page(&admin, "/metrics").await?;
    assert_eq!(status, 200);
    assert_eq!(
        media_type,
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    assert!(text.ends_with("# EOF\n"));
    let described = |kind: &str| -> Vec<&str> {
        text.lines()
            .filter_map(|line| line.strip_prefix(kind))
            .filter_map(|line| line.split_once(' '))
            .filter(|(_, words)| !words.is_empty())
            .map(|(name, _)| name)
            .collect()
    };
    let (helps, types) = (described("# HELP "), described("# TYPE "));
    assert_eq!(helps, types);
    let metrics = stack.metrics().await?;
    assert!(metrics.names().count() > 50);
    for name in metrics.names() {
        assert!(name.starts_with("afterimage_"), "{name}");
        let is_described = ["", "_total", "_count", "_sum", "_bucket"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .any(|family| helps.contains(&family));
        assert!(is_described, "{name} has no help text");
    }
    for name in [
        "afterimage_requests_total",
        "afterimage_request_duration_seconds_count",
        "afterimage_lookup_duration_seconds_count",
        "afterimage_fills_total",
        "afterimage_served_bytes_total",
        "afterimage_stored_bytes_total",
        "afterimage_store_operation_duration_seconds_count",
    ] {
        assert!(metrics.sum(name, &[]) > 0.0, "{name}");
    }
    assert_eq!(page(&admin, "/healthz").await?.2, "ok\n");
    assert_eq!(page(&admin, "/readyz").await?.2, "ready\n");
    assert_eq!(reqwest::get(format!("{admin}/")).await?.status(), 404);
    Ok(())
}

/// What must be nowhere to be seen.
const KEY: &str = "5ec4e75ec4e75ec4e70b1a5e0b1a5e0b1a5e";
const SALT: &str = "5a175a175a175a170ddba110ddba110ddba1";
const SOURCE: &str = "https://private.example/album-4711/face.png?token=very-private";

/// The path of an image under a signature that imgproxy accepts.
fn signed(options: &str) -> Result<String> {
    let path = format!("/{options}/plain/{}", SOURCE.replace('?', "%3F"));
    let mut mac = Hmac::<Sha256>::new_from_slice(&HEXLOWER.decode(KEY.as_bytes())?)?;
    mac.update(&HEXLOWER.decode(SALT.as_bytes())?);
    mac.update(path.as_bytes());
    let signature = BASE64URL_NOPAD.encode(&mac.finalize().into_bytes());
    Ok(format!("/{signature}{path}"))
}

/// Hits, misses, bypasses and every trouble with the store; returns how many requests there were.
async fn live_through_everything(stack: &mut Stack, paths: &[String]) -> Result<usize> {
    let [good, large, forged] = paths else {
        anyhow::bail!("three paths");
    };
    let mut count = 0;
    for path in [good, large] {
        assert_eq!(stack.get(path).await?.cache_status(), STORED);
        is_quiet(stack).await?;
        assert!(stack.get(path).await?.is_hit());
        count += 2;
    }
    assert_eq!(stack.get(forged).await?.cache_status(), "");
    let head = stack.client.request(Method::HEAD, good);
    assert!(stack.client.send(head).await?.is_hit());
    let cookie = stack.client.request(Method::GET, good);
    let cookie = cookie.header("authorization", "Basic private");
    stack.client.send(cookie).await?;
    count += 3;
    // Entries that are not what they were.
    let bucket = Bucket::of(stack.garage())?;
    for name in bucket.names().await? {
        let mut object = bucket.get(&name).await?;
        let mut bytes = object.body.to_vec();
        *bytes.last_mut().context("a body")? ^= 1;
        object.body = bytes.into();
        bucket.put(&name, &object).await?;
    }
    for path in [good, large] {
        stack.get(path).await?;
        is_quiet(stack).await?;
        count += 1;
    }
    stack.garage().process.kill()?;
    for path in [good, large] {
        stack.get(path).await?;
        is_quiet(stack).await?;
        count += 1;
    }
    Ok(count)
}

#[tokio::test]
async fn neither_log_nor_metrics_tell_a_secret_or_a_url() -> Result<()> {
    let origin = Origin::start().await?;
    let (small, large) = (png(50 * KIB), png(2 * MIB));
    origin.otherwise(move |request| {
        let body = if request.path.contains("large") {
            large.clone()
        } else {
            small.clone()
        };
        Script::ok("image/png", body)
    });
    let policies = format!(
        "images: {{kind: imgproxy, signature: {{pairs: [{{key: '{KEY}', salt: '{SALT}'}}]}}}}"
    );
    for (format, filter) in [("text", "info"), ("json", "info"), ("json", "trace")] {
        let mut stack = generic(&origin, Store::Garage)
            .policies(&policies)
            .settings(&format!("log: {{format: {format}, filter: '{filter}'}}"))
            .start()
            .await?;
        let good = signed("rs:fill:300:200")?;
        let forged = good.replacen('/', "/A", 1);
        let paths = [good.clone(), signed("pr:large")?, forged];
        let count = live_through_everything(&mut stack, &paths).await?;

        let admin = stack.afterimage().admin_url();
        let metrics = page(&admin, "/metrics").await?.2;
        let mut log = String::new();
        let logged = wait::until("a line of each request", PATIENCE, async || {
            log = stack.afterimage().process.stderr();
            log.lines().filter(|line| line.contains("outcome")).count() >= count
        });
        logged.await?;
        assert_eq!(stack.afterimage().process.stdout(), "");
        assert!(!log.contains('\u{1b}'), "colours in a file");
        let signatures: Vec<_> = paths
            .iter()
            .filter_map(|path| path.split('/').nth(1))
            .collect();
        let secrets = [
            KEY,
            SALT,
            SECRET_ACCESS_KEY,
            "private",
            "album-4711",
            "rs:fill",
            "pr:large",
        ];
        for secret in secrets.iter().chain(&signatures) {
            assert!(!metrics.contains(secret), "{secret} is in the metrics");
            let told = log.lines().find(|line| line.contains(secret));
            assert_eq!(told, None, "{secret} is in the log");
        }

        let requests = match format {
            "json" => log
                .lines()
                .map(|line| Ok(serde_json::from_str::<Value>(line)?["message"] == "request"))
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .filter(|is_request| *is_request)
                .count(),
            _ => log.lines().filter(|line| line.contains("outcome")).count(),
        };
        assert_eq!(requests, count, "{format}, {filter}");
        is_quiet(&stack).await?;
    }
    Ok(())
}
