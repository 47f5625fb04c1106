//! Whether Envoy's configuration and ours fit together.
//!
//! Envoy does not tell an external processor its limits or its modes, so `afterimage check --envoy`
//! reads the bootstrap (or any file with the filter in it) and compares.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

use super::{Config, Listen, Problem, Problems, names_no_policy, yaml};
use crate::objects;
use crate::written::{As, HumanDuration};

const FILTER: &str =
    "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor";
const PER_ROUTE: &str =
    "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute";

/// Envoy's words for what a filter is shown; any other text is not repeated.
const MODES: [&str; 7] = [
    "SEND",
    "SKIP",
    "NONE",
    "STREAMED",
    "BUFFERED",
    "BUFFERED_PARTIAL",
    "FULL_DUPLEX_STREAMED",
];

/// Envoy's `message_timeout` where it is not set.
const DEFAULT_MESSAGE_TIMEOUT: Duration = Duration::from_millis(200);

/// What Envoy's configuration says about the filter. Envoy does not tell, so both files must agree;
/// `afterimage check --envoy` compares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct EnvoyLimits {
    /// The filter's `message_timeout`. Lookups must be done well before.
    #[serde(with = "As::<HumanDuration>")]
    pub message_timeout: Duration,
    /// The filter's `max_message_timeout`: how long requests can wait for each other. `0s` where it cannot
    /// be set.
    #[serde(with = "As::<HumanDuration>")]
    pub max_message_timeout: Duration,
}

impl Default for EnvoyLimits {
    fn default() -> Self {
        Self {
            message_timeout: Duration::from_secs(1),
            max_message_timeout: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// Compares with the filters, routes and clusters in `file`, YAML or JSON.
    ///
    /// # Errors
    /// Everything that does not fit, each with its place.
    pub fn check_envoy(&self, file: &Path) -> Result<(), Problems> {
        let mut problems = Vec::new();
        match std::fs::read_to_string(file) {
            Err(error) => problems.push(Problem::new("file", format!("cannot be read: {error}"))),
            Ok(text) => match yaml::parse(&text) {
                Err(what) => problems.push(Problem::new("file", what)),
                Ok(tree) => problems = self.compare(tree),
            },
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Problems::of(file, problems))
        }
    }

    pub(super) fn compare(&self, tree: Value) -> Vec<Problem> {
        let tree = &with_field_names(tree);
        let mut found = Vec::new();
        let problems = &mut found;
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
        if self.objects.is_some() && !matches_header(tree, objects::TICKET.as_str()) {
            problems.push(Problem::new(
                "file",
                "has no route for requests with x-afterimage-object, but objects.listen is set: large \
                 hits would go to the upstream",
            ));
        }
        let mut routes = Vec::new();
        typed(tree, PER_ROUTE, String::new(), &mut routes);
        for (place, route) in &routes {
            self.compare_route(route, place, problems);
        }
        let mut named = Vec::new();
        named_in_metadata(tree, String::new(), &mut named);
        for (place, name) in &named {
            self.compare_name(name, place, problems);
        }
        for (place, filter) in &filters {
            if !named.is_empty() && !asks(filter, "request_attributes", "xds.route_metadata") {
                problems.push(Problem::new(
                    format!("{place}.request_attributes"),
                    "must have xds.route_metadata, because routes name their policy there",
                ));
            }
        }
        found
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
                let given = if MODES.contains(&given) {
                    given
                } else {
                    "no mode"
                };
                problem(
                    &format!("processing_mode.{field}"),
                    format!("is {given}, but must be {wanted}"),
                );
            }
        }
        if !asks(filter, "response_attributes", "response.code_details") {
            problem(
                "response_attributes",
                "must have response.code_details: without it nothing is stored".to_owned(),
            );
        }
        if !self.routes.is_empty() && !asks(filter, "request_attributes", "xds.route_name") {
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
            && let Some(pipe) = find_pipe_of(tree, cluster)
            && Path::new(pipe) != path
        {
            problem(
                "grpc_service",
                "leads to another socket than `listen` of our configuration".to_owned(),
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
            self.compare_name(name, place, problems);
        }
    }

    fn compare_name(&self, name: &str, place: &str, problems: &mut Vec<Problem>) {
        let is_known = name == "bypass" || self.policies.iter().any(|policy| &*policy.name == name);
        if !is_known {
            let names = self.policies.iter().map(|policy| &*policy.name);
            problems.push(Problem::new(place, names_no_policy(names)));
        }
    }
}

/// Is this name in a list of the filter's?
fn asks(filter: &Value, list: &str, name: &str) -> bool {
    let names = filter[list].as_array();
    names.is_some_and(|names| names.iter().any(|given| given == name))
}

/// JSON of protocol buffers has two spellings for a field's name, `message_timeout` and
/// `messageTimeout`; this leaves the first.
fn with_field_names(value: Value) -> Value {
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
fn named_in_metadata<'a>(value: &'a Value, place: String, found: &mut Vec<(String, &'a str)>) {
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
fn typed<'a>(value: &'a Value, kind: &str, place: String, found: &mut Vec<(String, &'a Value)>) {
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
fn matches_header(value: &Value, name: &str) -> bool {
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
fn find_pipe_of<'a>(value: &'a Value, cluster: &str) -> Option<&'a str> {
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
        let problems = config.compare(yaml::parse(envoy).unwrap());
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_reference_files_fit_together() {
        assert_eq!(problems(ENVOY), [""; 0]);
    }

    #[test]
    fn large_hits_need_their_route() {
        let config = Config::parse(
            "objects: {listen: 'unix:run/objects.sock'}\npolicies: {images: {kind: generic}, thumbs: {kind: generic}}",
            std::iter::empty(),
        )
        .unwrap();
        let problems = |envoy: &str| config.compare(yaml::parse(envoy).unwrap()).len();
        assert_eq!(problems(ENVOY), 0);
        assert_eq!(
            problems(&ENVOY.replace("name: x-afterimage-object", "name: x")),
            1
        );
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
            (
                "value: thumbs",
                "value: thumb",
                "names no policy, there is `images`, `thumbs`",
            ),
            (
                "path: run/ext_proc.sock",
                "path: run/other.sock",
                "leads to another socket",
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
    /// The filter and a route in the spelling of a dump, the route with these annotations.
    fn dump(annotation: &str) -> String {
        format!(
            r#"
routes:
  - route: {{cluster: imgproxy}}
    metadata: {{filterMetadata: {{envoy-gateway: {{resources: [{{annotations: {{afterimage-policy: {annotation}}}}}]}}}}}}
filter:
  "@type": {FILTER}
  grpcService: {{envoyGrpc: {{clusterName: afterimage}}}}
  messageTimeout: 1s
  maxMessageTimeout: 30s
  failureModeAllow: true
  allowModeOverride: true
  processingMode: {{requestTrailerMode: SKIP}}
  requestAttributes: [xds.route_metadata]
  responseAttributes: [response.code_details]
endpoints: [{{clusterName: afterimage, endpoint: {{address: {{pipe: {{path: run/ext_proc.sock}}}}}}}}]
"#
        )
    }

    #[test]
    fn the_spelling_of_a_dump_is_read() {
        assert_eq!(problems(&dump("thumbs")), [""; 0]);
        let changed = dump("thumbs").replace("messageTimeout: 1s", "messageTimeout: 2s");
        assert_eq!(problems(&changed).len(), 1);
        let changed = dump("thumbs").replace("run/ext_proc.sock", "run/other.sock");
        assert_eq!(problems(&changed).len(), 1);
    }

    #[test]
    fn a_policy_in_a_route_s_metadata_must_exist_and_be_asked_for() {
        let unknown = problems(&dump("thumb"));
        assert_eq!(
            unknown,
            ["routes[0].metadata: names no policy, there is `images`, `thumbs`"]
        );
        let unasked = dump("images").replace("xds.route_metadata", "xds.route_name");
        let unasked = problems(&unasked);
        assert_eq!(unasked.len(), 1);
        assert!(
            unasked[0].starts_with("filter.request_attributes: must have xds.route_metadata"),
            "{unasked:?}"
        );
    }
}
