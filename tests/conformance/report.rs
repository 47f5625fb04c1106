//! What a run found, held against what is known to fail.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::support::settings;

/// Tests that are known to fail for one reason.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deviation {
    reason: String,
    tests: Vec<String>,
}

/// All tests of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    counts: BTreeMap<Kind, Count>,
    /// Tests that fail and are not known to.
    unknown: Vec<String>,
    /// Tests that are known to fail and do not, or are gone.
    outdated: Vec<String>,
    tests: Vec<Test>,
}

#[derive(Debug, Default, Serialize)]
struct Count {
    passed: usize,
    total: usize,
}

/// What became of one test.
#[derive(Debug, Deserialize, Serialize)]
struct Test {
    id: String,
    suite: String,
    kind: Kind,
    /// In the words of the test suite: `pass`, `fail`, `setup_fail`, `yes`, `no` and others.
    outcome: String,
    /// What the test suite saw, where it was not what it wanted to see.
    message: Option<String>,
    /// Why that is so.
    #[serde(skip_deserializing)]
    reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// A cache that fails it breaks a rule of the standard.
    Required,
    /// A cache that fails it asks its origin more than it had to.
    Optimal,
    /// Shows what a cache does where either is right.
    Check,
}

/// Reads a list of deviations.
///
/// # Errors
/// When the file cannot be read or is no such list.
pub(crate) fn deviations(path: &Path) -> Result<Vec<Deviation>> {
    serde_json::from_value(settings::read(path)?).with_context(|| format!("in {}", path.display()))
}

impl Report {
    /// Of the results that `run.mjs` wrote.
    ///
    /// # Errors
    /// When they are none.
    pub(crate) fn new(results: &[u8], deviations: &[Deviation]) -> Result<Self> {
        let mut tests: Vec<Test> = serde_json::from_slice(results)?;
        let mut reasons: BTreeMap<&str, &str> = deviations
            .iter()
            .flat_map(|Deviation { reason, tests }| {
                tests.iter().map(|id| (id.as_str(), reason.as_str()))
            })
            .collect();
        let mut counts: BTreeMap<Kind, Count> = BTreeMap::new();
        let mut unknown = Vec::new();
        for test in &mut tests {
            let count = counts.entry(test.kind).or_default();
            count.total += 1;
            count.passed += usize::from(test.has_passed());
            if test.has_failed() {
                test.reason = reasons.remove(test.id.as_str()).map(Into::into);
                if test.reason.is_none() {
                    unknown.push(test.id.clone());
                }
            }
        }
        Ok(Self {
            counts,
            unknown,
            outdated: reasons.into_keys().map(Into::into).collect(),
            tests,
        })
    }

    /// Whether exactly those tests fail that are known to.
    pub(crate) fn is_as_known(&self) -> bool {
        self.unknown.is_empty() && self.outdated.is_empty()
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in [Kind::Required, Kind::Optimal] {
            writeln!(f, "\n{kind} tests that fail\n")?;
            for test in &self.tests {
                if test.kind == kind && test.has_failed() {
                    writeln!(f, "{test}")?;
                }
            }
        }
        writeln!(
            f,
            "\n{:<10}{:>8}{:>8}{:>8}",
            "", "passed", "failed", "total"
        )?;
        for (kind, Count { passed, total }) in &self.counts {
            writeln!(f, "{kind:<10}{passed:>8}{:>8}{total:>8}", total - passed)?;
        }
        for id in &self.unknown {
            writeln!(f, "\n{id} fails, and deviations.yaml does not say why.")?;
        }
        for id in &self.outdated {
            writeln!(
                f,
                "\n{id} does not fail any more: take it out of deviations.yaml."
            )?;
        }
        Ok(())
    }
}

impl Test {
    fn has_passed(&self) -> bool {
        matches!(self.outcome.as_str(), "pass" | "yes")
    }

    /// Not to be what a check asks for is no failure.
    fn has_failed(&self) -> bool {
        self.kind != Kind::Check && !self.has_passed()
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, outcome, .. } = self;
        let message = self.message.as_deref().unwrap_or_default();
        let reason = self.reason.as_deref().unwrap_or("not known");
        write!(f, "{id}\n    {outcome}: {message}\n    reason: {reason}")
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Required => "required",
            Self::Optimal => "optimal",
            Self::Check => "check",
        })
    }
}
