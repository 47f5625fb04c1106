//! Writes log lines and keeps metrics. The admin pages, which show the metrics, are in `server/`.

mod log_writer;
pub mod metrics;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

pub use self::log_writer::Flush;
use self::log_writer::LogWriter;
pub use self::metrics::Metrics;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Sends log lines to standard error. `filter` is a level or a list of `target=level`.
///
/// # Errors
/// When the filter cannot be read, or no thread can be started.
pub fn init(format: LogFormat, filter: &str) -> Result<Flush, String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log.filter: {error}"))?;
    let lines = LogWriter::default();
    let flush = lines
        .start()
        .map_err(|error| format!("cannot start a thread for the log: {error}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines)
        .with_span_events(FmtSpan::NONE);
    match format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(flush)
}
