use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{Method, header};
use proptest::prelude::*;
use proptest::string::string_regex;
use serde_json::Value;

use super::*;
use crate::entry::Key;
use crate::policy::testing::{CASES, NOW, bypass, forwarded, get, imgproxy, lookup, policy};
use crate::policy::{Cookies, Decision, Kind, Policy};

const PATH: &str = "/insecure/rs:fill:120:80/plain/local:///coffee.png@webp";

fn images(imgproxy: Imgproxy) -> Policy {
    policy(Kind::Imgproxy(imgproxy))
}

fn key(policy: &Policy, path: &str) -> Key {
    lookup(policy, &get(path, &[])).key
}

fn detecting() -> Imgproxy {
    Imgproxy {
        formats: vec![ImageFormat::Avif, ImageFormat::Webp],
        ..imgproxy()
    }
}

fn accept_sent(settings: Imgproxy, path: &str, accept: &[&str]) -> String {
    let headers: Vec<_> = accept.iter().map(|value| ("accept", *value)).collect();
    let forwarded = forwarded(&images(settings), &get(path, &headers));
    let [(name, value)] = &forwarded[..] else {
        panic!("{forwarded:?}");
    };
    assert_eq!(name, "accept");
    value.clone()
}

/// What browsers and others send with an `<img>`, and the class with WebP and AVIF detected.
const ACCEPTS: [(&str, &str); 20] = [
    // Chrome, Edge, Opera
    (
        "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8",
        "image/avif,image/webp",
    ),
    (
        "image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8",
        "image/webp",
    ),
    ("image/webp,image/apng,image/*,*/*;q=0.8", "image/webp"),
    ("image/webp,image/*,*/*;q=0.8", "image/webp"),
    (
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7",
        "image/avif,image/webp",
    ),
    // Firefox
    (
        "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
        "image/avif,image/webp",
    ),
    ("image/avif,image/webp,*/*", "image/avif,image/webp"),
    ("image/webp,*/*", "image/webp"),
    (
        "image/avif,image/jxl,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
        "image/avif,image/webp",
    ),
    (
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
        "image/avif,image/webp",
    ),
    (
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "*/*",
    ),
    ("image/png,image/*;q=0.8,*/*;q=0.5", "*/*"),
    // Safari
    (
        "image/webp,image/avif,image/jxl,image/heic,image/heic-sequence,video/*;q=0.8,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
        "image/avif,image/webp",
    ),
    (
        "image/webp,image/avif,video/*;q=0.8,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
        "image/avif,image/webp",
    ),
    (
        "image/webp,image/png,image/svg+xml,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5",
        "image/webp",
    ),
    (
        "image/png,image/svg+xml,image/*;q=0.8,video/*;q=0.8,*/*;q=0.5",
        "*/*",
    ),
    // Others
    ("*/*", "*/*"),
    ("image/*", "*/*"),
    ("image/avif", "image/avif"),
    ("image/avif,image/apng,image/*,*/*;q=0.8", "image/avif"),
];

#[test]
fn twenty_browsers_make_at_most_one_key_for_each_class() {
    let policy = images(detecting());
    let path = "/insecure/plain/local:///coffee.png";
    let mut keys = HashMap::new();
    for (accept, class) in ACCEPTS {
        assert_eq!(accept_sent(detecting(), path, &[accept]), class, "{accept}");
        let key = lookup(&policy, &get(path, &[("accept", accept)])).key;
        assert_eq!(*keys.entry(class).or_insert(key.clone()), key, "{accept}");
    }
    assert_eq!(keys.len(), 4);
    assert_eq!(keys.values().collect::<HashSet<_>>().len(), 4);
    let fixed: HashSet<_> = ACCEPTS
        .iter()
        .map(|(accept, _)| lookup(&policy, &get(PATH, &[("accept", accept)])).key)
        .collect();
    assert_eq!(fixed.len(), 1, "with a fixed format there is one class");
}

#[test]
fn formats_are_found_in_accept_as_imgproxy_finds_them() {
    let path = "/insecure/plain/local:///coffee.png";
    for (accept, sent) in [
        (&[][..], "*/*"),
        (&[""], "*/*"),
        (&["image/avif;q=0,image/webp"], "image/avif,image/webp"),
        (&["IMAGE/WEBP"], "*/*"),
        (&["image/Webp"], "*/*"),
        (&["x-image/webpx"], "image/webp"),
        (&["image/ webp"], "*/*"),
        (&["image/image/webp"], "image/webp"),
        (&["image//webp"], "*/*"),
        (&["image/we", "bp"], "*/*"),
        (&["image/webp", "image/avif"], "image/avif,image/webp"),
        (&["text/html", "image/avif"], "image/avif"),
        (&["image/jxl"], "*/*"),
    ] {
        assert_eq!(accept_sent(detecting(), path, accept), sent, "{accept:?}");
    }
}

#[test]
fn every_subset_of_formats_has_its_own_class() {
    use ImageFormat::{Avif, Jxl, Webp};
    let all = "image/webp,image/avif,image/jxl";
    let mut sent = HashSet::new();
    for subset in 0..8 {
        let formats = [Jxl, Avif, Webp].into_iter().enumerate();
        let formats = formats
            .filter(|(at, _)| subset & 1 << at != 0)
            .map(|(_, format)| format)
            .collect();
        let settings = Imgproxy {
            formats,
            ..imgproxy()
        };
        sent.insert(accept_sent(settings, "/x/plain/a", &[all]));
    }
    assert_eq!(sent.len(), 8);
}

#[test]
fn enforced_formats_count_even_with_a_fixed_format() {
    let settings = Imgproxy {
        enforced: vec![ImageFormat::Webp],
        ..detecting()
    };
    let accept = "image/avif,image/webp";
    let sent = |path| accept_sent(settings.clone(), path, &[accept]);
    assert_eq!(sent("/x/plain/a@png"), "image/webp");
    assert_eq!(sent("/x/plain/a"), "image/avif,image/webp");
    let only_enforced = Imgproxy {
        formats: Vec::new(),
        ..settings.clone()
    };
    assert_eq!(
        accept_sent(only_enforced, "/x/plain/a", &[accept]),
        "image/webp"
    );
}

#[test]
fn the_class_stays_in_the_key_wherever_the_format_may_come_from_elsewhere() {
    let policy = images(detecting());
    for path in [
        "/x/plain/a",
        "/x/pr:sharp/plain/a",
        "/x/f:png/pr:sharp/plain/a",
        "/x/plain/a@best",
        "/x/raw:1/plain/a",
        "/x/skp:png/plain/a",
    ] {
        let avif = lookup(&policy, &get(path, &[("accept", "image/avif")])).key;
        assert_ne!(avif, key(&policy, path), "{path}");
    }
}

#[test]
fn hints_are_rounded_up_and_sent_on_in_one_form() {
    let policy = images(Imgproxy {
        dpr_steps: vec![1.0, 1.5, 2.0],
        width_steps: vec![320, 640],
        ..imgproxy()
    });
    for (headers, dpr, width) in [
        (&[][..], None, None),
        (&[("dpr", "1")], Some("1"), None),
        (&[("dpr", "1.0")], Some("1"), None),
        (&[("dpr", "0.1")], Some("1"), None),
        (&[("dpr", "1.37")], Some("1.5"), None),
        (&[("dpr", "1.5")], Some("1.5"), None),
        (&[("dpr", "8")], Some("2"), None),
        (&[("dpr", "8.01")], None, None),
        (&[("dpr", "0")], None, None),
        (&[("dpr", "-1")], None, None),
        (&[("dpr", "abc")], None, None),
        (&[("dpr", "nan")], None, None),
        (&[("dpr", "inf")], None, None),
        (&[("dpr", "")], None, None),
        (&[("sec-ch-dpr", "2")], Some("2"), None),
        (&[("dpr", "2"), ("sec-ch-dpr", "1")], Some("1"), None),
        (&[("dpr", "2"), ("sec-ch-dpr", "9")], Some("2"), None),
        (&[("dpr", "2"), ("sec-ch-dpr", "")], Some("2"), None),
        (&[("dpr", "1"), ("dpr", "2")], Some("1"), None),
        (&[("width", "1")], None, Some("320")),
        (&[("width", "320")], None, Some("320")),
        (&[("width", "321")], None, Some("640")),
        (&[("width", "99999999999")], None, Some("640")),
        (&[("width", "0")], None, None),
        (&[("width", "-5")], None, None),
        (&[("width", "1.5")], None, None),
        (
            &[("width", "600"), ("sec-ch-width", "200")],
            None,
            Some("320"),
        ),
        (
            &[("width", "600"), ("sec-ch-width", "x")],
            None,
            Some("640"),
        ),
        (&[("width", "600"), ("dpr", "2")], Some("2"), Some("640")),
    ] {
        let mut expected = vec![("accept".to_owned(), "*/*".to_owned())];
        expected.extend(dpr.map(|value| ("dpr".into(), value.into())));
        expected.extend(width.map(|value| ("width".into(), value.into())));
        let request = get(PATH, headers);
        assert_eq!(forwarded(&policy, &request), expected, "{headers:?}");
        let same: Vec<_> = expected
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            lookup(&policy, &request).key,
            lookup(&policy, &get(PATH, &same)).key,
            "{headers:?}"
        );
    }
    let keys: HashSet<_> = ["0.5", "1.2", "2", "9"]
        .into_iter()
        .flat_map(|dpr| ["1", "400", "0"].map(|width| [("dpr", dpr), ("width", width)]))
        .map(|headers| lookup(&policy, &get(PATH, &headers)).key)
        .collect();
    assert_eq!(keys.len(), 12);
}

#[test]
fn what_is_not_in_the_key_does_not_reach_imgproxy() {
    let policy = images(imgproxy());
    let plain = lookup(&policy, &get(PATH, &[]));
    for name in [
        "accept",
        "accept-encoding",
        "accept-language",
        "baggage",
        "cache-control",
        "cf-connecting-ip",
        "cookie",
        "dnt",
        "downlink",
        "dpr",
        "ect",
        "forwarded",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "origin",
        "pragma",
        "priority",
        "range",
        "referer",
        "rtt",
        "save-data",
        "sec-ch-dpr",
        "sec-ch-ua",
        "sec-ch-viewport-width",
        "sec-ch-width",
        "sec-fetch-dest",
        "te",
        "user-agent",
        "via",
        "viewport-width",
        "width",
        "x-amzn-request-context",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-proto",
        "x-http-method-override",
        "x-original-url",
        "x-real-ip",
        "x-rewrite-url",
        "x-unheard-of",
    ] {
        let request = get(PATH, &[(name, "a"), (name, "b")]);
        assert_eq!(lookup(&policy, &request).key, plain.key, "{name}");
        assert_eq!(
            forwarded(&policy, &request),
            [("accept".into(), "*/*".into())],
            "{name}"
        );
        assert!(policy.controls(&HeaderName::from_static(name)), "{name}");
    }
}

#[test]
fn traces_and_what_envoy_keeps_pass_without_being_in_the_key() {
    let policy = images(imgproxy());
    let plain = lookup(&policy, &get(PATH, &[]));
    for name in TRACE_FIELDS
        .into_iter()
        .chain(["host", "x-envoy-expected-rq-timeout-ms"])
    {
        let request = get(PATH, &[(name, "a")]);
        assert_eq!(lookup(&policy, &request).key, plain.key, "{name}");
        assert!(
            forwarded(&policy, &request).contains(&(name.into(), "a".into())),
            "{name}"
        );
        assert!(!policy.controls(&HeaderName::from_static(name)), "{name}");
    }
}

#[test]
fn named_headers_pass_unless_they_would_change_the_answer() {
    let policy = images(Imgproxy {
        forward_headers: [
            "x-tenant",
            "cookie",
            "accept",
            "dpr",
            "sec-ch-width",
            "range",
            "if-none-match",
        ]
        .map(HeaderName::from_static)
        .to_vec(),
        ..imgproxy()
    });
    let request = get(
        PATH,
        &[
            ("x-tenant", "a"),
            ("cookie", "b"),
            ("accept", "image/avif"),
            ("dpr", "2"),
            ("sec-ch-width", "9"),
            ("range", "bytes=0-1"),
            ("if-none-match", "*"),
        ],
    );
    let expected = [("accept", "*/*"), ("cookie", "b"), ("x-tenant", "a")];
    assert_eq!(
        forwarded(&policy, &request),
        expected.map(|(name, value)| (name.into(), value.into()))
    );
}

#[test]
fn the_host_is_in_the_key_only_on_demand() {
    let without = images(imgproxy());
    let with = Policy {
        key_host: true,
        ..without.clone()
    };
    let other = RequestHead {
        authority: Bytes::from_static(b"Other:80"),
        ..get(PATH, &[])
    };
    assert_eq!(lookup(&without, &other).key, key(&without, PATH));
    assert_ne!(lookup(&with, &other).key, key(&with, PATH));
    assert_eq!(
        lookup(&with, &other).key.source(),
        key(&without, PATH).source()
    );
    assert!(with.controls(&header::HOST) && !without.controls(&header::HOST));
}

#[test]
fn the_query_is_no_part_of_the_key() {
    let policy = images(imgproxy());
    for query in ["?", "?v=1", "?v=1&x=/y?z", "?@png"] {
        assert_eq!(key(&policy, &format!("{PATH}{query}")), key(&policy, PATH));
    }
    assert_eq!(
        key(&policy, "/x/plain/http://a/b.png?c=d@webp"),
        key(&policy, "/x/plain/http://a/b.png")
    );
}

#[test]
fn an_unsigned_first_segment_is_left_out_and_an_unknown_one_stays() {
    let unsigned = images(imgproxy());
    let unknown = images(Imgproxy {
        signing: Signing::Unknown,
        ..imgproxy()
    });
    let other = PATH.replace("insecure", "%69nsecure");
    assert_eq!(key(&unsigned, PATH), key(&unsigned, &other));
    assert_ne!(key(&unknown, PATH), key(&unknown, &other));
    assert_eq!(key(&unknown, PATH).source(), key(&unsigned, PATH).source());
    for policy in [unsigned, unknown] {
        let request = get(PATH.replace("insecure", "in:secure"), &[]);
        assert_eq!(bypass(&policy, &request), BypassReason::Signature);
    }
}

#[test]
fn under_an_unknown_signature_nothing_that_it_may_sign_is_left_out() {
    let unsigned = images(imgproxy());
    let unknown = images(Imgproxy {
        signing: Signing::Unknown,
        ..imgproxy()
    });
    let without = "/sig/w:1/plain/local:///a.png";
    for with in [
        "/sig/w:1/exp:1900000000/plain/local:///a.png",
        "/sig/w:1/plain/local:///a.png@",
        "/sig/w:1/plain/local:///%61.png",
        "/sig/w:1/bG9jYWw6Ly8vYS5wbmc",
    ] {
        assert_eq!(key(&unsigned, with), key(&unsigned, without), "{with}");
        assert_ne!(key(&unknown, with), key(&unknown, without), "{with}");
    }
    assert_eq!(
        key(&unknown, "/sig//w%3A1/plain/local:/a.png?x"),
        key(&unknown, without)
    );
}

#[test]
fn expires_is_enforced_and_no_part_of_the_key() {
    let policy = images(imgproxy());
    let request = get("/x/w:1/exp:1900000000/plain/a@png", &[]);
    assert_eq!(
        lookup(&policy, &request).key,
        key(&policy, "/x/w:1/plain/a@png")
    );
    assert_eq!(
        lookup(&policy, &request).expires,
        Some(Timestamp::from_unix(1_900_000_000))
    );
    for (now, is_valid) in [(0, true), (1_900_000_000, true), (1_900_000_001, false)] {
        match policy.decide(&request, Timestamp::from_unix(now)) {
            Decision::Lookup(_) => assert!(is_valid, "{now}"),
            Decision::Bypass(reason) => {
                assert!(!is_valid, "{now}");
                assert_eq!(reason, BypassReason::Expired);
            }
            Decision::Watch => panic!("imgproxy's methods are not watched"),
        }
    }
}

#[test]
fn an_expires_that_imgproxy_does_not_enforce_stays_in_the_key() {
    let policy = images(imgproxy());
    let keys: HashSet<_> = [
        "/x/w:1/plain/a",
        "/x/w:1/exp:0/plain/a",
        "/x/w:1/exp:-1/plain/a",
    ]
    .map(|path| key(&policy, path))
    .into();
    assert_eq!(keys.len(), 3);
}

#[test]
fn an_end_of_validity_is_not_looked_for_among_presets() {
    let policy = images(Imgproxy {
        only_presets: true,
        ..imgproxy()
    });
    let lookup = lookup(&policy, &get("/x/exp:1900000000/plain/a", &[]));
    assert_eq!(lookup.expires, None);
    assert_ne!(lookup.key, key(&policy, "/x/exp:1900000001/plain/a"));
}

#[test]
fn different_requests_have_different_keys() {
    let policy = images(imgproxy());
    let keys: HashSet<_> = [
        "/x/plain/a",
        "/x/plain/a@png",
        "/x/f:png/plain/a",
        "/x/w:1/plain/a",
        "/x/w:1/h:2/plain/a",
        "/x/h:2/w:1/plain/a",
        "/x/w:01/plain/a",
        "/x/width:1/plain/a",
        "/x/w:1/cb:1/plain/a",
        "/x/w:1/cb:2/plain/a",
        "/x/w:1/fn:b/plain/a",
        "/x/w:1/att:1/plain/a",
        "/x/w:1/:/plain/a",
        "/x/w:1/plain/a/b",
        "/x/w:1/plain/a//b",
        "/x/w:1/plain/A",
        "/x/w:1/plain/local://a",
        "/x/w:1/plain/local:///a",
        "/x/w:1/plain/a@jpg",
        "/x/w:1/plain/a@jpeg",
        "/x/enc/YQ",
        "/x/w:1/enc/YQ",
        "/x/raw:1/plain/a",
    ]
    .map(|path| key(&policy, path))
    .into();
    assert_eq!(keys.len(), 23);
}

#[test]
fn presets_and_options_of_the_same_spelling_have_different_keys() {
    let options = images(imgproxy());
    let presets = images(Imgproxy {
        only_presets: true,
        ..imgproxy()
    });
    assert_ne!(
        key(&options, "/x/a:b/plain/a"),
        key(&presets, "/x/a:b/plain/a")
    );
}

#[test]
fn all_derivatives_of_a_source_share_it_in_every_form_and_every_policy() {
    let one = images(imgproxy());
    let other = images(Imgproxy {
        only_presets: true,
        signing: Signing::Unknown,
        ..imgproxy()
    });
    let source = key(&one, PATH).source().clone();
    for path in [
        "/x/plain/local:///coffee.png",
        "/x/plain/local:/coffee.png@png",
        "/x/w:1/plain/local%3A%2F%2F%2Fcoffee.png",
        "/x/w:1/bG9jYWw6Ly8v/Y29mZmVlLnBuZw==.webp",
    ] {
        assert_eq!(*key(&one, path).source(), source, "{path}");
    }
    assert_eq!(
        *key(&other, "/x/a/bG9jYWw6Ly8vY29mZmVlLnBuZw").source(),
        source
    );
    assert_ne!(*key(&one, "/x/plain/local:///coffee2.png").source(), source);
    assert_ne!(
        *key(&one, "/x/enc/bG9jYWw6Ly8vY29mZmVlLnBuZw").source(),
        source
    );
}

fn recorded() -> Value {
    serde_json::from_str(include_str!("../../../tests/imgproxy/recorded.json")).expect("valid JSON")
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

#[test]
fn cookies_bypass_where_imgproxy_may_pass_them_on() {
    let policy = Policy {
        cookies: Cookies::Bypass,
        ..images(imgproxy())
    };
    assert_eq!(
        bypass(&policy, &get(PATH, &[("cookie", "a=b")])),
        BypassReason::Cookie
    );
}

/// What a path asks for, and whether the client accepts WebP.
#[derive(Debug, Clone, PartialEq)]
struct Parts {
    options: Vec<String>,
    source: String,
    extension: String,
    accepts_webp: bool,
}

impl Parts {
    fn request(&self, base64: bool) -> RequestHead {
        let mut path = String::from("/x/");
        for option in &self.options {
            path.extend([option.as_str(), "/"]);
        }
        let mark = if base64 {
            path.push_str(&BASE64URL_NOPAD.encode(self.source.as_bytes()));
            '.'
        } else {
            path.push_str("plain/");
            path.extend(self.source.bytes().map(|byte| format!("%{byte:02X}")));
            '@'
        };
        if !self.extension.is_empty() {
            path.push(mark);
            path.push_str(&self.extension);
        }
        let accept = if self.accepts_webp { "image/webp" } else { "" };
        get(path, &[("accept", accept)])
    }

    /// With a fixed format the client has no say.
    fn without_idle_class(self) -> Self {
        Self {
            accepts_webp: self.accepts_webp && self.extension != "png",
            ..self
        }
    }
}

/// Few letters, so that values that could be mistaken for each other come up often.
fn parts() -> impl Strategy<Value = Parts> {
    let options = proptest::collection::vec(string_regex("[ab]?:[ab:]{0,2}").unwrap(), 0..3);
    let source = string_regex("[ab/@.%:]{1,3}").unwrap();
    let extension = string_regex("(|a|png)").unwrap();
    (options, source, extension, any::<bool>()).prop_map(
        |(options, source, extension, accepts_webp)| Parts {
            options,
            source,
            extension,
            accepts_webp,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn keys_are_the_same_only_for_the_same_options_source_extension_and_class(
        a in parts(),
        other in parts(),
        differs in 0..5,
        (a_in_base64, b_in_base64) in any::<(bool, bool)>(),
    ) {
        let mut b = a.clone();
        match differs {
            0 => b.options = other.options,
            1 => b.source = other.source,
            2 => b.extension = other.extension,
            3 => b.accepts_webp = other.accepts_webp,
            _ => b = other,
        }
        let policy = images(detecting());
        let a_key = lookup(&policy, &a.request(a_in_base64)).key;
        let b_key = lookup(&policy, &b.request(b_in_base64)).key;
        prop_assert_eq!(a.source == b.source, a_key.source() == b_key.source());
        prop_assert_eq!(a.without_idle_class() == b.without_idle_class(), a_key == b_key);
    }
}
