//! Hits from Garage over TCP, size by size: is there any at which somebody waits for somebody's delayed acknowledgement?

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::super::claims::Claim;
use super::super::load::{Expected, Load, Paths, Until};
use super::super::support::stack::Store;
use super::super::systems::{MEMORY_OFF, afterimage, fill};
use super::super::urls::Images;
use super::{Ground, say};

const LARGEST: u64 = 256 * 1024;
const REQUESTS: u64 = 60;
/// Half of the 40 ms that Linux delays an acknowledgement.
const STEP_MS: f64 = 20.0;

pub(super) async fn measure(ground: &Ground, claims: &mut Vec<Claim>) -> Result<Value> {
    say("sweep: hits from Garage over TCP, 1 byte to 256 KiB");
    // Below twelve bytes nothing can look like an image.
    let settings = format!("{{policies: {{images: {{store: {{verify: none}}}}}}, {MEMORY_OFF}}}");
    let upstream = &ground.upstream;
    let running = afterimage(Store::Garage, &settings, upstream.address()).await?;
    let mut load = Load::open(running.target, 1).await?;
    let mut rows = Vec::new();
    let mut worst = (0, 0.0);
    for size in sizes() {
        let paths = vec![Images::new(size, "").path("swept")];
        fill(&running, upstream, paths.clone(), size).await?;
        let before = upstream.sent().await?;
        let until = Until {
            time: Duration::from_secs(10),
            requests: REQUESTS,
        };
        let answers = load
            .run(&Paths::known(paths), Expected::image(size), until)
            .await;
        let ms = |share| {
            let latency = answers.percentile(share);
            latency.map(|latency| latency.as_secs_f64() * 1e3)
        };
        let p50 = ms(0.5).unwrap_or(f64::INFINITY);
        if p50 > worst.1 {
            worst = (size, p50);
        }
        rows.push(json!({
            "size_bytes": size,
            "p50_ms": ms(0.5),
            "p99_ms": ms(0.99),
            "errors": answers.errors,
            "strays": upstream.sent().await? - before,
        }));
    }
    claims.push(Claim::new(
        "Garage hits over TCP, 1 byte to 256 KiB: no step of 40 ms",
        format!("highest p50 {:.3} ms, at {} bytes", worst.1, worst.0),
        worst.1 < STEP_MS,
    ));
    Ok(rows.into())
}

/// Powers of two with their neighbours, what is between them, and the size up to which Garage keeps an object inline.
fn sizes() -> Vec<u64> {
    let mut sizes = vec![3071, 3072, 3073];
    let mut power = 1;
    while power <= LARGEST {
        sizes.extend([power - 1, power, power + 1, power + power / 2]);
        power *= 2;
    }
    sizes.retain(|size| (1..=LARGEST).contains(size));
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}
