//! One cell, measured once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use afterimage::clock::Stopwatch;
use afterimage::store::{LocalStore, Store as _};
use anyhow::Result;
use futures_util::future::join_all;

use super::load::{Answers, Expected, Load, Paths, Until, pauses_for};
use super::plan::{Cell, Pace, Work};
use super::s3::unused_key;
use super::systems::{BYPASS, Running, Setup, Upstream};
use super::urls::Images;
use super::usage::{self, Part};

/// A cell that writes to a store ends after so many bytes, so that a run does not write without bound.
const WRITTEN_BYTES: u64 = 128 * 1024 * 1024;

/// After every answer to a lone client that misses. It sees how long a miss takes, not how long the work takes that the one
/// before has left behind: that of the store alone would keep two cores busy for longer than an answer takes.
const PAUSE: Duration = Duration::from_millis(10);

/// How often it is looked whether the circuit breaker has closed again, which it does after two seconds and a request.
const BREAKER_LOOKS: usize = 12;

/// What one measurement of a cell gave.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Right answers.
    pub(crate) answers: u64,
    /// Right answers in a second.
    pub(crate) requests_per_s: f64,
    /// Median latency; none without right answers.
    pub(crate) p50_ms: Option<f64>,
    /// The latency that one answer in a hundred exceeds.
    pub(crate) p99_ms: Option<f64>,
    /// Wrong answers, broken connections, answers that did not come.
    pub(crate) errors: u64,
    /// Right answers that were not this work: hits that came from the upstream, misses that did not. A few memory hits are
    /// strays by right: beside them their entries are compared with the store.
    pub(crate) strays: u64,
    /// Microseconds of CPU time per request of each process, with the work that a request leaves behind.
    pub(crate) cpu_us: BTreeMap<&'static str, f64>,
    /// Peak of each process's resident set while the cell was measured.
    pub(crate) peak_rss: BTreeMap<&'static str, u64>,
    /// The first of the errors.
    pub(crate) first_error: Option<String>,
}

impl Sample {
    /// That of a peer that ended meanwhile.
    pub(crate) fn of_ended(error: &anyhow::Error) -> Self {
        Self {
            answers: 0,
            requests_per_s: 0.0,
            p50_ms: None,
            p99_ms: None,
            errors: 1,
            strays: 0,
            cpu_us: BTreeMap::new(),
            peak_rss: BTreeMap::new(),
            first_error: Some(format!("{error:#}")),
        }
    }
}

/// Measures a cell.
///
/// # Errors
/// When a process has ended. Wrong answers are counted, not errors.
pub(crate) async fn measure(
    cell: &Cell,
    running: &Running,
    upstream: &Upstream,
    pace: &Pace,
) -> Result<Sample> {
    let paths = match cell.work {
        Work::AbsentLookup => Paths::known(running.absent.clone()),
        Work::Miss => Paths::Fresh(Images::new(cell.size, "")),
        Work::Bypass => Paths::known(Images::new(cell.size, BYPASS).known()),
        Work::MemoryHit | Work::GarageHitTcp | Work::GarageHitUnix | Work::LocalHit => {
            Paths::known(Images::new(cell.size, "").known())
        }
    };
    measure_paths(cell, paths, running, upstream, pace).await
}

/// Measures a cell with paths of its own.
///
/// # Errors
/// As [`measure`].
pub(crate) async fn measure_paths(
    cell: &Cell,
    paths: Paths,
    running: &Running,
    upstream: &Upstream,
    pace: &Pace,
) -> Result<Sample> {
    let mut parts = running.parts.clone();
    if cell.work != Work::AbsentLookup {
        parts.push(upstream.part());
    }
    let mut asker = Asker::new(cell, paths, running).await?;
    let window = Until {
        time: pace.window,
        requests: requests_at_most(cell),
    };
    let warm_up = Until {
        time: pace.warm_up,
        ..window
    };
    drop(asker.run(warm_up).await);
    // The cell before may have overwhelmed the store; that is not to be seen in this one.
    for _ in 0..BREAKER_LOOKS {
        if running.is_store_in_use().await? {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
        drop(asker.run(warm_up).await);
    }
    usage::come_to_rest(&parts).await?;

    let ourselves = Part::new("load", std::process::id());
    let sent_before = upstream.sent().await?;
    let looked_up_before = looked_up(cell, running).await?;
    for part in &parts {
        part.reset_peak()?;
    }
    let load_before = ourselves.cpu()?;
    let before = parts.iter().map(Part::cpu).collect::<Result<Vec<_>>>()?;
    let answers = asker.run(window).await;
    let load_used = ourselves.cpu()? - load_before;
    usage::come_to_rest(&parts).await?;

    let requests = (answers.latencies.len() as u64 + answers.errors).max(1);
    let per_request = |used: Duration| used.as_secs_f64() * 1e6 / requests as f64;
    let mut cpu_us = BTreeMap::from([("load", per_request(load_used))]);
    let mut peak_rss = BTreeMap::new();
    for (part, before) in parts.iter().zip(before) {
        cpu_us.insert(part.name, per_request(part.cpu()?.saturating_sub(before)));
        peak_rss.insert(part.name, part.peak_rss()?);
    }
    let sent = upstream.sent().await? - sent_before;
    let looked_up = looked_up(cell, running).await? - looked_up_before;
    let strays = if cell.work.reaches_upstream() {
        (answers.latencies.len() as u64).saturating_sub(sent)
    } else {
        sent + looked_up
    };
    let ms = |latency: Option<Duration>| latency.map(|latency| latency.as_secs_f64() * 1e3);
    Ok(Sample {
        answers: answers.latencies.len() as u64,
        requests_per_s: answers.per_second(),
        p50_ms: ms(answers.percentile(0.5)),
        p99_ms: ms(answers.percentile(0.99)),
        errors: answers.errors,
        strays,
        cpu_us,
        peak_rss,
        first_error: answers.first_error,
    })
}

/// Who asks.
enum Asker<'a> {
    Http(Load, Box<Paths>, Expected),
    Directory(&'a LocalStore, usize, Duration),
}

impl<'a> Asker<'a> {
    async fn new(cell: &Cell, paths: Paths, running: &'a Running) -> Result<Self> {
        let pause = pause(cell);
        if let Some(store) = &running.local_store {
            return Ok(Self::Directory(store, cell.connections, pause));
        }
        let expected = match cell.work {
            Work::AbsentLookup => Expected {
                status: 404,
                length: None,
            },
            _ => Expected::image(cell.size),
        };
        let load = Load::open(running.target, cell.connections).await?;
        Ok(Self::Http(load.pausing(pause), Box::new(paths), expected))
    }

    async fn run(&mut self, until: Until) -> Answers {
        match self {
            Self::Http(load, paths, expected) => load.run(paths, *expected, until).await,
            Self::Directory(store, at_a_time, pause) => {
                look_up_absent(store, *at_a_time, *pause, until).await
            }
        }
    }
}

/// Asks a directory, which has no server to be asked.
async fn look_up_absent(
    store: &LocalStore,
    at_a_time: usize,
    pause: Duration,
    until: Until,
) -> Answers {
    let answers = RefCell::new(Answers::default());
    let started = Stopwatch::start();
    let looking = (0..at_a_time).map(async |_| {
        for number in 0.. {
            if started.elapsed() >= until.time {
                break;
            }
            let key = unused_key(number % 64);
            let asked = Stopwatch::start();
            let found = store.get(&key).await;
            let took = asked.elapsed();
            match found {
                Ok(None) => answers.borrow_mut().latencies.push(took),
                Ok(Some(_)) => answers.borrow_mut().fail("an entry"),
                Err(error) => answers.borrow_mut().fail(error.to_string()),
            }
            pauses_for(pause).await;
        }
    });
    join_all(looking).await;
    let mut answers = answers.into_inner();
    answers.took = started.elapsed();
    answers.latencies.sort_unstable();
    answers
}

/// How often Afterimage asked its store so far, where it should not have to.
async fn looked_up(cell: &Cell, running: &Running) -> Result<u64> {
    if cell.setup != Setup::AfterimageMemory {
        return Ok(0);
    }
    let metrics = running.metrics().await?;
    let name = "afterimage_store_operation_duration_seconds_count";
    Ok(metrics.sum(name, &[("operation", "get")]) as u64)
}

fn pause(cell: &Cell) -> Duration {
    match (cell.work, cell.connections) {
        (Work::Miss | Work::AbsentLookup, 1) => PAUSE,
        _ => Duration::ZERO,
    }
}

fn requests_at_most(cell: &Cell) -> u64 {
    match cell.work {
        Work::Miss => (WRITTEN_BYTES / cell.size).max(cell.connections as u64),
        _ => u64::MAX,
    }
}
