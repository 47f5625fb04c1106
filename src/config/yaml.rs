//! YAML, whose errors show neither the text nor names in it.

use serde::de::DeserializeOwned;
use serde_saphyr::Error;

/// What `text` says.
///
/// # Errors
/// What is wrong, and in which line. The parser's own message is not used: it shows the lines around
/// the place, and they may hold a secret.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| {
        let what = what(error.without_snippet());
        match error.location() {
            Some(place) => format!(
                "is not valid YAML at line {}, column {}: {what}",
                place.line(),
                place.column()
            ),
            None => format!("is not valid YAML: {what}"),
        }
    })
}

fn what(error: &Error) -> &'static str {
    match error {
        Error::DuplicateMappingKey { .. } => "a key stands twice in one map",
        Error::UnknownAnchor { .. } => "an alias names no anchor that stands before it",
        Error::MultipleDocuments { .. } => "a second document begins",
        Error::Eof { .. } => "it ends too early",
        _ => {
            "often the indentation is wrong, a bracket or quote is open, or a text with `: ` or ` #` \
             needs quotes"
        }
    }
}
