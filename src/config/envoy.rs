//! Whether Envoy's configuration and ours fit together.
//!
//! Envoy does not tell an external processor its limits or its modes, so `afterimage check --envoy`
//! reads the bootstrap (or any file with the filter in it) and compares.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::value::Problem;
use super::{Config, Listen, Problems};

const FILTER: &str =
    "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor";
const PER_ROUTE: &str =
    "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute";

/// Envoy's `message_timeout` where it is not set.
const DEFAULT_MESSAGE_TIMEOUT: Duration = Duration::from_millis(200);

impl Config {
    /// Compares with the filters, routes and clusters in `file`, YAML or JSON.
    ///
    /// # Errors
    /// Everything that does not fit, each with its place.
    pub fn check_envoy(&self, file: &Path) -> Result<(), Problems> {
        let mut problems = Vec::new();
        match std::fs::read_to_string(file) {
            Err(error) => problems.push(Problem::new("file", format!("cannot be read: {error}"))),
            Ok(text) => match serde_saphyr::from_str::<Value>(&text) {
                Err(error) => problems.push(Problem::new("file", error.to_string())),
                Ok(tree) => self.compare(&tree, &mut problems),
            },
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Problems::of(file, problems))
        }
    }

    fn compare(&self, tree: &Value, problems: &mut Vec<Problem>) {
        let mut filters = Vec::new();
        typed(tree, FILTER, String::new(), &mut filters);
        if filters.is_empty() {
            problems.push(Problem::new(
                "file",
                "has no filter envoy.filters.http.ext_proc",
            ));
        }
        for (place, filter) in &filters {
            self.compare_filter(filter, tree, place, problems);
        }
        let mut routes = Vec::new();
        typed(tree, PER_ROUTE, String::new(), &mut routes);
        for (place, route) in &routes {
            self.compare_route(route, place, problems);
        }
    }

    fn compare_filter(
        &self,
        filter: &Value,
        tree: &Value,
        place: &str,
        problems: &mut Vec<Problem>,
    ) {
        let mut problem = |field: &str, what: String| {
            problems.push(Problem::new(format!("{place}.{field}"), what));
        };
        let timeout = |field: &str, default| match &filter[field] {
            Value::Null => default,
            value => duration(value).unwrap_or(default),
        };
        for (field, own, theirs) in [
            (
                "message_timeout",
                self.envoy.message_timeout,
                timeout("message_timeout", DEFAULT_MESSAGE_TIMEOUT),
            ),
            (
                "max_message_timeout",
                self.envoy.max_message_timeout,
                timeout("max_message_timeout", Duration::ZERO),
            ),
        ] {
            if own != theirs {
                problem(
                    field,
                    format!("is {theirs:?}, but envoy.{field} of our configuration says {own:?}"),
                );
            }
        }
        for (field, why) in [
            (
                "failure_mode_allow",
                "without it our failure is the client's",
            ),
            ("allow_mode_override", "without it nothing can be stored"),
        ] {
            if filter[field] != Value::Bool(true) {
                problem(field, format!("must be true: {why}"));
            }
        }
        let mode = &filter["processing_mode"];
        for (field, wanted, default) in [
            ("request_header_mode", "SEND", "SEND"),
            ("response_header_mode", "SEND", "SEND"),
            ("request_body_mode", "NONE", "NONE"),
            ("response_body_mode", "NONE", "NONE"),
        ] {
            let given = mode[field].as_str().unwrap_or(default);
            if given != wanted && given != "DEFAULT" {
                problem(
                    &format!("processing_mode.{field}"),
                    format!("is {given}, but must be {wanted}"),
                );
            }
        }
        let asks = |list: &str, name: &str| {
            let names = filter[list].as_array();
            names.is_some_and(|names| names.iter().any(|given| given == name))
        };
        if !asks("response_attributes", "response.code_details") {
            problem(
                "response_attributes",
                "must have response.code_details: without it nothing is stored".to_owned(),
            );
        }
        if !self.routes.is_empty() && !asks("request_attributes", "xds.route_name") {
            problem(
                "request_attributes",
                "must have xds.route_name, because `routes` of our configuration is used"
                    .to_owned(),
            );
        }
        if !filter["grpc_service"]["retry_policy"].is_null() {
            problem(
                "grpc_service.retry_policy",
                "must not be set: Envoy would keep every message to send it again".to_owned(),
            );
        }
        let cluster = filter["grpc_service"]["envoy_grpc"]["cluster_name"].as_str();
        if let (Some(cluster), Listen::Unix(path)) = (cluster, &self.listen)
            && let Some(found) = find_cluster(tree, cluster)
            && let Some(pipe) = find_pipe(found)
            && Path::new(pipe) != path
        {
            problem(
                "grpc_service",
                format!(
                    "leads to {pipe}, but `listen` of our configuration is unix:{}",
                    path.display()
                ),
            );
        }
    }

    /// A route can only name what there is.
    fn compare_route(&self, route: &Value, place: &str, problems: &mut Vec<Problem>) {
        let entries = route["overrides"]["grpc_initial_metadata"].as_array();
        for entry in entries.into_iter().flatten() {
            if entry["key"] != "x-afterimage-policy" {
                continue;
            }
            let name = entry["value"].as_str().unwrap_or_default();
            let is_known =
                name == "bypass" || self.policies.iter().any(|policy| &*policy.name == name);
            if !is_known {
                problems.push(Problem::new(
                    place,
                    format!("names the policy `{name}`, which is not in our configuration"),
                ));
            }
        }
    }
}

/// Every message of this type, with its place.
fn typed<'a>(value: &'a Value, kind: &str, place: String, found: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(fields) => {
            if fields.get("@type").is_some_and(|given| given == kind) {
                found.push((place, value));
                return;
            }
            for (name, inner) in fields {
                let place = if place.is_empty() {
                    name.clone()
                } else {
                    format!("{place}.{name}")
                };
                typed(inner, kind, place, found);
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

fn find_cluster<'a>(tree: &'a Value, name: &str) -> Option<&'a Value> {
    let clusters = tree["static_resources"]["clusters"].as_array()?;
    clusters.iter().find(|cluster| cluster["name"] == name)
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

/// A duration as protocol buffers write it in JSON: seconds with a fraction and `s`.
fn duration(value: &Value) -> Option<Duration> {
    let seconds = value.as_str()?.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENVOY: &str = include_str!("../../envoy/envoy.yaml");

    fn problems(envoy: &str) -> Vec<String> {
        let ours = include_str!("../../envoy/afterimage.yaml");
        let config = Config::parse(ours, std::iter::empty()).unwrap();
        let mut problems = Vec::new();
        config.compare(&serde_saphyr::from_str(envoy).unwrap(), &mut problems);
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_reference_files_fit_together() {
        assert_eq!(problems(ENVOY), [""; 0]);
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_place() {
        for (old, new, expected) in [
            (
                "message_timeout: 1s",
                "message_timeout: 0.2s",
                ".message_timeout: is 200ms",
            ),
            (
                "max_message_timeout: 30s",
                "",
                ".max_message_timeout: is 0ns",
            ),
            (
                "failure_mode_allow: true",
                "",
                ".failure_mode_allow: must be true",
            ),
            (
                "allow_mode_override: true",
                "",
                ".allow_mode_override: must be true",
            ),
            (
                "response_body_mode: NONE",
                "response_body_mode: BUFFERED",
                ".response_body_mode: is BUFFERED",
            ),
            (
                "[response.code_details, response.flags]",
                "[response.flags]",
                ".response_attributes: must have",
            ),
            ("value: thumbs", "value: thumb", "names the policy `thumb`"),
            (
                "path: run/ext_proc.sock",
                "path: run/other.sock",
                "leads to run/other.sock",
            ),
            (
                "filters.http.ext_proc.v3.ExternalProcessor",
                "x",
                "file: has no filter",
            ),
        ] {
            let changed = ENVOY.replacen(&format!(" {old}"), &format!(" {new}"), 1);
            let changed = if changed == ENVOY {
                ENVOY.replacen(old, new, 1)
            } else {
                changed
            };
            assert_ne!(changed, ENVOY, "{old}");
            let problems = problems(&changed);
            assert!(
                problems.iter().any(|problem| problem.contains(expected)),
                "{old}: {problems:?}"
            );
        }
    }
}
