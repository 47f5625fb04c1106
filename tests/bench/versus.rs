//! This build of Afterimage beside another one: what a change of the code costs or gains.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::measure::{self, Sample};
use super::plan::{Cell, MEDIUM, Pace, Work};
use super::results::Results;
use super::systems::{Setup, Systems};

/// Each build has so many turns at each cell, one after the other.
const TURNS: usize = 12;

type Figure = fn(&Sample) -> Option<f64>;

const PACE: Pace = Pace {
    warm_up: Duration::from_millis(100),
    window: Duration::from_millis(500),
    rounds: TURNS,
    claim_rounds: TURNS,
    turns: 1,
    turn: Duration::from_millis(500),
    starts_anew: false,
    last_begins: Duration::from_secs(600),
};

/// Measures both, and prints a line for each figure.
///
/// # Errors
/// When something is not installed or does not start, or an answer is wrong.
pub(crate) async fn measure(other: &Path) -> Result<()> {
    let works = [
        (Setup::AfterimageMemory, Work::MemoryHit),
        (Setup::AfterimageGarage, Work::GarageHitTcp),
        (Setup::AfterimageLocal, Work::Miss),
        (Setup::AfterimageGarage, Work::Miss),
    ];
    let cells: Vec<_> = works
        .into_iter()
        .flat_map(|(setup, work)| {
            [1, 16].map(|connections| Cell {
                size: MEDIUM,
                connections,
                work,
                setup,
            })
        })
        .collect();
    let setups = [
        Setup::AfterimageMemory,
        Setup::AfterimageLocal,
        Setup::AfterimageGarage,
    ];
    let builds = [
        Systems::start_build(&setups, &[MEDIUM], Some(other)).await?,
        Systems::start(&setups, &[MEDIUM]).await?,
    ];
    let mut samples = [BTreeMap::new(), BTreeMap::new()];
    for cell in &cells {
        for turn in 0..TURNS {
            for side in [turn % 2, 1 - turn % 2] {
                let running = builds[side].of(cell.setup)?;
                let upstream = builds[side].upstream();
                let sample = measure::measure(cell, running, upstream, &PACE).await?;
                ensure!(sample.errors == 0, "{cell:?}: {:?}", sample.first_error);
                samples[side]
                    .entry(*cell)
                    .or_insert_with(Vec::new)
                    .push(sample);
            }
        }
        eprintln!(
            "{} {} {}",
            cell.work.name(),
            cell.setup.stores()[0],
            cell.connections
        );
    }
    print(&cells, &samples);
    Ok(())
}

fn print(cells: &[Cell], samples: &[BTreeMap<Cell, Vec<Sample>>; 2]) {
    println!(
        "50 KB, median of {TURNS} turns: other build, this build, this by other (range of it over the turns)"
    );
    let results = samples.each_ref().map(Results::new);
    for cell in cells {
        let [Some(other), Some(this)] = results.each_ref().map(|results| results.of(*cell)) else {
            continue;
        };
        let name = format!(
            "{} {} {:>2}",
            cell.work.name(),
            cell.setup.stores()[0],
            cell.connections
        );
        let figures: [(&str, Figure); 3] = [
            ("requests/s", |sample| Some(sample.requests_per_s)),
            ("p50 ms", |sample| sample.p50_ms),
            ("CPU us", |sample| sample.cpu_us.get("afterimage").copied()),
        ];
        for (what, figure) in figures {
            let (Some(other), Some(this)) = (figure(&other.result), figure(&this.result)) else {
                continue;
            };
            let pairs = samples[0][cell].iter().zip(&samples[1][cell]);
            let mut ratios: Vec<_> = pairs
                .filter_map(|(other, this)| Some(figure(this)? / figure(other)?))
                .collect();
            ratios.sort_by(f64::total_cmp);
            if let [least, .., most] = ratios[..] {
                println!(
                    "  {name:<28} {what:<10} {other:>10.3} {this:>10.3}  {:.3} ({least:.2} to {most:.2})",
                    this / other
                );
            }
        }
    }
}
