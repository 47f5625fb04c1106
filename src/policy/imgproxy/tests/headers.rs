//! Tests which headers of a request reach imgproxy, and in which form.

use std::collections::HashMap;

use super::*;
use crate::policy::testing::forwarded;

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
