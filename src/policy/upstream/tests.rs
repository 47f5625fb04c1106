use super::*;
use crate::policy::testing::{self, get, lookup};

fn upstream(base_path: &str, host: Option<&'static str>) -> Upstream {
    Upstream {
        completion: Completion::Followers,
        endpoint: "http://127.0.0.1:8080".parse().unwrap(),
        base_path: base_path.to_owned(),
        host: host.map(HeaderValue::from_static),
    }
}

fn fetched(policy: &Policy, request: &RequestHead) -> Option<(String, Vec<(String, String)>)> {
    let fetch = policy.fetch(request, &lookup(policy, request).forward)?;
    let mut fields: Vec<_> = fetch
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    fields.sort();
    Some((String::from_utf8(fetch.path.to_vec()).unwrap(), fields))
}

fn field(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn imgproxy_is_asked_for_what_the_proxy_would_ask_for() {
    let mut imgproxy = testing::imgproxy();
    imgproxy.path_prefix = "/thumbs".to_owned();
    let mut policy = testing::policy(Kind::Imgproxy(imgproxy));
    let path = "/thumbs/x/rs:fill:1:1/plain/local:///a.png";
    let request = get(path, &[("cookie", "a=b"), ("if-none-match", "\"x\"")]);
    assert_eq!(fetched(&policy, &request), None);
    policy.upstream = Some(upstream("/base", None).into());
    assert_eq!(
        fetched(&policy, &request),
        Some((
            "/base/x/rs:fill:1:1/plain/local:///a.png".to_owned(),
            vec![field("accept", "*/*"), field("host", "img.example")]
        ))
    );
}

#[test]
fn rfc9110_7_6_1_fields_of_the_connection_are_not_sent_on() {
    let mut policy = testing::policy(Kind::Generic(testing::generic()));
    policy.upstream = Some(upstream("", Some("origin.example")).into());
    let request = get(
        "/a?b=c",
        &[
            ("connection", "x-hop, close"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("x-envoy-attempt-count", "1"),
            ("accept-language", "de"),
        ],
    );
    assert_eq!(
        fetched(&policy, &request),
        Some((
            "/a?b=c".to_owned(),
            vec![
                field("accept-language", "de"),
                field("host", "origin.example")
            ]
        ))
    );
}

#[test]
fn without_a_host_there_is_nobody_to_ask() {
    let mut policy = testing::policy(Kind::Generic(testing::generic()));
    policy.upstream = Some(upstream("", None).into());
    let mut request = get("/a", &[]);
    request.authority = Bytes::new();
    assert_eq!(fetched(&policy, &request), None);
}
