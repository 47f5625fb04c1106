use super::*;

const MODIFIED: &str = "Wed, 01 Jan 2025 00:00:00 GMT";
const LATER: &str = "Wed, 01 Jan 2025 00:00:01 GMT";
const EARLIER: &str = "Tue, 31 Dec 2024 23:59:59 GMT";

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| {
            (
                http::HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        })
        .collect()
}

/// What a GET with these fields gets of ten bytes with this tag, last modified at [`MODIFIED`].
fn select(etag: &str, request: &[(&'static str, &str)]) -> Selected {
    let etag = HeaderValue::from_str(etag).unwrap();
    let stored = headers(&[
        ("last-modified", MODIFIED),
        ("date", "Wed, 01 Jan 2025 10:00:00 GMT"),
    ]);
    Conditions::of(&headers(request), true).select(&Representation {
        etag: Some(&etag),
        headers: &stored,
        content_length: 10,
    })
}

fn part(first: u64, last: u64) -> Selected {
    Selected::Part { first, last }
}

#[test]
fn rfc9110_13_1_2_if_none_match_uses_weak_comparison_over_lists() {
    for list in [
        "\"a\"",
        "W/\"a\"",
        "\"x\", \"a\"",
        "\"x\",W/\"a\" , \"y\"",
        "*",
        " * ",
        "\"x,\\\",\"a\"",
    ] {
        assert_eq!(
            select("\"a\"", &[("if-none-match", list)]),
            Selected::NotModified,
            "{list}"
        );
        assert_eq!(
            select("W/\"a\"", &[("if-none-match", list)]),
            Selected::NotModified,
            "{list}"
        );
    }
    for list in [
        "\"x\"", "a", "\"A\"", "", "\"a", "W/a", "w/\"a\"", "\"x\", *",
    ] {
        assert_eq!(
            select("\"a\"", &[("if-none-match", list)]),
            Selected::Whole,
            "{list}"
        );
    }
}

#[test]
fn rfc9110_13_1_3_if_modified_since_compares_dates() {
    for (since, expected) in [
        (MODIFIED, Selected::NotModified),
        (LATER, Selected::NotModified),
        (EARLIER, Selected::Whole),
        ("yesterday", Selected::Whole),
    ] {
        assert_eq!(
            select("\"a\"", &[("if-modified-since", since)]),
            expected,
            "{since}"
        );
    }
}

#[test]
fn rfc9110_13_2_2_if_none_match_goes_before_if_modified_since() {
    let request = [("if-none-match", "\"x\""), ("if-modified-since", LATER)];
    assert_eq!(select("\"a\"", &request), Selected::Whole);
}

#[test]
fn rfc9111_4_3_2_without_last_modified_the_date_stands_for_it() {
    let stored = headers(&[("date", MODIFIED)]);
    let request = headers(&[("if-modified-since", MODIFIED)]);
    let selected = Conditions::of(&request, true).select(&Representation {
        etag: None,
        headers: &stored,
        content_length: 1,
    });
    assert_eq!(selected, Selected::NotModified);
}

#[test]
fn rfc9110_14_1_2_which_bytes_a_range_means() {
    for (range, expected) in [
        ("bytes=0-3", part(0, 3)),
        ("BYTES=0-0", part(0, 0)),
        ("bytes=4-", part(4, 9)),
        ("bytes=4-99", part(4, 9)),
        ("bytes=-3", part(7, 9)),
        ("bytes=-99", part(0, 9)),
        ("bytes=9-99999999999999999999999", part(9, 9)),
        ("bytes=10-", Selected::Unsatisfiable),
        ("bytes=99999999999999999999999-", Selected::Unsatisfiable),
        ("bytes=-0", Selected::Unsatisfiable),
    ] {
        assert_eq!(select("\"a\"", &[("range", range)]), expected, "{range}");
    }
}

#[test]
fn rfc9110_14_2_a_range_that_is_not_understood_is_ignored() {
    for (range, expected) in [
        ("bytes=3-2", Selected::Whole),
        ("bytes=0-1,3-4", Selected::Whole),
        ("bytes=", Selected::Whole),
        ("bytes=-", Selected::Whole),
        ("bytes=a-b", Selected::Whole),
        ("items=0-1", Selected::Whole),
        ("bytes", Selected::Whole),
    ] {
        assert_eq!(select("\"a\"", &[("range", range)]), expected, "{range}");
    }
}

#[test]
fn rfc9110_13_1_5_if_range_needs_a_strong_match() {
    let with = |etag: &str, if_range: &str| {
        select(etag, &[("range", "bytes=0-1"), ("if-range", if_range)])
    };
    assert_eq!(with("\"a\"", "\"a\""), part(0, 1));
    assert_eq!(with("\"a\"", MODIFIED), part(0, 1));
    for (etag, if_range) in [
        ("\"a\"", "\"b\""),
        ("\"a\"", "W/\"a\""),
        ("W/\"a\"", "W/\"a\""),
        ("\"a\"", LATER),
        ("\"a\"", EARLIER),
        ("\"a\"", "\"a\", \"b\""),
        ("\"a\"", "nonsense"),
    ] {
        assert_eq!(with(etag, if_range), Selected::Whole, "{etag} {if_range}");
    }
}

#[test]
fn rfc9110_8_8_2_2_a_date_close_to_the_answer_is_no_strong_validator() {
    let stored = headers(&[("last-modified", MODIFIED), ("date", LATER)]);
    let request = headers(&[("range", "bytes=0-1"), ("if-range", MODIFIED)]);
    let selected = Conditions::of(&request, true).select(&Representation {
        etag: None,
        headers: &stored,
        content_length: 10,
    });
    assert_eq!(selected, Selected::Whole);
}

#[test]
fn rfc9110_14_2_a_head_has_no_range() {
    let request = headers(&[("range", "bytes=0-1")]);
    assert!(Conditions::of(&request, false).is_empty());
}

#[test]
fn rfc9110_13_1_1_and_4_if_match_and_if_unmodified_since_are_for_the_origin() {
    for request in [
        ("if-match", "\"x\""),
        ("if-match", "*"),
        ("if-unmodified-since", EARLIER),
    ] {
        assert_eq!(select("\"a\"", &[request]), Selected::Whole, "{request:?}");
    }
}

#[test]
fn rfc9110_8_8_3_2_the_weak_comparison() {
    for (one, other, is_same) in [
        ("\"1\"", "\"1\"", true),
        ("W/\"1\"", "W/\"1\"", true),
        ("W/\"1\"", "\"1\"", true),
        ("W/\"1\"", "W/\"2\"", false),
        ("\"1\"", "1", false),
        ("1", "1", true),
    ] {
        let (one, other) = [one, other].map(HeaderValue::from_static).into();
        assert_eq!(is_same_tag(&one, &other), is_same, "{one:?} {other:?}");
    }
}

#[test]
fn an_empty_body_satisfies_no_range() {
    assert_eq!(
        ByteRange::parse(b"bytes=0-").unwrap().of_length(0),
        Selected::Unsatisfiable
    );
}

#[test]
fn rfc9111_4_3_1_the_upstream_is_asked_with_its_own_validators() {
    let stored = headers(&[("etag", "W/\"up\""), ("last-modified", MODIFIED)]);
    let conditions = forwarded_validators(&stored);
    assert_eq!(
        conditions[0],
        (IF_NONE_MATCH, HeaderValue::from_static("W/\"up\""))
    );
    assert_eq!(
        conditions[1],
        (IF_MODIFIED_SINCE, HeaderValue::from_static(MODIFIED))
    );
}
