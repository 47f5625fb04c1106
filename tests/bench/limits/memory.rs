//! What Afterimage holds: after its start, under many fills and hits at once, and after millions of requests.

use std::time::Duration;

use afterimage::clock::Stopwatch;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::super::claims::Claim;
use super::super::load::{Expected, Load, Paths, Until};
use super::super::plan::{LARGE, SMALL};
use super::super::support::stack::Store;
use super::super::systems::{MEMORY_OFF, Running, afterimage, fill};
use super::super::urls::Images;
use super::super::usage::{self, Part};
use super::{Ground, say};

const MIB: f64 = 1024.0 * 1024.0;
const AFTER_START_MIB: f64 = 40.0;
const UNDER_MISSES_MIB: f64 = 96.0;
const KEYS: u64 = 1_000_000;
/// Ten million requests take more than half an hour on two cores, so this goes on for some minutes.
const SOAK: Duration = Duration::from_secs(240);
const FIRST_MINUTE: Duration = Duration::from_secs(60);
const LOOKS_EVERY: Duration = Duration::from_secs(5);
/// What still counts as flat.
const GROWTH: f64 = 1.1;

pub(super) async fn measure(ground: &Ground, claims: &mut Vec<Claim>) -> Result<Value> {
    say("memory: 1000 and 40 misses of 1 MiB at once, 128 hits of 1 MiB at once");
    let start = async |settings| {
        let address = ground.upstream.address();
        afterimage(Store::Local, settings, address).await
    };
    let running = start(MEMORY_OFF).await?;
    let after_start = ours(&running)?.rss()? as f64 / MIB;
    claims.push(Claim::new(
        "memory after the start, tier off: at most 40 MiB",
        format!("{after_start:.1} MiB"),
        after_start <= AFTER_START_MIB,
    ));
    let many = misses(&running, 1000).await?;
    claims.push(Claim::new(
        "1000 misses of 1 MiB at once: every client whole, committed and dropped add up, at most 96 MiB",
        many.to_string(),
        many.is_accounted_for() && many.peak_mib <= UNDER_MISSES_MIB,
    ));
    drop(running);
    let running = start(MEMORY_OFF).await?;
    let few = misses(&running, 40).await?;
    claims.push(Claim::new(
        "40 misses of 1 MiB at once: all commit",
        few.to_string(),
        few.is_accounted_for() && few.committed == few.clients,
    ));
    drop(running);
    let running = start("{}").await?;
    let hits = hits(ground, &running).await?;
    claims.push(Claim::new(
        "128 hits of 1 MiB at once, shipped defaults: reported",
        format!("{hits:.1} MiB"),
        true,
    ));
    drop(running);
    Ok(json!({
        "after_start_mib": after_start,
        "misses_of_1_mib": [many.to_json(), few.to_json()],
        "hits_of_1_mib": {"clients": 128, "peak_mib": hits},
        "soak": soak(ground, claims).await?,
    }))
}

struct Misses {
    clients: u64,
    whole: u64,
    /// How many Afterimage was asked about: Envoy passes by one that does not answer in time.
    seen: u64,
    committed: u64,
    dropped: u64,
    peak_mib: f64,
    first_error: Option<String>,
}

impl Misses {
    fn is_accounted_for(&self) -> bool {
        self.whole == self.clients && self.committed + self.dropped == self.clients
    }

    fn to_json(&self) -> Value {
        json!({
            "clients": self.clients,
            "whole": self.whole,
            "seen": self.seen,
            "committed": self.committed,
            "dropped": self.dropped,
            "peak_mib": self.peak_mib,
            "first_error": self.first_error,
        })
    }
}

impl std::fmt::Display for Misses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} whole, {} seen, {} committed + {} dropped, {:.1} MiB",
            self.whole, self.seen, self.committed, self.dropped, self.peak_mib
        )?;
        match &self.first_error {
            None => Ok(()),
            Some(error) => write!(f, ", first error: {error}"),
        }
    }
}

async fn misses(running: &Running, clients: u64) -> Result<Misses> {
    let ours = ours(running)?;
    ours.reset_peak()?;
    let mut load = Load::open(running.target, usize::try_from(clients)?).await?;
    let until = Until {
        time: Duration::from_secs(60),
        requests: clients,
    };
    let paths = Paths::Fresh(Images::new(LARGE, ""));
    let answers = load.run(&paths, Expected::image(LARGE), until).await;
    usage::come_to_rest(&running.parts).await?;
    let metrics = running.metrics().await?;
    let fills = |result| metrics.sum("afterimage_fills_total", &[("result", result)]) as u64;
    Ok(Misses {
        clients,
        whole: answers.latencies.len() as u64,
        seen: metrics.sum("afterimage_requests_total", &[]) as u64,
        committed: fills("committed"),
        dropped: fills("aborted"),
        peak_mib: ours.peak_rss()? as f64 / MIB,
        first_error: answers.first_error,
    })
}

/// MiB at the peak.
async fn hits(ground: &Ground, running: &Running) -> Result<f64> {
    let images = Images::new(LARGE, "").known();
    fill(running, &ground.upstream, images.clone(), LARGE).await?;
    let ours = ours(running)?;
    ours.reset_peak()?;
    let mut load = Load::open(running.target, 128).await?;
    let until = Until {
        time: Duration::from_secs(3),
        requests: u64::MAX,
    };
    load.run(&Paths::known(images), Expected::image(LARGE), until)
        .await;
    Ok(ours.peak_rss()? as f64 / MIB)
}

/// Any of a million images, again and again, with a store that has room for a part of them.
async fn soak(ground: &Ground, claims: &mut Vec<Claim>) -> Result<Value> {
    say("memory: any of a million keys, for four minutes");
    let settings = "store: {local: {max_bytes: 512MiB}}";
    let running = afterimage(Store::Local, settings, ground.upstream.address()).await?;
    let ours = ours(&running)?;
    let mut load = Load::open(running.target, 16).await?;
    let paths = Paths::AnyOf(Images::new(SMALL, ""), KEYS);
    let until = Until {
        time: LOOKS_EVERY,
        requests: u64::MAX,
    };
    let (mut requests, mut errors) = (0, 0);
    let mut looks = Vec::new();
    let started = Stopwatch::start();
    while started.elapsed() < SOAK {
        let answers = load.run(&paths, Expected::image(SMALL), until).await;
        requests += answers.latencies.len() as u64;
        errors += answers.errors;
        looks.push((started.elapsed(), ours.rss()? as f64 / MIB));
    }
    let of = |after: bool| {
        let looks = looks
            .iter()
            .filter(move |(at, _)| (*at > FIRST_MINUTE) == after);
        looks.map(|(_, mib)| *mib).fold(0.0, f64::max)
    };
    let (first, later) = (of(false), of(true));
    claims.push(Claim::new(
        "10 million requests over 1 million keys: memory flat after the first minute",
        format!(
            "shortened to {requests} requests in {} s: up to {first:.1} MiB in the first minute, {later:.1} MiB later, {errors} errors",
            SOAK.as_secs()
        ),
        later <= first * GROWTH && errors == 0,
    ));
    Ok(json!({
        "keys": KEYS,
        "requests": requests,
        "seconds": SOAK.as_secs(),
        "errors": errors,
        "rss_mib": looks
            .iter()
            .map(|(at, mib)| json!({"second": at.as_secs(), "mib": mib}))
            .collect::<Vec<_>>(),
    }))
}

fn ours(running: &Running) -> Result<&Part> {
    let mut parts = running.parts.iter();
    let ours = parts.find(|part| part.name == "afterimage");
    ours.context("Afterimage runs")
}
