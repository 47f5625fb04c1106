mod headers;
mod recorded;

use std::collections::HashSet;

use bytes::Bytes;
use http::{Method, header};
use proptest::prelude::*;
use proptest::string::string_regex;

use super::*;
use crate::entry::Key;
use crate::policy::testing::{CASES, NOW, bypass, get, imgproxy, lookup, policy};
use crate::policy::{Cookies, Decision, Kind, Policy};

const PATH: &str = "/insecure/rs:fill:120:80/plain/local:///coffee.png@webp";

fn images(imgproxy: Imgproxy) -> Policy {
    policy(Kind::Imgproxy(imgproxy))
}

fn key(policy: &Policy, path: &str) -> Key {
    lookup(policy, &get(path, &[])).key
}

fn detecting() -> Imgproxy {
    Imgproxy {
        formats: vec![ImageFormat::Avif, ImageFormat::Webp],
        ..imgproxy()
    }
}

#[test]
fn the_host_is_in_the_key_only_on_demand() {
    let without = images(imgproxy());
    let with = Policy {
        key_host: true,
        ..without.clone()
    };
    let other = RequestHead {
        authority: Bytes::from_static(b"Other:80"),
        ..get(PATH, &[])
    };
    assert_eq!(lookup(&without, &other).key, key(&without, PATH));
    assert_ne!(lookup(&with, &other).key, key(&with, PATH));
    assert_eq!(
        lookup(&with, &other).key.source(),
        key(&without, PATH).source()
    );
    assert!(with.controls(&header::HOST) && !without.controls(&header::HOST));
}

#[test]
fn the_query_is_no_part_of_the_key() {
    let policy = images(imgproxy());
    for query in ["?", "?v=1", "?v=1&x=/y?z", "?@png"] {
        assert_eq!(key(&policy, &format!("{PATH}{query}")), key(&policy, PATH));
    }
    assert_eq!(
        key(&policy, "/x/plain/http://a/b.png?c=d@webp"),
        key(&policy, "/x/plain/http://a/b.png")
    );
}

#[test]
fn an_unsigned_first_segment_is_left_out_and_an_unknown_one_stays() {
    let unsigned = images(imgproxy());
    let unknown = images(Imgproxy {
        signing: Signing::Unknown,
        ..imgproxy()
    });
    let other = PATH.replace("insecure", "%69nsecure");
    assert_eq!(key(&unsigned, PATH), key(&unsigned, &other));
    assert_ne!(key(&unknown, PATH), key(&unknown, &other));
    assert_eq!(key(&unknown, PATH).source(), key(&unsigned, PATH).source());
    for policy in [unsigned, unknown] {
        let request = get(PATH.replace("insecure", "in:secure"), &[]);
        assert_eq!(bypass(&policy, &request), BypassReason::Signature);
    }
}

#[test]
fn under_an_unknown_signature_nothing_that_it_may_sign_is_left_out() {
    let unsigned = images(imgproxy());
    let unknown = images(Imgproxy {
        signing: Signing::Unknown,
        ..imgproxy()
    });
    let without = "/sig/w:1/plain/local:///a.png";
    for with in [
        "/sig/w:1/exp:1900000000/plain/local:///a.png",
        "/sig/w:1/plain/local:///a.png@",
        "/sig/w:1/plain/local:///%61.png",
        "/sig/w:1/bG9jYWw6Ly8vYS5wbmc",
    ] {
        assert_eq!(key(&unsigned, with), key(&unsigned, without), "{with}");
        assert_ne!(key(&unknown, with), key(&unknown, without), "{with}");
    }
    assert_eq!(
        key(&unknown, "/sig//w%3A1/plain/local:/a.png?x"),
        key(&unknown, without)
    );
}

#[test]
fn expires_is_enforced_and_no_part_of_the_key() {
    let policy = images(imgproxy());
    let request = get("/x/w:1/exp:1900000000/plain/a@png", &[]);
    assert_eq!(
        lookup(&policy, &request).key,
        key(&policy, "/x/w:1/plain/a@png")
    );
    assert_eq!(
        lookup(&policy, &request).expires,
        Some(Timestamp::from_unix(1_900_000_000))
    );
    for (now, is_valid) in [(0, true), (1_900_000_000, true), (1_900_000_001, false)] {
        match policy.decide(&request, Timestamp::from_unix(now)) {
            Decision::Lookup(_) => assert!(is_valid, "{now}"),
            Decision::Bypass(reason) => {
                assert!(!is_valid, "{now}");
                assert_eq!(reason, BypassReason::Expired);
            }
            Decision::Watch => panic!("imgproxy's methods are not watched"),
        }
    }
}

#[test]
fn an_expires_that_imgproxy_does_not_enforce_stays_in_the_key() {
    let policy = images(imgproxy());
    let keys: HashSet<_> = [
        "/x/w:1/plain/a",
        "/x/w:1/exp:0/plain/a",
        "/x/w:1/exp:-1/plain/a",
    ]
    .map(|path| key(&policy, path))
    .into();
    assert_eq!(keys.len(), 3);
}

#[test]
fn an_end_of_validity_is_not_looked_for_among_presets() {
    let policy = images(Imgproxy {
        only_presets: true,
        ..imgproxy()
    });
    let lookup = lookup(&policy, &get("/x/exp:1900000000/plain/a", &[]));
    assert_eq!(lookup.expires, None);
    assert_ne!(lookup.key, key(&policy, "/x/exp:1900000001/plain/a"));
}

#[test]
fn different_requests_have_different_keys() {
    let policy = images(imgproxy());
    let keys: HashSet<_> = [
        "/x/plain/a",
        "/x/plain/a@png",
        "/x/f:png/plain/a",
        "/x/w:1/plain/a",
        "/x/w:1/h:2/plain/a",
        "/x/h:2/w:1/plain/a",
        "/x/w:01/plain/a",
        "/x/width:1/plain/a",
        "/x/w:1/cb:1/plain/a",
        "/x/w:1/cb:2/plain/a",
        "/x/w:1/fn:b/plain/a",
        "/x/w:1/att:1/plain/a",
        "/x/w:1/:/plain/a",
        "/x/w:1/plain/a/b",
        "/x/w:1/plain/a//b",
        "/x/w:1/plain/A",
        "/x/w:1/plain/local://a",
        "/x/w:1/plain/local:///a",
        "/x/w:1/plain/a@jpg",
        "/x/w:1/plain/a@jpeg",
        "/x/enc/YQ",
        "/x/w:1/enc/YQ",
        "/x/raw:1/plain/a",
    ]
    .map(|path| key(&policy, path))
    .into();
    assert_eq!(keys.len(), 23);
}

#[test]
fn presets_and_options_of_the_same_spelling_have_different_keys() {
    let options = images(imgproxy());
    let presets = images(Imgproxy {
        only_presets: true,
        ..imgproxy()
    });
    assert_ne!(
        key(&options, "/x/a:b/plain/a"),
        key(&presets, "/x/a:b/plain/a")
    );
}

#[test]
fn all_derivatives_of_a_source_share_it_in_every_form_and_every_policy() {
    let one = images(imgproxy());
    let other = images(Imgproxy {
        only_presets: true,
        signing: Signing::Unknown,
        ..imgproxy()
    });
    let source = key(&one, PATH).source().clone();
    for path in [
        "/x/plain/local:///coffee.png",
        "/x/plain/local:/coffee.png@png",
        "/x/w:1/plain/local%3A%2F%2F%2Fcoffee.png",
        "/x/w:1/bG9jYWw6Ly8v/Y29mZmVlLnBuZw==.webp",
    ] {
        assert_eq!(*key(&one, path).source(), source, "{path}");
    }
    assert_eq!(
        *key(&other, "/x/a/bG9jYWw6Ly8vY29mZmVlLnBuZw").source(),
        source
    );
    assert_ne!(*key(&one, "/x/plain/local:///coffee2.png").source(), source);
    assert_ne!(
        *key(&one, "/x/enc/bG9jYWw6Ly8vY29mZmVlLnBuZw").source(),
        source
    );
}

#[test]
fn cookies_bypass_where_imgproxy_may_pass_them_on() {
    let policy = Policy {
        cookies: Cookies::Bypass,
        ..images(imgproxy())
    };
    assert_eq!(
        bypass(&policy, &get(PATH, &[("cookie", "a=b")])),
        BypassReason::Cookie
    );
}

/// What a path asks for, and whether the client accepts WebP.
#[derive(Debug, Clone, PartialEq)]
struct Parts {
    options: Vec<String>,
    source: String,
    extension: String,
    accepts_webp: bool,
}

impl Parts {
    fn request(&self, base64: bool) -> RequestHead {
        let mut path = String::from("/x/");
        for option in &self.options {
            path.extend([option.as_str(), "/"]);
        }
        let mark = if base64 {
            path.push_str(&BASE64URL_NOPAD.encode(self.source.as_bytes()));
            '.'
        } else {
            path.push_str("plain/");
            path.extend(self.source.bytes().map(|byte| format!("%{byte:02X}")));
            '@'
        };
        if !self.extension.is_empty() {
            path.push(mark);
            path.push_str(&self.extension);
        }
        let accept = if self.accepts_webp { "image/webp" } else { "" };
        get(path, &[("accept", accept)])
    }

    /// With a fixed format, what the client accepts does not count.
    fn without_idle_class(self) -> Self {
        Self {
            accepts_webp: self.accepts_webp && self.extension != "png",
            ..self
        }
    }
}

/// Draws from few letters, so that values that could be mistaken for each other come up often.
fn parts() -> impl Strategy<Value = Parts> {
    let options = proptest::collection::vec(string_regex("[ab]?:[ab:]{0,2}").unwrap(), 0..3);
    let source = string_regex("[ab/@.%:]{1,3}").unwrap();
    let extension = string_regex("(|a|png)").unwrap();
    (options, source, extension, any::<bool>()).prop_map(
        |(options, source, extension, accepts_webp)| Parts {
            options,
            source,
            extension,
            accepts_webp,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn keys_are_the_same_only_for_the_same_options_source_extension_and_class(
        a in parts(),
        other in parts(),
        differs in 0..5,
        (a_in_base64, b_in_base64) in any::<(bool, bool)>(),
    ) {
        let mut b = a.clone();
        match differs {
            0 => b.options = other.options,
            1 => b.source = other.source,
            2 => b.extension = other.extension,
            3 => b.accepts_webp = other.accepts_webp,
            _ => b = other,
        }
        let policy = images(detecting());
        let a_key = lookup(&policy, &a.request(a_in_base64)).key;
        let b_key = lookup(&policy, &b.request(b_in_base64)).key;
        prop_assert_eq!(a.source == b.source, a_key.source() == b_key.source());
        prop_assert_eq!(a.without_idle_class() == b.without_idle_class(), a_key == b_key);
    }
}
