use bytes::Bytes;
use http::HeaderName;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::string::string_regex;

use super::*;
use crate::entry::Key;
use crate::policy::testing::{CASES, bypass, forwarded, generic, get, lookup, policy};
use crate::policy::{Kind, Policy};

fn with_query(query: Query) -> Policy {
    policy(Kind::Generic(Generic {
        invalidates: false,
        query,
        headers: Vec::new(),
    }))
}

fn with_headers(headers: &[&'static str]) -> Policy {
    policy(Kind::Generic(Generic {
        invalidates: false,
        query: Query::All,
        headers: headers
            .iter()
            .map(|name| HeaderName::from_static(name))
            .collect(),
    }))
}

fn key(policy: &Policy, path: &str, headers: &[(&str, &str)]) -> Key {
    lookup(policy, &get(path, headers)).key
}

fn assert_all_differ(keys: &[Key]) {
    for (at, key) in keys.iter().enumerate() {
        assert!(
            !keys[..at].contains(key),
            "number {at} has been there before"
        );
    }
}

#[test]
fn the_raw_path_is_the_key_and_nothing_is_normalised() {
    let policy = policy(Kind::Generic(generic()));
    let paths = [
        "/a", "/A", "/a/", "//a", "/./a", "/%61", "/a%2Fb", "/a%2fb", "/a/b", "/a;b", "/a#b",
        "/a%00", "/a?", "/a?b", "/a?b?c", "/a??b", "/a?b=", "/a?b&", "/a?b&c", "/a?c&b",
    ];
    assert_all_differ(&paths.map(|path| key(&policy, path, &[])));
}

#[test]
fn the_host_is_in_the_key_in_lower_case_and_with_its_port() {
    let policy = policy(Kind::Generic(generic()));
    let key = |authority: &'static str| {
        let mut request = get("/a", &[]);
        request.authority = Bytes::from_static(authority.as_bytes());
        lookup(&policy, &request).key
    };
    assert_eq!(key("IMG.example:8080"), key("img.EXAMPLE:8080"));
    assert_all_differ(
        &[
            "img.example",
            "img.example:80",
            "img.example.",
            "[::1]:80",
            "[::1]",
            "",
        ]
        .map(key),
    );
}

#[test]
fn host_and_path_cannot_be_mixed_up() {
    let policy = policy(Kind::Generic(generic()));
    let key = |authority: &'static str, path: &str| {
        let mut request = get(path, &[]);
        request.authority = Bytes::from_static(authority.as_bytes());
        lookup(&policy, &request).key
    };
    assert_ne!(key("a", "/b/c"), key("a/b", "/c"));
}

#[test]
fn all_variants_of_a_path_share_its_source() {
    let policy = with_headers(&["accept-language"]);
    let one = key(&policy, "/a?x=1", &[("accept-language", "de")]);
    let other = key(&policy, "/a?x=2", &[]);
    assert_eq!(one.source(), other.source());
    assert_ne!(one, other);
    assert_ne!(one.source(), key(&policy, "/b", &[]).source());
}

#[test]
fn without_the_query_it_does_not_matter() {
    let policy = with_query(Query::None);
    assert_eq!(key(&policy, "/a", &[]), key(&policy, "/a?x=1", &[]));
}

#[test]
fn of_the_query_only_named_parameters_matter_in_their_order() {
    let policy = with_query(Query::Only(vec!["w".into(), "h".into()]));
    let key = |path: &str| key(&policy, path, &[]);
    assert_eq!(key("/a?w=1&h=2"), key("/a?utm=x&w=1&v=3&h=2&&"));
    assert_eq!(key("/a"), key("/a?utm=x"));
    assert_all_differ(
        &[
            "/a",
            "/a?w",
            "/a?w=",
            "/a?w=1",
            "/a?w=1&h=2",
            "/a?h=2&w=1",
            "/a?w=1&w=2",
            "/a?w=2&w=1",
        ]
        .map(key),
    );
}

#[test]
fn a_named_parameter_cannot_hide_behind_an_escape_or_a_semicolon() {
    let policy = with_query(Query::Only(vec!["w".into()]));
    let key = |path: &str| key(&policy, path, &[]);
    assert_all_differ(
        &[
            "/a",
            "/a?w=1",
            "/a?%77=1",
            "/a?%77=2",
            "/a?utm=1;w=1",
            "/a?utm=1;w=2",
            "/a?w=1;v=1",
            "/a?w=1;v=2",
        ]
        .map(key),
    );
}

#[test]
fn named_headers_are_in_the_key_value_by_value() {
    let policy = with_headers(&["accept-language", "origin"]);
    let key = |headers: &[(&str, &str)]| key(&policy, "/a", headers);
    assert_all_differ(&[
        key(&[]),
        key(&[("accept-language", "")]),
        key(&[("accept-language", "de")]),
        key(&[("accept-language", "DE")]),
        key(&[("accept-language", "de,en")]),
        key(&[("accept-language", "de"), ("accept-language", "en")]),
        key(&[("accept-language", "en"), ("accept-language", "de")]),
        key(&[("origin", "de")]),
        key(&[("accept-language", "de"), ("origin", "de")]),
    ]);
    assert_eq!(key(&[]), key(&[("user-agent", "x")]));
}

#[test]
fn preconditions_ranges_and_overrides_do_not_reach_the_upstream() {
    let policy = policy(Kind::Generic(generic()));
    let plain = lookup(&policy, &get("/a", &[]));
    let others = [
        "if-match",
        "if-none-match",
        "if-modified-since",
        "if-unmodified-since",
        "if-range",
        "range",
        "cookie",
        "accept-encoding",
    ];
    for name in others.into_iter().chain(OVERRIDES) {
        let request = get("/a", &[(name, "x"), ("user-agent", "y"), (name, "z")]);
        assert_eq!(lookup(&policy, &request).key, plain.key, "{name}");
        assert_eq!(
            forwarded(&policy, &request),
            [("user-agent".into(), "y".into())],
            "{name}"
        );
        assert!(policy.controls(&HeaderName::from_static(name)), "{name}");
    }
    assert!(!policy.controls(&header::USER_AGENT));
}

#[test]
fn what_is_in_the_key_reaches_the_upstream_but_for_preconditions_and_ranges() {
    let policy = with_headers(&["x-forwarded-host", "accept-encoding", "range"]);
    let request = get(
        "/a",
        &[
            ("x-forwarded-host", "a"),
            ("accept-encoding", "br"),
            ("range", "bytes=0-1"),
        ],
    );
    let expected = [
        ("accept-encoding".into(), "br".into()),
        ("x-forwarded-host".into(), "a".into()),
    ];
    assert_eq!(forwarded(&policy, &request), expected);
    assert!(policy.controls(&HeaderName::from_static("x-forwarded-host")));
    assert!(policy.controls(&header::HOST));
}

#[test]
fn a_path_that_is_none_bypasses() {
    let policy = policy(Kind::Generic(generic()));
    for path in ["", "*", "?a", "http://img.example/a"] {
        assert_eq!(
            bypass(&policy, &get(path, &[])),
            BypassReason::Unparsable,
            "{path}"
        );
    }
}

/// Draws from few letters, so that values that could be mistaken for each other come up often.
fn path_and_values() -> impl Strategy<Value = (String, Vec<String>)> {
    let path = string_regex("/[a/?&=]{0,4}").unwrap();
    (path, vec(string_regex("[a,]{0,2}").unwrap(), 0..3))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn keys_are_the_same_only_for_the_same_path_query_and_headers(
        a in path_and_values(),
        b in path_and_values(),
    ) {
        let policy = with_headers(&["x"]);
        let key = |(path, values): &(String, Vec<String>)| {
            let headers: Vec<_> = values.iter().map(|value| ("x", value.as_str())).collect();
            key(&policy, path, &headers)
        };
        prop_assert_eq!(a == b, key(&a) == key(&b));
    }
}

#[test]
fn of_a_query_only_what_is_in_the_key_is_sent_on() {
    let path = |query| {
        let policy = policy(Kind::Generic(Generic {
            invalidates: false,
            query,
            ..generic()
        }));
        lookup(&policy, &get("/a?x=1&y=2&x=3", &[])).forward.path
    };
    assert_eq!(path(Query::All), None);
    assert_eq!(path(Query::None).unwrap(), "/a");
    assert_eq!(path(Query::Only(vec!["x".into()])).unwrap(), "/a?x=1&x=3");
}
