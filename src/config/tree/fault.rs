//! Errors that name places, and never values.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

/// One step of the way to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) enum Step {
    Field(String),
    Index(usize),
}

/// Something that cannot be read, and where.
#[derive(Debug)]
pub(in crate::config) struct Fault {
    /// From the inside out.
    steps: Vec<Step>,
    /// What stands in the place of a field's name may be a value that slipped into a wrong line.
    hides_name: bool,
    what: String,
    /// The fields that there are, where the problem is one that there is not.
    fields: Option<Vec<&'static str>>,
}

impl Fault {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self {
            steps: Vec::new(),
            hides_name: false,
            what: what.into(),
            fields: None,
        }
    }

    pub(super) fn inside(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// The same about the name of a field itself.
    pub(super) fn at_name(self, name: &str) -> Self {
        Self {
            hides_name: !looks_like_a_name(name),
            ..self.inside(Step::Field(name.to_owned()))
        }
    }

    /// The way to it.
    pub(in crate::config) fn steps(&self) -> Vec<Step> {
        self.steps.iter().rev().cloned().collect()
    }

    /// The way to it, as it is shown.
    pub(in crate::config) fn place(&self) -> String {
        let mut place = String::new();
        let shown = &self.steps[usize::from(self.hides_name)..];
        for step in shown.iter().rev() {
            match step {
                Step::Field(name) if place.is_empty() => place.push_str(name),
                Step::Field(name) => place = format!("{place}.{name}"),
                Step::Index(index) => place = format!("{place}[{index}]"),
            }
        }
        place
    }

    /// What is wrong.
    pub(in crate::config) fn what(&self) -> String {
        match &self.fields {
            None => self.what.clone(),
            Some(fields) => format!("{}, expected {}", self.what, any_of(fields)),
        }
    }

    /// Says that these fields would have been known as well, if the problem is an unknown one in the
    /// map that is being read.
    pub(super) fn or_one_of(mut self, earlier: &[&'static str]) -> Self {
        if let (Some(fields), 1) = (&mut self.fields, self.steps.len()) {
            let others = earlier.iter().filter(|field| !fields.contains(field));
            *fields = others.chain(fields.iter()).copied().collect();
        }
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.what())
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    /// Drops the message, because it may quote the value.
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::new("has a form that does not belong here")
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let (expected, found) = (expectation(expected), kind(&found));
        Self::new(format!("expected {expected}, but found {found}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {}", expectation(expected)))
    }

    fn invalid_length(_: usize, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {}", expectation(expected)))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("expected {}", any_of(expected)))
    }

    fn unknown_field(name: &str, expected: &'static [&'static str]) -> Self {
        let what = if looks_like_a_name(name) {
            "unknown field"
        } else {
            "unknown field, whose name is not shown because it may be a value"
        };
        Self {
            fields: Some(expected.to_vec()),
            ..Self::new(what)
        }
    }

    fn missing_field(name: &'static str) -> Self {
        Self::new(format!("needs the field `{name}`"))
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::new(format!("has the field `{name}` twice"))
    }
}

/// Our fields and numbers look like this; keys, signatures and passwords rarely do.
fn looks_like_a_name(text: &str) -> bool {
    let has_parts = text.contains('_');
    let is_word =
        |byte: u8| byte.is_ascii_lowercase() || byte == b'_' || has_parts && byte.is_ascii_digit();
    let is_status = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_status || (1..=40).contains(&text.len()) && text.bytes().all(is_word)
}

/// serde's words for what belongs somewhere, in the words of this configuration.
fn expectation(expected: &dyn Expected) -> String {
    let words = expected.to_string();
    match words.as_str() {
        "a sequence" => "a list",
        "a string" | "string" | "path string" => "a text",
        "a boolean" => "`true` or `false`",
        "a nonzero usize" => "a number above 0",
        "u16" | "u32" | "u64" | "usize" => "a whole number",
        "f64" => "a number",
        words if words.starts_with("struct ") || words.starts_with("a map") => "a map of fields",
        words => words,
    }
    .to_owned()
}

pub(super) fn any_of(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.as_slice() {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        [first, second] => format!("{first} or {second}"),
        all => format!("one of {}", all.join(", ")),
    }
}

fn kind(found: &Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "a truth value",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "a number",
        Unexpected::Char(_) | Unexpected::Str(_) | Unexpected::Bytes(_) => "a text",
        Unexpected::Unit | Unexpected::Option => "nothing",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a map",
        _ => "something else",
    }
}
