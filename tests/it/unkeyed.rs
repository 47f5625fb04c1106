//! What is not in the key cannot change what is stored under it: an origin that puts everything it is told into the image
//! gives every client the same image, or one that is not stored.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use reqwest::Method;

use crate::support::client::Answer;
use crate::support::envoy;
use crate::support::origin::{Origin, Script, Seen};
use crate::support::stack::Stack;

/// Request fields with two values each.
type Fields = [(&'static str, [&'static str; 2])];

/// Fields that could change an image, or say who asks. None of them reaches an imgproxy.
const OF_IMGPROXY: &Fields = &[
    ("cookie", ["session=alice", "session=bob; theme=dark"]),
    ("x-forwarded-host", ["evil.example", "other.example"]),
    ("x-forwarded-for", ["192.0.2.1", "192.0.2.2, 192.0.2.3"]),
    ("x-forwarded-proto", ["http", "https"]),
    ("x-forwarded-port", ["80", "443"]),
    ("x-forwarded-prefix", ["/a", "/b"]),
    (
        "forwarded",
        ["for=192.0.2.1;host=evil.example", "proto=https"],
    ),
    ("x-real-ip", ["192.0.2.1", "192.0.2.2"]),
    ("accept-encoding", ["gzip", "br, zstd"]),
    ("accept-language", ["de", "en-GB,en;q=0.8"]),
    ("accept", ["image/png", "text/html;q=0.9,*/*"]),
    ("user-agent", ["curl/8", "Mozilla/5.0 (X11) Firefox/140.0"]),
    ("referer", ["https://a.example/", "https://b.example/x?y"]),
    ("origin", ["https://a.example", "null"]),
    ("dpr", ["1", "2"]),
    ("width", ["100", "200"]),
    ("sec-ch-dpr", ["1.0", "8"]),
    ("sec-ch-width", ["100", "200"]),
    ("viewport-width", ["320", "1280"]),
    ("sec-ch-viewport-width", ["320", "1280"]),
    ("sec-ch-ua", ["\"Chromium\"", "\"Other\""]),
    ("save-data", ["on", "off"]),
    ("range", ["bytes=0-3", "bytes=4-"]),
    ("if-none-match", ["\"v1\"", "*"]),
    ("if-match", ["\"v1\"", "*"]),
    ("if-modified-since", [OLD, NEW]),
    ("if-unmodified-since", [OLD, NEW]),
    ("if-range", ["\"v1\"", OLD]),
    ("cache-control", ["no-cache", "max-age=0"]),
    ("pragma", ["no-cache", "x"]),
    ("x-original-url", ["/admin", "/other"]),
    ("x-rewrite-url", ["/admin", "/other"]),
    ("x-http-method-override", ["DELETE", "POST"]),
    ("x-method-override", ["DELETE", "POST"]),
    ("x-host", ["evil.example", "other.example"]),
    ("via", ["1.1 one", "1.0 other"]),
    ("te", ["trailers", "gzip"]),
    ("priority", ["u=1", "u=5, i"]),
    ("content-type", ["image/png", "text/html"]),
    ("x-imgproxy-origin", ["a", "b"]),
    ("proxy-authorization", ["Basic YTpi", "Basic Yzpk"]),
    ("x-custom", ["one", "other"]),
];

/// Fields that are taken from requests to any other origin: it must not take them for the request's own.
const OF_GENERIC: &Fields = &[
    ("x-forwarded-host", ["evil.example", "other.example"]),
    ("x-forwarded-proto", ["http", "https"]),
    ("x-forwarded-port", ["80", "443"]),
    ("x-forwarded-prefix", ["/a", "/b"]),
    (
        "forwarded",
        ["for=192.0.2.1;host=evil.example", "proto=https"],
    ),
    ("accept-encoding", ["gzip", "br, zstd"]),
    ("range", ["bytes=0-3", "bytes=4-"]),
    ("if-none-match", ["\"v1\"", "*"]),
    ("if-match", ["\"v1\"", "*"]),
    ("if-modified-since", [OLD, NEW]),
    ("if-unmodified-since", [OLD, NEW]),
    ("if-range", ["\"v1\"", OLD]),
    ("x-original-url", ["/admin", "/other"]),
    ("x-rewrite-url", ["/admin", "/other"]),
    ("x-http-method-override", ["DELETE", "POST"]),
    ("x-method-override", ["DELETE", "POST"]),
    ("x-host", ["evil.example", "other.example"]),
];

/// Fields that reach any other origin, which has to say in `Vary` what it makes of them.
const NEGOTIATED: &Fields = &[
    ("accept", ["image/avif", "image/webp"]),
    ("accept-language", ["de", "en-GB,en;q=0.8"]),
    ("user-agent", ["curl/8", "Mozilla/5.0 (X11) Firefox/140.0"]),
    ("origin", ["https://a.example", "null"]),
    ("referer", ["https://a.example/", "https://b.example/x?y"]),
    ("dpr", ["1", "2"]),
    ("sec-ch-dpr", ["1.0", "8"]),
    ("width", ["100", "200"]),
    ("save-data", ["on", "off"]),
    ("x-forwarded-for", ["192.0.2.1", "192.0.2.2, 192.0.2.3"]),
    ("x-custom", ["one", "other"]),
];

const OLD: &str = "Thu, 01 Jan 2015 00:00:00 GMT";
const NEW: &str = "Fri, 01 Jan 2038 00:00:00 GMT";

#[tokio::test]
async fn an_imgproxy_sees_no_field_that_is_not_in_the_key() -> Result<()> {
    let origin = reflecting().await?;
    let stack = Stack::builder().upstream(origin.address()).start().await?;
    let path = |name: &str| format!("/insecure/w:10/plain/local:///{name}@png");
    let plain = stack.get(&path("plain")).await?;
    assert_eq!(plain.cache_status(), "afterimage; fwd=miss; stored");
    for (field, values) in OF_IMGPROXY {
        same_bytes_whoever_fills(&stack, &plain, &path, field, values).await?;
    }
    let fills = 1 + 2 * OF_IMGPROXY.len();
    stack.commits_reach(fills).await?;
    assert_eq!(stack.stored().await?, fills);
    // What the origin was told is this and no more.
    for seen in origin.requests() {
        for (name, value) in &seen.headers {
            match name.as_str() {
                "accept" => assert_eq!(value, "*/*"),
                "host" | "x-request-id" => {}
                // Envoy's own, which no external processor can take away.
                "x-envoy-expected-rq-timeout-ms" | "x-envoy-external-address" => {}
                name => panic!("{name}: {value}"),
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn hints_and_formats_that_a_policy_names_reach_imgproxy_as_they_stand_in_the_key()
-> Result<()> {
    let origin = reflecting().await?;
    let stack = Stack::builder()
        .upstream(origin.address())
        .policies(
            "images:
               kind: imgproxy
               unsigned: true
               formats: [avif, webp]
               dpr_steps: [1, 2]
               width_steps: [320, 640]",
        )
        .start()
        .await?;
    let path = |name: &str| format!("/insecure/w:10/plain/local:///{name}");
    for (field, one, alike, different) in [
        ("dpr", "1.5", "2", "1"),
        ("sec-ch-dpr", "1.2", "7", "0.5"),
        ("width", "400", "640", "100"),
        ("sec-ch-width", "641", "100000", "1"),
        ("accept", "image/avif", "x/y,image/avif;q=0.1", "image/webp"),
    ] {
        let path = path(field);
        let filled = get(&stack, &path, &[(field, one)]).await?;
        assert_eq!(filled.cache_status(), "afterimage; fwd=miss; stored");
        let hit = get(&stack, &path, &[(field, alike)]).await?;
        assert!(hit.is_hit(), "{field}: {hit:?}");
        assert_eq!(hit.body, filled.body, "{field}");
        let other = get(&stack, &path, &[(field, different)]).await?;
        assert!(!other.is_hit(), "{field}: {other:?}");
        assert_ne!(other.body, filled.body, "{field}");
    }
    Ok(())
}

#[tokio::test]
async fn a_cookie_bypasses_where_the_policy_says_so_and_always_for_generic_ones() -> Result<()> {
    let origin = reflecting().await?;
    let stack = Stack::builder()
        .upstream(origin.address())
        .policies(
            "{images: { kind: imgproxy, unsigned: true, cookies: bypass },
              generic: { kind: generic }}",
        )
        .route(envoy::route("/generic/", "imgproxy", Some("generic")))
        .start()
        .await?;
    let paths = ["/insecure/w:10/plain/local:///a@png", "/generic/a"];
    for path in paths {
        for cookie in ["session=alice", "session=bob"] {
            for _ in 0..2 {
                let answer = get(&stack, path, &[("cookie", cookie)]).await?;
                assert_eq!(answer.status, 200);
                assert_eq!(answer.cache_status(), "", "{path}: {answer:?}");
                assert!(text(&answer).contains(&format!("cookie: {cookie}\n")));
            }
        }
        assert_eq!(origin.requests_for(path).len(), 4);
        assert!(!text(&stack.get(path).await?).contains("cookie"));
        let with_cookie = get(&stack, path, &[("cookie", "session=bob")]).await?;
        assert!(text(&with_cookie).contains("session=bob"));
    }
    stack.commits_reach(paths.len()).await
}

#[tokio::test]
async fn a_cookie_that_is_ignored_reaches_no_origin() -> Result<()> {
    let origin = reflecting().await?;
    let stack = generic(&origin, "cookies: ignore").await?;
    let plain = stack.get("/plain").await?;
    let values = ["session=alice", "session=bob; theme=dark"];
    let path = |name: &str| format!("/{name}");
    same_bytes_whoever_fills(&stack, &plain, &path, "cookie", &values).await?;
    let seen = origin.requests();
    assert!(seen.iter().all(|seen| seen.header("cookie").is_none()));
    stack.commits_reach(3).await
}

#[tokio::test]
async fn an_origin_takes_no_field_for_the_requests_own() -> Result<()> {
    let origin = reflecting().await?;
    let stack = generic(&origin, "").await?;
    let plain = stack.get("/plain").await?;
    let path = |name: &str| format!("/{name}");
    for (field, values) in OF_GENERIC {
        same_bytes_whoever_fills(&stack, &plain, &path, field, values).await?;
    }
    let fills = 1 + 2 * OF_GENERIC.len();
    stack.commits_reach(fills).await?;
    assert_eq!(stack.stored().await?, fills);
    Ok(())
}

#[tokio::test]
async fn without_variants_an_answer_that_varies_by_a_field_outside_the_key_is_not_stored()
-> Result<()> {
    let origin = Origin::start().await?;
    for (field, _) in NEGOTIATED {
        let answer = |seen: &Seen| Script::reflection(seen).header("vary", field);
        origin.respond_with(&format!("/{field}"), answer);
    }
    let stack = generic(&origin, "store: { variants: 0 }").await?;
    for (field, values) in NEGOTIATED {
        for value in values.iter().chain(values) {
            let answer = get(&stack, &format!("/{field}"), &[(field, value)]).await?;
            assert_eq!(answer.cache_status(), "afterimage; fwd=miss", "{field}");
            assert!(text(&answer).contains(value), "{field}: {answer:?}");
        }
    }
    let refused = [("reason", "vary")];
    stack
        .metric_reaches(
            "afterimage_not_storable_total",
            &refused,
            4 * NEGOTIATED.len(),
        )
        .await?;
    assert_eq!(stack.stored().await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_field_in_the_key_makes_an_entry_for_each_of_its_values() -> Result<()> {
    let origin = Origin::start().await?;
    for (field, _) in NEGOTIATED {
        let answer = |seen: &Seen| Script::reflection(seen).header("vary", field);
        origin.respond_with(&format!("/{field}"), answer);
    }
    let names: Vec<_> = NEGOTIATED.iter().map(|(name, _)| *name).collect();
    let stack = generic(
        &origin,
        &format!("key: {{ headers: [{}] }}", names.join(", ")),
    )
    .await?;
    for (field, values) in NEGOTIATED {
        let path = format!("/{field}");
        for value in values {
            let miss = get(&stack, &path, &[(field, value)]).await?;
            assert_eq!(miss.cache_status(), "afterimage; fwd=miss; stored");
            assert!(text(&miss).contains(value), "{field}: {miss:?}");
        }
        for value in values {
            let hit = get(&stack, &path, &[(field, value)]).await?;
            assert!(hit.is_hit(), "{field}: {hit:?}");
            assert!(text(&hit).contains(value), "{field}: {hit:?}");
        }
    }
    stack.commits_reach(2 * NEGOTIATED.len()).await
}

#[tokio::test]
async fn the_host_is_always_in_the_key_of_another_origin() -> Result<()> {
    let origin = reflecting().await?;
    let stack = generic(&origin, "").await?;
    for host in ["a.example", "b.example", "a.example:81"] {
        let miss = get(&stack, "/image", &[("host", host)]).await?;
        assert_eq!(miss.cache_status(), "afterimage; fwd=miss; stored");
        let hit = get(&stack, "/image", &[("host", host)]).await?;
        assert!(hit.is_hit(), "{host}: {hit:?}");
        assert!(text(&hit).contains(&format!("host: {host}\n")), "{hit:?}");
    }
    stack.commits_reach(3).await
}

#[tokio::test]
async fn an_origin_sees_only_the_query_that_is_in_the_key() -> Result<()> {
    let origin = reflecting().await?;
    for (key, requests, sent) in [
        (
            "{ query: none }",
            ["/none?w=1&utm=2", "/none?evil=1", "/none"],
            "/none",
        ),
        (
            "{ query: [w, h] }",
            [
                "/only?utm=1&w=1&h=2",
                "/only?w=1&evil=1&h=2&w2=3",
                "/only?w=1&h=2",
            ],
            "/only?w=1&h=2",
        ),
    ] {
        let stack = generic(&origin, &format!("key: {key}")).await?;
        for (index, path) in requests.into_iter().enumerate() {
            let answer = stack.get(path).await?;
            assert_eq!(answer.is_hit(), index > 0, "{path}: {answer:?}");
            assert!(text(&answer).contains(&format!("GET {sent}\n")), "{path}");
        }
        stack.commits_reach(1).await?;
        assert_eq!(origin.requests_for(sent).len(), 1);
    }
    assert_eq!(origin.requests().len(), 2);
    // With all of the query in the key, another order is another key.
    let stack = generic(&origin, "").await?;
    for path in ["/all?w=1&h=2", "/all?h=2&w=1", "/all?", "/all"] {
        let answer = stack.get(path).await?;
        assert!(!answer.is_hit(), "{path}: {answer:?}");
        assert!(text(&answer).contains(&format!("GET {path}\n")), "{path}");
        assert!(stack.get(path).await?.is_hit(), "{path}");
    }
    stack.commits_reach(4).await
}

#[tokio::test]
async fn a_client_cannot_choose_a_policy_or_speak_in_our_name() -> Result<()> {
    let origin = reflecting().await?;
    let stack = Stack::builder()
        .upstream(origin.address())
        .policies(
            "{images: { kind: imgproxy, unsigned: true },
              generic: { kind: generic, freshness: { default: 1h } }}",
        )
        .route(envoy::route("/past/", "imgproxy", None))
        .start()
        .await?;
    let claims = [
        ("x-afterimage-policy", "generic"),
        ("cache-status", "afterimage; hit; ttl=9"),
    ];
    for path in ["/past/a", "/not-an-imgproxy-url"] {
        for _ in 0..2 {
            let answer = get(&stack, path, &claims).await?;
            assert_eq!(answer.cache_status(), "", "{path}: {answer:?}");
        }
        assert_eq!(origin.requests_for(path).len(), 2, "{path}");
    }
    assert_eq!(stack.stored().await?, 0);
    Ok(())
}

/// Fills one path with one value of a field and another path with the other. Both images are the one of a client that does
/// not send the field, whose image from `/plain` is given, and each client gets what the other one filled.
async fn same_bytes_whoever_fills(
    stack: &Stack,
    plain: &Answer,
    path: &impl Fn(&str) -> String,
    field: &str,
    values: &[&str; 2],
) -> Result<()> {
    let [one, two] = *values;
    for (name, filler, reader) in [("one", one, two), ("two", two, one)] {
        let name = format!("{field}-{name}");
        let path = path(&name);
        let miss = get(stack, &path, &[(field, filler)]).await?;
        assert_eq!(miss.status, 200, "{field}: {filler}");
        assert_eq!(
            miss.cache_status(),
            "afterimage; fwd=miss; stored",
            "{field}: {filler}"
        );
        let told = text(&miss).replace(&name, "plain");
        assert_eq!(told, text(plain), "{field}: {filler}");

        let hit = stack.get(&path).await?;
        assert!(hit.is_hit(), "{field}: {hit:?}");
        assert_eq!(hit.body, miss.body, "{field}: {filler}");
        // A condition or a range decides how much of it comes, but never what it is.
        let other = get(stack, &path, &[(field, reader)]).await?;
        assert!(
            matches!(other.status, 200 | 206 | 304 | 412),
            "{field}: {other:?}"
        );
        assert!(other.is_hit(), "{field}: {other:?}");
        assert!(is_part_of(&other.body, &miss.body), "{field}: {reader}");
        assert!(
            other.status != 200 || other.body == miss.body,
            "{field}: {reader}"
        );
    }
    Ok(())
}

/// A policy of the kind `generic` with these further settings for everything.
async fn generic(origin: &Origin, settings: &str) -> Result<Stack> {
    let mut policy = "images:\n  kind: generic\n".to_owned();
    if !settings.is_empty() {
        policy = format!("{policy}  {settings}\n");
    }
    let stack = Stack::builder().upstream(origin.address());
    stack.policies(&policy).start().await
}

/// An origin that puts everything it is told into the image.
async fn reflecting() -> Result<Origin> {
    let origin = Origin::start().await?;
    origin.otherwise(Script::reflection);
    Ok(origin)
}

async fn get(stack: &Stack, path: &str, fields: &[(&str, &str)]) -> Result<Answer> {
    let mut request = stack.client.request(Method::GET, path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let answer = stack.client.send(request).await;
    answer.with_context(|| format!("{path} {fields:?}"))
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

fn is_part_of(part: &Bytes, whole: &Bytes) -> bool {
    part.is_empty() || whole.windows(part.len()).any(|window| window == part)
}
