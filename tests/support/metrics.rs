//! Reading the Prometheus text format.

use anyhow::{Context as _, Result};

/// A scrape.
#[derive(Debug, Clone)]
pub(crate) struct Metrics(Vec<Sample>);

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Scrapes a URL.
    ///
    /// # Errors
    /// When it does not answer 200 or the text is no metrics.
    pub(crate) async fn scrape(url: &str) -> Result<Self> {
        let answer = reqwest::get(url).await?.error_for_status()?;
        Self::parse(&answer.text().await?)
    }

    /// Parses a scrape.
    ///
    /// # Errors
    /// When a line is neither a comment nor a sample.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        text.lines()
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
            .map(|line| sample(line).with_context(|| format!("not a metric: {line}")))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// The sum of all samples of `name` that carry these labels, 0 when there is none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |sample: &Sample, (label, value): &(&str, &str)| {
            sample.labels.iter().any(|(l, v)| l == label && v == value)
        };
        self.0
            .iter()
            .filter(|sample| sample.name == name)
            .filter(|sample| labels.iter().all(|label| carries(sample, label)))
            .map(|sample| sample.value)
            .sum()
    }

    /// What is neither a time nor zero, for a message.
    pub(crate) fn summary(&self) -> String {
        self.0
            .iter()
            .filter(|sample| sample.value != 0.0 && !sample.name.contains("_seconds_"))
            .map(|sample| {
                let labels = sample.labels.iter().map(|(_, value)| value.as_str());
                let labels: Vec<_> = labels.collect();
                format!("{} {} = {}", sample.name, labels.join(" "), sample.value)
            })
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The names of all samples, to see what there is.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|sample| sample.name.as_str())
    }
}

fn sample(line: &str) -> Option<Sample> {
    let name_ends = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_ends);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.push((label.into(), value));
            rest = after;
        }
        rest = &rest[1..];
    }
    Some(Sample {
        name: name.into(),
        labels,
        value: rest.split_whitespace().next()?.parse().ok()?,
    })
}

/// A label's value up to its closing quote, unescaped, and what follows the quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            plain => value.push(plain),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_the_labels_not_asked_for() {
        let text = "# HELP a_total Things.\n# TYPE a_total counter\n\
            a_total{x=\"1\",y=\"p\"} 2\na_total{x=\"2\",y=\"p\"} 3\na_total{x=\"2\",y=\"q, \\\"r\\\"\"} 4 17\nup 1\n# EOF\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("a_total", &[]), 9.0);
        assert_eq!(metrics.sum("a_total", &[("x", "2"), ("y", "p")]), 3.0);
        assert_eq!(metrics.sum("a_total", &[("y", "q, \"r\"")]), 4.0);
        assert_eq!(metrics.sum("up", &[]), 1.0);
    }
}
