//! Which answers of an upstream are stored, for how long, and what a policy says about it.

use anyhow::{Context as _, Result};

use crate::support::client::Answer;
use crate::support::envoy;
use crate::support::fate::{Fate, assert_is_what_was_sent};
use crate::support::origin::{Framing, Origin, Script};
use crate::support::stack::{Builder, Stack};

/// Largest body that the policies of [`small`] store.
pub(super) const CAP: usize = 64 * 1024;

/// Where the answers of an imgproxy are, by a policy that reads such paths.
pub(super) const IMGPROXY: &str = "/insecure/plain/local:///";
/// Where those of another origin are.
pub(super) const GENERIC: &str = "/generic/";

#[tokio::test]
async fn an_answer_that_may_be_used_again_is_stored() -> Result<()> {
    let future = "Fri, 01 Jan 2038 00:00:00 GMT";
    let origin = Origin::start().await?;
    let stack = small(&origin).start().await?;
    let control = |value| {
        png()
            .without("cache-control")
            .header("cache-control", value)
    };
    let expires = png().without("cache-control").header("expires", future);
    let both = [IMGPROXY, GENERIC].as_slice();
    let mut fills = 0;
    for (name, script, prefixes) in [
        ("year", control("max-age=31536000, public"), both),
        ("s-maxage", control("max-age=0, s-maxage=60"), both),
        ("large-number", control("max-age=2307070330"), both),
        ("expires", expires, both),
        ("aged", control("max-age=3600").header("age", "60"), both),
        (
            "identity",
            png().header("content-encoding", "identity"),
            both,
        ),
        ("vary", png().header("vary", "Accept-Encoding"), both),
        (
            "vary-on-what-is-removed",
            png().header("vary", "X-Custom"),
            &[IMGPROXY],
        ),
        ("as-large-as-may-be", png().body(image(CAP)), both),
        ("chunked", png().framing(Framing::Chunked), &[GENERIC]),
        (
            "chunked-large",
            png().body(image(CAP)).framing(Framing::Chunked),
            &[GENERIC],
        ),
        (
            "upper-case",
            png()
                .without("content-type")
                .header("content-type", "IMAGE/PNG; x=y"),
            both,
        ),
    ] {
        for prefix in prefixes {
            let path = format!("{prefix}{name}");
            origin.respond(&path, script.clone());
            let upstream = stack.get(&format!("/uncached{path}")).await?;
            let miss = stack.get(&path).await?;
            assert_eq!(
                miss.cache_status(),
                "afterimage; fwd=miss; stored",
                "{path}"
            );
            assert_is_what_was_sent(&miss, &upstream, &path);
            let hit = stack.get(&path).await?;
            assert!(hit.is_hit(), "{path}: {hit:?}");
            assert_eq!(hit.body, upstream.body, "{path}");
            let length = upstream.body.len().to_string();
            assert_eq!(hit.header("content-length"), Some(&*length), "{path}");
            for field in ["content-type", "cache-control", "expires", "vary"] {
                assert_eq!(hit.header(field), upstream.header(field), "{path}");
            }
            assert_eq!(origin.requests_for(&path).len(), 2, "{path}");
            fills += 1;
        }
    }
    stack.commits_reach(fills).await?;
    assert_eq!(stack.stored().await?, fills);
    Ok(())
}

#[tokio::test]
async fn a_policy_bounds_freshness_and_gives_one_where_there_is_none() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = with_policies(
        &origin,
        &[
            ("default", "freshness: { default: 1h }"),
            ("floor", "freshness: { floor: 1h }"),
            ("ceiling", "freshness: { ceiling: 1h }"),
        ],
    )
    .start()
    .await?;
    let control = |value| {
        png()
            .without("cache-control")
            .header("cache-control", value)
    };
    for (path, script) in [
        ("/default/a", png().without("cache-control")),
        ("/floor/a", control("max-age=1")),
        ("/floor/stale", control("max-age=0")),
        ("/ceiling/a", control("max-age=31536000")),
    ] {
        origin.respond(path, script);
        stack.get(path).await?;
        let hit = stack.get(path).await?;
        assert!(hit.is_hit(), "{path}: {hit:?}");
        assert!((61..=3600).contains(&ttl(&hit)?), "{path}: {hit:?}");
    }
    stack.commits_reach(4).await?;
    // A floor is for what may be stored at all, and a default for what says nothing.
    for (path, value, reason) in [
        ("/floor/no-store", "no-store", "no_store"),
        ("/floor/private", "private", "private"),
        ("/default/no-cache", "no-cache", "no_cache"),
        ("/default/max-age-0", "max-age=0", "stale"),
    ] {
        origin.respond(path, control(value));
        Fate::Refused(reason).befalls(&stack, path).await?;
    }
    assert_eq!(stack.stored().await?, 4);
    Ok(())
}

#[tokio::test]
async fn a_policy_names_the_types_that_are_stored_and_how_they_are_verified() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = with_policies(
        &origin,
        &[
            (
                "svg",
                "store: { content_types: [image/svg+xml, image/png] }",
            ),
            ("text", "store: { content_types: [text/*], verify: none }"),
        ],
    )
    .start()
    .await?;
    let svg = "<?xml version=\"1.0\"?><svg xmlns=\"http://www.w3.org/2000/svg\"/>";
    let html = "<!DOCTYPE html><title>Mine</title>";
    let stored = [
        ("/svg/a", Script::ok("image/svg+xml; charset=utf-8", svg)),
        ("/svg/png", png()),
        ("/text/css", Script::ok("text/css", "a { color: red }")),
    ];
    for (path, script) in &stored {
        origin.respond(path, script.clone());
        let upstream = stack.get(&format!("/uncached{path}")).await?;
        let miss = stack.get(path).await?;
        assert_eq!(
            miss.cache_status(),
            "afterimage; fwd=miss; stored",
            "{path}"
        );
        assert_is_what_was_sent(&miss, &upstream, path);
        let hit = stack.get(path).await?;
        assert!(hit.is_hit(), "{path}: {hit:?}");
        assert_eq!(hit.body, upstream.body, "{path}");
        for field in ["content-type", "content-length"] {
            assert_eq!(hit.header(field), upstream.header(field), "{path}");
        }
    }
    for (path, script, fate) in [
        (
            "/svg/html",
            Script::ok("image/svg+xml", html),
            Fate::Aborted("not_declared_image"),
        ),
        (
            "/svg/jpeg",
            Script::ok("image/jpeg", "\u{ff}"),
            Fate::Refused("content_type"),
        ),
        ("/text/png", png(), Fate::Refused("content_type")),
    ] {
        origin.respond(path, script);
        fate.befalls(&stack, path).await?;
    }
    stack.commits_reach(stored.len()).await?;
    assert_eq!(stack.stored().await?, stored.len());
    Ok(())
}

/// A policy of each kind, which store bodies up to [`CAP`].
pub(super) fn small(origin: &Origin) -> Builder {
    let cap = format!("limits: {{ stream_cap: {CAP}B }}");
    with_policies(origin, &[("generic", "")]).settings(&cap)
}

/// Beside the policy of an imgproxy for everything, generic ones with these settings, each below the path of its name.
fn with_policies(origin: &Origin, policies: &[(&str, &str)]) -> Builder {
    let mut yaml = "images: { kind: imgproxy, unsigned: true }\n".to_owned();
    let mut stack = Stack::builder()
        .upstream(origin.address())
        .adjust_envoy(|bootstrap| {
            // By default Envoy leaves a connection whose answer broke off open for another second.
            bootstrap.connection_manager()?["delayed_close_timeout"] = "0.05s".into();
            Ok(())
        });
    for (name, settings) in policies {
        yaml += &format!("{name}:\n  kind: generic\n  {settings}\n");
        stack = stack.route(envoy::route(&format!("/{name}/"), "imgproxy", Some(name)));
    }
    stack.policies(&yaml)
}

pub(super) fn png() -> Script {
    Script::ok("image/png", image(2000))
}

/// A PNG of so many bytes, as far as its first bytes say.
pub(super) fn image(length: usize) -> Vec<u8> {
    let noise = (0..length).map(|at| (at % 251) as u8);
    let mut image: Vec<u8> = noise.collect();
    image[..8].copy_from_slice(b"\x89PNG\r\n\x1a\n");
    image
}

fn ttl(hit: &Answer) -> Result<u64> {
    let ttl = hit.cache_status().rsplit("ttl=").next();
    Ok(ttl.context("a ttl")?.parse()?)
}
