//! Values with units, secrets, and problems with places.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::secret::Secret;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// Something wrong, and where.
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

/// A time span such as `300ms`, `30s`, `12h`, `30d`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seconds(Duration);

impl Seconds {
    pub(super) fn or(given: Option<Self>, default: Duration) -> Duration {
        given.map_or(default, |given| given.0)
    }

    pub(super) fn get(self) -> Duration {
        self.0
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer
            .deserialize_any(Text("a time span with a unit, such as `300ms` or `30d`"))?;
        humantime::parse_duration(&text).map(Self).map_err(|_| {
            Error::invalid_value(
                Unexpected::Str(&text),
                &"a time span with a unit, such as `300ms` or `30d`",
            )
        })
    }
}

/// A number of bytes such as `64KiB`, `10GiB`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes(u64);

impl Bytes {
    pub(super) fn or(given: Option<Self>, default: u64) -> u64 {
        given.map_or(default, |given| given.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text =
            deserializer.deserialize_any(Text("a size with a unit, such as `512B` or `8MiB`"))?;
        let has_unit = text.bytes().any(|byte| byte.is_ascii_alphabetic());
        text.parse::<bytesize::ByteSize>()
            .ok()
            .filter(|_| has_unit)
            .map(|size| Self(size.as_u64()))
            .ok_or_else(|| {
                Error::invalid_value(
                    Unexpected::Str(&text),
                    &"a size with a unit, such as `512B` or `8MiB`",
                )
            })
    }
}

/// Text; a bare number is the common mistake, and its error must say what is missing.
struct Text(&'static str);

impl Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

/// Where a secret is.
#[derive(Clone)]
pub(super) enum SecretSource {
    Literal(Secret),
    Env(String),
    File(PathBuf),
}

impl SecretSource {
    /// Fetches it; white space around it does not belong to it.
    pub(super) fn read(&self) -> Result<Secret, String> {
        let text = match self {
            Self::Literal(secret) => return Ok(secret.clone()),
            Self::Env(name) => std::env::var(name).map_err(|_| is_not_set(name))?,
            Self::File(path) => std::fs::read_to_string(path)
                .map_err(|error| format!("the file that it names cannot be read: {error}"))?,
        };
        let text = text.trim();
        if text.is_empty() {
            return Err("is empty".to_owned());
        }
        Ok(Secret::from(text.to_owned()))
    }
}

/// A name is shown when it can be nothing else: a secret in its place has lower case letters, or no
/// underscore.
fn is_not_set(name: &str) -> String {
    let is_name = name.contains('_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    if is_name {
        format!("environment variable {name} is not set")
    } else {
        "the environment variable that it names is not set".to_owned()
    }
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase", deny_unknown_fields)]
        enum Named {
            Env(String),
            File(PathBuf),
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Literal(String),
            Named(Named),
        }
        match Form::deserialize(deserializer) {
            Ok(Form::Literal(text)) => Ok(Self::Literal(text.into())),
            Ok(Form::Named(Named::Env(name))) => Ok(Self::Env(name)),
            Ok(Form::Named(Named::File(path))) => Ok(Self::File(path)),
            Err(_) => Err(D::Error::invalid_value(
                Unexpected::Other("another form"),
                &"a text, `{env: NAME}` or `{file: PATH}`",
            )),
        }
    }
}
