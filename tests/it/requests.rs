//! Requests that are no plain GET: which are left alone, and what a HEAD does.

use anyhow::{Context as _, Result};
use http::Method;

use crate::support::client::{Answer, Client};
use crate::support::envoy;
use crate::support::origin::{Origin, Script};
use crate::support::stack::Stack;

const COFFEE: &str = "/insecure/rs:fill:300:200/plain/local:///coffee.png@webp";

/// A path that an imgproxy's policy reads, and one of another origin.
const PATHS: [&str; 2] = ["/insecure/plain/local:///a", "/generic/a"];

/// More than goes out in one message.
const LARGE: usize = 3 << 20;

#[tokio::test]
async fn a_request_that_is_no_plain_get_goes_past_the_cache() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = with_both_kinds(&origin).await?;
    let mut count = 0;
    // Before anything is stored, and beside what is.
    for is_stored in [false, true] {
        for path in PATHS {
            if is_stored {
                stack.get(path).await?;
                count += 1;
                stack.commits_reach(count).await?;
            }
            for (method, field, body, reason) in [
                (
                    Method::GET,
                    Some(("authorization", "Basic YTpi")),
                    "",
                    "authorization",
                ),
                (
                    Method::HEAD,
                    Some(("authorization", "Bearer x")),
                    "",
                    "authorization",
                ),
                (Method::GET, None, "a body", "request_body"),
                (Method::POST, None, "", "method"),
                (Method::POST, None, "a body", "method"),
                (Method::PUT, None, "a body", "method"),
                (Method::PATCH, None, "a body", "method"),
                (Method::DELETE, None, "", "method"),
                (Method::OPTIONS, None, "", "method"),
                (Method::from_bytes(b"PURGE")?, None, "", "method"),
            ] {
                let what = format!("{method} {path} {field:?} {body:?}");
                let before = origin.requests_for(path).len();
                let bypassed = [("outcome", "bypass"), ("reason", reason)];
                let counted = stack.metrics().await?;
                let counted = counted.sum("afterimage_requests_total", &bypassed) as usize;

                let mut request = stack.client.request(method.clone(), path);
                if let Some((name, value)) = field {
                    request = request.header(name, value);
                }
                if !body.is_empty() {
                    request = request.body(body);
                }
                let answer = stack.client.send(request.header("x-custom", "x")).await?;
                assert_eq!(answer.status, 200, "{what}");
                assert_eq!(answer.cache_status(), "", "{what}");
                let seen = origin.requests_for(path);
                assert_eq!(seen.len(), before + 1, "{what}");
                let seen = seen.last().context("the request")?;
                assert_eq!(seen.method, method.as_str(), "{what}");
                assert_eq!(seen.body, body, "{what}");
                // Nothing is taken from a request that is left alone.
                assert_eq!(seen.header("x-custom"), Some("x"), "{what}");
                if let Some((name, value)) = field {
                    assert_eq!(seen.header(name), Some(value), "{what}");
                }
                if method != Method::HEAD {
                    assert_eq!(answer.body, Script::reflected(seen), "{what}");
                }
                stack
                    .metric_reaches("afterimage_requests_total", &bypassed, counted + 1)
                    .await?;
            }
            if is_stored {
                let hit = stack.get(path).await?;
                assert!(hit.is_hit(), "{path}: {hit:?}");
            }
            stack.commits_reach(count).await?;
            assert_eq!(stack.stored().await?, count);
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_a_client_says_about_caches_changes_nothing_for_the_others() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = with_both_kinds(&origin).await?;
    for path in PATHS {
        let own = stack.get(path).await?;
        for (name, value) in [
            ("cache-control", "no-cache"),
            ("cache-control", "no-store"),
            ("cache-control", "max-age=0"),
            ("pragma", "no-cache"),
        ] {
            let request = stack.client.request(Method::GET, path).header(name, value);
            let hit = stack.client.send(request).await?;
            assert!(hit.is_hit(), "{path}: {hit:?}");
            assert_eq!(hit.body, own.body, "{path}");
        }
        assert_eq!(origin.requests_for(path).len(), 1, "{path}");
    }
    stack.commits_reach(PATHS.len()).await
}

#[tokio::test]
async fn a_head_neither_fills_nor_marks_and_is_answered_from_what_a_get_stored() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = with_both_kinds(&origin).await?;
    let http2 = stack.http2()?;
    let mut fills = 0;
    for path in PATHS {
        for length in [2000, LARGE] {
            let path = format!("{path}-{length}");
            origin.respond(&path, Script::ok("image/png", image(length)));
            for client in [&stack.client, &http2] {
                let miss = head(client, &path).await?;
                assert_eq!(miss.cache_status(), "afterimage; fwd=miss", "{path}");
                assert_is_head_of(&miss, length, &path);
            }
            assert_eq!(stack.stored().await?, fills);
            let get = stack.get(&path).await?;
            assert_eq!(get.cache_status(), "afterimage; fwd=miss; stored");
            assert_eq!(get.body, image(length));
            fills += 1;
            stack.commits_reach(fills).await?;
            assert_eq!(stack.stored().await?, fills);

            for client in [&stack.client, &http2] {
                let hit = head(client, &path).await?;
                assert!(hit.is_hit(), "{path}: {hit:?}");
                assert_is_head_of(&hit, length, &path);
                assert!(client.get(&path).await?.is_hit());
            }
            let base = stack.envoy.base_url();
            let host = base.trim_start_matches("http://");
            let raw = format!("HEAD {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let raw = stack.client.raw(raw.as_bytes());
            let raw = String::from_utf8(raw.await?)?.to_lowercase();
            assert!(raw.ends_with("\r\n\r\n"), "{raw}");
            assert_eq!(raw.matches("\r\n\r\n").count(), 1, "{raw}");
            assert!(
                raw.contains(&format!("\r\ncontent-length: {length}\r\n")),
                "{raw}"
            );

            let methods = origin.requests_for(&path);
            let methods: Vec<_> = methods.iter().map(|seen| &*seen.method).collect();
            assert_eq!(methods, ["HEAD", "HEAD", "GET"], "{path}");
        }
    }
    // None of the HEADs was as much as considered.
    stack
        .metric_reaches("afterimage_not_storable_total", &[], 0)
        .await
}

#[tokio::test]
async fn the_one_byte_that_imgproxy_answers_a_head_with_is_never_taken_for_the_image() -> Result<()>
{
    let stack = Stack::builder().start().await?;
    let own = stack.imgproxy_client()?.get(COFFEE).await?;
    let miss = head(&stack.client, COFFEE).await?;
    assert_eq!(miss.cache_status(), "afterimage; fwd=miss");
    assert_eq!(miss.header("content-type"), Some("text/plain"));
    let get = stack.get(COFFEE).await?;
    assert_eq!(get.cache_status(), "afterimage; fwd=miss; stored");
    assert_eq!(get.body, own.body);
    for client in [stack.client.clone(), stack.http2()?] {
        let hit = head(&client, COFFEE).await?;
        assert!(hit.is_hit(), "{hit:?}");
        assert_eq!(hit.header("content-type"), Some("image/webp"));
        let length = own.body.len().to_string();
        assert_eq!(hit.header("content-length"), Some(&*length));
        assert_eq!(hit.body, "");
        assert_eq!(client.get(COFFEE).await?.body, own.body);
    }
    stack.commits_reach(1).await
}

/// A stack with a policy of each kind, and an origin that answers every path of them with an image that tells the request.
async fn with_both_kinds(origin: &Origin) -> Result<Stack> {
    origin.otherwise(Script::reflection);
    Stack::builder()
        .upstream(origin.address())
        .policies(
            "{images: { kind: imgproxy, unsigned: true },
              generic: { kind: generic, invalidate_on_unsafe: false }}",
        )
        .route(envoy::route("/generic/", "imgproxy", Some("generic")))
        .start()
        .await
}

async fn head(client: &Client, path: &str) -> Result<Answer> {
    client.send(client.request(Method::HEAD, path)).await
}

fn assert_is_head_of(answer: &Answer, length: usize, what: &str) {
    assert_eq!(answer.status, 200, "{what}");
    assert_eq!(answer.body, "", "{what}");
    assert_eq!(answer.cut, None, "{what}");
    assert_eq!(answer.header("content-type"), Some("image/png"), "{what}");
    let length = length.to_string();
    assert_eq!(answer.header("content-length"), Some(&*length), "{what}");
}

fn image(length: usize) -> Vec<u8> {
    let mut image = vec![7; length];
    image[..8].copy_from_slice(b"\x89PNG\r\n\x1a\n");
    image
}
