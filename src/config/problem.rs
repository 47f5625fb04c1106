//! What is wrong with a configuration.

use std::fmt;
use std::path::Path;

/// Everything that is wrong with a configuration.
#[derive(Debug)]
pub struct Problems {
    file: String,
    problems: Vec<Problem>,
}

impl Problems {
    pub(super) fn of(file: &Path, problems: Vec<Problem>) -> Self {
        Self {
            file: file.display().to_string(),
            problems,
        }
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [only] => write!(f, "{}: {only}", self.file),
            all => {
                write!(f, "{}: {} problems", self.file, all.len())?;
                all.iter()
                    .try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

/// Something wrong, and where. Neither part shows a value out of the configuration, which may be a
/// secret in a wrong place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    place: String,
    what: String,
}

impl Problem {
    pub(super) fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            what: what.into(),
        }
    }

    /// Whether it is about something inside this block.
    pub(super) fn is_in(&self, block: &str) -> bool {
        self.place.split(['.', '[']).next() == Some(block)
    }

    /// Whether `later` is about the same field, or about a list that an element was left out of.
    pub(super) fn explains(&self, later: &Self) -> bool {
        match self.place.strip_prefix(&later.place) {
            Some(rest) => rest.is_empty() || rest.starts_with('['),
            None => false,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// What is wrong with a name that is not among these. The name itself is not shown.
pub(super) fn names_no_policy<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        return "names a policy, but there is none under `policies`".to_owned();
    }
    names.sort();
    format!("names no policy, there is {}", names.join(", "))
}
