//! Pictures of the results: bars, a panel for each size, a row for each system and work.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::plan::Work;
use super::results::{Results, Row};
use super::systems::Setup;

const PANEL: f64 = 300.0;
const GAP: f64 = 90.0;
const LEFT: f64 = 250.0;
const TOP: f64 = 76.0;
const BAR: f64 = 16.0;
const STEP: f64 = 24.0;
/// For one name in the legend.
const LEGEND: f64 = 120.0;

/// One picture: which rows of which connections, and what a bar is made of.
struct Chart {
    file: &'static str,
    title: &'static str,
    connections: usize,
    digits: usize,
    /// Pieces of the bar, from its left: a name for the colour, and a length.
    pieces: fn(&Row) -> Vec<(&'static str, f64)>,
}

/// Writes all pictures.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write(results: &Results, directory: &Path) -> Result<Vec<PathBuf>> {
    let charts = [
        Chart {
            file: "bench-throughput.svg",
            title: "Answers per second at 16 connections",
            connections: 16,
            digits: 0,
            pieces: |row| vec![(row.cell.setup.system(), row.result.requests_per_s)],
        },
        Chart {
            file: "bench-latency.svg",
            title: "Median latency at 1 connection, ms",
            connections: 1,
            digits: 2,
            pieces: |row| vec![(row.cell.setup.system(), row.result.p50_ms.unwrap_or(0.0))],
        },
        Chart {
            file: "bench-cpu.svg",
            title: "CPU time per request at 16 connections, µs",
            connections: 16,
            digits: 0,
            pieces: |row| servers(&row.result.cpu_us, |us| *us),
        },
        Chart {
            file: "bench-memory.svg",
            title: "Peak resident memory at 16 connections, MiB",
            connections: 16,
            digits: 0,
            pieces: |row| servers(&row.result.peak_rss, |bytes| *bytes as f64 / 1_048_576.0),
        },
    ];
    charts
        .iter()
        .map(|chart| {
            let path = directory.join(chart.file);
            std::fs::write(&path, chart.draw(results))?;
            Ok(path)
        })
        .collect()
}

impl Chart {
    fn draw(&self, results: &Results) -> String {
        // A lookup is a part of an answer, not one to be compared with.
        let rows = || {
            results.rows().iter().filter(|row| {
                row.cell.connections == self.connections && row.cell.work != Work::AbsentLookup
            })
        };
        let mut sizes: Vec<u64> = rows().map(|row| row.cell.size).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let lines: BTreeMap<(Work, Setup), String> = rows()
            .map(|row| {
                let label = format!("{}, {}", row.cell.work.name(), row.name());
                ((row.cell.work, row.cell.setup), label)
            })
            .collect();
        let top_of = |line: usize| TOP + line as f64 * STEP;

        let width = LEFT + (sizes.len() as f64 * (PANEL + GAP)).max(LEGEND * 6.0);
        let height = TOP + lines.len() as f64 * STEP + 20.0;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
        );
        text(&mut svg, 16.0, 24.0, "font-size=\"16\"", self.title);
        for (line, label) in lines.values().enumerate() {
            let anchor = "text-anchor=\"end\"";
            text(&mut svg, LEFT - 8.0, top_of(line) + 12.0, anchor, label);
        }
        let mut names = Vec::new();
        for (panel, size) in sizes.iter().enumerate() {
            let x = LEFT + panel as f64 * (PANEL + GAP);
            let label = format!("{size} bytes");
            text(&mut svg, x, TOP - 10.0, "font-weight=\"bold\"", &label);
            let total = |row: &Row| {
                (self.pieces)(row)
                    .iter()
                    .map(|(_, value)| value)
                    .sum::<f64>()
            };
            let of_size = || rows().filter(|row| row.cell.size == *size);
            let longest = of_size().map(total).fold(f64::MIN_POSITIVE, f64::max);
            for row in of_size() {
                let line = (row.cell.work, row.cell.setup);
                let y = top_of(lines.range(..line).count());
                let mut end = x;
                for (name, value) in (self.pieces)(row) {
                    let length = value / longest * PANEL;
                    let color = color(name);
                    // A name is one of ours and holds nothing that would have to be escaped.
                    let _ = writeln!(
                        svg,
                        "<rect x=\"{end:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{color}\"><title>{name}: {value:.2}</title></rect>"
                    );
                    end += length;
                    if !names.contains(&name) {
                        names.push(name);
                    }
                }
                let label = format!("{:.*}", self.digits, total(row));
                text(&mut svg, end + 4.0, y + 12.0, "", &label);
            }
        }
        for (index, name) in names.iter().enumerate() {
            let x = LEFT + index as f64 * LEGEND;
            let color = color(name);
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"36\" width=\"12\" height=\"12\" fill=\"{color}\"/>"
            );
            text(&mut svg, x + 17.0, 46.0, "", name);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, text: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{text}</text>"
    );
}

/// What belongs to the system: not who asks, not who stands in imgproxy's place.
fn servers<V>(of: &BTreeMap<&'static str, V>, value: fn(&V) -> f64) -> Vec<(&'static str, f64)> {
    of.iter()
        .filter(|(name, _)| !matches!(**name, "load" | "upstream"))
        .map(|(name, used)| (*name, value(used)))
        .collect()
}

fn color(name: &str) -> &'static str {
    match name {
        "afterimage" => "#2a6fbb",
        "empty-ext-proc" => "#8bb8e8",
        "envoy" | "envoy-alone" => "#b0aeb5",
        "garage" | "store" => "#e0a33e",
        "nginx" => "#3f9b5a",
        "node" | "node-proxy" => "#b5485d",
        _ => "#777",
    }
}
