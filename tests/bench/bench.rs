//! `make bench` and `make bench-limits`: Afterimage, the floors and the peers, side by side in one run.
//!
//! ```text
//! plan ── what is measured; claims ── which ratios that is for
//!   └─ systems ── starts everyone before one upstream (urls, upstream, empty_ext_proc, nginx, node, cores)
//!        └─ measure ── one cell: load asks, usage reads the processes' CPU time and memory
//!             └─ results ── medians, table, target/bench.json; plot ── the pictures
//! ```
//!
//! Within a round all systems do the same work one after the other, and every other round goes backwards, so that a machine
//! that gets slower or faster meanwhile does so for all. Misses come last: a store has to do with what they leave for seconds,
//! which would fall into the hits.

mod claims;
mod cores;
mod empty_ext_proc;
mod limits;
mod load;
mod measure;
mod nginx;
mod node;
mod plan;
mod plot;
mod results;
mod s3;
#[path = "../support/mod.rs"]
mod support;
mod systems;
mod upstream;
mod urls;
mod usage;
mod versus;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use afterimage::clock::Stopwatch;
use afterimage::config::default_threads;
use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum as _};
use rustix::fs::statvfs;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use measure::Sample;
use plan::{Cell, Pace, Plan, Work};
use results::Results;
use support::tools;
use systems::{Setup, Systems};

/// What a round writes at most, and what it needs besides.
const ROOM_BYTES: u64 = 3 << 30;

#[derive(Parser)]
#[command(
    name = "bench",
    about = "Measures Afterimage beside the floors and the peers"
)]
enum Arguments {
    /// Measures everything, within 15 minutes.
    Run {
        /// Only what the claims at 50 KB need, within 2 minutes.
        #[arg(long)]
        quick: bool,
        /// This work only; all if it is not given.
        #[arg(long, value_enum)]
        only: Option<Work>,
    },
    /// Measures what is bounded rather than fast: sizes, herds, memory, many objects. Within 15 minutes.
    Limits {
        /// This part only; all if it is not given.
        #[arg(long, value_enum)]
        only: Option<limits::Part>,
    },
    /// Measures this build beside another one, within 5 minutes.
    Versus {
        /// The other build of `afterimage`.
        binary: PathBuf,
    },
    /// The server in imgproxy's place.
    #[command(hide = true)]
    Upstream { listen: SocketAddr },
    /// The processor that does nothing.
    #[command(hide = true)]
    EmptyExtProc { socket: PathBuf, messages: PathBuf },
}

fn main() -> ExitCode {
    let done = match Arguments::parse() {
        Arguments::Run { quick, only } => one_thread(until_signal(bench(quick, only))),
        Arguments::Limits { only } => one_thread(until_signal(limits(only))),
        Arguments::Versus { binary } => one_thread(until_signal(versus(&binary))),
        Arguments::Upstream { listen } => one_thread(upstream::serve(listen)),
        Arguments::EmptyExtProc { socket, messages } => {
            conversations(empty_ext_proc::serve(&socket, &messages))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn one_thread(work: impl Future<Output = Result<()>>) -> Result<()> {
    Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// As many threads as Afterimage has.
fn conversations(work: impl Future<Output = Result<()>>) -> Result<()> {
    Builder::new_multi_thread()
        .worker_threads(default_threads().get())
        .enable_all()
        .build()?
        .block_on(work)
}

/// Measures, unless a signal comes first; either way everything that was started ends.
async fn until_signal(measuring: impl Future<Output = Result<()>>) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = measuring => done,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("terminated"),
    }
}

async fn bench(quick: bool, only: Option<Work>) -> Result<()> {
    prepare()?;
    let started = Stopwatch::start();
    let mut plan = if quick { Plan::quick() } else { Plan::full() };
    plan.without(&missing());
    if let Some(work) = only {
        plan.only(work);
    }
    let samples = all_rounds(&plan, started).await?;

    let results = Results::new(&samples);
    results.print();
    claims::print(&results, &plan);
    let target = target()?;
    let json = target.join("bench.json");
    results.write(&json)?;
    println!("\n{}", json.display());
    for plot in plot::write(&results, &target)? {
        println!("{}", plot.display());
    }
    println!("{} s", started.elapsed().as_secs());
    Ok(())
}

async fn limits(only: Option<limits::Part>) -> Result<()> {
    prepare()?;
    let started = Stopwatch::start();
    let parts = match &only {
        None => limits::Part::value_variants(),
        Some(part) => std::slice::from_ref(part),
    };
    let limits = limits::measure(parts).await?;
    let json = target()?.join("limits.json");
    std::fs::write(&json, format!("{limits:#}\n"))?;
    println!("\n{}\n{} s", json.display(), started.elapsed().as_secs());
    Ok(())
}

async fn versus(binary: &Path) -> Result<()> {
    prepare()?;
    versus::measure(binary).await
}

fn prepare() -> Result<()> {
    allow_many_connections()?;
    keep_off_the_disk()
}

/// Where results go.
fn target() -> Result<PathBuf> {
    let target = tools::project().join("target");
    std::fs::create_dir_all(&target)?;
    Ok(target)
}

/// Who cannot be measured here, said in one line each.
fn missing() -> Vec<Setup> {
    let mut missing = Vec::new();
    if nginx::find().is_none() {
        eprintln!(
            "no rows of nginx: it is not installed; on Debian: sudo apt-get install nginx-light"
        );
        missing.push(Setup::Nginx);
    }
    missing
}

async fn all_rounds(plan: &Plan, started: Stopwatch) -> Result<BTreeMap<Cell, Vec<Sample>>> {
    let setups = plan.setups();
    let start = async || Systems::start(&setups, &plan.sizes).await;
    let mut systems = start().await?;
    let mut samples = BTreeMap::<Cell, Vec<Sample>>::new();
    let rounds = plan.pace.rounds.max(plan.pace.claim_rounds);
    'all: for round in 0..rounds {
        if round > 0 && plan.pace.starts_anew {
            drop(systems);
            systems = start().await?;
        }
        let turns = turns(plan, round);
        for (index, (cell, window)) in turns.iter().enumerate() {
            if started.elapsed() > plan.pace.last_begins {
                eprintln!("no time is left for the rest of round {}", round + 1);
                break 'all;
            }
            systems.revive(cell.setup).await?;
            let running = systems.of(cell.setup)?;
            let pace = Pace {
                window: *window,
                ..plan.pace
            };
            let measured = measure::measure(cell, running, systems.upstream(), &pace).await;
            let sample = match measured {
                Ok(sample) => sample,
                Err(error) if systems.revive(cell.setup).await? => Sample::of_ended(&error),
                Err(error) => return Err(error.context(format!("{cell:?}"))),
            };
            samples.entry(*cell).or_default().push(sample);
            if index % 10 == 9 || index + 1 == turns.len() {
                let seconds = started.elapsed().as_secs();
                eprintln!(
                    "round {} of {rounds}: {} of {} turns, {seconds} s",
                    round + 1,
                    index + 1,
                    turns.len()
                );
            }
        }
    }
    Ok(samples)
}

/// What is measured in a round, in order, and for how long.
///
/// A machine is faster in one minute than in the next, by more than what separates the sides of a claim. So they take turns,
/// many short ones.
fn turns(plan: &Plan, round: usize) -> Vec<(Cell, Duration)> {
    let mut cells: Vec<_> = plan
        .cells
        .iter()
        .copied()
        .filter(|cell| round < plan.pace.rounds || claims::needs(cell))
        .collect();
    if round % 2 == 1 {
        cells.reverse();
    }
    // Sides of a claim have the same, alone and one after the other.
    let claim = |cell: &Cell| {
        let is_side = claims::needs(cell) && cell.connections <= 16;
        is_side.then_some((cell.size, cell.connections))
    };
    cells.sort_by_key(|cell| (cell.work.comes_last(), claim(cell)));
    let mut turns = Vec::new();
    for sides in cells.chunk_by(|one, other| {
        claim(one) == claim(other) && one.work.comes_last() == other.work.comes_last()
    }) {
        if sides.first().and_then(claim).is_none() {
            turns.extend(sides.iter().map(|cell| (*cell, plan.pace.window)));
            continue;
        }
        for turn in 0..plan.pace.turns {
            let sides = sides.iter().map(|cell| (*cell, plan.pace.turn));
            if turn % 2 == 0 {
                turns.extend(sides);
            } else {
                turns.extend(sides.rev());
            }
        }
    }
    turns
}

/// Puts stores and logs into memory, if there is room and `TMPDIR` does not say otherwise: disks differ in how long they take
/// to sync or to delete a file, and nobody waits for either here.
fn keep_off_the_disk() -> Result<()> {
    let memory = Path::new("/dev/shm");
    let has_room = statvfs(memory).is_ok_and(|found| found.f_bavail * found.f_frsize >= ROOM_BYTES);
    if std::env::var_os("TMPDIR").is_none() && has_room {
        tempfile::env::override_temp_dir(memory)
            .ok()
            .context("set before")?;
    }
    eprintln!(
        "files are in {}; TMPDIR=/another/place chooses",
        tempfile::env::temp_dir().display()
    );
    Ok(())
}

/// Hundreds of connections need more open files than shells allow at first.
fn allow_many_connections() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, all).context("cannot raise the limit of open files")
}
