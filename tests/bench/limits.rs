//! `make bench-limits`: what is to stay within bounds rather than to be fast.

mod herd;
mod memory;
mod objects;
mod sweep;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::{Map, Value};

use super::claims::Claim;
use super::systems::Upstream;

/// What every part needs to know.
struct Ground {
    upstream: Upstream,
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Hits from Garage over TCP, size by size.
    Sweep,
    /// Many clients that want the same image at once.
    Herd,
    /// What Afterimage holds.
    Memory,
    /// Hits out of a bucket with many objects.
    Objects,
}

/// Measures these parts, and prints what is to be shown with its figures.
///
/// # Errors
/// When something is not installed or does not start.
pub(crate) async fn measure(parts: &[Part]) -> Result<Value> {
    let ground = Ground {
        upstream: Upstream::start().await?,
    };
    let mut claims = Vec::new();
    let mut all = Map::new();
    for part in parts {
        let (name, value) = match part {
            Part::Sweep => ("sweep", sweep::measure(&ground, &mut claims).await?),
            Part::Herd => ("herd", herd::measure(&ground, &mut claims).await?),
            Part::Memory => ("memory", memory::measure(&ground, &mut claims).await?),
            Part::Objects => ("objects", objects::measure(&ground, &mut claims).await?),
        };
        all.insert(name.to_owned(), value);
    }
    println!("\nWhat is to be shown, from this run:");
    Claim::print_all(&claims);
    Ok(all.into())
}

/// Says what is being done: some of it takes minutes.
fn say(what: &str) {
    eprintln!("{what}");
}
