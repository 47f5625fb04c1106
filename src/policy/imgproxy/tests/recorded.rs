//! Tests keys against the recorded answers of a real imgproxy (`tests/imgproxy/recorded.json`).

use std::collections::HashMap;

use data_encoding::HEXLOWER;
use serde_json::Value;

use super::*;

fn recorded() -> Value {
    serde_json::from_str(include_str!("../../../../tests/imgproxy/recorded.json"))
        .expect("valid JSON")
}

fn configuration<'a>(recorded: &'a Value, name: &str) -> &'a Value {
    recorded["configurations"]
        .as_array()
        .expect("configurations")
        .iter()
        .find(|configuration| configuration["name"] == name)
        .expect("a configuration of that name")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

/// The policy for an imgproxy with the given environment.
fn policy_for(recorded: &Value, environment: &Value) -> Policy {
    let is_on = |name: &str| environment[name] == "1";
    let formats = |prefix: &str| {
        [
            ("JXL", ImageFormat::Jxl),
            ("AVIF", ImageFormat::Avif),
            ("WEBP", ImageFormat::Webp),
        ]
        .into_iter()
        .filter(|(name, _)| is_on(&format!("IMGPROXY_{prefix}_{name}")))
        .map(|(_, format)| format)
        .collect()
    };
    let has_hints = is_on("IMGPROXY_ENABLE_CLIENT_HINTS");
    let bytes = |value: &Value| HEXLOWER.decode(text(value).as_bytes()).expect("hex");
    let signing = if environment["IMGPROXY_KEY"].is_string() {
        Signing::Pairs {
            pairs: recorded["keys"]
                .as_array()
                .expect("pairs")
                .iter()
                .map(|pair| KeyPair::new(&bytes(&pair["key"]), &bytes(&pair["salt"])))
                .collect(),
            size: environment["IMGPROXY_SIGNATURE_SIZE"]
                .as_str()
                .map_or(32, |size| size.parse().expect("a number")),
            trusted: text(&environment["IMGPROXY_TRUSTED_SIGNATURES"])
                .split(',')
                .map(Into::into)
                .collect(),
        }
    } else {
        Signing::Unsigned
    };
    images(Imgproxy {
        path_prefix: environment["IMGPROXY_PATH_PREFIX"]
            .as_str()
            .unwrap_or_default()
            .into(),
        signing,
        formats: formats("AUTO"),
        enforced: formats("ENFORCE"),
        dpr_steps: if has_hints {
            vec![1.0, 2.0]
        } else {
            Vec::new()
        },
        width_steps: if has_hints { vec![60, 90] } else { Vec::new() },
        ..imgproxy()
    })
}

fn request_of(exchange: &Value) -> RequestHead {
    let headers: Vec<_> = exchange["headers"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), text(value)))
        .collect();
    let mut request = get(text(&exchange["path"]), &headers);
    request.method = text(&exchange["method"]).parse().expect("a method");
    request
}

#[test]
fn no_two_recorded_answers_that_differ_share_a_key() {
    let recorded = recorded();
    let mut decisions: HashMap<String, usize> = HashMap::new();
    for configuration in recorded["configurations"]
        .as_array()
        .expect("configurations")
    {
        let policy = policy_for(&recorded, &configuration["environment"]);
        let mut stored: HashMap<Key, &Value> = HashMap::new();
        let mut refused = Vec::new();
        for exchange in configuration["exchanges"].as_array().expect("exchanges") {
            let place = format!(
                "{}: {} {}",
                configuration["name"], exchange["method"], exchange["path"]
            );
            let request = request_of(exchange);
            let answer = &exchange["answer"];
            let decision = policy.decide(&request, NOW);
            let word = match &decision {
                Decision::Lookup(_) => "lookup",
                Decision::Bypass(reason) => reason.as_str(),
                Decision::Watch => "watch",
            };
            *decisions.entry(word.into()).or_default() += 1;
            let status = answer["status"].as_u64().expect("a status");
            match decision {
                Decision::Lookup(lookup) if request.method == Method::GET => match status {
                    200 => {
                        let other = stored.entry(lookup.key).or_insert(answer);
                        assert_eq!(other["sha256"], answer["sha256"], "{place}");
                        assert_eq!(other["headers"], answer["headers"], "{place}");
                    }
                    304 => {}
                    _ => refused.push((place, lookup.key)),
                },
                Decision::Lookup(_) => assert_eq!(request.method, Method::HEAD, "{place}"),
                Decision::Watch => panic!("{place}"),
                Decision::Bypass(reason) => {
                    let is_refused_by_signature =
                        status == 403 && configuration["name"] != "secret";
                    assert_eq!(
                        reason == BypassReason::Signature,
                        is_refused_by_signature,
                        "{place}"
                    );
                }
            }
        }
        for (place, key) in refused {
            assert!(
                !stored.contains_key(&key),
                "{place} has the key of an image"
            );
        }
    }
    let mut decisions: Vec<_> = decisions
        .iter()
        .map(|(word, count)| (word.as_str(), *count))
        .collect();
    decisions.sort_unstable();
    let expected = [
        ("authorization", 2),
        ("expired", 2),
        ("lookup", 157),
        ("method", 2),
        ("path_prefix", 1),
        ("signature", 9),
        ("unparsable", 9),
    ];
    assert_eq!(decisions, expected);
}

#[test]
fn recorded_paths_that_imgproxy_repairs_to_the_same_share_a_key() {
    let recorded = recorded();
    let pairs: &[(&str, &str, &[&str])] = &[
        (
            "default",
            PATH,
            &[
                "/insecure/rs:fill:120:80/plain/local:/coffee.png@webp",
                "/insecure/rs:fill:120:80/plain/local%3A%2F%2F%2Fcoffee.png@webp",
                "/insecure/rs%3Afill%3A120%3A80/plain/local:///coffee.png@webp",
                "/insecure/rs:fill:120:80/bG9jYWw6Ly8vY29mZmVlLnBuZw.webp",
                "/insecure/rs:fill:120:80/bG9jYWw6Ly/8vY29mZmVlLnBuZw.webp",
                "/insecure/rs:fill:120:80/bG9jYWw6Ly8vY29mZmVlLnBuZw=.webp",
                "/insecure/rs:fill:120:80/exp:4102444800/plain/local:///coffee.png@webp",
                "/insecure//rs:fill:120:80/plain/local:///coffee.png@webp",
                "//insecure/rs:fill:120:80/plain/local:///coffee.png@webp",
                "/%69nsecure/rs:fill:120:80/plain/local:///coffee.png@webp",
            ],
        ),
        (
            "default",
            "/insecure/rs:fill:120:80/plain/local:///coffee.png",
            &[
                "/insecure/rs:fill:120:80/plain/local:///coffee.png@",
                "/insecure/rs:fill:120:80/plain/local:///coffee.png?v=1&x=y",
            ],
        ),
        (
            "default",
            "/insecure/rs:fill:120:80/plain/http://127.0.0.1:18099/plain.png@webp",
            &["/insecure/rs:fill:120:80/plain/http:/127.0.0.1:18099/plain.png@webp"],
        ),
        (
            "signed",
            "/e-z9mnggMmswivORWv6262CPmOC-5tcm0tZbCX15J0k/rs:fill:120:80/plain/local:///coffee.png@webp",
            &[
                "/HR0lnjSCwq7xR0QY04r65x34KrHFtiqjMoZrTB7pwTA/rs:fill:120:80/plain/local:///coffee.png@webp",
                "/trusted-one/rs:fill:120:80/plain/local:///coffee.png@webp",
                "/e-z9mnggMmswivORWv6262CPmOC-5tcm0tZbCX15J0k/rs:fill:120:80/plain/local:///coffee.png@webp?q=1",
                "/e-z9mnggMmswivORWv6262CPmOC-5tcm0tZbCX15J0k/rs%3Afill%3A120%3A80/plain/local:///coffee.png@webp",
                "/e-z9mnggMmswivORWv6262CPmOC-5tcm0tZbCX15J0k/rs:fill:120:80/plain/local:/coffee.png@webp",
            ],
        ),
        (
            "signature_size_8",
            "/e-z9mnggMms/rs:fill:120:80/plain/local:///coffee.png@webp",
            &["/HR0lnjSCwq4/rs:fill:120:80/plain/local:///coffee.png@webp"],
        ),
    ];
    for (name, path, others) in pairs {
        let configuration = configuration(&recorded, name);
        let policy = policy_for(&recorded, &configuration["environment"]);
        for other in *others {
            let is_recorded = |path| {
                let exchanges = configuration["exchanges"].as_array().expect("exchanges");
                exchanges.iter().any(|exchange| exchange["path"] == path)
            };
            assert!(is_recorded(*path) && is_recorded(*other), "{other}");
            assert_eq!(key(&policy, path), key(&policy, other), "{other}");
        }
    }
}

#[test]
fn keys_rotate_without_losing_the_cache() {
    let recorded = recorded();
    let signed = policy_for(
        &recorded,
        &configuration(&recorded, "signed")["environment"],
    );
    let path = "/HR0lnjSCwq7xR0QY04r65x34KrHFtiqjMoZrTB7pwTA/rs:fill:120:80/plain/local:///coffee.png@webp";
    assert_eq!(key(&signed, path), key(&images(imgproxy()), PATH));
}
