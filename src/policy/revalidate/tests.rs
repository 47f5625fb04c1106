use http::{HeaderMap, HeaderValue};

use super::*;
use crate::entry::BodyProof;
use crate::policy::Kind;
use crate::policy::testing::{NOW, generic, policy};

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

fn stored() -> Record {
    Record {
        variants: None,
        key_digest: [3; 32],
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
        ("content-type", "text/plain"),
        ("content-length", "10"),
        ("content-encoding", "gzip"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("age", "2"),
    ];
    let Answered::Unchanged(record) = answered(304, Provenance::Upstream, &fields) else {
        panic!("it is unchanged")
    };
    assert_eq!(record.headers["cache-control"], "max-age=3600");
    assert_eq!(record.headers["x-kept"], "old");
    assert_eq!(
        record.headers.get_all("x-new").iter().collect::<Vec<_>>(),
        ["new"]
    );
    assert_eq!(record.headers["content-type"], "image/png");
    for name in [
        "content-length",
        "content-encoding",
        "x-hop",
        "connection",
        "age",
    ] {
        assert!(!record.headers.contains_key(name), "{name}");
    }
    assert_eq!(record.response_time, NOW.plus_seconds(11));
    assert_eq!(record.initial_age, 3);
    assert_eq!(
        (record.key_digest, record.body),
        (stored().key_digest, stored().body)
    );
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
