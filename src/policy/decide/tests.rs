use data_encoding::HEXLOWER;
use http::Method;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::entry::KeyHasher;
use crate::policy::testing::{self, CASES, bypass, generic, get, imgproxy, lookup, policy};
use crate::policy::{Cookies, Generic, ImageFormat, Imgproxy, Query, Signing};

const PATH: &str = "/insecure/rs:fill:120:80/plain/local:///coffee.png@webp";

fn both_kinds() -> [Policy; 2] {
    [
        policy(Kind::Imgproxy(imgproxy())),
        policy(Kind::Generic(generic())),
    ]
}

#[test]
fn rfc9111_4_get_and_head_share_a_key() {
    for policy in both_kinds() {
        let mut head = get(PATH, &[]);
        head.method = Method::HEAD;
        let (get, head) = (lookup(&policy, &get(PATH, &[])), lookup(&policy, &head));
        assert_eq!(get.key, head.key);
        assert_eq!(get.method, LookupMethod::Get);
        assert_eq!(head.method, LookupMethod::Head);
    }
}

#[test]
fn rfc9111_4_methods_bodies_upgrades_and_credentials_bypass() {
    for mut policy in both_kinds() {
        policy.cookies = Cookies::Bypass;
        for method in [
            "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE", "get",
        ] {
            let mut request = get(PATH, &[]);
            request.method = method.parse().expect("a method");
            assert_eq!(bypass(&policy, &request), BypassReason::Method, "{method}");
        }
        let mut connect = get(PATH, &[]);
        connect.method = Method::CONNECT;
        assert_eq!(bypass(&policy, &connect), BypassReason::Upgrade);
        let mut body = get(PATH, &[]);
        body.has_body = true;
        assert_eq!(bypass(&policy, &body), BypassReason::RequestBody);
        for (name, reason) in [
            ("upgrade", BypassReason::Upgrade),
            ("authorization", BypassReason::Authorization),
            ("cookie", BypassReason::Cookie),
        ] {
            let request = get(PATH, &[(name, "x")]);
            assert_eq!(bypass(&policy, &request), reason, "{name}");
        }
    }
}

#[test]
fn the_first_reason_of_several_is_given() {
    let mut policy = policy(Kind::Imgproxy(imgproxy()));
    policy.cookies = Cookies::Bypass;
    let mut request = get("/", &[("cookie", "a=b")]);
    assert_eq!(bypass(&policy, &request), BypassReason::Cookie);
    request
        .headers
        .insert(header::AUTHORIZATION, HeaderValue::from_static("x"));
    assert_eq!(bypass(&policy, &request), BypassReason::Authorization);
    request.has_body = true;
    assert_eq!(bypass(&policy, &request), BypassReason::RequestBody);
    request.method = Method::POST;
    assert_eq!(bypass(&policy, &request), BypassReason::Method);
    request
        .headers
        .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    assert_eq!(bypass(&policy, &request), BypassReason::Upgrade);
}

#[test]
fn an_ignored_cookie_neither_changes_the_key_nor_reaches_the_upstream() {
    for policy in both_kinds() {
        let without = lookup(&policy, &get(PATH, &[]));
        let with = lookup(&policy, &get(PATH, &[("cookie", "a=b"), ("cookie", "c=d")]));
        assert_eq!(with.key, without.key);
        assert_eq!(with.forward.remove, [header::COOKIE]);
    }
}

#[test]
fn an_object_name_holds_namespace_epoch_source_and_digest() {
    let mut policy = policy(Kind::Imgproxy(imgproxy()));
    policy.namespace = "n".repeat(63).into();
    policy.epoch = u32::MAX;
    let key = lookup(&policy, &get(PATH, &[])).key;
    let name = key.object_name();
    let parts: Vec<_> = name.split('/').collect();
    assert_eq!(parts[..3], ["v1", &"n".repeat(63), "4294967295"]);
    assert_eq!(parts[3], HEXLOWER.encode(&key.source().digest()[..16]));
    assert_eq!(parts[4], HEXLOWER.encode(key.digest()));
    assert_eq!(name.strip_suffix(parts[4]), Some(&*key.source().prefix()));
    assert!(name.len() <= 180, "{}", name.len());
}

#[test]
fn namespace_and_epoch_separate_keys_and_the_name_of_the_policy_does_not() {
    let policy = policy(Kind::Imgproxy(imgproxy()));
    let key = |policy: &Policy| lookup(policy, &get(PATH, &[])).key;
    let other_name = Policy {
        name: "other".into(),
        ..policy.clone()
    };
    let other_namespace = Policy {
        namespace: "other".into(),
        ..policy.clone()
    };
    let other_epoch = Policy {
        epoch: 1,
        ..policy.clone()
    };
    assert_eq!(key(&policy), key(&other_name));
    assert_ne!(key(&policy), key(&other_namespace));
    assert_ne!(key(&policy), key(&other_epoch));
}

#[test]
fn neither_a_key_nor_a_pair_prints_what_it_was_made_of() {
    let key = lookup(&policy(Kind::Imgproxy(imgproxy())), &get(PATH, &[])).key;
    let printed = format!("{key:?}");
    assert!(
        !printed.contains("coffee") && !printed.contains("120"),
        "{printed}"
    );
}

/// A change of these keys loses the whole cache of everybody. It needs a new number in the label of
/// what changed (`afterimage imgproxy key 1`), and a reason.
#[test]
fn golden_keys() {
    let imgproxy = policy(Kind::Imgproxy(Imgproxy {
        formats: vec![ImageFormat::Avif, ImageFormat::Webp],
        dpr_steps: vec![1.0, 1.5, 2.0],
        width_steps: vec![320, 640],
        ..imgproxy()
    }));
    let unknown = policy(Kind::Imgproxy(Imgproxy {
        signing: Signing::Unknown,
        ..testing::imgproxy()
    }));
    let presets = policy(Kind::Imgproxy(Imgproxy {
        only_presets: true,
        ..testing::imgproxy()
    }));
    let with_host = Policy {
        key_host: true,
        ..imgproxy.clone()
    };
    let all = policy(Kind::Generic(generic()));
    let some = policy(Kind::Generic(Generic {
        invalidates: false,
        query: Query::Only(vec!["w".into(), "h".into()]),
        headers: vec![header::ACCEPT_LANGUAGE, header::ORIGIN],
    }));
    let none = policy(Kind::Generic(Generic {
        invalidates: false,
        query: Query::None,
        headers: Vec::new(),
    }));
    type Vector<'a> = (&'a Policy, &'a str, &'a [(&'a str, &'a str)], &'a str);
    let vectors: &[Vector<'_>] = &[
        (
            &imgproxy,
            PATH,
            &[],
            "v1/images/0/b99f8474857b8dc555bd9ffed480fe1b/74d0c11725cad1c5f09f0b8a45e50cfb58b6b3fbade0808a54d515e16ff7087f",
        ),
        (
            &imgproxy,
            "/x/plain/local:///coffee.png",
            &[("accept", "image/avif,image/webp,*/*")],
            "v1/images/0/b99f8474857b8dc555bd9ffed480fe1b/b1cc93754b7fce92a3c86bb5c2b34ba485ca4b47eb739749164501caf9bb2bde",
        ),
        (
            &imgproxy,
            "/x/w:9/exp:1900000000/bG9jYWw6Ly8vY29mZmVlLnBuZw",
            &[("dpr", "1.2"), ("width", "700")],
            "v1/images/0/b99f8474857b8dc555bd9ffed480fe1b/2ff5a755faa38e1d99716e4496acc32d20c00f887594b70d6d4fe1efb9effdda",
        ),
        (
            &imgproxy,
            "/x/enc/c2VjcmV0/LXRleHQ.png",
            &[],
            "v1/images/0/d18f5f54a7025e63dbf1a8ea45d04522/b7b75de9d82a2f13877dfd480d0cc7102e369f2adac6ed79115d48a9c868654f",
        ),
        (
            &with_host,
            PATH,
            &[],
            "v1/images/0/b99f8474857b8dc555bd9ffed480fe1b/a921baa642e447a2514ce9d3471012e3efe8a3811d48e8488b1c6df42d2168c5",
        ),
        (
            &unknown,
            PATH,
            &[],
            "v1/images/0/b99f8474857b8dc555bd9ffed480fe1b/90e487b784f3c994fc6daf44461009b58c71b922a5a6f7e479d4edfebdeafddb",
        ),
        (
            &presets,
            "/x/a:b/plain/local:///coffee.png@webp",
            &[],
            "v1/images/0/b99f8474857b8dc555bd9ffed480fe1b/199f988c6e3696ed4df7a9fd40913ef10611df3d94cf91eb812f161711951c4e",
        ),
        (
            &all,
            "/a/b.png?w=1&v=2",
            &[],
            "v1/images/0/6adfe925ca05fcabca270e29404852a4/075fde80b4f72ae2c093cc6c05ce0d18ff584ce36a12c7e0a3fe6d564ecb3929",
        ),
        (
            &all,
            "/a/b.png",
            &[],
            "v1/images/0/6adfe925ca05fcabca270e29404852a4/c47bf2f8e6ba859c0024db42ad88d770f475ad810b8007de6f87c74ce4a8c920",
        ),
        (
            &some,
            "/a/b.png?w=1&v=2&h",
            &[("accept-language", "de"), ("accept-language", "")],
            "v1/images/0/6adfe925ca05fcabca270e29404852a4/4f67a1abb055831ef66d75636f7ca430d42628fb98faea4cd650fc5fa93f0336",
        ),
        (
            &none,
            "/a/b.png?w=1&v=2",
            &[],
            "v1/images/0/6adfe925ca05fcabca270e29404852a4/01a852856b6be882d0038ce84366963d22094d5807a852923e860aa90941c280",
        ),
    ];
    for (policy, path, headers, name) in vectors {
        let key = lookup(policy, &get(path, headers)).key;
        assert_eq!(key.object_name(), *name, "{path}");
    }
}

fn encode(lists: &[Vec<Vec<u8>>]) -> [u8; 32] {
    let mut hasher = KeyHasher::new("test");
    for list in lists {
        hasher.list(list.iter().map(Vec::as_slice));
    }
    hasher.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn different_lists_have_different_hashes(
        a in vec(vec(vec(0..2u8, 0..3), 0..3), 0..3),
        b in vec(vec(vec(0..2u8, 0..3), 0..3), 0..3),
    ) {
        prop_assert_eq!(a == b, encode(&a) == encode(&b));
    }
}
