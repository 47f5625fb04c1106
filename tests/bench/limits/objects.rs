//! Does a hit cost more when the bucket holds more objects?

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use super::super::claims::Claim;
use super::super::load::Paths;
use super::super::measure::{Sample, measure_paths};
use super::super::plan::{Cell, MEDIUM, Pace, Work};
use super::super::s3::unused_key;
use super::super::support::garage::{self, BUCKET};
use super::super::support::s3::Signer;
use super::super::support::stack::Store;
use super::super::systems::{MEMORY_OFF, Running, Setup, afterimage, fill};
use super::super::urls::Images;
use super::{Ground, say};

const FEW: u64 = 1_000;
const MANY: u64 = 100_000;
const ROUNDS: usize = 5;
/// Of an object that is only there to be there; small enough to be kept inline.
const BODY_BYTES: usize = 1024;
const PACE: Pace = Pace {
    warm_up: Duration::from_millis(200),
    window: Duration::from_secs(2),
    rounds: ROUNDS,
    claim_rounds: ROUNDS,
    turns: 1,
    turn: Duration::from_secs(2),
    starts_anew: false,
    last_begins: Duration::MAX,
};

pub(super) async fn measure(ground: &Ground, claims: &mut Vec<Claim>) -> Result<Value> {
    say("objects: filling a bucket with 100000");
    let few = bucket(ground).await?;
    let many = bucket(ground).await?;
    add_others(&many, MANY - FEW).await?;
    say("objects: hits out of 1000 and out of 100000");
    let cell = Cell {
        size: MEDIUM,
        connections: 16,
        work: Work::GarageHitTcp,
        setup: Setup::AfterimageGarage,
    };
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (running, samples) in [&few, &many].into_iter().zip(&mut samples) {
            let paths = Paths::known(hit());
            samples.push(measure_paths(&cell, paths, running, &ground.upstream, &PACE).await?);
        }
    }
    let of = |figure: fn(&Sample) -> f64| {
        samples.each_ref().map(|samples| {
            let mut figures: Vec<f64> = samples.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures[ROUNDS / 2]
        })
    };
    let ours = of(|sample| sample.cpu_us["afterimage"]);
    let garage = of(|sample| sample.cpu_us["garage"]);
    let p50 = of(|sample| sample.p50_ms.unwrap_or(f64::INFINITY));
    for (what, [few, many]) in [
        ("our CPU, µs", ours),
        ("Garage's CPU, µs", garage),
        ("p50, ms", p50),
    ] {
        claims.push(Claim::new(
            format!("a hit with {MANY} objects in the bucket costs within 15 % of one with {FEW}: {what}"),
            format!("{:.2} ({many:.2}, {few:.2})", many / few),
            (many / few - 1.0).abs() <= 0.15,
        ));
    }
    let rows = [(FEW, 0), (MANY, 1)].map(|(objects, index)| {
        json!({
            "objects": objects,
            "afterimage_us": ours[index],
            "garage_us": garage[index],
            "p50_ms": p50[index],
        })
    });
    Ok(json!(rows))
}

/// A stack with so few images, all of which are hits.
async fn bucket(ground: &Ground) -> Result<Running> {
    let address = ground.upstream.address();
    let running = afterimage(Store::Garage, MEMORY_OFF, address).await?;
    fill(&running, &ground.upstream, hit(), MEDIUM).await?;
    Ok(running)
}

fn hit() -> Vec<String> {
    let images = Images::new(MEDIUM, "");
    (0..FEW)
        .map(|number| images.path(&format!("object-{number}")))
        .collect()
}

async fn add_others(running: &Running, count: u64) -> Result<()> {
    let garage = running.garage.as_ref().context("it has a Garage")?;
    let signer = Signer::new(&garage.endpoint, BUCKET, garage::KEY);
    let http = reqwest::Client::builder().no_proxy().build()?;
    stream::iter(0..count)
        .map(async |number| {
            let url = signer.put(&unused_key(number).object_name()).await?;
            let request = http.put(url).body(vec![0; BODY_BYTES]);
            request.send().await?.error_for_status()?;
            anyhow::Ok(())
        })
        .buffer_unordered(32)
        .try_collect::<()>()
        .await
}
