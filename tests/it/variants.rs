//! Formats that imgproxy chooses by `Accept`: few variants, the right one for each client.

use std::collections::BTreeMap;

use anyhow::Result;
use bytes::Bytes;
use reqwest::Method;

use crate::support::client::{Answer, Client};
use crate::support::stack::{Builder, Stack};

/// The format is imgproxy's choice: the source's, or what the client accepts.
const IMAGE: &str = "/insecure/rs:fill:120:80/plain/local:///coffee.png";

/// What browsers, crawlers and programs send, or have sent, for an image or for a page, and the variant that each gets.
const ACCEPTS: [(&str, &str); 24] = [
    // Chromium and what is built on it, for an image and for a page.
    (
        "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8",
        "image/avif",
    ),
    (
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7",
        "image/avif",
    ),
    // The same before AVIF.
    ("image/webp,image/apng,image/*,*/*;q=0.8", "image/webp"),
    (
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.9",
        "image/webp",
    ),
    ("image/webp,*/*;q=0.8", "image/webp"),
    // Firefox, newest first.
    (
        "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
        "image/avif",
    ),
    ("image/avif,image/webp,*/*", "image/avif"),
    (
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
        "image/avif",
    ),
    ("image/webp,*/*", "image/webp"),
    ("image/png,image/*;q=0.8,*/*;q=0.5", "image/png"),
    (
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "image/png",
    ),
    // Safari, newest first.
    (
        "image/webp,image/avif,image/jxl,image/heic,image/heic-sequence,video/*;q=0.8,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
        "image/avif",
    ),
    (
        "image/webp,image/avif,video/*;q=0.8,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
        "image/avif",
    ),
    (
        "image/webp,image/png,image/svg+xml,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5",
        "image/webp",
    ),
    (
        "image/png,image/svg+xml,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5",
        "image/png",
    ),
    // Internet Explorer.
    (
        "image/png, image/svg+xml, image/jxr, image/*;q=0.8, */*;q=0.5",
        "image/png",
    ),
    (
        "image/gif, image/jpeg, image/pjpeg, application/x-ms-application, */*",
        "image/png",
    ),
    // curl, crawlers, mail proxies, HTTP libraries.
    ("*/*", "image/png"),
    ("image/*", "image/png"),
    ("image/*,*/*;q=0.8", "image/png"),
    (
        "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
        "image/png",
    ),
    ("", "image/png"),
    // One that knows AVIF alone, and one that refuses it, which imgproxy does not notice.
    ("image/avif,image/*;q=0.8", "image/avif"),
    ("image/avif;q=0,image/webp", "image/avif"),
];

#[tokio::test]
async fn clients_of_avif_and_of_webp_get_different_variants() -> Result<()> {
    let stack = detecting().start().await?;
    for (accept, media_type) in [("image/avif", "image/avif"), ("image/webp", "image/webp")] {
        let miss = get(&stack.client, IMAGE, accept).await?;
        assert_eq!(miss.cache_status(), "afterimage; fwd=miss; stored");
        assert_eq!(miss.header("content-type"), Some(media_type));
        let hit = get(&stack.client, IMAGE, accept).await?;
        assert!(hit.is_hit(), "{accept}: {hit:?}");
        assert_eq!(hit.header("content-type"), Some(media_type));
        assert_eq!(hit.header("vary"), Some("Accept"));
        assert_eq!(hit.body, miss.body);
    }
    stack.commits_reach(2).await
}

#[tokio::test]
async fn every_accept_of_a_browser_gets_its_class_and_a_class_has_one_entry() -> Result<()> {
    let stack = detecting().start().await?;
    let imgproxy = stack.imgproxy_client()?;
    let mut bodies = BTreeMap::<&str, Bytes>::new();
    let mut misses = 0;
    for (accept, media_type) in ACCEPTS {
        let own = get(&imgproxy, IMAGE, accept).await?;
        assert_eq!(own.header("content-type"), Some(media_type), "{accept}");
        let of_class = bodies.entry(media_type).or_insert(own.body.clone());
        assert_eq!(&own.body, of_class, "{accept}");
        for round in 0..2 {
            let answer = get(&stack.client, IMAGE, accept).await?;
            assert_eq!(answer.header("content-type"), Some(media_type), "{accept}");
            assert_eq!(answer.body, own.body, "{accept}");
            assert!(answer.is_hit() || round == 0, "{accept}: {answer:?}");
            misses += usize::from(!answer.is_hit());
        }
    }
    // AVIF and WebP, AVIF alone, WebP alone, neither.
    assert_eq!(misses, 4);
    stack.commits_reach(4).await?;
    assert_eq!(stack.stored().await?, 4);
    assert_eq!(bodies.len(), 3);
    Ok(())
}

#[tokio::test]
async fn with_an_explicit_format_all_clients_share_one_entry() -> Result<()> {
    let stack = detecting().start().await?;
    for explicit in ["@png", "@webp"] {
        let url = format!("{IMAGE}{explicit}");
        let own = stack.imgproxy_client()?.get(&url).await?;
        for (index, (accept, _)) in ACCEPTS.into_iter().enumerate() {
            let answer = get(&stack.client, &url, accept).await?;
            assert_eq!(answer.body, own.body, "{url} {accept}");
            assert_eq!(answer.is_hit(), index > 0, "{url} {accept}");
        }
    }
    stack.commits_reach(2).await?;
    assert_eq!(stack.stored().await?, 2);
    Ok(())
}

#[tokio::test]
async fn a_policy_without_formats_shows_everybody_what_a_client_without_preference_gets()
-> Result<()> {
    let stack = detecting()
        .policies("images: { kind: imgproxy, unsigned: true }")
        .start()
        .await?;
    let own = get(&stack.imgproxy_client()?, IMAGE, "*/*").await?;
    assert_eq!(own.header("content-type"), Some("image/png"));
    for (index, (accept, _)) in ACCEPTS.into_iter().enumerate() {
        let answer = get(&stack.client, IMAGE, accept).await?;
        assert_eq!(answer.body, own.body, "{accept}");
        assert_eq!(answer.header("content-type"), Some("image/png"));
        assert_eq!(answer.is_hit(), index > 0, "{accept}");
    }
    stack.commits_reach(1).await?;
    assert_eq!(stack.stored().await?, 1);
    Ok(())
}

#[tokio::test]
async fn enforced_formats_have_variants_over_an_explicit_format() -> Result<()> {
    let stack = Stack::builder()
        .imgproxy_env("IMGPROXY_ENFORCE_WEBP", "1")
        .policies("images: { kind: imgproxy, unsigned: true, enforced_formats: [webp] }")
        .start()
        .await?;
    let url = format!("{IMAGE}@png");
    for (accept, media_type) in [("image/webp,*/*", "image/webp"), ("*/*", "image/png")] {
        let own = get(&stack.imgproxy_client()?, &url, accept).await?;
        for is_hit in [false, true] {
            let answer = get(&stack.client, &url, accept).await?;
            assert_eq!(answer.header("content-type"), Some(media_type), "{accept}");
            assert_eq!(answer.body, own.body, "{accept}");
            assert_eq!(answer.is_hit(), is_hit, "{accept}");
        }
    }
    stack.commits_reach(2).await
}

/// imgproxy chooses between AVIF and WebP, as the reference policy says.
fn detecting() -> Builder {
    Stack::builder()
        .imgproxy_env("IMGPROXY_AUTO_WEBP", "1")
        .imgproxy_env("IMGPROXY_AUTO_AVIF", "1")
}

async fn get(client: &Client, path: &str, accept: &str) -> Result<Answer> {
    let request = client.request(Method::GET, path);
    client.send(request.header("accept", accept)).await
}
