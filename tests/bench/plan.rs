//! What is measured: which system does which work, with images of which size, over how many connections.

use std::time::Duration;

use clap::ValueEnum;

use super::systems::Setup;

pub(crate) const SMALL: u64 = 4096;
pub(crate) const MEDIUM: u64 = 51_200;
pub(crate) const LARGE: u64 = 1_048_576;

/// What a system does to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Work {
    /// From its memory.
    MemoryHit,
    /// From Garage, over TCP.
    GarageHitTcp,
    /// From Garage, over a Unix socket.
    GarageHitUnix,
    /// From the local disk.
    LocalHit,
    /// From the upstream, and a copy is kept.
    Miss,
    /// From the upstream, without a copy.
    Bypass,
    /// That there is no such object.
    AbsentLookup,
}

impl Work {
    /// The word in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MemoryHit => "memory-hit",
            Self::GarageHitTcp => "garage-hit-tcp",
            Self::GarageHitUnix => "garage-hit-unix",
            Self::LocalHit => "local-hit",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
            Self::AbsentLookup => "absent-lookup",
        }
    }

    /// Does it belong to the end of a round, with the misses? They fill stores, which have to do with that for a while.
    pub(crate) fn comes_last(self) -> bool {
        match self {
            // Lookups stand beside the misses whose bound they are a part of.
            Self::Miss | Self::AbsentLookup => true,
            Self::MemoryHit
            | Self::GarageHitTcp
            | Self::GarageHitUnix
            | Self::LocalHit
            | Self::Bypass => false,
        }
    }

    /// Does every answer come from the upstream, or none?
    pub(crate) fn reaches_upstream(self) -> bool {
        match self {
            Self::Miss | Self::Bypass => true,
            Self::MemoryHit
            | Self::GarageHitTcp
            | Self::GarageHitUnix
            | Self::LocalHit
            | Self::AbsentLookup => false,
        }
    }
}

/// One figure to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    /// Bytes of an image. A lookup of what is absent has none: there it is that of the misses it stands beside.
    pub(crate) size: u64,
    /// How many requests are under way at a time.
    pub(crate) connections: usize,
    /// What is done.
    pub(crate) work: Work,
    /// Who does it.
    pub(crate) setup: Setup,
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Before the counting begins.
    pub(crate) warm_up: Duration,
    /// While it counts.
    pub(crate) window: Duration,
    /// Every cell is measured so often.
    pub(crate) rounds: usize,
    /// A cell that a claim needs, so often.
    pub(crate) claim_rounds: usize,
    /// How many turns the sides of a claim take in a round.
    pub(crate) turns: usize,
    /// How long each of them is.
    pub(crate) turn: Duration,
    /// Every round has processes and stores of its own.
    pub(crate) starts_anew: bool,
    /// Nothing is begun later than this after the start, however slow the machine is.
    pub(crate) last_begins: Duration,
}

/// All that is measured in one run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// By size and connections, so that what is compared is measured side by side.
    pub(crate) cells: Vec<Cell>,
    /// The sizes that there are.
    pub(crate) sizes: Vec<u64>,
    /// How long and how often.
    pub(crate) pace: Pace,
}

impl Plan {
    /// Everything, within 15 minutes.
    pub(crate) fn full() -> Self {
        let mut cells = Vec::new();
        for size in [SMALL, MEDIUM, LARGE] {
            for connections in [1, 16, 128] {
                let cell = |setup, work| Cell {
                    size,
                    connections,
                    work,
                    setup,
                };
                cells.extend([
                    cell(Setup::AfterimageMemory, Work::MemoryHit),
                    cell(Setup::EmptyExtProc, Work::MemoryHit),
                    cell(Setup::AfterimageLocal, Work::Miss),
                    cell(Setup::AfterimageGarage, Work::Miss),
                    cell(Setup::EmptyExtProc, Work::Miss),
                    cell(Setup::EnvoyAlone, Work::Miss),
                    cell(Setup::Nginx, Work::Miss),
                ]);
                if (size, connections) != (LARGE, 128) {
                    cells.extend([
                        cell(Setup::AfterimageGarage, Work::GarageHitTcp),
                        cell(Setup::AfterimageGarageUnix, Work::GarageHitUnix),
                        cell(Setup::AfterimageLocal, Work::LocalHit),
                        cell(Setup::Nginx, Work::LocalHit),
                    ]);
                }
                // At 128 connections the peer answers next to nothing, at every size.
                if connections < 128 || size == MEDIUM {
                    cells.push(cell(Setup::NodeProxy, Work::GarageHitTcp));
                }
                if connections < 128 {
                    cells.push(cell(Setup::NodeProxy, Work::Miss));
                }
                if connections == 16 || size == MEDIUM {
                    cells.push(cell(Setup::AfterimageLocal, Work::Bypass));
                }
                if connections < 128 && size != SMALL {
                    cells.extend([
                        cell(Setup::LocalStore, Work::AbsentLookup),
                        cell(Setup::Garage, Work::AbsentLookup),
                    ]);
                }
            }
        }
        cells.push(Cell {
            size: MEDIUM,
            connections: 512,
            work: Work::GarageHitTcp,
            setup: Setup::AfterimageGarage,
        });
        Self::new(
            cells,
            Pace {
                warm_up: Duration::from_millis(100),
                window: Duration::from_millis(1500),
                rounds: 3,
                claim_rounds: 5,
                turns: 3,
                turn: Duration::from_millis(500),
                starts_anew: true,
                last_begins: Duration::from_secs(14 * 60),
            },
        )
    }

    /// The claims at 50 KB, and each other work once, within 2 minutes.
    pub(crate) fn quick() -> Self {
        let cell = |setup, work, connections| Cell {
            size: MEDIUM,
            connections,
            work,
            setup,
        };
        let mut cells = Vec::new();
        for connections in [1, 16] {
            cells.extend([
                cell(Setup::AfterimageGarage, Work::GarageHitTcp, connections),
                cell(Setup::NodeProxy, Work::GarageHitTcp, connections),
                cell(Setup::AfterimageLocal, Work::Miss, connections),
                cell(Setup::AfterimageGarage, Work::Miss, connections),
                cell(Setup::EmptyExtProc, Work::Miss, connections),
                cell(Setup::LocalStore, Work::AbsentLookup, connections),
                cell(Setup::Garage, Work::AbsentLookup, connections),
            ]);
        }
        cells.extend([
            cell(Setup::AfterimageMemory, Work::MemoryHit, 16),
            cell(Setup::EmptyExtProc, Work::MemoryHit, 16),
            cell(Setup::AfterimageGarageUnix, Work::GarageHitUnix, 16),
            cell(Setup::AfterimageLocal, Work::LocalHit, 16),
            cell(Setup::AfterimageLocal, Work::Bypass, 16),
            cell(Setup::EnvoyAlone, Work::Miss, 16),
            cell(Setup::Nginx, Work::LocalHit, 16),
            cell(Setup::Nginx, Work::Miss, 16),
            cell(Setup::NodeProxy, Work::Miss, 16),
            cell(Setup::AfterimageGarage, Work::GarageHitTcp, 128),
            cell(Setup::AfterimageGarage, Work::GarageHitTcp, 512),
        ]);
        Self::new(
            cells,
            Pace {
                warm_up: Duration::from_millis(100),
                window: Duration::from_millis(600),
                rounds: 3,
                claim_rounds: 3,
                turns: 3,
                turn: Duration::from_millis(300),
                starts_anew: false,
                last_begins: Duration::from_secs(105),
            },
        )
    }

    /// Leaves out what these do, which are not there.
    pub(crate) fn without(&mut self, missing: &[Setup]) {
        self.cells.retain(|cell| !missing.contains(&cell.setup));
    }

    /// Leaves out all other work, except lookups beside misses: they are a part of their bound.
    pub(crate) fn only(&mut self, work: Work) {
        self.cells.retain(|cell| {
            cell.work == work || (work, cell.work) == (Work::Miss, Work::AbsentLookup)
        });
    }

    /// Everyone who has something to do, and whom they need.
    pub(crate) fn setups(&self) -> Vec<Setup> {
        let wanted = self.cells.iter().map(|cell| cell.setup);
        let mut setups: Vec<_> = wanted
            .flat_map(|setup| [Some(setup), setup.needs()])
            .flatten()
            .collect();
        setups.sort_unstable();
        setups.dedup();
        setups
    }

    fn new(mut cells: Vec<Cell>, pace: Pace) -> Self {
        cells.sort_unstable();
        let mut sizes: Vec<_> = cells.iter().map(|cell| cell.size).collect();
        sizes.dedup();
        Self { cells, sizes, pace }
    }
}
