//! Answers of an upstream that only pass, whole or visibly broken off, and leave nothing behind.

use afterimage::clock::Stopwatch;
use anyhow::Result;
use reqwest::Method;

use super::storing::{CAP, GENERIC, IMGPROXY, image, png, small};
use crate::support::client::Answer;
use crate::support::fate::Fate;
use crate::support::origin::{Cut, Framing, Gate, Origin, Script};

#[tokio::test]
async fn an_answer_whose_head_forbids_it_is_passed_on_and_not_stored() -> Result<()> {
    let with = |name, value| png().header(name, value);
    let control = |value| {
        png()
            .without("cache-control")
            .header("cache-control", value)
    };
    let status = |status| {
        Script::status(status)
            .header("content-type", "image/png")
            .header("cache-control", "public, max-age=3600")
            .body(image(2000))
    };
    let past = "Thu, 01 Jan 2015 00:00:00 GMT";
    let expires = |value| png().without("cache-control").header("expires", value);
    let typed = |media_type| Script::ok(media_type, image(2000));
    let html = "<!DOCTYPE html><title>Mine</title>";
    let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\"/>";
    befall(
        &[IMGPROXY, GENERIC],
        vec![
            ("203", status(203), Fate::Refused("status")),
            ("204", status(204), Fate::Refused("status")),
            (
                "206",
                status(206).header("content-range", "bytes 0-1999/4000"),
                Fate::Refused("status"),
            ),
            ("300", status(300), Fate::Refused("status")),
            (
                "301",
                status(301).header("location", "/other"),
                Fate::Refused("status"),
            ),
            (
                "302",
                status(302).header("location", "/other"),
                Fate::Refused("status"),
            ),
            ("304", status(304), Fate::Refused("status")),
            (
                "308",
                status(308).header("location", "/other"),
                Fate::Refused("status"),
            ),
            ("400", status(400), Fate::Refused("status")),
            ("403", status(403), Fate::Refused("status")),
            ("404", status(404), Fate::Refused("status")),
            ("410", status(410), Fate::Refused("status")),
            ("422", status(422), Fate::Refused("status")),
            ("429", status(429), Fate::Refused("status")),
            ("500", status(500), Fate::Refused("status")),
            ("502", status(502), Fate::Refused("status")),
            ("503", status(503), Fate::Refused("status")),
            ("504", status(504), Fate::Refused("status")),
            (
                "no-store",
                control("no-store, max-age=60"),
                Fate::Refused("no_store"),
            ),
            (
                "no-store-later",
                with("cache-control", "No-Store"),
                Fate::Refused("no_store"),
            ),
            (
                "private",
                control("private, max-age=60"),
                Fate::Refused("private"),
            ),
            (
                "no-cache",
                control("no-cache, max-age=60"),
                Fate::Refused("no_cache"),
            ),
            ("max-age-0", control("max-age=0"), Fate::Refused("stale")),
            (
                "max-age-no-number",
                control("max-age=soon"),
                Fate::Refused("stale"),
            ),
            (
                "s-maxage-0",
                control("max-age=60, s-maxage=0"),
                Fate::Refused("stale"),
            ),
            ("expired", expires(past), Fate::Refused("stale")),
            ("expires-no-date", expires("0"), Fate::Refused("stale")),
            (
                "too-old",
                control("max-age=60").header("age", "60"),
                Fate::Refused("stale"),
            ),
            (
                "no-freshness",
                png().without("cache-control"),
                Fate::Refused("no_freshness"),
            ),
            (
                "set-cookie",
                with("set-cookie", "a=b"),
                Fate::Refused("set_cookie"),
            ),
            ("vary-all", with("vary", "*"), Fate::Refused("vary")),
            (
                "vary-all-too",
                with("vary", "accept-encoding, *"),
                Fate::Refused("vary"),
            ),
            (
                "html",
                Script::ok("text/html", html),
                Fate::Refused("content_type"),
            ),
            (
                "svg",
                Script::ok("image/svg+xml", svg),
                Fate::Refused("content_type"),
            ),
            (
                "binary",
                typed("application/octet-stream"),
                Fate::Refused("content_type"),
            ),
            (
                "no-type",
                png().without("content-type"),
                Fate::Refused("content_type"),
            ),
            (
                "gzip",
                with("content-encoding", "gzip"),
                Fate::Refused("content_encoding"),
            ),
            (
                "br",
                with("content-encoding", "identity, br"),
                Fate::Refused("content_encoding"),
            ),
            (
                "range",
                with("content-range", "bytes 0-1/2"),
                Fate::Refused("content_range"),
            ),
            ("empty", png().body(""), Fate::Refused("no_body")),
            (
                "above-cap",
                png().body(image(CAP + 1)),
                Fate::Refused("too_large"),
            ),
            (
                "close",
                png().framing(Framing::Close),
                Fate::Refused("no_length"),
            ),
            // Envoy takes this for a whole answer, so nobody can see that it is not.
            (
                "close-cut",
                png().framing(Framing::Close).cut_after(1000, Cut::Close),
                Fate::Refused("no_length"),
            ),
            (
                "close-reset",
                png().framing(Framing::Close).cut_after(1000, Cut::Reset),
                Fate::Refused("no_length"),
            ),
        ],
    )
    .await
}

#[tokio::test]
async fn an_answer_whose_body_is_not_what_its_type_says_is_not_stored() -> Result<()> {
    let other = Fate::Aborted("not_declared_image");
    befall(
        &[IMGPROXY, GENERIC],
        vec![
            ("other-image", Script::ok("image/webp", image(2000)), other),
            (
                "no-image",
                Script::ok("image/png", "<!DOCTYPE html>"),
                other,
            ),
            (
                "unknown-image",
                Script::ok("image/x-unknown", image(2000)),
                other,
            ),
            ("one-byte", Script::ok("image/png", &b"\x89"[..]), other),
        ],
    )
    .await
}

#[tokio::test]
async fn an_answer_without_a_length_is_stored_for_no_imgproxy_and_elsewhere_within_bounds()
-> Result<()> {
    let chunked = || png().framing(Framing::Chunked);
    let answers = vec![("chunked", chunked(), Fate::Refused("no_length"))];
    befall(&[IMGPROXY], answers).await?;
    befall(
        &[GENERIC],
        vec![
            (
                "above-cap",
                chunked().body(image(CAP + 1)),
                Fate::Aborted("too_large"),
            ),
            (
                "empty",
                chunked().body(""),
                Fate::Aborted("not_declared_image"),
            ),
        ],
    )
    .await
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_seen_to_break_off_and_is_not_stored() -> Result<()> {
    let chunked = || png().framing(Framing::Chunked);
    let cut = Fate::Aborted("cut");
    let unfit = Fate::Refused("no_length");
    let origin = Origin::start().await?;
    let stack = small(&origin).start().await?;
    for (name, script, at, prefixes, fate) in [
        ("length", png(), 1000, [IMGPROXY, GENERIC].as_slice(), cut),
        ("length-at-once", png(), 0, &[IMGPROXY, GENERIC], cut),
        ("length-at-last", png(), 1999, &[IMGPROXY, GENERIC], cut),
        (
            "length-too-large",
            png().framing(Framing::WrongLength(2001)),
            2000,
            &[IMGPROXY, GENERIC],
            cut,
        ),
        ("chunked", chunked(), 1000, &[GENERIC], cut),
        // Every byte is there, the end is not.
        ("chunked-no-end", chunked(), 2000, &[GENERIC], cut),
        ("chunked-imgproxy", chunked(), 1000, &[IMGPROXY], unfit),
    ] {
        for prefix in prefixes {
            for how in [Cut::Close, Cut::Reset, Cut::Close] {
                let path = format!("{prefix}{name}");
                let gate = Gate::closed();
                let script = script.clone().wait_at(at, &gate).cut_after(at, how);
                origin.respond(&path, script);
                let before = fate.count(&stack).await?;
                let response = stack.client.request(Method::GET, &path).send().await?;
                gate.open();
                let answer = Answer::read(response, Stopwatch::start()).await;
                assert_eq!(answer.status, 200, "{path}");
                assert_eq!(answer.cache_status(), fate.cache_status(), "{path}");
                assert!(answer.cut.is_some(), "{path} {how:?}: {answer:?}");
                assert!(image(2000).starts_with(&answer.body), "{path}");
                fate.count_reaches(&stack, before + 1).await?;
            }
            assert_eq!(origin.requests_for(&format!("{prefix}{name}")).len(), 3);
        }
    }
    stack.commits_reach(0).await?;
    assert_eq!(stack.stored().await?, 0);
    Ok(())
}

#[tokio::test]
async fn an_answer_that_breaks_off_with_its_head_is_never_whole() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = small(&origin).start().await?;
    for (index, how) in [Cut::Close, Cut::Reset].into_iter().enumerate() {
        for prefix in [IMGPROXY, GENERIC] {
            let path = format!("{prefix}cut-{index}");
            origin.respond(&path, png().cut_after(1000, how));
            for _ in 0..10 {
                // Envoy may see the end before it has our word about the head; then it answers itself.
                let answer = stack.get(&path).await?;
                assert!(
                    answer.cut.is_some() || answer.status >= 500,
                    "{path}: {answer:?}"
                );
                assert!(!answer.is_hit(), "{path}: {answer:?}");
            }
            assert_eq!(origin.requests_for(&path).len(), 10, "{path}");
        }
    }
    stack.commits_reach(0).await?;
    assert_eq!(stack.stored().await?, 0);
    Ok(())
}

#[tokio::test]
async fn bytes_past_the_declared_length_belong_to_no_answer() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = small(&origin).start().await?;
    for prefix in [IMGPROXY, GENERIC] {
        let path = format!("{prefix}long");
        let long = png().framing(Framing::WrongLength(1500));
        origin.respond(&path, long);
        let upstream = stack.get(&format!("/uncached{path}")).await?;
        for _ in 0..2 {
            let answer = stack.get(&path).await?;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.body, image(2000)[..1500]);
            assert_eq!(answer.body, upstream.body);
            assert_eq!(answer.cut, None);
        }
    }
    Ok(())
}

/// Lets an origin give each answer below each prefix, and sees that the answer meets its fate: passed on, and asked for
/// again from the origin. At the end nothing is stored.
async fn befall(prefixes: &[&str], answers: Vec<(&str, Script, Fate)>) -> Result<()> {
    let origin = Origin::start().await?;
    let stack = small(&origin).start().await?;
    for (name, script, fate) in answers {
        for prefix in prefixes {
            let path = format!("{prefix}{name}");
            origin.respond(&path, script.clone());
            fate.befalls(&stack, &path).await?;
            // Once past Afterimage, twice through it.
            assert_eq!(origin.requests_for(&path).len(), 3, "{path}");
        }
    }
    stack.commits_reach(0).await?;
    assert_eq!(stack.stored().await?, 0);
    Ok(())
}
