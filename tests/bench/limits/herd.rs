//! Many clients that want the same image at once, which nobody has yet.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::super::claims::Claim;
use super::super::load::{Answers, Expected, Load, Paths, Until};
use super::super::plan::MEDIUM;
use super::super::support::stack::{Stack, Store};
use super::super::systems::{Running, afterimage};
use super::super::urls::Images;
use super::{Ground, say};

const CLIENTS: usize = 500;
const RENDERING_CLIENTS: usize = 20;
const TRIALS: usize = 3;
/// The upstream's name for an image that is a second late.
const SLOW: &str = "slow-1000";
const SLOWEST_MS: f64 = 1500.0;

pub(super) async fn measure(ground: &Ground, claims: &mut Vec<Claim>) -> Result<Value> {
    say("herd: 500 clients and a cold key, 20 clients and a real render");
    let running = afterimage(Store::Local, "{}", ground.upstream.address()).await?;
    Ok(json!({
        "cold_key": cold_key(ground, &running, claims).await?,
        "leader_killed": leader_killed(ground, &running, claims).await?,
        "render": render(claims).await?,
    }))
}

async fn cold_key(ground: &Ground, running: &Running, claims: &mut Vec<Claim>) -> Result<Value> {
    let mut trials = Vec::new();
    let (mut most_requests, mut slowest, mut errors) = (0, 0.0_f64, 0);
    for trial in 0..TRIALS {
        let before = ground.upstream.sent().await?;
        let path = Images::new(MEDIUM, "").path(&format!("{SLOW}-herd-{trial}"));
        let answers = all_at_once(running, CLIENTS, path, Some(MEDIUM)).await?;
        let requests = ground.upstream.sent().await? - before;
        most_requests = most_requests.max(requests);
        slowest = slowest.max(slowest_ms(&answers));
        errors += answers.errors;
        trials.push(json!({
            "clients": CLIENTS,
            "upstream_requests": requests,
            "slowest_ms": slowest_ms(&answers),
            "errors": answers.errors,
        }));
    }
    claims.push(Claim::new(
        format!("herd, {CLIENTS} clients, the upstream takes 1 s: one upstream request"),
        format!("{most_requests}, {errors} errors"),
        most_requests == 1 && errors == 0,
    ));
    claims.push(Claim::new(
        format!("herd, {CLIENTS} clients, the upstream takes 1 s: the slowest within 1.5 s"),
        format!("{slowest:.0} ms"),
        slowest <= SLOWEST_MS && errors == 0,
    ));
    Ok(trials.into())
}

async fn leader_killed(
    ground: &Ground,
    running: &Running,
    claims: &mut Vec<Claim>,
) -> Result<Value> {
    let mut trials = Vec::new();
    let (mut whole, mut slowest) = (usize::MAX, 0.0_f64);
    for trial in 0..TRIALS {
        let before = ground.upstream.sent().await?;
        let path = Images::new(MEDIUM, "").path(&format!("{SLOW}-killed-{trial}"));
        let mut leader = Load::open(running.target, 1).await?;
        let leaves = {
            let path = path.clone();
            async move {
                let paths = Paths::known(vec![path]);
                let asking = leader.run(&paths, Expected::image(MEDIUM), one(1));
                // Its request is under way; dropping it closes the connection.
                let _ = tokio::time::timeout(Duration::from_millis(500), asking).await;
                drop(leader);
            }
        };
        let follow = async {
            // The leader was first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            all_at_once(running, CLIENTS, path, Some(MEDIUM)).await
        };
        let ((), answers) = tokio::join!(leaves, follow);
        let answers = answers?;
        whole = whole.min(answers.latencies.len());
        slowest = slowest.max(slowest_ms(&answers));
        trials.push(json!({
            "clients": CLIENTS,
            "whole": answers.latencies.len(),
            "upstream_requests": ground.upstream.sent().await? - before,
            "slowest_ms": slowest_ms(&answers),
            "errors": answers.errors,
        }));
    }
    claims.push(Claim::new(
        format!("herd, {CLIENTS} clients whose leader's client is killed: all whole"),
        format!("{whole} whole, the slowest after {slowest:.0} ms"),
        whole == CLIENTS,
    ));
    Ok(trials.into())
}

/// On the imgproxy that is there, or its stand-in.
async fn render(claims: &mut Vec<Claim>) -> Result<Value> {
    let running = Running::of(Stack::builder().start().await?)?;
    let image =
        |width: usize| format!("/insecure/rs:fill:{width}:200/plain/local:///coffee.png@webp");
    let mut lone = Vec::new();
    let mut slowest = Vec::new();
    // The first render of a process takes longer.
    all_at_once(&running, RENDERING_CLIENTS, image(299), None).await?;
    for trial in 0..5 {
        let answers = all_at_once(&running, 1, image(300 + trial), None).await?;
        lone.push(slowest_ms(&answers));
        let answers = all_at_once(&running, RENDERING_CLIENTS, image(320 + trial), None).await?;
        slowest.push(slowest_ms(&answers));
    }
    lone.sort_by(f64::total_cmp);
    slowest.sort_by(f64::total_cmp);
    let (lone, slowest) = (lone[2], slowest[2]);
    claims.push(Claim::new(
        format!("{RENDERING_CLIENTS} clients on a real render: at most 1.5 times a lone one"),
        format!("{:.2} ({slowest:.1} ms, {lone:.1} ms)", slowest / lone),
        slowest <= 1.5 * lone,
    ));
    Ok(json!({"clients": RENDERING_CLIENTS, "lone_ms": lone, "slowest_ms": slowest}))
}

/// Every client has its connection already, and asks once.
async fn all_at_once(
    running: &Running,
    clients: usize,
    path: String,
    length: Option<u64>,
) -> Result<Answers> {
    let mut load = Load::open(running.target, clients).await?;
    let expected = Expected {
        status: 200,
        length,
    };
    let paths = Paths::known(vec![path]);
    Ok(load.run(&paths, expected, one(clients)).await)
}

fn one(each_of: usize) -> Until {
    Until {
        time: Duration::from_secs(30),
        requests: each_of as u64,
    }
}

fn slowest_ms(answers: &Answers) -> f64 {
    let slowest = answers.percentile(1.0);
    slowest.map_or(f64::INFINITY, |slowest| slowest.as_secs_f64() * 1e3)
}
