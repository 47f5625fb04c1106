use http::{HeaderMap, HeaderValue};

use super::*;
use crate::entry::{BodyProof, Identity};
use crate::policy::Kind;
use crate::policy::testing::{NOW, generic, policy};

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn stored() -> Record {
    Record {
        variants: None,
        identity: Identity::of(&crate::entry::Key::from_parts("test", 1, [0; 32], [3; 32])),
        status: StatusCode::OK,
        headers: headers(&[
            ("cache-control", "max-age=1"),
            ("content-type", "image/png"),
            ("x-kept", "old"),
            ("x-new", "old"),
            ("x-new", "older"),
        ]),
        response_time: NOW,
        initial_age: 100,
        body: BodyProof::of(&[]),
    }
}

fn answered(
    status: u16,
    provenance: Provenance,
    fields: &[(&'static str, &'static str)],
) -> Answered {
    let response = ResponseHead {
        status: StatusCode::from_u16(status).unwrap(),
        headers: headers(fields),
        has_body: false,
        provenance,
    };
    let policy = policy(Kind::Generic(generic()));
    policy.answered(
        &stored(),
        &response,
        NOW.plus_seconds(10),
        NOW.plus_seconds(11),
    )
}

#[test]
fn rfc9111_4_3_4_a_304_freshens_the_stored_response() {
    let fields = [
        ("cache-control", "max-age=3600"),
        ("x-new", "new"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("age", "2"),
    ];
    let Answered::Unchanged { record, .. } = answered(304, Provenance::Upstream, &fields) else {
        panic!("it is unchanged")
    };
    assert_eq!(record.headers["cache-control"], "max-age=3600");
    assert_eq!(record.headers["x-kept"], "old");
    assert_eq!(
        record.headers.get_all("x-new").iter().collect::<Vec<_>>(),
        ["new"]
    );
    for name in ["x-hop", "connection", "age"] {
        assert!(!record.headers.contains_key(name), "{name}");
    }
    assert_eq!(record.response_time, NOW.plus_seconds(11));
    assert_eq!(record.initial_age, 3);
    assert_eq!(
        (&record.identity, record.body),
        (&stored().identity, stored().body)
    );
}

#[test]
fn rfc9111_3_2_fields_that_describe_the_bytes_stay_with_them() {
    let fields = [
        ("content-type", "text/plain"),
        ("content-length", "10"),
        ("content-encoding", "gzip"),
        ("content-range", "bytes 0-1/2"),
    ];
    let Answered::Unchanged { record, .. } = answered(304, Provenance::Upstream, &fields) else {
        panic!("it is unchanged")
    };
    assert_eq!(record.headers["content-type"], "image/png");
    for name in ["content-length", "content-encoding", "content-range"] {
        assert!(!record.headers.contains_key(name), "{name}");
    }
}

#[test]
fn rfc9111_4_3_4_a_304_may_forbid_that_it_stays_stored() {
    for (line, expected) in [
        ("max-age=60", true),
        ("no-store", false),
        ("private", false),
        ("private=\"x-kept\"", true),
    ] {
        let Answered::Unchanged { is_kept, .. } =
            answered(304, Provenance::Upstream, &[("cache-control", line)])
        else {
            panic!("it is unchanged")
        };
        assert_eq!(is_kept, expected, "{line}");
    }
}

#[test]
fn rfc9111_3_what_a_304_brings_for_one_client_ends_the_entry() {
    let fields = [("set-cookie", "session=1"), ("cache-control", "max-age=60")];
    let Answered::Unchanged { record, is_kept } = answered(304, Provenance::Upstream, &fields)
    else {
        panic!("it is unchanged")
    };
    assert!(record.headers.contains_key(SET_COOKIE) && !is_kept);
}

#[test]
fn rfc9111_4_1_a_304_that_varies_otherwise_ends_the_entry() {
    for (vary, expected) in [
        ("*", false),
        ("user-agent", false),
        ("a b", false),
        ("Accept-Encoding", true),
    ] {
        let Answered::Unchanged { is_kept, .. } =
            answered(304, Provenance::Upstream, &[("vary", vary)])
        else {
            panic!("it is unchanged")
        };
        assert_eq!(is_kept, expected, "{vary}");
    }
}

#[test]
fn rfc9111_5_2_2_4_and_7_fields_that_a_304_names_do_not_stay() {
    for line in ["no-cache=\"x-new, x-kept\"", "private=\"x-new, x-kept\""] {
        let fields = [("cache-control", line), ("x-new", "new")];
        let Answered::Unchanged { record, is_kept } = answered(304, Provenance::Upstream, &fields)
        else {
            panic!("it is unchanged")
        };
        assert!(is_kept);
        for name in ["x-new", "x-kept"] {
            assert!(!record.headers.contains_key(name), "{name}");
        }
    }
}

#[test]
fn rfc9111_4_3_4_a_304_about_another_response_updates_nothing() {
    let policy = policy(Kind::Generic(generic()));
    for (own, given, is_update) in [
        ("\"a\"", "\"a\"", true),
        ("\"a\"", "W/\"a\"", true),
        ("unquoted", "unquoted", true),
        ("\"a\"", "\"b\"", false),
        ("unquoted", "\"unquoted\"", false),
    ] {
        let mut stored = stored();
        stored.headers.insert(ETAG, HeaderValue::from_static(own));
        let response = ResponseHead {
            status: StatusCode::NOT_MODIFIED,
            headers: headers(&[("etag", given), ("x-new", "new")]),
            has_body: false,
            provenance: Provenance::Upstream,
        };
        let now = NOW.plus_seconds(10);
        let Answered::Unchanged { record, is_kept } = policy.answered(&stored, &response, now, now)
        else {
            panic!("it is unchanged")
        };
        let (x_new, age) = if is_update { ("new", 0) } else { ("old", 110) };
        assert_eq!(is_kept, is_update, "{own} {given}");
        assert_eq!(record.headers["x-new"], x_new, "{own} {given}");
        assert_eq!(record.initial_age, age, "{own} {given}");
    }
}

#[test]
fn rfc9111_4_3_5_a_head_updates_or_forgets_what_a_get_has_stored() {
    let length = stored().body.content_length.to_string();
    let tag = "\"v1\"".to_owned();
    let stored = || {
        let mut record = stored();
        record
            .headers
            .insert(ETAG, HeaderValue::from_str(&tag).unwrap());
        record
    };
    let date = "Wed, 01 Jan 2025 00:00:00 GMT";
    let checked = |status, fields: &[(&'static str, &str)]| {
        let response = ResponseHead {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers(fields),
            has_body: false,
            provenance: Provenance::Upstream,
        };
        let policy = policy(Kind::Generic(generic()));
        match policy.checked(&stored(), &response, NOW, NOW.plus_seconds(1)) {
            Checked::Unchanged(record) => {
                assert_eq!(record.response_time, NOW.plus_seconds(1));
                assert_eq!(record.headers["content-type"], "image/png");
                "unchanged"
            }
            Checked::Changed => "changed",
            Checked::Nothing => "nothing",
        }
    };
    let (tag, length) = (("etag", &*tag), ("content-length", &*length));
    for (status, fields, expected) in [
        (200, &[tag, length][..], "unchanged"),
        (200, &[tag], "unchanged"),
        (200, &[length, ("x-new", "1")], "unchanged"),
        (200, &[("etag", "\"other\""), length], "changed"),
        (200, &[tag, ("content-length", "7")], "changed"),
        (200, &[tag, ("last-modified", date)], "changed"),
        (200, &[tag, ("cache-control", "no-store")], "changed"),
        (200, &[tag, ("set-cookie", "a=b")], "changed"),
        (200, &[tag, ("vary", "user-agent")], "changed"),
        (200, &[("x-new", "1")], "nothing"),
        (204, &[tag], "nothing"),
        (404, &[], "nothing"),
    ] {
        assert_eq!(checked(status, fields), expected, "{status} {fields:?}");
    }
}

#[test]
fn rfc5861_4_these_statuses_are_errors_whoever_sends_them() {
    for status in [500, 502, 503, 504] {
        for provenance in [Provenance::Upstream, Provenance::Local, Provenance::Unknown] {
            assert_eq!(answered(status, provenance, &[]), Answered::Failed);
        }
    }
}

#[test]
fn anything_else_is_another_response() {
    for status in [200, 206, 301, 404, 429, 501, 505] {
        assert_eq!(
            answered(status, Provenance::Upstream, &[]),
            Answered::Changed
        );
    }
    assert_eq!(answered(304, Provenance::Local, &[]), Answered::Changed);
}
