//! What all rounds gave: medians, the file for programs, the table for people.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::measure::Sample;
use super::plan::{Cell, Work};

/// The medians of a cell's samples; answers, errors and strays are added up.
#[derive(Debug)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) cell: Cell,
    /// How often.
    pub(crate) rounds: usize,
    /// What came of it.
    pub(crate) result: Sample,
}

impl Row {
    fn new(cell: Cell, samples: &[Sample]) -> Option<Self> {
        // One without answers has figures of nothing.
        let answered = || samples.iter().filter(|sample| sample.answers > 0);
        let first = answered().next().or(samples.first())?;
        let of = |value: fn(&Sample) -> f64| median(answered().map(value).collect());
        let some = |value: fn(&Sample) -> Option<f64>| {
            let values: Vec<_> = answered().filter_map(value).collect();
            (!values.is_empty()).then(|| median(values))
        };
        let cpu_us = first.cpu_us.keys().map(|name| {
            let values = answered().filter_map(|sample| sample.cpu_us.get(name).copied());
            (*name, median(values.collect()))
        });
        let peak_rss = first.peak_rss.keys().map(|name| {
            let values = answered().filter_map(|sample| sample.peak_rss.get(name).copied());
            (
                *name,
                median(values.map(|bytes| bytes as f64).collect()) as u64,
            )
        });
        Some(Self {
            cell,
            rounds: samples.len(),
            result: Sample {
                answers: samples.iter().map(|sample| sample.answers).sum(),
                requests_per_s: of(|sample| sample.requests_per_s),
                p50_ms: some(|sample| sample.p50_ms),
                p99_ms: some(|sample| sample.p99_ms),
                errors: samples.iter().map(|sample| sample.errors).sum(),
                strays: samples.iter().map(|sample| sample.strays).sum(),
                cpu_us: cpu_us.collect(),
                peak_rss: peak_rss.collect(),
                first_error: samples.iter().find_map(|sample| sample.first_error.clone()),
            },
        })
    }

    /// One object for each store under which it is to be found, or one.
    fn to_json(&self) -> Vec<Value> {
        let object = |store: Option<&str>| {
            let Sample {
                answers,
                requests_per_s,
                p50_ms,
                p99_ms,
                errors,
                strays,
                cpu_us,
                peak_rss,
                first_error: _,
            } = &self.result;
            let mut object = json!({
                "system": self.cell.setup.system(),
                "work": self.cell.work.name(),
                "size_bytes": self.cell.size,
                "connections": self.cell.connections,
                "requests_per_s": rounded(*requests_per_s, 1),
                "p50_ms": p50_ms.map(|ms| rounded(ms, 4)),
                "p99_ms": p99_ms.map(|ms| rounded(ms, 4)),
                "answers": answers,
                "errors": errors,
                "strays": strays,
                "rounds": self.rounds,
                "cpu_us_per_request": cpu_us
                    .iter()
                    .map(|(name, us)| (*name, rounded(*us, 2)))
                    .collect::<BTreeMap<_, _>>(),
                "peak_rss_bytes": peak_rss,
            });
            if let Some(store) = store {
                object["store"] = store.into();
            }
            object
        };
        match self.cell.work {
            Work::Miss | Work::AbsentLookup => {
                let stores = self.cell.setup.stores().iter();
                stores.map(|store| object(Some(store))).collect()
            }
            _ => vec![object(None)],
        }
    }
}

/// All rows, in the order of the table.
#[derive(Debug)]
pub(crate) struct Results(Vec<Row>);

impl Results {
    /// The medians of everything that was measured.
    pub(crate) fn new(samples: &BTreeMap<Cell, Vec<Sample>>) -> Self {
        let rows = samples.iter();
        let mut rows: Vec<_> = rows
            .filter_map(|(cell, all)| Row::new(*cell, all))
            .collect();
        rows.sort_by_key(|row| {
            let Cell {
                size,
                connections,
                work,
                setup,
            } = row.cell;
            (work, size, connections, setup)
        });
        Self(rows)
    }

    /// The row of a cell, if it was measured.
    pub(crate) fn of(&self, cell: Cell) -> Option<&Row> {
        self.0.iter().find(|row| row.cell == cell)
    }

    /// All rows.
    pub(crate) fn rows(&self) -> &[Row] {
        &self.0
    }

    /// Writes them for programs: an array of objects.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let objects: Vec<_> = self.0.iter().flat_map(Row::to_json).collect();
        let lines: Vec<_> = objects.iter().map(Value::to_string).collect();
        std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n")))?;
        Ok(())
    }

    /// Prints them for people.
    pub(crate) fn print(&self) {
        let mut block = None;
        for row in &self.0 {
            let Cell {
                size, connections, ..
            } = row.cell;
            let begins = Some((row.cell.work, size)) != block;
            if begins {
                block = Some((row.cell.work, size));
                println!("\n{}, {size} bytes", row.cell.work.name());
                println!(
                    "  {:>5}  {:<24} {:>9} {:>9} {:>9} {:>6}  {:<64} peak RSS, MiB",
                    "conns", "system", "per s", "p50 ms", "p99 ms", "errors", "CPU per request, µs"
                );
            }
            let result = &row.result;
            let ms = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.3}"));
            let cpu = result.cpu_us.iter();
            let cpu: Vec<_> = cpu.map(|(name, us)| format!("{name} {us:.0}")).collect();
            let rss = result.peak_rss.iter();
            let rss = rss.map(|(name, bytes)| format!("{name} {}", bytes >> 20));
            let rss: Vec<_> = rss.collect();
            println!(
                "  {connections:>5}  {:<24} {:>9.1} {:>9} {:>9} {:>6}  {:<64} {}",
                row.name(),
                result.requests_per_s,
                ms(result.p50_ms),
                ms(result.p99_ms),
                result.errors,
                cpu.join(", "),
                rss.join(", "),
            );
            if let Some(error) = &result.first_error {
                println!("         first error: {error}");
            }
            if result.strays > 0 {
                let what = if row.cell.work.reaches_upstream() {
                    "came out of a cache"
                } else {
                    "did not come out of the cache that is meant"
                };
                println!("         {} of the right answers {what}", result.strays);
            }
        }
    }
}

impl Row {
    /// The system, with its store where there are several.
    pub(crate) fn name(&self) -> String {
        let system = self.cell.setup.system();
        match (self.cell.work, self.cell.setup.stores()) {
            (Work::Miss | Work::AbsentLookup, [store]) => format!("{system} ({store})"),
            _ => system.to_owned(),
        }
    }
}

fn rounded(value: f64, digits: i32) -> f64 {
    let unit = 10_f64.powi(digits);
    (value * unit).round() / unit
}

/// Of an even number, the mean of the two in the middle. 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        length if length.is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}
