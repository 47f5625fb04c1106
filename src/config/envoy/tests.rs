use super::*;

const ENVOY: &str = include_str!("../../../envoy/envoy.yaml");

fn problems(envoy: &str) -> Vec<String> {
    let ours = include_str!("../../../envoy/afterimage.yaml");
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
