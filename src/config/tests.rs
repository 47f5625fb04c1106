mod secrets;

use serde_json::Value;

use super::*;

fn load(text: &str) -> Result<Config, Vec<String>> {
    with_variables(text, &[])
}

fn with_variables(text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::parse(text, variables)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

/// As text, the defaults mean the same.
#[test]
fn the_defaults_are_read_as_they_are_written() {
    let defaults = serde_json::to_value(RawConfig::default()).unwrap();
    let read: RawConfig = tree::read(&defaults, &[]).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap(), defaults);
    let limits: Limits = tree::read(&defaults["limits"], &[]).unwrap();
    assert_eq!(limits, Limits::default());
    for kind in ["imgproxy", "generic"] {
        let raw: RawPolicy = tree::read(&serde_json::json!({"kind": kind}), &[]).unwrap();
        let policy = raw.build("p", &mut Vec::new()).unwrap();
        assert_eq!(policy.freshness, crate::policy::FreshnessRules::default());
    }
}

#[test]
fn a_field_of_the_other_kind_is_unknown() {
    for (kind, fields) in [
        (
            "generic",
            "path_prefix: /a, unsigned: true, signature: {pairs: []}, formats: [], enforced_formats: [], \
             dpr_steps: [], width_steps: [], forward_headers: [], arguments_separator: ':', \
             only_presets: false, base64_url_includes_filename: false, key: {host: true}",
        ),
        (
            "imgproxy",
            "invalidate_on_unsafe: true, key: {query: all, headers: []}, store: {variants: 3}",
        ),
    ] {
        let problems = load(&format!("policies: {{p: {{kind: {kind}, {fields}}}}}")).unwrap_err();
        let count = fields.matches(':').count() - fields.matches("':'").count();
        let groups = fields.matches("key: {").count() + fields.matches("store: {").count();
        let inside = fields.matches("pairs:").count();
        assert_eq!(problems.len(), count - groups - inside, "{problems:#?}");
        for problem in problems {
            assert!(problem.contains(": unknown field, expected"), "{problem}");
        }
    }
}

#[test]
fn a_policy_without_a_kind_is_one_problem() {
    let problems =
        load("policies: {p: {unsigned: true, store: {verify: 3}}}\ndefault_policy: p").unwrap_err();
    assert_eq!(
        problems,
        ["policies.p: needs the field `kind`, which is `imgproxy` or `generic`"]
    );
    let problems = load("policies: {p: {kind: nginx, unsigned: true}}").unwrap_err();
    assert_eq!(
        problems,
        ["policies.p.kind: expected `imgproxy` or `generic`"]
    );
}

#[test]
fn elements_of_a_list_keep_their_places() {
    let problems = load(
        "policies: {p: {kind: generic, store: {content_types: [a, image/*, b], statuses: [1, 200, 304]}}}",
    )
    .unwrap_err();
    let places: Vec<_> = problems
        .iter()
        .filter_map(|problem| problem.split(": ").next())
        .collect();
    assert_eq!(
        places,
        [
            "policies.p.store.content_types[0]",
            "policies.p.store.content_types[2]",
            "policies.p.store.statuses[0]",
            "policies.p.store.statuses[2]"
        ]
    );
}

const IMAGES: &str = "policies: {images: {kind: imgproxy, unsigned: true}}\n";

#[test]
fn an_empty_file_is_a_configuration_that_leaves_every_route_alone() {
    let config = load("").unwrap();
    assert_eq!(config.listen, Listen::Unix("run/ext_proc.sock".into()));
    assert!(config.default_policy.is_none());
    assert_eq!(config.limits.budget, 48 * 1024 * 1024);
}

/// What `written` says that `default` does not.
fn differences(written: &Value, default: &Value, place: &str) -> Vec<String> {
    match (written, default) {
        (Value::Object(written), Value::Object(default)) => written
            .iter()
            .flat_map(|(name, written)| {
                let default = default.get(name).unwrap_or(&Value::Null);
                differences(written, default, &format!("{place}/{name}"))
            })
            .collect(),
        (written, default) if written == default => Vec::new(),
        _ => vec![place.to_owned()],
    }
}

#[test]
fn the_configuration_of_the_dev_stack_is_valid_and_says_what_the_defaults_say() {
    let text = include_str!("../../envoy/afterimage.yaml");
    let config = load(text).unwrap();
    let written: Value = yaml::parse(text).unwrap();
    let defaults = serde_json::to_value(RawConfig::default()).unwrap();
    assert_eq!(
        differences(&written, &defaults, ""),
        [
            "/policies",
            "/store/s3/access_key_id",
            "/store/s3/endpoint",
            "/store/s3/secret_access_key"
        ]
    );
    assert!(
        config
            .policies
            .iter()
            .any(|policy| &*policy.name == "images")
    );
}

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    let problems = load(
        "lisen: unix:x
admin: {listen: nowhere}
limits: {stream_cap: 8, lookup_timeout: 2s}
store: {kind: s3, s3: {endpoint: garage, retries: 3}}
default_policy: other
policies:
  Images: {kind: imgproxy}
  a: {kind: imgproxie}
  b: {kind: generic, unsigned: true, freshness: {floor: 60d}}
  c: {kind: imgproxy, signature: {pairs: [{key: zz, salt: {env: AFTERIMAGE_NOT_SET}}], size: 99}}
",
    )
    .unwrap_err();
    for place in [
        "lisen: unknown field",
        "admin.listen: expected `IP:PORT`",
        "limits.stream_cap: expected a size with a unit",
        "limits.lookup_timeout: is 2s",
        "store.s3.endpoint: expected `http://host:port`",
        "store.s3.retries: unknown field",
        "store.s3.access_key_id: needs",
        "store.s3.secret_access_key: needs",
        "policies.Images: a name",
        "policies.a.kind: expected `imgproxy` or `generic`",
        "policies.b.unsigned: unknown field",
        "policies.b.freshness.floor: is above",
        "policies.c.signature.pairs[0].key: is not hexadecimal",
        "policies.c.signature.pairs[0].salt: environment variable AFTERIMAGE_NOT_SET",
        "policies.c.signature.size: is 1 to 32",
    ] {
        assert!(
            problems.iter().any(|problem| problem.starts_with(place)),
            "{place} is missing in {problems:#?}"
        );
    }
}

#[test]
fn a_route_or_default_that_names_no_policy_is_a_problem() {
    let problems = load(&format!(
        "{IMAGES}routes: {{r: imagse}}\ndefault_policy: nope"
    ))
    .unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].starts_with("routes.r: names no policy, there is `images`"));
}

#[test]
fn a_variable_overrides_the_field_that_it_names() {
    let config = with_variables(
        IMAGES,
        &[
            ("AFTERIMAGE_STORE__KIND", "s3"),
            ("AFTERIMAGE_STORE__S3__ENDPOINT", "http://127.0.0.1:3900"),
            ("AFTERIMAGE_STORE__S3__BUCKETS", "[a, b]"),
            ("AFTERIMAGE_STORE__S3__ACCESS_KEY_ID", "12345678"),
            (
                "AFTERIMAGE_STORE__S3__SECRET_ACCESS_KEY",
                "0012345678901234",
            ),
            ("AFTERIMAGE_LIMITS__BREAKER_FAILURES", "7"),
            ("AFTERIMAGE_POLICIES__IMAGES__UNSIGNED", "false"),
            ("AFTERIMAGE_DEFAULT_POLICY", "images"),
            ("AFTERIMAGE_TOOLS", "/somewhere"),
        ],
    )
    .unwrap();
    let StoreConfig::S3(s3) = config.store else {
        panic!("{:?}", config.store)
    };
    assert_eq!(s3.buckets, ["a", "b"]);
    assert_eq!(s3.access_key_id, "12345678");
    assert_eq!(s3.secret_access_key.expose(), "0012345678901234");
    assert_eq!(config.limits.breaker_failures, 7);
    assert!(config.default_policy.is_some());
}

#[test]
fn addresses_that_others_can_reach_are_refused_for_the_processor() {
    let problems = load("listen: 0.0.0.0:9000").unwrap_err();
    assert!(
        problems[0].contains("or a loopback address"),
        "{problems:?}"
    );
}

#[test]
fn secrets_do_not_show() {
    let config = load(
        "store: {kind: s3, s3: {endpoint: 'http://h', access_key_id: id, secret_access_key: hunter2}}
policies: {p: {kind: imgproxy, signature: {pairs: [{key: 5eed, salt: c0ffee}], trusted: [hunter2]}}}",
    )
    .unwrap();
    let shown = format!("{config:?}");
    assert!(
        !shown.contains("hunter2") && !shown.contains("192, 255, 238"),
        "{shown}"
    );
}

#[test]
fn a_secret_of_a_wrong_form_is_not_shown_in_the_error() {
    let problems = load(
        "store: {kind: s3, s3: {endpoint: 'http://h', access_key_id: id, secret_access_key: [hunter2]}}",
    )
    .unwrap_err();
    assert!(!problems.concat().contains("hunter2"), "{problems:?}");
}

#[test]
fn yaml_that_cannot_be_read_says_where() {
    let problems = load("store:\n  kind: [\n").unwrap_err();
    assert!(problems[0].contains("line"), "{problems:?}");
}

/// A field that is not in the reference is one that nobody finds.
#[test]
fn the_reference_has_every_field() {
    let reference = include_str!("../../docs/configuration.md");
    let places = [
        ("{x: 1}", ""),
        ("{admin: {x: 1}}", "admin."),
        ("{envoy: {x: 1}}", "envoy."),
        ("{store: {x: 1}}", "store."),
        ("{store: {local: {x: 1}}}", "store.local."),
        ("{store: {memory: {x: 1}}}", "store.memory."),
        ("{store: {s3: {x: 1}}}", "store.s3."),
        ("{limits: {x: 1}}", "limits."),
        ("{log: {x: 1}}", "log."),
        ("{policies: {p: {kind: generic, x: 1}}}", ""),
        ("{policies: {p: {kind: imgproxy, x: 1}}}", ""),
        ("{memory: {x: 1}}", "memory."),
        ("{objects: {x: 1}}", "objects."),
        ("{policies: {p: {kind: imgproxy, key: {x: 1}}}}", "key."),
        ("{policies: {p: {kind: imgproxy, store: {x: 1}}}}", "store."),
        (
            "{policies: {p: {kind: generic, upstream: {url: 'http://h', x: 1}}}}",
            "upstream.",
        ),
        ("{policies: {p: {kind: generic, key: {x: 1}}}}", "key."),
        ("{policies: {p: {kind: generic, store: {x: 1}}}}", "store."),
        (
            "{policies: {p: {kind: generic, freshness: {x: 1}}}}",
            "freshness.",
        ),
        (
            "{policies: {p: {kind: imgproxy, signature: {x: 1}}}}",
            "signature.",
        ),
    ];
    for (text, place) in places {
        let problems = load(text).unwrap_err();
        let (_, expected) = problems[0].split_once("expected ").unwrap();
        let fields = expected.split('`').skip(1).step_by(2);
        for field in fields {
            // A group is there by its fields.
            let named = [format!("`{place}{field}`"), format!("`{place}{field}.")];
            assert!(
                named.iter().any(|name| reference.contains(name)) || field == "policies",
                "{place}{field} is not in the reference"
            );
        }
    }
}

#[test]
fn there_is_at_least_one_thread() {
    let config = with_variables(IMAGES, &[("AFTERIMAGE_THREADS", "3")]).unwrap();
    assert_eq!(config.threads.map(NonZeroUsize::get), Some(3));
    assert!(load(IMAGES).unwrap().threads.is_none());
    let problems = load("threads: 0\n").unwrap_err();
    assert!(
        problems[0].starts_with("threads: expected a number above 0"),
        "{problems:?}"
    );
}
