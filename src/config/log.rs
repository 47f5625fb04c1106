//! Log lines.

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

use crate::telemetry::LogFormat;
use crate::written::{As, Written};

/// The log, on standard error.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawLog {
    /// How log lines look.
    pub(super) format: LogFormat,
    /// A level, or a list of `target=level`. At `info` there is one line per request, written within
    /// 50 ms.
    #[serde(with = "As::<Filter>")]
    pub(super) filter: String,
}

impl Default for RawLog {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            filter: "info".to_owned(),
        }
    }
}

/// Which log lines there are.
struct Filter;

impl Written for Filter {
    type Value = String;

    #[cfg(test)]
    const NAME: &'static str = "text";
    const EXPECTED: &'static str = "a level such as `info`, or a list of `target=level`";

    fn read(text: &str) -> Option<String> {
        EnvFilter::try_new(text).ok().map(|_| text.to_owned())
    }

    #[cfg(test)]
    fn write(value: &String) -> String {
        value.clone()
    }
}
