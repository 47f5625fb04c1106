//! Many requests for the same at once: one is sent on, the others have what it gets.

use anyhow::Result;
use bytes::Bytes;
use futures_util::future::try_join_all;
use reqwest::Method;
use tokio::task::JoinHandle;

use crate::scripted::{
    KIB, MIB, NOT_STORED, STORED, commits_reach, generic, is_quiet, png, requests, until,
};
use crate::support::client::{Answer, Client};
use crate::support::metrics::Metrics;
use crate::support::origin::{Cut, Framing, Gate, Origin, Script, Seen};
use crate::support::stack::{Builder, Stack, Store};

const COLLAPSED: &str = "afterimage; fwd=miss; collapsed";

fn script(body: &Bytes, line: &str) -> Script {
    Script::status(200)
        .header("content-type", "image/png")
        .header("cache-control", line)
        .body(body.clone())
}

fn storable(body: &Bytes) -> Script {
    script(body, "max-age=3600")
}

/// A stack whose policy names the origin as its upstream.
fn with_upstream(origin: &Origin, completion: &str) -> Builder {
    let policies = format!(
        "images: {{kind: generic, upstream: {{url: 'http://{}', completion: {completion}}}}}",
        origin.address()
    );
    generic(origin, Store::Local).policies(&policies)
}

type Running = Vec<JoinHandle<Result<Answer>>>;

/// So many requests, over HTTP/1.1 and HTTP/2 in turn.
fn ask(stack: &Stack, path: &'static str, count: usize) -> Result<Running> {
    let clients: [Client; 2] = [stack.client.clone(), stack.http2()?];
    Ok((0..count)
        .map(|number| {
            let client = clients[number % 2].clone();
            tokio::spawn(async move { client.get(path).await })
        })
        .collect())
}

async fn answers(running: Running) -> Result<Vec<Answer>> {
    try_join_all(running).await?.into_iter().collect()
}

async fn following_reach(stack: &Stack, count: usize) -> Result<()> {
    until(stack, "followers", |metrics| {
        metrics.sum("afterimage_following", &[]) == count as f64
    })
    .await
}

fn followers(metrics: &Metrics, result: &str) -> f64 {
    metrics.sum("afterimage_followers_total", &[("result", result)])
}

fn is_ours(seen: &Seen) -> bool {
    seen.header("afterimage-fetch").is_some()
}

fn with_status(answers: &[Answer], status: &str) -> usize {
    let is_same = |answer: &&Answer| answer.cache_status() == status;
    answers.iter().filter(is_same).count()
}

#[tokio::test]
async fn a_herd_on_a_cold_key_is_one_request() -> Result<()> {
    for (store, size) in [(Store::Local, 50 * KIB), (Store::Garage, 2 * MIB)] {
        let origin = Origin::start().await?;
        let stack = generic(&origin, store).start().await?;
        let (body, gate) = (png(size), Gate::closed());
        origin.respond("/a", storable(&body).wait_before_head(&gate));
        let running = ask(&stack, "/a", 30)?;
        following_reach(&stack, 29).await?;
        gate.open();
        let answers = answers(running).await?;
        assert!(
            answers
                .iter()
                .all(|answer| answer.status == 200 && answer.body == body)
        );
        assert_eq!(with_status(&answers, STORED), 1);
        assert_eq!(with_status(&answers, COLLAPSED), 29);
        let collapsed = answers
            .iter()
            .find(|answer| answer.cache_status() == COLLAPSED);
        assert!(collapsed.unwrap().header("age").is_some());
        assert_eq!(origin.requests_for("/a").len(), 1);
        commits_reach(&stack, 1).await?;
        assert!(stack.get("/a").await?.is_hit());
        let metrics = stack.metrics().await?;
        assert_eq!(followers(&metrics, "stored"), 29.0);
        let outcome = [("outcome", "collapsed")];
        assert_eq!(metrics.sum("afterimage_requests_total", &outcome), 29.0);
        is_quiet(&stack).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_herd_does_not_wait_for_the_store() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = generic(&origin, Store::Garage).start().await?;
    stack.garage().process.kill()?;
    let (body, gate) = (png(50 * KIB), Gate::closed());
    origin.respond("/a", storable(&body).wait_before_head(&gate));
    let running = ask(&stack, "/a", 10)?;
    following_reach(&stack, 9).await?;
    gate.open();
    let answers = answers(running).await?;
    assert!(answers.iter().all(|answer| answer.body == body));
    assert_eq!(with_status(&answers, COLLAPSED), 9);
    assert_eq!(origin.requests_for("/a").len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_herd_on_a_stale_entry_is_one_request_for_a_304_and_for_another_body() -> Result<()> {
    let origin = Origin::start().await?;
    // What is stale as it comes would not be waited for again.
    let stack = generic(&origin, Store::Local)
        .policies("images: {kind: generic, store: {hit_for_miss: 0s}}")
        .start()
        .await?;
    let (old, new) = (png(50 * KIB), png(60 * KIB));
    let stale = || script(&old, "max-age=0").header("etag", "\"v1\"");
    let unchanged = Script::status(304)
        .header("etag", "\"v1\"")
        .header("cache-control", "max-age=3600");
    for (path, answer, expected) in [("/304", unchanged, &old), ("/200", storable(&new), &new)] {
        origin.respond(path, stale());
        assert!(stack.get(path).await?.body == old);
        is_quiet(&stack).await?;
        let before = origin.requests_for(path).len();
        let gate = Gate::closed();
        origin.respond(path, answer.wait_before_head(&gate));
        let running = ask(&stack, path, 10)?;
        following_reach(&stack, 9).await?;
        gate.open();
        let answers = answers(running).await?;
        assert!(
            answers
                .iter()
                .all(|answer| answer.status == 200 && answer.body == *expected)
        );
        assert_eq!(with_status(&answers, COLLAPSED), 9, "{path}");
        assert_eq!(origin.requests_for(path).len(), before + 1, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_herd_on_a_large_stale_entry_is_one_request_of_our_own() -> Result<()> {
    let origin = Origin::start().await?;
    let policies = format!(
        "images: {{kind: generic, upstream: {{url: 'http://{}'}}, store: {{hit_for_miss: 0s}}}}",
        origin.address()
    );
    let stack = generic(&origin, Store::Local)
        .policies(&policies)
        .start()
        .await?;
    let (old, new) = (png(3 * MIB), png(4 * MIB));
    let tag = "\"v1\"";
    let unchanged = Script::status(304)
        .header("etag", tag)
        .header("cache-control", "max-age=3600");
    let mut waited = 0.0;
    for (path, answer, expected) in [("/304", unchanged, &old), ("/200", storable(&new), &new)] {
        origin.respond(path, script(&old, "max-age=0").header("etag", tag));
        assert!(stack.get(path).await?.body == old);
        is_quiet(&stack).await?;
        let gate = Gate::closed();
        origin.respond(path, answer.wait_before_head(&gate));
        let running = ask(&stack, path, 10)?;
        following_reach(&stack, 9).await?;
        gate.open();
        let answers = answers(running).await?;
        assert!(
            answers
                .iter()
                .all(|answer| answer.status == 200 && answer.body == *expected)
        );
        assert_eq!(with_status(&answers, COLLAPSED), 9);
        let seen = origin.requests_for(path);
        assert!(seen.len() == 2 && is_ours(&seen[1]), "{seen:?}");
        waited += 9.0;
        assert_eq!(followers(&stack.metrics().await?, "stored"), waited);
    }
    Ok(())
}

#[tokio::test]
async fn a_herd_for_two_variants_is_two_requests() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let (german, english, gate) = (png(50 * KIB), png(60 * KIB), Gate::closed());
    let answer = {
        let (german, english, gate) = (german.clone(), english.clone(), gate.clone());
        move |seen: &Seen| {
            let is_german = seen.header("accept-language") == Some("de");
            storable(if is_german { &german } else { &english })
                .header("vary", "accept-language")
                .wait_before_head(&gate)
        }
    };
    origin.respond_with("/a", answer);
    let client = stack.http2()?;
    let ask = |language: &'static str| {
        let client = client.clone();
        tokio::spawn(async move {
            let request = client.request(Method::GET, "/a");
            client
                .send(request.header("accept-language", language))
                .await
        })
    };
    let running = ["de", "en"].map(|language| (0..5).map(|_| ask(language)).collect::<Vec<_>>());
    following_reach(&stack, 9).await?;
    gate.open();
    let [german_answers, english_answers] = running;
    for (running, expected) in [(german_answers, &german), (english_answers, &english)] {
        let answers = answers(running).await?;
        assert!(answers.iter().all(|answer| answer.body == *expected));
    }
    assert_eq!(origin.requests_for("/a").len(), 2);
    Ok(())
}

/// Starts one request, waits until it is at the origin, and then lets others follow it.
async fn followed(
    stack: &Stack,
    origin: &Origin,
    path: &'static str,
    count: usize,
) -> Result<(JoinHandle<Result<Answer>>, Running)> {
    let client = stack.http2()?;
    let leader = tokio::spawn(async move { client.get(path).await });
    origin.requests_reach(path, 1).await?;
    let running = ask(stack, path, count)?;
    following_reach(stack, count).await?;
    Ok((leader, running))
}

#[tokio::test]
async fn what_a_leader_leaves_is_completed_by_a_request_of_our_own() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = with_upstream(&origin, "followers").start().await?;
    let (body, gate) = (png(300 * KIB), Gate::closed());
    // Before the head, and in the middle of the body.
    let scripts = [
        storable(&body).wait_before_head(&gate),
        storable(&body).wait_at(100 * KIB, &gate),
    ];
    for (path, slow) in ["/head", "/body"].into_iter().zip(scripts) {
        origin.respond(path, slow);
        let (leader, running) = followed(&stack, &origin, path, 9).await?;
        origin.respond(path, storable(&body));
        leader.abort();
        let answers = answers(running).await?;
        assert!(
            answers
                .iter()
                .all(|answer| answer.status == 200 && answer.body == body)
        );
        assert_eq!(with_status(&answers, COLLAPSED), 9);
        let seen = origin.requests_for(path);
        assert_eq!(seen.len(), 2);
        assert!(!is_ours(&seen[0]) && is_ours(&seen[1]));
    }
    gate.open();
    is_quiet(&stack).await
}

#[tokio::test]
async fn without_an_upstream_a_follower_takes_the_place_of_a_leader_that_leaves() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let (body, gate) = (png(50 * KIB), Gate::closed());
    origin.respond("/a", storable(&body).wait_before_head(&gate));
    let (leader, running) = followed(&stack, &origin, "/a", 9).await?;
    leader.abort();
    origin.requests_reach("/a", 2).await?;
    following_reach(&stack, 8).await?;
    gate.open();
    let answers = answers(running).await?;
    assert!(answers.iter().all(|answer| answer.body == body));
    assert_eq!(with_status(&answers, COLLAPSED), 8);
    assert_eq!(origin.requests_for("/a").len(), 2);
    assert_eq!(followers(&stack.metrics().await?, "lead"), 1.0);
    Ok(())
}

#[tokio::test]
async fn a_policy_may_complete_what_nobody_waits_for() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = with_upstream(&origin, "always").start().await?;
    let (body, gate) = (png(50 * KIB), Gate::closed());
    origin.respond("/a", storable(&body).wait_before_head(&gate));
    let client = stack.http2()?;
    let left = tokio::spawn(async move { client.get("/a").await });
    origin.requests_reach("/a", 1).await?;
    origin.respond("/a", storable(&body));
    left.abort();
    commits_reach(&stack, 1).await?;
    let hit = stack.get("/a").await?;
    assert!(hit.is_hit() && hit.body == body);
    assert_eq!(origin.requests_for("/a").len(), 2);
    Ok(())
}

#[tokio::test]
async fn what_turns_out_not_storable_releases_a_few_at_a_time_and_is_not_waited_for_again()
-> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local)
        .settings("limits: {released_followers: 2}")
        .start()
        .await?;
    let body = png(50 * KIB);
    let (first, second) = (Gate::closed(), Gate::closed());
    let private = || script(&body, "private, max-age=3600");
    origin.respond("/a", private().wait_before_head(&first));
    let (leader, running) = followed(&stack, &origin, "/a", 5).await?;
    origin.respond("/a", private().wait_before_head(&second));
    first.open();
    assert_eq!(leader.await??.cache_status(), NOT_STORED);
    origin.requests_reach("/a", 3).await?;
    second.reached_by(2).await?;
    assert_eq!(origin.requests_for("/a").len(), 3);
    // Who comes now does not wait for anybody.
    let late = ask(&stack, "/a", 3)?;
    second.reached_by(5).await?;
    second.open();
    for answer in answers(running)
        .await?
        .into_iter()
        .chain(answers(late).await?)
    {
        assert!(answer.status == 200 && answer.body == body);
        assert_eq!(answer.cache_status(), NOT_STORED);
    }
    assert_eq!(origin.requests_for("/a").len(), 9);
    let metrics = stack.metrics().await?;
    assert_eq!(followers(&metrics, "turn"), 5.0);
    assert_eq!(followers(&metrics, "timed_out"), 0.0);
    Ok(())
}

#[tokio::test]
async fn after_an_error_the_next_requests_wait_for_each_other_again() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local).start().await?;
    let (body, gate) = (png(50 * KIB), Gate::closed());
    for failure in [
        Script::status(503),
        storable(&body).cut_after(10 * KIB, Cut::Reset),
    ] {
        origin.respond("/a", failure);
        // A cut answer is an error at the client, too.
        let _ = stack.get("/a").await;
    }
    let before = origin.requests_for("/a").len();
    origin.respond("/a", storable(&body).wait_before_head(&gate));
    let running = ask(&stack, "/a", 5)?;
    following_reach(&stack, 4).await?;
    gate.open();
    assert_eq!(with_status(&answers(running).await?, COLLAPSED), 4);
    assert_eq!(origin.requests_for("/a").len(), before + 1);
    Ok(())
}

#[tokio::test]
async fn what_is_not_held_whole_is_not_waited_for() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local)
        .settings("limits: {held_cap: 1MiB, fill_rate: 0B}")
        .start()
        .await?;
    let body = png(2 * MIB);
    // Known by its length before it comes, and by what has come of it.
    for (path, framing, at) in [
        ("/length", Framing::Length, 0),
        ("/chunked", Framing::Chunked, MIB + KIB),
    ] {
        let (first, second) = (Gate::closed(), Gate::closed());
        let slow = storable(&body).framing(framing).wait_before_head(&first);
        origin.respond(path, slow.wait_at(at, &second));
        let (leader, running) = followed(&stack, &origin, path, 3).await?;
        first.open();
        // The leader's body is still on its way.
        origin.requests_reach(path, 4).await?;
        second.open();
        assert!(leader.await??.body == body);
        for answer in answers(running).await? {
            assert!(answer.body == body);
        }
    }
    assert_eq!(followers(&stack.metrics().await?, "turn"), 6.0);
    Ok(())
}

#[tokio::test]
async fn a_leader_that_is_too_slow_is_overtaken_by_a_request_of_our_own() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = with_upstream(&origin, "followers")
        .settings("limits: {fill_rate: 1MiB, fill_grace: 100ms}")
        .start()
        .await?;
    let (body, gate) = (png(300 * KIB), Gate::closed());
    let head = Gate::closed();
    origin.respond(
        "/a",
        storable(&body)
            .wait_before_head(&head)
            .wait_at(100 * KIB, &gate),
    );
    let (leader, running) = followed(&stack, &origin, "/a", 5).await?;
    origin.respond("/a", storable(&body));
    head.open();
    for answer in answers(running).await? {
        assert!(answer.body == body);
        assert_eq!(answer.cache_status(), COLLAPSED);
    }
    assert_eq!(origin.requests_for("/a").len(), 2);
    gate.open();
    assert!(leader.await??.body == body);
    let metrics = stack.metrics().await?;
    let slow = [("result", "aborted"), ("reason", "slow")];
    assert_eq!(metrics.sum("afterimage_fills_total", &slow), 1.0);
    is_quiet(&stack).await
}

#[tokio::test]
async fn a_policy_may_let_nobody_wait() -> Result<()> {
    let origin = Origin::start().await?;
    let stack = generic(&origin, Store::Local)
        .policies("images: {kind: generic, collapse: false}")
        .start()
        .await?;
    let (body, gate) = (png(50 * KIB), Gate::closed());
    origin.respond("/a", storable(&body).wait_before_head(&gate));
    let running = ask(&stack, "/a", 5)?;
    gate.reached_by(5).await?;
    gate.open();
    assert!(
        answers(running)
            .await?
            .iter()
            .all(|answer| answer.body == body)
    );
    assert_eq!(requests(&stack.metrics().await?, "absent"), 5.0);
    Ok(())
}
