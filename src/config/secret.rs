//! Secrets of the configuration.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Unexpected, Visitor};

use crate::secret::Secret;

/// Where a secret is.
#[derive(Clone)]
pub(super) enum SecretSource {
    Literal(Secret),
    Env(String),
    File(PathBuf),
}

impl SecretSource {
    /// How it is written.
    pub(super) const EXPECTED: &str = "a text, `{env: NAME}` or `{file: PATH}`";

    /// Fetches it; white space around it does not belong to it.
    ///
    /// # Errors
    /// What is wrong. Neither the secret nor what may be one in a wrong place is part of it.
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

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Form)
    }
}

struct Form;

impl<'de> Visitor<'de> for Form {
    type Value = SecretSource;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SecretSource::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<SecretSource, E> {
        Ok(SecretSource::Literal(text.to_owned().into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretSource, A::Error> {
        let source = match map.next_key::<String>()?.as_deref() {
            Some("env") => SecretSource::Env(map.next_value()?),
            Some("file") => SecretSource::File(map.next_value()?),
            Some(_) | None => return Err(A::Error::invalid_value(Unexpected::Map, &self)),
        };
        match map.next_key::<String>()? {
            None => Ok(source),
            Some(_) => Err(A::Error::invalid_value(Unexpected::Map, &self)),
        }
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

#[cfg(test)]
impl schemars::JsonSchema for SecretSource {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "secret".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let named = |field: &str| {
            serde_json::json!({
                "type": "object",
                "properties": {field: {"type": "string"}},
                "required": [field],
                "additionalProperties": false
            })
        };
        schemars::json_schema!({
            "title": "secret",
            "anyOf": [{"type": "string"}, named("env"), named("file")]
        })
    }
}
