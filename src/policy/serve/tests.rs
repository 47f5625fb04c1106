use super::*;
use crate::entry::{BodyProof, Identity};
use crate::policy::Kind;
use crate::policy::testing::{NOW, get, imgproxy, lookup, policy};

const PATH: &str = "/x/rs:fit:1:1/plain/local:///a.png";
const MODIFIED: &str = "Wed, 01 Jan 2025 00:00:00 GMT";

fn record(status: u16, fields: &[(&'static str, &'static str)]) -> Record {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_static(value));
    }
    Record {
        variants: None,
        identity: Identity::of(&crate::entry::Key::from_parts("test", 1, [0; 32], [0; 32])),
        status: StatusCode::from_u16(status).unwrap(),
        headers,
        response_time: NOW,
        initial_age: 0,
        body: BodyProof::of(&[bytes::Bytes::from_static(b"0123456789")]),
    }
}

fn image() -> Record {
    record(
        200,
        &[
            ("content-type", "image/png"),
            ("etag", "\"up\""),
            ("last-modified", MODIFIED),
            ("cache-control", "max-age=60, public"),
            ("date", "Wed, 01 Jan 2025 10:00:00 GMT"),
            ("content-disposition", "inline"),
        ],
    )
}

fn serve_by(validators: Validators, record: &Record, request: &[(&str, &str)]) -> Served {
    let mut policy = policy(Kind::Imgproxy(imgproxy()));
    policy.validators = validators;
    let status = HeaderValue::from_static("afterimage; hit");
    policy.serve(
        &lookup(&policy, &get(PATH, request)),
        record,
        7,
        &status,
        NOW,
    )
}

fn serve(record: &Record, request: &[(&str, &str)]) -> Served {
    serve_by(Validators::Content, record, request)
}

fn names(served: &Served) -> Vec<&str> {
    let mut names: Vec<_> = served.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn rfc9111_4_a_whole_hit_has_the_stored_fields_age_and_our_tag() {
    let served = serve(&image(), &[]);
    assert_eq!(served.status, 200);
    assert_eq!(served.body, ServedBody::Whole);
    assert_eq!(served.headers["age"], "7");
    assert_eq!(served.headers["date"], image().headers["date"]);
    assert_eq!(served.headers["etag"], content_etag(&image().body));
    let upstream = serve_by(Validators::Upstream, &image(), &[]);
    assert_eq!(upstream.headers["etag"], "\"up\"");
}

#[test]
fn the_tag_of_the_bytes_differs_where_the_bytes_do() {
    let other = BodyProof::of(&[bytes::Bytes::from_static(b"0123456780")]);
    assert_ne!(content_etag(&image().body), content_etag(&other));
}

#[test]
fn rfc9110_15_4_5_a_304_has_what_a_200_would_have_of_these_fields() {
    let tag = content_etag(&image().body);
    let served = serve(&image(), &[("if-none-match", tag.to_str().unwrap())]);
    assert_eq!(served.status, 304);
    assert_eq!(served.body, ServedBody::Nothing);
    assert_eq!(
        names(&served),
        ["age", "cache-control", "cache-status", "date", "etag"]
    );
}

#[test]
fn a_tag_of_the_upstream_from_before_works_as_a_miss() {
    let served = serve(&image(), &[("if-none-match", "\"up\"")]);
    assert_eq!(
        (served.status.as_u16(), served.body),
        (200, ServedBody::Whole)
    );
}

#[test]
fn rfc9110_14_4_a_part_says_where_it_stands() {
    let part = serve(&image(), &[("range", "bytes=2-5")]);
    assert_eq!(part.status, 206);
    assert_eq!(part.body, ServedBody::Part { first: 2, last: 5 });
    assert_eq!(part.headers["content-range"], "bytes 2-5/10");
    assert_eq!(part.headers["content-type"], "image/png");
}

#[test]
fn rfc9110_15_5_17_an_answer_without_a_part_says_how_much_there_is() {
    let none = serve(&image(), &[("range", "bytes=10-")]);
    assert_eq!(
        (none.status.as_u16(), none.body),
        (416, ServedBody::Nothing)
    );
    assert_eq!(none.headers["content-range"], "bytes */10");
    assert!(!none.headers.contains_key("content-type"));
}

#[test]
fn rfc9110_9_3_2_a_head_has_the_fields_and_the_length() {
    let policy = policy(Kind::Imgproxy(imgproxy()));
    let mut request = get(PATH, &[("range", "bytes=0-1")]);
    request.method = http::Method::HEAD;
    let status = HeaderValue::from_static("afterimage; hit");
    let served = policy.serve(&lookup(&policy, &request), &image(), 7, &status, NOW);
    assert_eq!(
        (served.status.as_u16(), served.body),
        (200, ServedBody::Length(10))
    );
}

#[test]
fn conditions_are_not_for_other_statuses() {
    let missing = record(404, &[("etag", "\"up\"")]);
    let request = [("if-none-match", "*"), ("range", "bytes=0-1")];
    let served = serve(&missing, &request);
    assert_eq!(
        (served.status.as_u16(), served.body),
        (404, ServedBody::Whole)
    );
    assert_eq!(served.headers["etag"], "\"up\"");
}

#[test]
fn rfc9211_2_members_of_other_caches_stay_before_ours() {
    let record = record(200, &[("cache-status", "edge; hit")]);
    let served = serve(&record, &[]);
    let members: Vec<_> = served.headers.get_all("cache-status").iter().collect();
    assert_eq!(members, ["edge; hit", "afterimage; hit"]);
}

#[test]
fn a_copy_further_down_does_not_outlive_the_url() {
    let policy = policy(Kind::Imgproxy(imgproxy()));
    let end = NOW.plus_seconds(20);
    let end_date = to_http_date(end);
    let path = format!("/x/exp:{}/plain/local:///a.png", end.as_unix());
    let status = HeaderValue::from_static("afterimage; hit");
    let (near, far) = (
        "Fri, 15 Jan 2027 08:00:10 GMT",
        "Thu, 18 Aug 2050 02:01:18 GMT",
    );
    for (fields, cache_control, expires) in [
        // It has an age of 7 already.
        (
            &[("cache-control", "max-age=60, public")][..],
            "max-age=27, public",
            None,
        ),
        (
            &[("cache-control", "max-age=60"), ("expires", far)],
            "max-age=27",
            None,
        ),
        (
            &[("cache-control", "max-age=5"), ("expires", near)],
            "max-age=5",
            Some(near),
        ),
        (
            &[("cache-control", "public"), ("expires", near)],
            "public",
            Some(near),
        ),
        (
            &[("cache-control", "public"), ("expires", far)],
            "public",
            end_date.to_str().ok(),
        ),
        (
            &[("cache-control", "s-maxage=5"), ("expires", far)],
            "s-maxage=5",
            end_date.to_str().ok(),
        ),
    ] {
        let lookup = lookup(&policy, &get(&path, &[]));
        let served = policy.serve(&lookup, &record(200, fields), 7, &status, NOW);
        let of = |name| {
            served
                .headers
                .get(name)
                .map(|value: &HeaderValue| value.to_str().unwrap())
        };
        assert_eq!(of(CACHE_CONTROL), Some(cache_control), "{fields:?}");
        assert_eq!(of(EXPIRES), expires, "{fields:?}");
    }
}
