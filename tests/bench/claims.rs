//! The ratios that matter, each with both of its sides from the same run. They are shown, not enforced: the machine that
//! runs this may be busy.

use super::plan::{Cell, LARGE, MEDIUM, Plan, SMALL, Work};
use super::results::{Results, Row};
use super::systems::Setup;

/// What a miss may take beyond its parts.
const MISS_ALLOWANCE_MS: f64 = 0.3;

/// A claim with what was measured of it.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The claim.
    pub(crate) what: String,
    /// `None` where one of its sides was not measured.
    pub(crate) measured: Option<Measured>,
}

/// What was measured of a claim.
#[derive(Debug)]
pub(crate) struct Measured {
    /// The figures.
    pub(crate) value: String,
    /// Whether they are within the bound.
    pub(crate) holds: bool,
}

impl Claim {
    /// A claim that was measured.
    pub(crate) fn new(what: impl Into<String>, value: impl Into<String>, holds: bool) -> Self {
        Self {
            what: what.into(),
            measured: Some(Measured {
                value: value.into(),
                holds,
            }),
        }
    }

    /// Prints all of them.
    pub(crate) fn print_all(claims: &[Self]) {
        for claim in claims {
            let (verdict, value) = match &claim.measured {
                None => ("-", "not measured"),
                Some(measured) if measured.holds => ("holds", &*measured.value),
                Some(measured) => ("FAILS", &*measured.value),
            };
            println!("  {verdict:<5}  {}: {value}", claim.what);
        }
    }
}

/// Every cell that a claim needs.
pub(crate) fn needs(cell: &Cell) -> bool {
    let Cell {
        size,
        connections,
        work,
        setup,
    } = *cell;
    match (work, connections) {
        (Work::MemoryHit, 16) => true,
        (Work::GarageHitTcp, 1 | 16 | 128 | 512) => {
            size == MEDIUM && (setup == Setup::AfterimageGarage || connections <= 16)
        }
        (Work::Miss, 1) => {
            let is_side = match setup {
                Setup::AfterimageLocal | Setup::AfterimageGarage | Setup::EmptyExtProc => true,
                Setup::AfterimageMemory
                | Setup::AfterimageGarageUnix
                | Setup::EnvoyAlone
                | Setup::Nginx
                | Setup::NodeProxy
                | Setup::LocalStore
                | Setup::Garage => false,
            };
            is_side && size != SMALL
        }
        (Work::AbsentLookup, 1) => true,
        _ => false,
    }
}

/// Prints all claims that the plan has cells for, with their measured values.
pub(crate) fn print(results: &Results, plan: &Plan) {
    println!("\nWhat is to be shown, from this run:");
    let mut claims = Vec::new();
    for size in &plan.sizes {
        claims.extend(memory_hit(results, *size));
    }
    claims.extend(garage_hit(results));
    for size in [MEDIUM, LARGE]
        .iter()
        .filter(|size| plan.sizes.contains(size))
    {
        for (setup, store) in [
            (Setup::AfterimageLocal, Setup::LocalStore),
            (Setup::AfterimageGarage, Setup::Garage),
        ] {
            claims.push(miss(results, *size, setup, store));
        }
    }
    Claim::print_all(&claims);
}

fn row(results: &Results, setup: Setup, work: Work, size: u64, connections: usize) -> Option<&Row> {
    results.of(Cell {
        size,
        connections,
        work,
        setup,
    })
}

fn memory_hit(results: &Results, size: u64) -> [Claim; 2] {
    let of = |setup| Some(&row(results, setup, Work::MemoryHit, size, 16)?.result);
    let sides = of(Setup::AfterimageMemory).zip(of(Setup::EmptyExtProc));
    let throughput = sides.map(|(ours, empty)| {
        let ratio = ours.requests_per_s / empty.requests_per_s;
        Measured {
            value: format!(
                "{ratio:.2} ({:.0}/s, {:.0}/s)",
                ours.requests_per_s, empty.requests_per_s
            ),
            holds: ratio >= 0.9 && ours.errors == 0 && ours.strays * 100 <= ours.answers,
        }
    });
    let cpu = sides.and_then(|(ours, empty)| {
        let ours = ours.cpu_us.get("afterimage")?;
        let empty = empty.cpu_us.get("empty-ext-proc")?;
        Some(Measured {
            value: format!("{:.2} ({ours:.0} µs, {empty:.0} µs)", ours / empty),
            holds: ours / empty <= 1.3,
        })
    });
    [
        Claim {
            what: format!(
                "memory hit of {size} bytes, 16 connections: throughput at least 0.9 of the empty processor's"
            ),
            measured: throughput,
        },
        Claim {
            what: format!(
                "memory hit of {size} bytes, 16 connections: our CPU per hit at most 1.3 of the empty processor's"
            ),
            measured: cpu,
        },
    ]
}

fn garage_hit(results: &Results) -> Vec<Claim> {
    let of = |setup, connections| {
        let row = row(results, setup, Work::GarageHitTcp, MEDIUM, connections)?;
        Some(&row.result)
    };
    let ours = |connections| of(Setup::AfterimageGarage, connections);
    let node = |connections| of(Setup::NodeProxy, connections);
    let p50 = ours(1).zip(node(1)).and_then(|(ours, node)| {
        let (ours, node) = (ours.p50_ms?, node.p50_ms?);
        Some(Measured {
            value: format!("{:.1} ({ours:.3} ms, {node:.3} ms)", node / ours),
            holds: node / ours >= 20.0,
        })
    });
    let throughput = ours(16).zip(node(16)).map(|(ours, node)| {
        let ratio = ours.requests_per_s / node.requests_per_s;
        Measured {
            value: format!(
                "{ratio:.1} ({:.0}/s, {:.0}/s)",
                ours.requests_per_s, node.requests_per_s
            ),
            holds: ratio >= 4.0,
        }
    });
    let mut claims = vec![
        Claim {
            what: "Garage hit of 51200 bytes, 1 connection: p50 at least 20 times lower than the Node proxy's".into(),
            measured: p50,
        },
        Claim {
            what: "Garage hit of 51200 bytes, 16 connections: throughput at least 4 times the Node proxy's".into(),
            measured: throughput,
        },
    ];
    for connections in [128, 512] {
        claims.push(Claim {
            what: format!("Garage hit of 51200 bytes, {connections} connections: no error"),
            measured: ours(connections).map(|ours| Measured {
                value: format!(
                    "{} errors, {} answers from the upstream",
                    ours.errors, ours.strays
                ),
                holds: ours.errors == 0,
            }),
        });
    }
    claims
}

fn miss(results: &Results, size: u64, setup: Setup, store: Setup) -> Claim {
    let p50 = |setup, work| row(results, setup, work, size, 1)?.result.p50_ms;
    let sides = || {
        let ours = p50(setup, Work::Miss)?;
        let empty = p50(Setup::EmptyExtProc, Work::Miss)?;
        let lookup = p50(store, Work::AbsentLookup)?;
        let bound = empty + lookup + MISS_ALLOWANCE_MS;
        Some(Measured {
            value: format!(
                "{ours:.3} ms, bound {bound:.3} ms ({empty:.3} + {lookup:.3} + {MISS_ALLOWANCE_MS})"
            ),
            holds: ours <= bound,
        })
    };
    Claim {
        what: format!(
            "miss of {size} bytes with {}, 1 connection: p50 at most that of the empty STREAMED processor + one absent lookup + {MISS_ALLOWANCE_MS} ms",
            store.stores()[0],
        ),
        measured: sides(),
    }
}
