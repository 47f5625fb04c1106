//! Checks what holds for the readers of this module, whatever the input. Each function panics where
//! it does not.

use std::sync::LazyLock;
use std::time::Duration;

use http::header::{
    ACCEPT, AGE, CACHE_CONTROL, CONTENT_RANGE, DATE, ETAG, EXPIRES, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::cache_control::{CacheControl, RequestControl, Scope, limited_cache_control};
use super::freshness::{http_date, initial_age};
use super::testing::{NOW, generic, get, imgproxy, lookup, policy};
use super::{
    Conditions, Freshness, Heuristic, ImageFormat, Imgproxy, Kind, Policy, Selected, ServedBody,
};
use crate::clock::Timestamp;
use crate::entry::{BodyProof, Identity, Record};
use crate::policy::validators::Representation;

pub use super::imgproxy::fuzzing::imgproxy_path;

/// Checks lines of `Cache-Control`, read as such and as `CDN-Cache-Control`.
pub fn cache_control(lines: &[u8]) {
    const CDN: HeaderName = HeaderName::from_static("cdn-cache-control");
    let headers = fields(&[CACHE_CONTROL, CDN], lines);
    let control = CacheControl::of(&headers);
    let again = CacheControl::of(&field(CACHE_CONTROL, &written(&control)));
    assert_eq!(again, control);

    let directed = CacheControl::directed_at_us(&headers, &[CDN]);
    if directed.is_targeted {
        let again = field(CDN, &written(&directed.control));
        assert_eq!(CacheControl::directed_at_us(&again, &[CDN]), directed);
    } else {
        assert_eq!(directed.control, control);
    }

    for most in [0, 60, u64::MAX] {
        let limited = match limited_cache_control(&headers, most) {
            Some(lines) => CacheControl::of(
                &lines
                    .into_iter()
                    .map(|line| (CACHE_CONTROL, line))
                    .collect(),
            ),
            None => control.clone(),
        };
        let expected = CacheControl {
            max_age: control.max_age.map(|seconds| seconds.min(most)),
            s_maxage: control.s_maxage.map(|seconds| seconds.min(most)),
            ..control.clone()
        };
        assert_eq!(limited, expected);
    }

    let request = RequestControl::of(&headers);
    for (age, ttl) in [(0, 1), (60, 60), (u64::MAX, u64::MAX)] {
        let takes = request.takes_fresh(age, ttl) || request.takes_stale(age, ttl);
        assert!(!(takes && request.no_cache));
        assert!(!request.takes_fresh(age, ttl) || request.max_age.is_none_or(|most| age <= most));
        assert!(!request.takes_stale(age, ttl) || request.max_stale.is_some());
    }
}

/// Checks conditions and ranges. Lines: length of the body (else 10), `Range`, `If-Range`,
/// `If-None-Match`, `If-Modified-Since`.
pub fn range(lines: &[u8]) {
    let mut lines = lines.splitn(5, |&byte| byte == b'\n');
    let length = lines
        .next()
        .and_then(|digits| str::from_utf8(digits).ok()?.parse().ok())
        .unwrap_or(10);
    let names = [RANGE, IF_RANGE, IF_NONE_MATCH, IF_MODIFIED_SINCE];
    let request = in_turn(&names, lines);
    let mut stored = field(LAST_MODIFIED, "Wed, 01 Jan 2025 00:00:00 GMT");
    stored.insert(
        DATE,
        HeaderValue::from_static("Wed, 01 Jan 2025 10:00:00 GMT"),
    );
    let etag = HeaderValue::from_static("\"a\"");
    let select = |request: &HeaderMap, is_get| {
        Conditions::of(request, is_get).select(&Representation {
            etag: Some(&etag),
            headers: &stored,
            content_length: length,
        })
    };
    let without = |name: HeaderName| {
        let mut request = request.clone();
        request.remove(name);
        request
    };

    let selected = select(&request, true);
    match selected {
        Selected::Whole => {}
        Selected::Part { first, last } => {
            assert!(first <= last && last < length);
            let plain = field(RANGE, &format!("bytes={first}-{last}"));
            assert_eq!(select(&plain, true), selected);
            assert_eq!(select(&without(IF_RANGE), true), selected);
        }
        Selected::Unsatisfiable => {
            assert!(request.contains_key(RANGE));
            assert_eq!(select(&without(IF_RANGE), true), selected);
        }
        Selected::NotModified => {
            assert!(request.contains_key(IF_NONE_MATCH) || request.contains_key(IF_MODIFIED_SINCE));
            assert_eq!(select(&without(RANGE), true), selected);
        }
    }
    let of_head = select(&request, false);
    assert_eq!(of_head, select(&without(RANGE), true));
    assert!(matches!(of_head, Selected::Whole | Selected::NotModified));
    served(&request, stored, length);
}

/// Asserts that the status, fields and body of an answer agree, whatever the request asks for.
fn served(request: &HeaderMap, mut stored: HeaderMap, length: u64) {
    stored.insert(ETAG, HeaderValue::from_static("\"a\""));
    let record = Record {
        body: BodyProof {
            content_length: length,
            ..BodyProof::of(&[])
        },
        ..record(stored, 0)
    };
    let policy = policy(Kind::Generic(generic()));
    let status = HeaderValue::from_static("afterimage; hit; ttl=1");
    for method in [Method::GET, Method::HEAD] {
        let mut head = get("/", &[]);
        head.method = method.clone();
        head.headers = request.clone();
        let served = policy.serve(&lookup(&policy, &head), &record, 7, &status, NOW);
        assert_eq!(served.headers[AGE], "7");
        let range = served.headers.get(CONTENT_RANGE);
        match (served.status.as_u16(), served.body) {
            (200, ServedBody::Whole) => assert!(method == Method::GET && range.is_none()),
            (200, ServedBody::Length(of_head)) => {
                assert!(method == Method::HEAD && of_head == length && range.is_none());
            }
            (206, ServedBody::Part { first, last }) => {
                assert_eq!(
                    range.unwrap_or(&status),
                    &format!("bytes {first}-{last}/{length}")
                );
            }
            (416, ServedBody::Nothing) => {
                assert_eq!(range.unwrap_or(&status), &format!("bytes */{length}"));
            }
            (304, ServedBody::Nothing) => assert!(range.is_none()),
            other => panic!("{other:?}"),
        }
    }
}

/// The formats that an imgproxy may choose by `Accept`, in the order in which they are forwarded.
const FORMATS: [(ImageFormat, &str); 3] = [
    (ImageFormat::Jxl, "image/jxl"),
    (ImageFormat::Avif, "image/avif"),
    (ImageFormat::Webp, "image/webp"),
];

type Formats = &'static [(ImageFormat, &'static str)];

/// Two policies: one for an imgproxy that chooses among all formats, one for a single format.
static CHOOSING: LazyLock<[(Formats, Policy); 2]> = LazyLock::new(|| {
    [&FORMATS[..], &FORMATS[1..2]].map(|formats| {
        let settings = Imgproxy {
            formats: formats.iter().map(|(format, _)| *format).collect(),
            ..imgproxy()
        };
        (formats, policy(Kind::Imgproxy(settings)))
    })
});

/// Checks lines of `Accept`.
pub fn accept(lines: &[u8]) {
    let accept = fields(&[ACCEPT], lines);
    for (formats, policy) in CHOOSING.iter() {
        let decide = |accept: &HeaderMap| {
            let mut request = get("/x/w:1/plain/local:///a.png", &[]);
            request.headers = accept.clone();
            lookup(policy, &request)
        };
        let asked = decide(&accept);
        let contained: Vec<&str> = formats
            .iter()
            .map(|(_, name)| *name)
            .filter(|name| contains(&accept, name))
            .collect();
        let class = if contained.is_empty() {
            "*/*".to_owned()
        } else {
            contained.join(",")
        };
        assert_eq!(asked.forward.set, [(ACCEPT, class.parse().expect("ASCII"))]);
        // A request whose `Accept` is just its class has the same key.
        assert_eq!(decide(&field(ACCEPT, &class)).key, asked.key);
    }
}

fn contains(headers: &HeaderMap, text: &str) -> bool {
    headers.get_all(ACCEPT).iter().any(|line| {
        line.as_bytes()
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    })
}

/// Checks dates and ages. Lines: `Date`, `Expires`, `Last-Modified`, `Age`.
pub fn dates(lines: &[u8]) {
    let names = [DATE, EXPIRES, LAST_MODIFIED, AGE];
    let headers = in_turn(&names, lines.splitn(4, |&byte| byte == b'\n'));
    for name in &names {
        if let Some(date) = http_date(headers.get(name)) {
            let seconds = Duration::from_secs(date.as_unix());
            let text = httpdate::fmt_http_date(std::time::UNIX_EPOCH + seconds);
            assert_eq!(http_date(field(DATE, &text).get(DATE)), Some(date));
        }
    }

    let delay = 3;
    let initial = initial_age(&headers, NOW, NOW.plus_seconds(delay));
    assert!(initial >= delay);
    if let Some(date) = http_date(headers.get(DATE)) {
        assert!(initial >= NOW.plus_seconds(delay).seconds_since(date));
    }

    let mut policy = policy(Kind::Generic(generic()));
    policy.freshness.heuristic = Some(Heuristic {
        percent: 100,
        ceiling: Duration::MAX,
    });
    let record = record(headers, initial);
    let has_lifetime =
        record.headers.contains_key(EXPIRES) || record.headers.contains_key(LAST_MODIFIED);
    let most = policy.freshness.ceiling.as_secs();
    let mut was_stale = false;
    for now in [0, NOW.as_unix(), NOW.as_unix() + 60, NOW.as_unix() + most] {
        let resident = Timestamp::from_unix(now).seconds_since(NOW);
        let expected = initial.saturating_add(resident);
        match policy.freshness(&record, Timestamp::from_unix(now)) {
            Freshness::Fresh { age, ttl } => {
                assert_eq!(age, expected);
                assert!(!was_stale && has_lifetime && ttl > 0 && age + ttl <= most);
            }
            Freshness::Stale { age, staleness, .. } => {
                assert!(age == expected && staleness <= age);
                was_stale = true;
            }
        }
    }
    assert!(was_stale);
}

fn record(headers: HeaderMap, initial_age: u64) -> Record {
    Record {
        identity: Identity::of(&crate::entry::Key::from_parts("test", 1, [0; 32], [0; 32])),
        status: StatusCode::OK,
        headers,
        response_time: NOW,
        initial_age,
        body: BodyProof::of(&[]),
        variants: None,
    }
}

/// Makes each line a field of each name, and leaves out lines that no field may hold.
fn fields(names: &[HeaderName], lines: &[u8]) -> HeaderMap {
    lines
        .split(|&byte| byte == b'\n')
        .filter_map(|line| HeaderValue::from_bytes(line).ok())
        .flat_map(|line| names.iter().map(move |name| (name.clone(), line.clone())))
        .collect()
}

/// Makes the first line a field of the first name, and so on; an empty line makes none.
fn in_turn<'a>(names: &[HeaderName], lines: impl Iterator<Item = &'a [u8]>) -> HeaderMap {
    names
        .iter()
        .zip(lines)
        .filter(|(_, line)| !line.is_empty())
        .filter_map(|(name, line)| Some((name.clone(), HeaderValue::from_bytes(line).ok()?)))
        .collect()
}

fn field(name: HeaderName, value: &str) -> HeaderMap {
    let value = HeaderValue::from_str(value).expect("no control characters");
    HeaderMap::from_iter([(name, value)])
}

/// Writes the directives in a form that is both `Cache-Control` and a dictionary.
fn written(control: &CacheControl) -> String {
    // A targeted field that is empty counts as absent.
    let mut text = "x".to_owned();
    let mut scoped = |name: &str, scope: &Scope| match scope {
        Scope::Nothing => {}
        Scope::Response => text += &format!(", {name}"),
        Scope::Fields(names) => {
            let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
            text += &format!(", {name}=\"{}\"", names.join(" , "));
        }
    };
    scoped("private", &control.private);
    scoped("no-cache", &control.no_cache);
    for (name, is_there) in [
        ("no-store", control.no_store),
        ("public", control.public),
        ("must-revalidate", control.must_revalidate),
        ("proxy-revalidate", control.proxy_revalidate),
        ("must-understand", control.must_understand),
    ] {
        if is_there {
            text += &format!(", {name}");
        }
    }
    for (name, seconds) in [
        ("s-maxage", control.s_maxage),
        ("max-age", control.max_age),
        ("stale-while-revalidate", control.stale_while_revalidate),
        ("stale-if-error", control.stale_if_error),
    ] {
        if let Some(seconds) = seconds {
            text += &format!(", {name}={seconds}");
        }
    }
    text
}
