//! What Envoy says about its filter, and whether its configuration and ours fit together.
//!
//! Envoy does not tell an external processor its limits or its modes, so `afterimage check --envoy`
//! reads the bootstrap (or any file with the filter in it) and compares.

mod tree;

use std::path::Path;
use std::time::Duration;

use http::HeaderName;
use serde::Deserialize;
use serde_json::Value;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

use self::tree::{find_pipe_of, matches_header, named_in_metadata, typed, with_field_names};
use super::{Config, Listen, Problem, Problems, names_no_policy, yaml};
use crate::written::{As, HumanDuration};

/// The request header by which Envoy fetches a large hit; the filter and the listener of large hits agree on it.
pub const TICKET: HeaderName = HeaderName::from_static("x-afterimage-object");

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
        if self.objects.is_some() && !matches_header(tree, TICKET.as_str()) {
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
        self.compare_timeouts(filter, &mut problem);
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
        compare_modes(&filter["processing_mode"], &mut problem);
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

    fn compare_timeouts(&self, filter: &Value, problem: &mut impl FnMut(&str, String)) {
        for (field, own, default) in [
            (
                "message_timeout",
                self.envoy.message_timeout,
                DEFAULT_MESSAGE_TIMEOUT,
            ),
            (
                "max_message_timeout",
                self.envoy.max_message_timeout,
                Duration::ZERO,
            ),
        ] {
            let theirs = duration(&filter[field]).unwrap_or(default);
            if own != theirs {
                problem(
                    field,
                    format!("is {theirs:?}, but envoy.{field} of our configuration says {own:?}"),
                );
            }
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

/// What Envoy shows us by default; the rest is asked for request by request.
fn compare_modes(mode: &Value, problem: &mut impl FnMut(&str, String)) {
    for (field, wanted) in [
        ("request_header_mode", "SEND"),
        ("response_header_mode", "SEND"),
        ("request_body_mode", "NONE"),
        ("response_body_mode", "NONE"),
    ] {
        let given = mode[field].as_str().unwrap_or(wanted);
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
}

/// Is this name in a list of the filter's?
fn asks(filter: &Value, list: &str, name: &str) -> bool {
    let names = filter[list].as_array();
    names.is_some_and(|names| names.iter().any(|given| given == name))
}

/// A duration as protocol buffers write it in JSON: seconds with a fraction and `s`.
fn duration(value: &Value) -> Option<Duration> {
    let seconds = value.as_str()?.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests;
