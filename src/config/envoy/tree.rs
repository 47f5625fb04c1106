//! Finds things in the tree of Envoy's configuration, wherever they stand.

use serde_json::Value;

/// JSON of protocol buffers has two spellings for a field's name, `message_timeout` and
/// `messageTimeout`; this leaves the first.
pub(super) fn with_field_names(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter();
            Value::Object(
                fields
                    .map(|(name, inner)| (snake_case(&name), with_field_names(inner)))
                    .collect(),
            )
        }
        Value::Array(items) => Value::Array(items.into_iter().map(with_field_names).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len());
    for character in name.chars() {
        if character.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    snake
}

/// The policies that routes name in their metadata: ours, or Envoy Gateway's copy of annotations.
pub(super) fn named_in_metadata<'a>(
    value: &'a Value,
    place: String,
    found: &mut Vec<(String, &'a str)>,
) {
    match value {
        Value::Object(fields) => {
            if value["route"].is_object() {
                let metadata = &value["metadata"]["filter_metadata"];
                let resources = metadata["envoy-gateway"]["resources"].as_array();
                let annotated = resources
                    .into_iter()
                    .flatten()
                    .map(|resource| &resource["annotations"]["afterimage-policy"]);
                let own = std::iter::once(&metadata["afterimage"]["policy"]);
                let names = own.chain(annotated).filter_map(Value::as_str);
                found.extend(names.map(|name| (format!("{place}.metadata"), name)));
            }
            for (name, inner) in fields {
                named_in_metadata(inner, below(&place, name), found);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                named_in_metadata(inner, format!("{place}[{index}]"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn below(place: &str, name: &str) -> String {
    if place.is_empty() {
        name.to_owned()
    } else {
        format!("{place}.{name}")
    }
}

/// Every message of this type, with its place.
pub(super) fn typed<'a>(
    value: &'a Value,
    kind: &str,
    place: String,
    found: &mut Vec<(String, &'a Value)>,
) {
    match value {
        Value::Object(fields) => {
            if fields.get("@type").is_some_and(|given| given == kind) {
                found.push((place, value));
                return;
            }
            for (name, inner) in fields {
                typed(inner, kind, below(&place, name), found);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                typed(inner, kind, format!("{place}[{index}]"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Whether some route matches a header of this name.
pub(super) fn matches_header(value: &Value, name: &str) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(field, inner)| {
            let is_here = || {
                let matchers = inner.as_array().into_iter().flatten();
                field == "headers" && matchers.into_iter().any(|matcher| matcher["name"] == name)
            };
            is_here() || matches_header(inner, name)
        }),
        Value::Array(items) => items.iter().any(|inner| matches_header(inner, name)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// The socket of a cluster, whose endpoints stand in it or, as in a dump, in a list of their own.
pub(super) fn find_pipe_of<'a>(value: &'a Value, cluster: &str) -> Option<&'a str> {
    let inside = || match value {
        Value::Object(fields) => fields
            .values()
            .find_map(|inner| find_pipe_of(inner, cluster)),
        Value::Array(items) => items.iter().find_map(|inner| find_pipe_of(inner, cluster)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    };
    let is_it = value["name"] == cluster || value["cluster_name"] == cluster;
    is_it.then(|| find_pipe(value)).flatten().or_else(inside)
}

fn find_pipe(value: &Value) -> Option<&str> {
    match value {
        Value::Object(fields) => fields
            .get("pipe")
            .and_then(|pipe| pipe["path"].as_str())
            .or_else(|| fields.values().find_map(find_pipe)),
        Value::Array(items) => items.iter().find_map(find_pipe),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}
