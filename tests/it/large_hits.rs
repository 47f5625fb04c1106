//! Hits that Envoy fetches from Afterimage's own listener.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::Result;
use reqwest::Method;

use crate::scripted::{
    MIB, STORED, commits_reach, committed, entries, generic, is_quiet, png, until,
};
use crate::support::origin::{Origin, Script};
use crate::support::stack::{Builder, Store};

const OBJECTS: &str = "objects: {listen: 'unix:run/objects.sock'}";

fn fetched(origin: &Origin, store: Store) -> Builder {
    generic(origin, store).settings(OBJECTS)
}

#[tokio::test]
async fn a_large_hit_is_the_same_bytes_in_every_form() -> Result<()> {
    for store in [Store::Local, Store::Garage] {
        let origin = Origin::start().await?;
        let stack = fetched(&origin, store).start().await?;
        for (path, size) in [("/a", 4 * MIB + 1), ("/b", 20 * MIB)] {
            let body = png(size);
            origin.respond(
                path,
                Script::ok("image/png", body.clone()).header("etag", "\"v\""),
            );
            let before = committed(&stack.metrics().await?) as usize;
            let miss = stack.get(path).await?;
            assert!(miss.cache_status() == STORED && miss.body == body);
            commits_reach(&stack, before + 1).await?;
            for client in [stack.client.clone(), stack.http2()?] {
                let hit = client.get(path).await?;
                assert!(hit.is_hit() && hit.cut.is_none(), "{hit:?}");
                assert!(hit.body == body);
                assert_eq!(hit.header("content-length"), Some(&*size.to_string()));
                assert_eq!(hit.header("content-type"), Some("image/png"));
                assert!(hit.header("age").is_some());
                assert!(hit.header("x-afterimage-object").is_none());

                let head = client.send(client.request(Method::HEAD, path)).await?;
                assert!(head.is_hit() && head.body.is_empty());

                let part = client.request(Method::GET, path);
                let last = size - 4 * MIB - 1;
                let part = client
                    .send(part.header("range", format!("bytes={last}-")))
                    .await?;
                assert_eq!(part.status, 206);
                assert!(part.is_hit() && part.body == body[last..]);

                let unchanged = client.request(Method::GET, path);
                let unchanged = client
                    .send(unchanged.header("if-none-match", "\"v\""))
                    .await?;
                assert_eq!(unchanged.status, 304);
                assert!(unchanged.is_hit());
            }
            assert_eq!(origin.requests_for(path).len(), 1);
        }
        is_quiet(&stack).await?;
    }
    Ok(())
}

#[tokio::test]
async fn nobody_else_can_ask_for_an_object() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = fetched(&origin, Store::Local).start().await?;
    let body = png(5 * MIB);
    origin.respond("/a", Script::ok("image/png", body.clone()));
    stack.get("/a").await?;
    commits_reach(&stack, 1).await?;
    for ticket in ["", "x", "00000000000000000000000000000000", "/a"] {
        for client in [stack.client.clone(), stack.http2()?] {
            let request = client.request(Method::GET, "/a");
            let refused = client
                .send(request.header("x-afterimage-object", ticket))
                .await?;
            assert_eq!(
                (refused.status, refused.is_hit()),
                (403, false),
                "{ticket:?}"
            );
            assert!(refused.body.len() < 100);
        }
    }
    assert!(stack.get("/a").await?.body == body);
    assert_eq!(origin.requests_for("/a").len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_large_hit_that_is_not_what_was_stored_is_cut_and_forgotten() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = fetched(&origin, Store::Local).start().await?;
    let body = png(5 * MIB);
    origin.respond("/a", Script::ok("image/png", body.clone()));
    stack.get("/a").await?;
    commits_reach(&stack, 1).await?;
    let [file] = &entries(&stack)?[..] else {
        panic!("one entry")
    };
    let middle = fs::metadata(file)?.len() / 2;
    let open = OpenOptions::new().read(true).write(true).open(file)?;
    let mut byte = [0];
    open.read_exact_at(&mut byte, middle)?;
    open.write_all_at(&[!byte[0]], middle)?;

    let cut = stack.get("/a").await?;
    assert!(cut.cut.is_some() && cut.body.len() < body.len(), "{cut:?}");
    until(&stack, "a broken hit", |metrics| {
        metrics.sum("afterimage_broken_hits_total", &[]) == 1.0
    })
    .await?;
    is_quiet(&stack).await?;
    let again = stack.get("/a").await?;
    assert!(again.body == body);
    assert_eq!(origin.requests_for("/a").len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_a_large_hit_leaves_nothing_held() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = fetched(&origin, Store::Local).start().await?;
    origin.respond("/a", Script::ok("image/png", png(64 * MIB)));
    stack.get("/a").await?;
    commits_reach(&stack, 1).await?;
    let request = stack.client.request(Method::GET, "/a");
    let mut response = request.send().await?;
    assert!(response.chunk().await?.is_some());
    // More than Envoy and both sockets take: what is held is one room.
    until(&stack, "one room", |metrics| {
        metrics.sum("afterimage_budget_reserved_bytes", &[]) == MIB as f64
    })
    .await?;
    drop(response);
    is_quiet(&stack).await
}
