use http::{HeaderMap, HeaderValue, StatusCode};

use super::*;
use crate::policy::testing::{self, get};

fn policy() -> Policy {
    let mut generic = testing::generic();
    generic.invalidates = true;
    testing::policy(Kind::Generic(generic))
}

fn response(status: u16, fields: &[(&'static str, &str)]) -> ResponseHead {
    let headers: HeaderMap = fields
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        })
        .collect();
    ResponseHead {
        status: StatusCode::from_u16(status).unwrap(),
        headers,
        has_body: true,
        provenance: Provenance::Upstream,
    }
}

/// The source of a GET for this path.
fn source(path: &str) -> Source {
    testing::lookup(&policy(), &get(path, &[]))
        .key
        .source()
        .clone()
}

#[test]
fn rfc9111_4_4_which_methods_are_watched() {
    for (method, is_watched) in [
        ("GET", false),
        ("HEAD", false),
        ("OPTIONS", false),
        ("TRACE", false),
        ("POST", true),
        ("PUT", true),
        ("DELETE", true),
        ("PATCH", true),
        ("M-SEARCH", true),
        ("get", true),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(policy().watches(&method), is_watched, "{method}");
        let imgproxy = testing::policy(Kind::Imgproxy(testing::imgproxy()));
        assert!(!imgproxy.watches(&method));
    }
}

#[test]
fn rfc9111_4_4_which_answers_invalidate() {
    let request = get("/a?b=c", &[]);
    for (status, invalidates) in [
        (200, true),
        (204, true),
        (303, true),
        (400, false),
        (404, false),
        (500, false),
    ] {
        let sources = policy().invalidated(&request, &response(status, &[]));
        // All queries of the path are of one source.
        let expected = if invalidates {
            vec![source("/a")]
        } else {
            vec![]
        };
        assert_eq!(sources, expected, "{status}");
    }
}

#[test]
fn an_answer_of_the_proxy_has_changed_nothing() {
    let mut response = response(301, &[]);
    response.provenance = Provenance::Local;
    assert_eq!(policy().invalidated(&get("/a", &[]), &response), vec![]);
}

#[test]
fn rfc9111_4_4_locations_invalidate_on_the_same_host_only() {
    let request = get("/dir/a", &[]);
    for (reference, path) in [
        ("/b", Some("/b")),
        ("/b?x#y", Some("/b")),
        ("b", Some("/dir/b")),
        ("../c", Some("/c")),
        ("", None),
        ("http://img.example/b", Some("/b")),
        ("https://IMG.example:443/b", Some("/b")),
        ("//img.example/b", Some("/b")),
        ("http://img.example:80/b", Some("/b")),
        ("http://img.example:8080/b", None),
        ("http://other.example/b", None),
        ("http://user@img.example/b", None),
        ("http://img.example.other/b", None),
        ("mailto:a@img.example", None),
        ("http://[", None),
        ("a b", None),
    ] {
        for name in ["location", "content-location"] {
            let sources = policy().invalidated(&request, &response(201, &[(name, reference)]));
            let mut expected = vec![source("/dir/a")];
            expected.extend(path.map(source));
            assert_eq!(sources, expected, "{name}: {reference}");
        }
    }
}

#[test]
fn a_path_that_is_no_uri_s_is_invalidated_all_the_same() {
    let request = get("/a|b", &[]);
    let sources = policy().invalidated(&request, &response(200, &[("location", "/c")]));
    assert_eq!(sources, vec![source("/a|b")]);
}
