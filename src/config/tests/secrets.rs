//! A secret that slips into a wrong place stays out of every error.

use std::iter;

use serde_json::{Value, json};

use super::super::*;

/// As a password looks, and as a key in hexadecimal that YAML takes for a number.
const SECRETS: [&str; 3] = ["hunter2-Xyzzy", "4711471147114711", "5ec4e75ec4e70b1a5e"];

/// A configuration with every field in it that an error can be about.
const WHOLE: &str = "
listen: unix:run/ext_proc.sock
admin: {listen: '127.0.0.1:9911'}
envoy: {message_timeout: 1s, max_message_timeout: 30s}
store:
  kind: s3
  local: {path: run/store, max_bytes: 1GiB}
  memory: {max_bytes: 1GiB}
  s3:
    endpoint: http://127.0.0.1:3900
    region: garage
    buckets: [a, b]
    prefix: p
    access_key_id: id
    secret_access_key: key
    connect_timeout: 1s
    read_timeout: 1s
memory: {max_bytes: 1MiB, recheck: 1s}
objects: {listen: 'unix:run/objects.sock', above: 4MiB, cap: 64MiB}
limits: {lookup_timeout: 100ms, budget: 48MiB, upstream_fetches: 3, breaker_failures: 3, breaker_wait: 1s}
log: {format: text, filter: info}
threads: 3
drain: 1s
routes: {r: images}
default_policy: files
policies:
  images:
    kind: imgproxy
    namespace: shared
    epoch: 2
    cookies: ignore
    authorization: bypass
    client_cache_control: {trusted: [10.0.0.0/8]}
    validators: content
    targeted_cache_control: [CDN-Cache-Control]
    via: a
    cache_status_detail: true
    collapse: true
    upstream: {url: 'http://imgproxy:8080', host: h, completion: followers}
    key: {host: true}
    store:
      statuses: [200]
      content_codings: true
      hit_for_miss: 1s
      content_types: [image/*]
      verify: none
      exclude_headers: [x-a]
    freshness:
      default: 1s
      floor: 1s
      ceiling: 1d
      heuristic: {percent: 10, ceiling: 1d}
      negative: {404: 1s}
      stale_while_revalidate: 1s
      stale_if_error: 1s
      fallback_max_age: 1s
    path_prefix: /p
    signature: {pairs: [{key: 5eed, salt: c0}, {key: 5eed, salt: c0}], size: 32, trusted: [a, b]}
    formats: [avif]
    enforced_formats: [webp]
    dpr_steps: [1, 2]
    width_steps: [100, 200]
    forward_headers: [x-b]
    arguments_separator: ':'
    only_presets: false
    base64_url_includes_filename: false
  files:
    kind: generic
    invalidate_on_unsafe: false
    client_cache_control: obey
    key: {query: [a], headers: [x-c]}
    store: {statuses: any, variants: 3}
";

/// Everything that can stand in the place of a value, each with the secret in it.
fn wrong(secret: &str) -> Vec<Value> {
    let mut wrong = vec![
        json!(secret),
        json!([secret]),
        json!([[secret]]),
        json!({secret: "x"}),
        json!({secret: secret}),
        json!([{secret: secret}]),
        json!({"field": secret}),
        json!({"env": secret}),
        json!({"file": secret}),
        json!({"env": [secret]}),
        json!({"env": secret, "file": secret}),
        json!({"environment": secret}),
        json!({"key": secret}),
        json!([{"key": [secret], "salt": secret}]),
        json!(format!("http://user:{secret}@host:3900")),
        json!(format!("https://{secret}@host/path")),
        json!(format!("unix:{secret}")),
    ];
    wrong.extend(secret.parse::<u64>().ok().map(Value::from));
    wrong.extend(secret.parse::<u64>().ok().map(|number| json!([number])));
    wrong
}

/// Ways to every value in a tree.
fn pointers(tree: &Value) -> Vec<String> {
    let below: Vec<(String, &Value)> = match tree {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, inner)| (name.replace('~', "~0").replace('/', "~1"), inner))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, inner)| (index.to_string(), inner))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    let deeper = below.into_iter().flat_map(|(step, inner)| {
        let further = pointers(inner).into_iter();
        further.map(move |rest| format!("/{step}{rest}"))
    });
    iter::once(String::new()).chain(deeper).collect()
}

/// Every tree that has one value of `tree` replaced. Policies and routes have names that the operator
/// chose, and errors show them: none of these is a secret.
fn spoilt(tree: &Value, secret: &str) -> Vec<(String, Value)> {
    let mut spoilt = Vec::new();
    for pointer in pointers(tree) {
        let is_named = ["/policies", "/routes"].contains(&pointer.as_str());
        for wrong in wrong(secret) {
            if is_named && wrong.get(secret).is_some() {
                continue;
            }
            let mut tree = tree.clone();
            let place = tree.pointer_mut(&pointer).unwrap();
            *place = wrong;
            spoilt.push((pointer.clone(), tree));
        }
    }
    spoilt
}

fn assert_hidden(secret: &str, shown: &str, given: &dyn std::fmt::Display) {
    assert!(!shown.contains(secret), "{given} shows the secret: {shown}");
}

fn problems_of(tree: &Value, variables: &[(String, String)]) -> Vec<String> {
    match Config::from_tree(tree.clone(), variables.iter().cloned()) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn no_error_of_the_configuration_shows_a_secret() {
    let whole: Value = yaml::parse(WHOLE).unwrap();
    assert_eq!(problems_of(&whole, &[]), [""; 0]);
    for secret in SECRETS {
        let mut refused = 0;
        for (pointer, tree) in spoilt(&whole, secret) {
            let problems = problems_of(&tree, &[]);
            refused += usize::from(!problems.is_empty());
            assert_hidden(secret, &problems.join("\n"), &pointer);
        }
        assert!(refused > 1000, "{refused}");
    }
}

#[test]
fn no_error_about_a_variable_shows_a_secret() {
    let whole: Value = yaml::parse(WHOLE).unwrap();
    for secret in SECRETS {
        for pointer in pointers(&whole) {
            let name = pointer.replace('/', "__").to_uppercase();
            let name = format!("AFTERIMAGE_{}", name.trim_start_matches('_'));
            for value in [
                secret.to_owned(),
                format!("[{secret}]"),
                format!("{{x: {{{secret}: {secret}}}}}"),
                format!("{{env: {secret}}}"),
                format!("[{{key: {secret}}}]"),
                format!("[{secret}: {{"),
                format!("&a *{secret}"),
                format!("http://user:{secret}@host"),
            ] {
                let problems = problems_of(&whole, &[(name.clone(), value)]);
                assert_hidden(secret, &problems.join("\n"), &name);
            }
        }
    }
}

#[test]
fn no_error_of_yaml_shows_a_secret() {
    for secret in SECRETS {
        let mut refused = 0;
        for shape in [
            "store: {s3: {secret_access_key: SECRET",
            "store: {s3: {secret_access_key: 'SECRET",
            "store: {s3: {secret_access_key: \"SECRET\\q\"}}",
            "store:\n  s3:\n    secret_access_key: SECRET\n   region: x\n",
            "store:\n  s3:\n    secret_access_key: SECRET\n  \tregion: x\n",
            "store:\n  s3:\n    secret_access_key: SECRET: x\n",
            "store:\n  s3:\n    secret_access_key: [SECRET\nadmin: {}\n",
            "store:\n  s3:\n    secret_access_key: SECRET\n    secret_access_key: SECRET\n",
            "store: {s3: {secret_access_key: &SECRET *SECRET}}",
            "store: {s3: {secret_access_key: *SECRET}}",
            "store: {s3: {secret_access_key: &a [*a, SECRET]}}",
            "store: {s3: {secret_access_key: !SECRET x}}",
            "store: {s3: {secret_access_key: !!SECRET SECRET}}",
            "store: {s3: {secret_access_key: !!int SECRET}}",
            "store: {s3: {secret_access_key: !!binary SECRET}}",
            "store: {s3: {secret_access_key: !!float SECRET}}",
            "store: {s3: {<<: SECRET}}",
            "store: {s3: {SECRET: a, SECRET: b}}",
            "store: {s3: {? [SECRET] : x}}",
            "store: {s3: {? {SECRET: x} : x}}",
            "secret_access_key: SECRET\n---\nsecret_access_key: SECRET\n",
            "%SECRET\n---\nstore: {}\n",
            "@SECRET",
            "`SECRET`",
            "SECRET",
            "[SECRET]",
            "SECRET: SECRET",
            "- SECRET\nstore: SECRET",
            "store: |\n SECRET\n  SECRET\nSECRET",
            "store: SECRET\n SECRET:\n",
            "signature:\n  pairs:\n  - key: SECRET\n   salt: SECRET\n",
            "policies: {p: {kind: imgproxy, signature: {pairs: SECRET}}}",
            "policies: {p: {kind: imgproxy, signature: {pairs: [SECRET]}}}",
            "policies: {p: {kind: imgproxy, signature: {pairs: [[SECRET, SECRET]]}}}",
            "policies: {p: {kind: imgproxy, signature: {pairs: [{SECRET: SECRET}]}}}",
            "policies: {p: {kind: imgproxy, signature: {pairs: {SECRET: SECRET}}}}",
            "policies: {p: {kind: imgproxy, signature: {pairs: [{key: SECRETx, salt: SECRETx}]}}}",
            "policies: {p: {kind: imgproxy, signature: SECRET}}",
            "policies: {p: SECRET}",
        ] {
            let text = shape.replace("SECRET", secret);
            if let Err(problems) = Config::parse(&text, iter::empty()) {
                refused += 1;
                let shown: Vec<_> = problems.iter().map(ToString::to_string).collect();
                assert_hidden(secret, &shown.join("\n"), &shape);
            }
        }
        assert!(refused > 30, "{refused}");
    }
}

#[test]
fn no_error_about_envoy_s_configuration_shows_a_secret() {
    let config = Config::parse(
        include_str!("../../../envoy/afterimage.yaml"),
        iter::empty(),
    )
    .unwrap();
    let envoy: Value = yaml::parse(include_str!("../../../envoy/envoy.yaml")).unwrap();
    let secret = SECRETS[0];
    for (pointer, tree) in spoilt(&envoy, secret) {
        let problems = config.compare(tree);
        let shown: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_hidden(secret, &shown.join("\n"), &pointer);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("tls: {{key: [{secret}\nfilter: {{")).unwrap();
    let problems = config.check_envoy(file.path()).unwrap_err().to_string();
    assert!(problems.contains("line 2"), "{problems}");
    assert_hidden(secret, &problems, &"broken YAML");
}
