//! From a file and the environment to a [`Config`].

use std::path::Path;

use serde_json::{Map, Value};

use super::tree::{self, Step};
use super::{Config, Problem, Problems, RawConfig, yaml};

/// Before every variable that overrides a field: `AFTERIMAGE_STORE__S3__ENDPOINT` is
/// `store.s3.endpoint`.
const ENV_PREFIX: &str = "AFTERIMAGE_";

/// As many problems as are looked for at once.
const MOST_PROBLEMS: usize = 50;

impl Config {
    /// Reads `file`, with the variables of this process on top.
    ///
    /// # Errors
    /// All problems that were found, each with its place.
    pub fn load(file: &Path) -> Result<Self, Problems> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            let what = format!("cannot be read: {error}; give its path with --config");
            Problems::of(file, vec![Problem::new("file", what)])
        })?;
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::parse(&text, variables).map_err(|problems| Problems::of(file, problems))
    }

    /// The same from a text and given variables.
    pub(crate) fn parse(
        text: &str,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Vec<Problem>> {
        let tree = yaml::parse::<Option<Value>>(text)
            .map_err(|what| vec![Problem::new("file", what)])?
            .unwrap_or_default();
        Self::from_tree(tree, variables)
    }

    /// The same from what a text says.
    pub(super) fn from_tree(
        tree: Value,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut tree = match tree {
            Value::Object(fields) => fields,
            Value::Null => Map::new(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(vec![Problem::new("file", "is not a map of fields")]);
            }
        };
        let mut overrides = Vec::new();
        for (name, value) in variables {
            overrides.extend(override_field(&mut tree, &name, &value));
        }
        let raw = read(Value::Object(tree), overrides, &mut problems);
        let found = problems.len();
        let config = raw.and_then(|raw| raw.build(&mut problems));
        let mut later = problems.split_off(found);
        // A value that cannot be read was left out; that it is missing now is no second problem.
        later.retain(|later| !problems.iter().any(|problem| problem.explains(later)));
        problems.append(&mut later);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(problems),
        }
    }
}

/// A field that was set from the environment as text, and what else it may mean.
struct Override {
    place: String,
    parsed: Value,
}

/// Sets the field that a variable names. Other variables of ours, such as those that secrets come
/// from, have no double underscore and no field of their name at the top.
fn override_field(tree: &mut Map<String, Value>, name: &str, value: &str) -> Option<Override> {
    const TOP: [&str; 4] = ["listen", "threads", "drain", "default_policy"];
    let path = name.strip_prefix(ENV_PREFIX)?.to_ascii_lowercase();
    if !path.contains("__") && !TOP.contains(&path.as_str()) {
        return None;
    }
    let steps: Vec<&str> = path.split("__").collect();
    let (last, way) = steps.split_last()?;
    let mut place = tree;
    for step in way {
        let next = place.entry(*step).or_insert(Value::Null);
        if !next.is_object() {
            *next = Value::Object(Map::new());
        }
        place = next.as_object_mut()?;
    }
    let parsed = yaml::parse(value).unwrap_or(Value::Null);
    // Lists and maps are written as in the file; anything else is text first, so that a secret of
    // digits stays what it is.
    if parsed.is_array() || parsed.is_object() {
        place.insert((*last).to_owned(), parsed);
        return None;
    }
    place.insert((*last).to_owned(), Value::String(value.to_owned()));
    Some(Override {
        place: steps.join("."),
        parsed,
    })
}

/// Reads the raw form. What cannot be read is reported and left out, and the rest is tried again,
/// so that one look shows all problems.
fn read(
    mut tree: Value,
    mut overrides: Vec<Override>,
    problems: &mut Vec<Problem>,
) -> Option<RawConfig> {
    let mut left_out = Vec::new();
    while problems.len() < MOST_PROBLEMS {
        let fault = match tree::read(&tree, &left_out) {
            Ok(raw) => return Some(raw),
            Err(fault) => fault,
        };
        let (place, steps) = (fault.place(), fault.steps());
        let what = fault.what().to_owned();
        // Text from the environment where a number or a truth value belongs.
        if let Some(index) = overrides.iter().position(|set| set.place == place) {
            let parsed = overrides.swap_remove(index).parsed;
            if let Some(field) = find(&mut tree, &steps) {
                *field = parsed;
                continue;
            }
        }
        // What lacks a field that was left out needs no second problem.
        if !left_out
            .iter()
            .any(|path: &Vec<Step>| path.starts_with(&steps))
        {
            problems.push(Problem::new(place, what));
        }
        if steps.is_empty() {
            return None;
        }
        left_out.push(steps);
    }
    None
}

fn find<'a>(tree: &'a mut Value, steps: &[Step]) -> Option<&'a mut Value> {
    steps.iter().try_fold(tree, |place, step| match step {
        Step::Field(name) => place.get_mut(name),
        Step::Index(index) => place.get_mut(index),
    })
}
