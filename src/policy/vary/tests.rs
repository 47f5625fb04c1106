use http::HeaderValue;

use super::*;
use crate::entry::{Key, Variants};
use crate::policy::Kind;
use crate::policy::testing::{self, get};

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        })
        .collect()
}

fn names(names: &[&'static str]) -> Vec<HeaderName> {
    names.iter().copied().map(HeaderName::from_static).collect()
}

fn key() -> Key {
    Key::from_parts("test", 1, [1; 32], [2; 32])
}

fn selects_the_same(
    fields: &[&'static str],
    a: &[(&'static str, &str)],
    b: &[(&'static str, &str)],
) -> bool {
    let fields = names(fields);
    key().variant(&fields, &headers(a)) == key().variant(&fields, &headers(b))
}

#[test]
fn rfc9111_4_1_which_requests_select_the_same_response() {
    let (language, agent) = ("accept-language", "user-agent");
    for (fields, a, b, is_same) in [
        (&[agent][..], &[(agent, "x")][..], &[(agent, "x")][..], true),
        (&[agent], &[(agent, "x")], &[(agent, "y")], false),
        // Both absent match; absent and empty do not.
        (&[agent], &[], &[], true),
        (&[agent], &[], &[(agent, "")], false),
        // A field that `Vary` does not name plays no role.
        (
            &[agent],
            &[(agent, "x"), (language, "de")],
            &[(agent, "x")],
            true,
        ),
        // Spacing and lines of a list play no role; case, order and number of members do.
        (
            &[language],
            &[(language, "de, en")],
            &[(language, "de,en")],
            true,
        ),
        (
            &[language],
            &[(language, "de"), (language, "en")],
            &[(language, "de,en")],
            true,
        ),
        (
            &[language],
            &[(language, "de,en")],
            &[(language, "en,de")],
            false,
        ),
        (
            &[language],
            &[(language, "de,en")],
            &[(language, "de")],
            false,
        ),
        (&[language], &[(language, "de")], &[(language, "DE")], false),
        // Every difference in an unknown field counts.
        (&[agent], &[(agent, "a, b")], &[(agent, "a,b")], false),
        (
            &[agent],
            &[(agent, "a"), (agent, "b")],
            &[(agent, "ab")],
            false,
        ),
        // A value does not move from one field to another.
        (
            &[agent, language],
            &[(agent, "x")],
            &[(language, "x")],
            false,
        ),
    ] {
        assert_eq!(
            selects_the_same(fields, a, b),
            is_same,
            "{fields:?} {a:?} {b:?}"
        );
    }
}

#[test]
fn a_variant_is_not_its_primary_key_nor_another_one_s() {
    let other = Key::from_parts("test", 1, [1; 32], [3; 32]);
    let fields = names(&["user-agent"]);
    let request = headers(&[]);
    assert_ne!(key().variant(&fields, &request), key());
    assert_ne!(
        key().variant(&fields, &request),
        other.variant(&fields, &request)
    );
    assert_ne!(
        key().variant(&names(&["x"]), &request),
        key().variant(&fields, &request)
    );
}

#[test]
fn the_digest_of_a_variant_is_pinned() {
    let request = headers(&[("accept-language", "de, en"), ("user-agent", "x")]);
    let key = key().variant(&names(&["accept-language", "user-agent"]), &request);
    assert_eq!(
        data_encoding::HEXLOWER.encode(key.digest()),
        "76b4816b718d6ce3a86558ec38b9aae6ae40f43baf4ec622b7d937944109fe5a"
    );
}

#[test]
fn rfc9111_4_1_vary_that_matches_no_request() {
    let mut policy = testing::policy(Kind::Generic(testing::generic()));
    policy.store.variants = 2;
    let varies_by = |vary: &str| policy.varies_by(&headers(&[("vary", vary)]));
    for (vary, expected) in [
        ("User-Agent", Ok(names(&["user-agent"]))),
        ("X-B, x-a,X-A,", Ok(names(&["x-a", "x-b"]))),
        // Taken out of requests that lead, or in the primary key.
        ("Accept-Encoding, Cookie, Host", Ok(Vec::new())),
        ("*", Err(MatchesNothing)),
        ("User-Agent, *", Err(MatchesNothing)),
        ("a b", Err(MatchesNothing)),
        ("a,b,c,d,e,f,g,h,i", Err(MatchesNothing)),
    ] {
        assert_eq!(varies_by(vary), expected, "{vary}");
    }
}

#[test]
fn what_is_allowed_to_one_origin_is_not_served_to_another() {
    let field = "access-control-allow-origin";
    let varies_by = |policy: &Policy, fields: &[(&'static str, &str)]| {
        policy.varies_by(&headers(fields)).unwrap()
    };
    let generic = testing::policy(Kind::Generic(testing::generic()));
    let reflected = [(field, "https://a.example")];
    assert_eq!(varies_by(&generic, &reflected), names(&["origin"]));
    let both = [(field, "https://a.example"), ("vary", "Origin")];
    assert_eq!(varies_by(&generic, &both), names(&["origin"]));
    assert!(varies_by(&generic, &[(field, "*")]).is_empty());
    // Requests that lead carry no Origin to imgproxy.
    let imgproxy = testing::policy(Kind::Imgproxy(testing::imgproxy()));
    assert!(varies_by(&imgproxy, &reflected).is_empty());
}

#[test]
fn the_number_of_variants_is_bounded() {
    let fields = names(&["user-agent"]);
    let variant = |agent| key().variant(&fields, &get("/", &[("user-agent", agent)]).headers);
    let first = Variants::with(None, fields.clone(), &variant("a"), 2).unwrap();
    let second = Variants::with(Some(&first), fields.clone(), &variant("b"), 2).unwrap();
    assert_eq!(second.stored.len(), 2);
    assert_eq!(
        Variants::with(Some(&second), fields.clone(), &variant("c"), 2),
        None
    );
    // A variant that is stored already may be replaced.
    assert_eq!(
        Variants::with(Some(&second), fields.clone(), &variant("a"), 2),
        Some(second.clone())
    );
    // The most recent response decides about the fields, and variants of the former ones are not
    // found.
    let other = names(&["x"]);
    let begun = Variants::with(Some(&second), other.clone(), &variant("a"), 2).unwrap();
    assert_eq!((begun.fields, begun.stored.len()), (other, 1));
}
