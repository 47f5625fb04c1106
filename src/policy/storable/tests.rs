use http::HeaderValue;

use super::*;
use crate::policy::Generic;
use crate::policy::testing::{NOW, generic, imgproxy, policy};

const LARGEST: u64 = 1_000_000;

/// An answer of imgproxy.
const IMAGE: &[(&str, &str)] = &[
    ("content-type", "image/webp"),
    ("content-length", "2802"),
    ("cache-control", "max-age=31536000, public"),
    ("server", "imgproxy"),
];

fn response(fields: &[(&str, &str)]) -> ResponseHead {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(
            name.parse::<HeaderName>().unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    ResponseHead {
        status: StatusCode::OK,
        headers,
        has_body: true,
        provenance: Provenance::Upstream,
    }
}

/// imgproxy's answer with fields replaced, added, or (empty value) taken out.
fn image_with(changes: &[(&str, &str)]) -> ResponseHead {
    let mut head = response(IMAGE);
    for (name, value) in changes {
        let name: HeaderName = name.parse().unwrap();
        head.headers.remove(&name);
        if !value.is_empty() {
            head.headers
                .insert(name, HeaderValue::from_str(value).unwrap());
        }
    }
    head
}

fn judge(policy: &Policy, head: &ResponseHead) -> Result<Storable, NotStorable> {
    policy.storable(head, NOW, NOW, false, LARGEST)
}

fn of_imgproxy(head: &ResponseHead) -> Result<Storable, NotStorable> {
    judge(&policy(Kind::Imgproxy(imgproxy())), head)
}

fn of_generic(head: &ResponseHead) -> Result<Storable, NotStorable> {
    judge(&policy(Kind::Generic(generic())), head)
}

#[test]
fn an_image_of_imgproxy_is_stored_without_what_is_the_transport_s() {
    let storable = of_imgproxy(&response(IMAGE)).unwrap();
    assert_eq!(storable.content_length, Some(2802));
    assert_eq!(storable.content, Content::Image("image/webp".into()));
    let mut kept: Vec<_> = storable.headers.keys().map(HeaderName::as_str).collect();
    kept.sort_unstable();
    assert_eq!(kept, ["cache-control", "content-type"]);
}

#[test]
fn rfc9111_3_each_reason_against_storing() {
    use NotStorable as No;
    let cases: &[(&[(&str, &str)], NotStorable)] = &[
        (&[("cache-control", "max-age=60, no-store")], No::NoStore),
        (&[("cache-control", "max-age=60, private")], No::Private),
        (&[("cache-control", "max-age=60, no-cache")], No::NoCache),
        (&[("cache-control", "max-age=0")], No::Stale),
        (&[("cache-control", "max-age=60"), ("age", "60")], No::Stale),
        (&[("cache-control", "public")], No::NoFreshness),
        (&[("cache-control", "")], No::NoFreshness),
        (&[("set-cookie", "a=b")], No::SetCookie),
        (&[("vary", "*")], No::Vary),
        (&[("vary", "Accept, *")], No::Vary),
        (&[("vary", "Host")], No::Vary),
        (&[("vary", "traceparent")], No::Vary),
        (&[("vary", "not a token")], No::Vary),
        (&[("content-type", "")], No::ContentType),
        (&[("content-type", "text/html")], No::ContentType),
        (&[("content-type", "image/svg+xml")], No::ContentType),
        (&[("content-encoding", "gzip")], No::ContentEncoding),
        (&[("content-range", "bytes 0-1/2")], No::ContentRange),
        (&[("content-length", "")], No::NoLength),
        (
            &[("content-length", ""), ("transfer-encoding", "chunked")],
            No::NoLength,
        ),
        (&[("content-length", "+5")], No::BadLength),
        (&[("content-length", "5x")], No::BadLength),
        (
            &[("content-length", "99999999999999999999999")],
            No::BadLength,
        ),
        (&[("transfer-encoding", "chunked")], No::BadLength),
        (&[("content-length", "1000001")], No::TooLarge),
    ];
    for (changes, reason) in cases {
        assert_eq!(
            of_imgproxy(&image_with(changes)),
            Err(*reason),
            "{changes:?}"
        );
    }
}

#[test]
fn only_a_200_of_the_upstream_is_stored() {
    for provenance in [Provenance::Local, Provenance::Unknown] {
        let head = ResponseHead {
            provenance,
            ..response(IMAGE)
        };
        assert_eq!(of_imgproxy(&head), Err(NotStorable::NotUpstream));
    }
    for status in [203, 204, 206, 304, 404, 410, 500, 503] {
        let head = ResponseHead {
            status: StatusCode::from_u16(status).unwrap(),
            ..response(IMAGE)
        };
        assert_eq!(of_imgproxy(&head), Err(NotStorable::Status), "{status}");
    }
}

#[test]
fn several_lengths_or_types_are_not_believed() {
    let mut lengths = response(IMAGE);
    lengths
        .headers
        .append(CONTENT_LENGTH, HeaderValue::from_static("2802"));
    assert_eq!(of_imgproxy(&lengths), Err(NotStorable::BadLength));
    let mut types = response(IMAGE);
    types
        .headers
        .append(CONTENT_TYPE, HeaderValue::from_static("text/html"));
    assert_eq!(of_imgproxy(&types), Err(NotStorable::ContentType));
}

#[test]
fn what_imgproxy_varies_on_is_normalised_on_the_way() {
    for vary in [
        "Accept",
        "Accept, Sec-CH-DPR, DPR, Sec-CH-Width, Width",
        "User-Agent, Cookie",
    ] {
        assert!(
            of_imgproxy(&image_with(&[("vary", vary)])).is_ok(),
            "{vary}"
        );
    }
}

#[test]
fn rfc9111_4_1_a_generic_response_may_vary_by_what_is_in_the_key() {
    let vary = image_with(&[("vary", "accept-language")]);
    assert_eq!(of_generic(&vary), Err(NotStorable::Vary));
    let keyed = Generic {
        headers: vec![HeaderName::from_static("accept-language")],
        ..generic()
    };
    assert!(judge(&policy(Kind::Generic(keyed)), &vary).is_ok());
}

#[test]
fn a_generic_response_may_be_chunked() {
    let head = image_with(&[("content-length", ""), ("transfer-encoding", "chunked")]);
    assert_eq!(of_generic(&head).unwrap().content_length, None);
    let closed = image_with(&[("content-length", "")]);
    assert_eq!(of_generic(&closed), Err(NotStorable::NoLength));
}

#[test]
fn rfc9111_3_1_a_generic_response_keeps_all_but_what_is_of_one_connection() {
    let head = image_with(&[
        ("connection", "x-hop, close"),
        ("x-hop", "1"),
        ("keep-alive", "1"),
        ("x-envoy-upstream-service-time", "3"),
        ("age", "3"),
        ("x-mine", "kept"),
    ]);
    let headers = of_generic(&head).unwrap().headers;
    let mut kept: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    kept.sort_unstable();
    assert_eq!(kept, ["cache-control", "content-type", "server", "x-mine"]);
}

#[test]
fn headers_that_the_policy_excludes_are_not_kept() {
    let mut policy = policy(Kind::Imgproxy(imgproxy()));
    policy.store.exclude_headers = vec![ETAG];
    let storable = judge(&policy, &image_with(&[("etag", "\"x\"")])).unwrap();
    assert!(!storable.headers.contains_key("etag"));
}

#[test]
fn a_response_without_a_body_is_stored_only_where_nothing_is_verified() {
    let mut policy = policy(Kind::Generic(generic()));
    let mut head = image_with(&[("content-length", "0")]);
    head.has_body = false;
    assert_eq!(judge(&policy, &head), Err(NotStorable::NoBody));
    policy.store.verify = Verify::None;
    assert_eq!(judge(&policy, &head).unwrap().content_length, Some(0));
}

#[test]
fn rfc9111_3_any_final_status_with_explicit_freshness_where_the_policy_says_so() {
    let mut policy = policy(Kind::Generic(generic()));
    policy.store.statuses = Statuses::Any;
    for code in [
        200, 203, 204, 299, 301, 302, 307, 308, 400, 404, 410, 499, 500, 502, 503, 504, 599,
    ] {
        let head = ResponseHead {
            status: StatusCode::from_u16(code).unwrap(),
            ..response(IMAGE)
        };
        assert!(judge(&policy, &head).is_ok(), "{code}");
        let silent = ResponseHead {
            status: head.status,
            ..image_with(&[("cache-control", "")])
        };
        assert_eq!(
            judge(&policy, &silent),
            Err(NotStorable::NoFreshness),
            "{code}"
        );
    }
    for code in [206, 304] {
        let head = ResponseHead {
            status: StatusCode::from_u16(code).unwrap(),
            ..response(IMAGE)
        };
        assert_eq!(judge(&policy, &head), Err(NotStorable::Status), "{code}");
    }
}

#[test]
fn a_negative_status_is_stored_for_the_policy_s_time() {
    let mut policy = policy(Kind::Imgproxy(imgproxy()));
    policy.freshness.negative = vec![(StatusCode::NOT_FOUND, std::time::Duration::from_secs(9))];
    let mut head = image_with(&[("cache-control", ""), ("content-type", "text/plain")]);
    head.status = StatusCode::NOT_FOUND;
    assert_eq!(judge(&policy, &head).unwrap().content, Content::Unverified);
    head.status = StatusCode::GONE;
    assert_eq!(judge(&policy, &head), Err(NotStorable::Status));
}

#[test]
fn rfc9111_3_3_and_4_a_part_is_neither_stored_nor_combined_with_another() {
    let part = |status, range| ResponseHead {
        status,
        ..image_with(&[("content-range", range), ("etag", "\"x\"")])
    };
    let mut takes_all = policy(Kind::Generic(generic()));
    takes_all.store.statuses = Statuses::Any;
    for policy in [&takes_all, &policy(Kind::Imgproxy(imgproxy()))] {
        let partial = part(StatusCode::PARTIAL_CONTENT, "bytes 0-2801/9999");
        assert_eq!(judge(policy, &partial), Err(NotStorable::Status));
        let whole = part(StatusCode::OK, "bytes 0-2801/2802");
        assert_eq!(judge(policy, &whole), Err(NotStorable::ContentRange));
    }
}

#[test]
fn rfc9111_5_2_2_what_each_directive_does() {
    let policy = policy(Kind::Generic(generic()));
    for (line, expected, lifetime, is_shared, may_be_stale) in [
        // 5.2.2.1
        ("max-age=60", Ok(()), 60, false, true),
        // 5.2.2.2
        ("max-age=60, must-revalidate", Ok(()), 60, true, false),
        // 5.2.2.3
        ("max-age=60, must-understand", Ok(()), 60, false, true),
        // 5.2.2.4
        (
            "max-age=60, no-cache",
            Err(NotStorable::NoCache),
            0,
            false,
            false,
        ),
        // 5.2.2.5
        (
            "max-age=60, no-store",
            Err(NotStorable::NoStore),
            60,
            false,
            true,
        ),
        // 5.2.2.6: nothing is transformed here.
        ("max-age=60, no-transform", Ok(()), 60, false, true),
        // 5.2.2.7
        (
            "max-age=60, private",
            Err(NotStorable::Private),
            60,
            false,
            true,
        ),
        // 5.2.2.8
        ("max-age=60, proxy-revalidate", Ok(()), 60, false, false),
        // 5.2.2.9
        ("max-age=60, public", Ok(()), 60, true, true),
        // 5.2.2.10
        ("max-age=60, s-maxage=5", Ok(()), 5, true, false),
    ] {
        let head = image_with(&[("cache-control", line)]);
        let control = CacheControl::of(&head.headers);
        assert_eq!(judge(&policy, &head).map(|_| ()), expected, "{line}");
        let terms = policy.terms(StatusCode::OK, &head.headers, NOW).unwrap();
        assert_eq!(terms.lifetime, lifetime, "{line}");
        assert_eq!(control.shares_authorized(), is_shared, "{line}");
        assert_eq!(!control.forbids_stale(), may_be_stale, "{line}");
    }
}

#[test]
fn rfc9111_5_2_2_3_must_understand() {
    let mut policy = policy(Kind::Generic(generic()));
    policy.store.statuses = Statuses::Any;
    let with = |code: u16| ResponseHead {
        status: StatusCode::from_u16(code).unwrap(),
        ..image_with(&[("cache-control", "max-age=60, no-store, must-understand")])
    };
    assert!(judge(&policy, &with(200)).is_ok());
    assert_eq!(judge(&policy, &with(599)), Err(NotStorable::Status));
}

#[test]
fn rfc9111_3_5_what_an_authorized_request_got_is_stored_if_it_may_be_shared() {
    let policy = policy(Kind::Imgproxy(imgproxy()));
    for (line, expected) in [
        ("max-age=60", Err(NotStorable::Authorized)),
        ("max-age=60, public", Ok(())),
        ("max-age=60, must-revalidate", Ok(())),
        ("s-maxage=60", Ok(())),
    ] {
        let head = image_with(&[("cache-control", line)]);
        let judged = policy.storable(&head, NOW, NOW, true, LARGEST);
        assert_eq!(judged.map(|_| ()), expected, "{line}");
    }
}

#[test]
fn rfc9111_5_2_2_4_what_must_be_asked_about_is_stored_if_it_can_be() {
    for line in ["no-cache", "max-age=0", "max-age=60, no-cache"] {
        let tagged = image_with(&[("cache-control", line), ("etag", "\"x\"")]);
        assert!(of_imgproxy(&tagged).is_ok(), "{line}");
        let dated = image_with(&[
            ("cache-control", line),
            ("last-modified", "Wed, 01 Jan 2025 00:00:00 GMT"),
        ]);
        assert!(of_imgproxy(&dated).is_ok(), "{line}");
    }
    let window = image_with(&[("cache-control", "max-age=0, stale-if-error=60")]);
    assert!(of_imgproxy(&window).is_ok());
}

#[test]
fn rfc9111_5_2_2_4_and_7_named_fields_are_not_kept() {
    let head = image_with(&[
        (
            "cache-control",
            "max-age=60, no-cache=\"x-a\", private=\"x-b\"",
        ),
        ("x-a", "1"),
        ("x-b", "1"),
        ("x-c", "1"),
    ]);
    let headers = of_generic(&head).unwrap().headers;
    assert!(headers.contains_key("x-c"));
    assert!(!headers.contains_key("x-a") && !headers.contains_key("x-b"));
}

#[test]
fn rfc9213_2_2_a_targeted_field_decides_when_an_image_is_judged_again() {
    let policy = policy(Kind::Imgproxy(imgproxy()));
    let head = image_with(&[("cdn-cache-control", "max-age=5")]);
    let storable = judge(&policy, &head).unwrap();
    let terms = policy.terms(StatusCode::OK, &storable.headers, NOW);
    assert_eq!(terms.unwrap().lifetime, 5);
}

#[test]
fn rfc9213_2_2_a_targeted_field_decides_alone() {
    let stored = image_with(&[
        ("cache-control", "no-store"),
        ("cdn-cache-control", "max-age=60"),
    ]);
    assert!(of_imgproxy(&stored).is_ok());
    let refused = image_with(&[("cdn-cache-control", "no-store")]);
    assert_eq!(of_imgproxy(&refused), Err(NotStorable::NoStore));
}

#[test]
fn a_policy_may_take_any_type_and_any_coding() {
    let mut policy = policy(Kind::Generic(generic()));
    policy.store.verify = Verify::None;
    policy.store.content_codings = true;
    policy.store.content_types = vec![MediaRange {
        main: "*".into(),
        sub: None,
    }];
    for changes in [
        &[("content-type", "")][..],
        &[("content-type", "text/html")],
        &[("content-type", "image/svg+xml")],
        &[("content-encoding", "gzip")],
        &[("content-range", "bytes 0-1/2")],
    ] {
        assert!(judge(&policy, &image_with(changes)).is_ok(), "{changes:?}");
    }
}

#[test]
fn svg_is_stored_where_its_own_name_is_given() {
    let mut policy = policy(Kind::Imgproxy(imgproxy()));
    policy.store.content_types.push(MediaRange {
        main: "image".into(),
        sub: Some("svg+xml".into()),
    });
    let head = image_with(&[("content-type", "image/svg+xml; charset=utf-8")]);
    let storable = judge(&policy, &head).unwrap();
    assert_eq!(storable.content, Content::Image("image/svg+xml".into()));
}
