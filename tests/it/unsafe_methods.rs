//! Methods that change things invalidate what is stored (RFC 9111 section 4.4).

use anyhow::Result;
use reqwest::Method;

use crate::scripted::{KIB, STORED, aborted, commits_reach, entries, generic, png, until};
use crate::support::client::{Answer, Client};
use crate::support::origin::{Gate, Origin, Script};
use crate::support::stack::{Stack, Store};

async fn send(client: &Client, method: &str, path: &str) -> Result<Answer> {
    let method = Method::from_bytes(method.as_bytes())?;
    client.send(client.request(method, path).body("x")).await
}

async fn miss_then_hit(stack: &Stack, path: &str, commits: usize) -> Result<()> {
    let miss = stack.get(path).await?;
    assert_eq!(miss.cache_status(), STORED, "{path}");
    commits_reach(stack, commits).await?;
    assert!(stack.get(path).await?.is_hit(), "{path}");
    Ok(())
}

#[tokio::test]
async fn rfc9111_4_4_after_a_successful_unsafe_method_nothing_old_is_served() -> Result<()> {
    for store in [Store::Local, Store::Garage] {
        let origin = Origin::start().await?;
        let stack = generic(&origin, store).start().await?;
        let mut commits = 0;
        for (protocol, client) in [("h1", stack.client.clone()), ("h2", stack.http2()?)] {
            for method in ["POST", "PUT", "DELETE", "PATCH", "PURGE"] {
                let path = format!("/{protocol}/{method}");
                let query = format!("{path}?a");
                for path in [&path, &query] {
                    origin.respond(path, Script::ok("image/png", png(10 * KIB)));
                    commits += 1;
                    miss_then_hit(&stack, path, commits).await?;
                }
                origin.respond(&path, Script::status(204));
                let answer = send(&client, method, &path).await?;
                assert_eq!(answer.status, 204, "{method}");
                assert_eq!(answer.cache_status(), "afterimage; fwd=method");
                let new = png(12 * KIB);
                for path in [&path, &query] {
                    origin.respond(path, Script::ok("image/png", new.clone()));
                    let next = stack.get(path).await?;
                    assert!(!next.is_hit() && next.body == new, "{path}: {next:?}");
                    commits += 1;
                }
                commits_reach(&stack, commits).await?;
            }
        }
        let metrics = stack.metrics().await?;
        let watched = [("outcome", "method"), ("reason", "invalidates")];
        assert_eq!(metrics.sum("afterimage_requests_total", &watched), 10.0);
    }
    Ok(())
}

#[tokio::test]
async fn rfc9111_4_4_an_unsafe_method_that_fails_changes_nothing() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    origin.respond("/a", Script::ok("image/png", png(10 * KIB)));
    miss_then_hit(&stack, "/a", 1).await?;
    for status in [400, 404, 500] {
        origin.respond("/a", Script::status(status));
        let answer = send(&stack.client, "POST", "/a").await?;
        assert_eq!(answer.cache_status(), "afterimage; fwd=method");
    }
    assert!(stack.get("/a").await?.is_hit());
    Ok(())
}

#[tokio::test]
async fn rfc9111_4_4_locations_of_the_same_host_are_invalidated_with_it() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    for (index, path) in ["/b", "/c", "/d"].into_iter().enumerate() {
        origin.respond(path, Script::ok("image/png", png(10 * KIB)));
        miss_then_hit(&stack, path, index + 1).await?;
    }
    let created = Script::status(201)
        .header("location", "/b")
        .header("content-location", "c")
        .header("link", "</d>");
    origin.respond("/a", created);
    send(&stack.client, "POST", "/a").await?;
    assert!(!stack.get("/b").await?.is_hit());
    assert!(!stack.get("/c").await?.is_hit());
    assert!(stack.get("/d").await?.is_hit());
    Ok(())
}

#[tokio::test]
async fn a_fill_from_before_an_unsafe_method_leaves_nothing_behind() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let gate = Gate::closed();
    let old = png(200 * KIB);
    origin.respond(
        "/a",
        Script::ok("image/png", old.clone()).wait_at(100 * KIB, &gate),
    );
    let filling = tokio::spawn({
        let client = stack.client.clone();
        async move { client.get("/a").await }
    });
    gate.reached_by(1).await?;
    origin.respond("/a", Script::status(204));
    send(&stack.client, "POST", "/a").await?;
    gate.open();
    assert!(
        filling.await??.body == old,
        "the client has what it asked for"
    );
    until(&stack, "an invalidated fill", |metrics| {
        aborted(metrics, "invalidated") == 1.0
    })
    .await?;
    assert!(entries(&stack)?.is_empty());
    let new = png(10 * KIB);
    origin.respond("/a", Script::ok("image/png", new.clone()));
    assert!(stack.get("/a").await?.body == new);
    Ok(())
}

#[tokio::test]
async fn where_the_policy_says_so_methods_are_left_alone() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local)
        .policies("images: {kind: generic, invalidate_on_unsafe: false}")
        .start()
        .await?;
    origin.respond("/a", Script::ok("image/png", png(10 * KIB)));
    miss_then_hit(&stack, "/a", 1).await?;
    let answer = send(&stack.client, "POST", "/a").await?;
    assert_eq!(answer.header("cache-status"), None);
    assert!(stack.get("/a").await?.is_hit());
    Ok(())
}

#[tokio::test]
async fn only_trusted_peers_are_obeyed() -> Result<()> {
    for (networks, is_obeyed) in [("[127.0.0.0/8, '::1']", true), ("[10.0.0.0/8]", false)] {
        let origin = Origin::start().await?;
        let policies =
            format!("images: {{kind: generic, client_cache_control: {{trusted: {networks}}}}}");
        let stack = generic(&origin, Store::Local)
            .policies(&policies)
            .start()
            .await?;
        origin.respond("/a", Script::ok("image/png", png(10 * KIB)));
        miss_then_hit(&stack, "/a", 1).await?;
        let request = stack.client.request(Method::GET, "/a");
        let request = request.header("cache-control", "no-cache");
        let answer = stack.client.send(request).await?;
        assert_eq!(answer.is_hit(), !is_obeyed, "{networks}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn rfc9111_4_3_5_a_head_freshens_or_forgets_what_a_get_has_stored() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let body = png(10 * KIB);
    let script = |tag: &str, line: &str| {
        Script::status(200)
            .header("content-type", "image/png")
            .header("etag", tag)
            .header("cache-control", line)
            .body(body.clone())
    };
    // Stale at once, but worth keeping for its validator.
    origin.respond("/a", script("\"v1\"", "max-age=0"));
    assert_eq!(stack.get("/a").await?.cache_status(), STORED);
    commits_reach(&stack, 1).await?;
    origin.respond("/a", script("\"v1\"", "max-age=3600"));
    let head = || stack.client.send(stack.client.request(Method::HEAD, "/a"));
    let answer = head().await?;
    assert_eq!(
        answer.cache_status(),
        "afterimage; fwd=stale; fwd-status=200"
    );
    let patience = std::time::Duration::from_secs(10);
    crate::support::wait::until("a freshened entry", patience, async || {
        head().await.is_ok_and(|answer| answer.is_hit())
    })
    .await?;
    let hit = stack.get("/a").await?;
    assert!(hit.is_hit() && hit.body == body);

    origin.respond("/b", script("\"v1\"", "max-age=0"));
    stack.get("/b").await?;
    commits_reach(&stack, 2).await?;
    origin.respond("/b", script("\"v2\"", "max-age=3600"));
    stack
        .client
        .send(stack.client.request(Method::HEAD, "/b"))
        .await?;
    crate::support::wait::until("an entry less", patience, async || {
        entries(&stack).is_ok_and(|entries| entries.len() == 1)
    })
    .await
}
