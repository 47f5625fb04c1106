//! Changes to a configuration file that notice when the file is not what they expect.
//!
//! The stack runs the project's own reference files, and replaces in them what has to differ. A replacement names the value
//! that it expects to find, so a reference file that was changed fails the tests instead of being silently half replaced.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Reads a YAML file.
///
/// # Errors
/// When it cannot be read or is no YAML.
pub(crate) fn read(path: &Path) -> Result<Value> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

/// Parses YAML.
///
/// # Errors
/// When it is none.
pub(crate) fn parse(yaml: &str) -> Result<Value> {
    serde_saphyr::from_str(yaml).context("not valid YAML")
}

/// Writes `value` as JSON, which every reader of YAML takes.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(value: &Value, path: &Path) -> Result<()> {
    std::fs::write(path, serde_json::to_string_pretty(value)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The value at a JSON pointer (`/a/0/b`).
///
/// # Errors
/// When there is none.
pub(crate) fn at<'v>(value: &'v mut Value, pointer: &str) -> Result<&'v mut Value> {
    value
        .pointer_mut(pointer)
        .with_context(|| format!("nothing at {pointer}"))
}

/// Replaces the value at `pointer`, which has to be `old`.
///
/// # Errors
/// When it is not.
pub(crate) fn replace(
    value: &mut Value,
    pointer: &str,
    old: impl Into<Value>,
    new: impl Into<Value>,
) -> Result<()> {
    let found = at(value, pointer)?;
    let old = old.into();
    ensure!(*found == old, "expected {old} at {pointer}, found {found}");
    *found = new.into();
    Ok(())
}

/// Replaces the one occurrence of `old` in a text.
///
/// # Errors
/// When it occurs never or more than once.
pub(crate) fn replace_text(text: &str, old: &str, new: &str) -> Result<String> {
    let found = text.matches(old).count();
    ensure!(found == 1, "expected {old:?} once, found it {found} times");
    Ok(text.replace(old, new))
}

/// Lays `over` onto `value`: maps are merged, everything else is replaced.
pub(crate) fn merge(value: &mut Value, over: Value) {
    match (value, over) {
        (Value::Object(below), Value::Object(over)) => {
            for (name, field) in over {
                merge(below.entry(name).or_insert(Value::Null), field);
            }
        }
        (below, over) => *below = over,
    }
}
