//! Rules that hold for every response, request and policy.

mod drawn;

use std::time::Duration;

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPIRES, IF_NONE_MATCH,
    RANGE, SET_COOKIE, UPGRADE,
};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use self::drawn::{
    CDN, Directive, Drawn, DrawnRequest, Meant, key_policies, policies, requests, responses,
    two_requests,
};
use super::cache_control::CacheControl;
use super::freshness::http_date;
use super::testing::{CASES, NOW, forwarded, get, imgproxy, lookup, policy};
use super::{
    Answered, Authorization, Checked, Clients, Cookies, Decision, Freshness, FreshnessRules, Kind,
    NotStorable, Policy, Provenance, Statuses, Storable,
};
use crate::clock::Timestamp;
use crate::entry::{BodyProof, Identity, Record};

const LARGEST: u64 = 1000;

fn judge(policy: &Policy, drawn: &Drawn, is_authorized: bool) -> Result<Storable, NotStorable> {
    policy.storable(&drawn.head, NOW, NOW, is_authorized, LARGEST)
}

fn is_understood(status: StatusCode) -> bool {
    status.as_u16() != 599
}

/// Whether a response must not be stored, whatever else it says: RFC 9111 section 3, and what this
/// cache never does.
fn is_forbidden(policy: &Policy, drawn: &Drawn, is_authorized: bool) -> bool {
    let Drawn { head, meant, .. } = drawn;
    let status = head.status.as_u16();
    let is_negative = !policy.freshness.negative.is_empty() && status == 404;
    let is_taken = status == 200 || is_negative || policy.store.statuses == Statuses::Any;
    let has_lifetime = meant.explicit_lifetime(drawn.date).is_some()
        || meant.says(Directive::NoCache)
        || policy.freshness.default.is_some()
        || policy.freshness.heuristic.is_some()
        || is_negative;
    let varies = match policy.kind {
        Kind::Imgproxy(_) => drawn.vary.contains('*'),
        Kind::Generic(_) => {
            drawn.vary.contains('*') || drawn.vary == "user-agent" && policy.store.variants == 0
        }
    };
    let lengths: Vec<_> = head.headers.get_all(CONTENT_LENGTH).iter().collect();
    let has_length = match (&lengths[..], &policy.kind) {
        ([], Kind::Imgproxy(_)) => false,
        ([], Kind::Generic(_)) => true,
        ([length], _) => length
            .to_str()
            .is_ok_and(|text| text.parse::<u64>().is_ok_and(|length| length <= LARGEST)),
        _ => false,
    };
    head.provenance != Provenance::Upstream
        || matches!(status, 206 | 304)
        || !is_taken
        || meant.says(Directive::NoStore)
            && !(meant.says(Directive::MustUnderstand) && is_understood(head.status))
        || meant.says(Directive::MustUnderstand) && !is_understood(head.status)
        || meant.says(Directive::Private)
        || is_authorized && !meant.shares_authorized()
        || head.headers.contains_key(SET_COOKIE)
        || varies
        || !has_lifetime
        || !has_length
}

/// Fields that must not reach another client.
fn forbidden_fields(meant: &Meant) -> Vec<&'static str> {
    let mut names = vec![
        "connection",
        "content-length",
        "keep-alive",
        "transfer-encoding",
        "age",
        "x-d",
    ];
    if meant.says(Directive::PrivateField) && !meant.says(Directive::Private) {
        names.push("x-a");
    }
    // A plain `no-cache` covers the whole response, these fields included.
    if meant.says(Directive::NoCacheField) && !meant.says(Directive::NoCache) {
        names.extend(["x-b", "x-c"]);
    }
    names
}

fn record(storable: &Storable) -> Record {
    Record {
        identity: Identity::of(&crate::entry::Key::from_parts("test", 1, [0; 32], [0; 32])),
        status: storable.status,
        headers: storable.headers.clone(),
        response_time: storable.response_time,
        initial_age: storable.initial_age,
        body: BodyProof::of(&[]),
        variants: None,
    }
}

/// The longest that a response without explicit freshness may stay fresh.
fn longest_guess(rules: &FreshnessRules) -> u64 {
    let negative = rules.negative.iter().map(|(_, lifetime)| *lifetime);
    let heuristic = rules.heuristic.map(|heuristic| heuristic.ceiling);
    let guesses = negative.chain(heuristic).chain(rules.default);
    guesses.max().unwrap_or_default().as_secs()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn rfc9111_3_never_stored_if_something_forbids_it(
        policy in policies(),
        drawn in responses(),
        is_authorized in any::<bool>(),
    ) {
        if let Ok(storable) = judge(&policy, &drawn, is_authorized) {
            prop_assert!(!is_forbidden(&policy, &drawn, is_authorized));
            for name in forbidden_fields(&drawn.meant) {
                prop_assert!(!storable.headers.contains_key(name), "{}", name);
            }
        }
    }

    #[test]
    fn rfc9111_4_never_reused_if_neither_fresh_nor_allowed_to_be_stale(
        policy in policies(),
        drawn in responses(),
        elapsed in 0..150_u64,
    ) {
        let Ok(storable) = judge(&policy, &drawn, false) else {
            return Ok(());
        };
        let meant = &drawn.meant;
        let rules = &policy.freshness;
        let is_fallback = rules.fallback_max_age.is_some()
            && meant.max_age() == rules.fallback_max_age.map(|max_age| max_age.as_secs());
        let within = |own: Option<u64>, of_policy: Option<Duration>, staleness: u64| {
            let of_policy = of_policy.map_or(0, |window| window.as_secs());
            !is_fallback && !meant.forbids_stale() && staleness < own.unwrap_or(of_policy)
        };
        match policy.freshness(&record(&storable), NOW.plus_seconds(elapsed)) {
            Freshness::Fresh { age, ttl } => {
                prop_assert!(!meant.says(Directive::NoCache));
                let ceiling = rules.ceiling.as_secs();
                let status = storable.status;
                let negative = rules.negative.iter().find(|(negative, _)| *negative == status);
                let negative = negative.filter(|_| !is_fallback).map(|(_, most)| most.as_secs());
                let has_floor = !is_fallback && negative.is_none();
                let floor = if has_floor { rules.floor.as_secs() } else { 0 };
                let bounded = |lifetime: u64| {
                    lifetime.min(negative.unwrap_or(u64::MAX)).clamp(floor, ceiling)
                };
                match meant.explicit_lifetime(drawn.date) {
                    Some(explicit) => prop_assert_eq!(age + ttl, bounded(explicit)),
                    None => prop_assert!(age + ttl <= bounded(longest_guess(rules))),
                }
            }
            Freshness::Stale { staleness, while_revalidate, if_error, if_taken, .. } => {
                prop_assert!(
                    !while_revalidate
                        || within(meant.stale_while_revalidate(), rules.stale_while_revalidate, staleness)
                );
                prop_assert!(!if_error || within(meant.stale_if_error(), rules.stale_if_error, staleness));
                prop_assert!(!if_taken || !meant.forbids_stale());
            }
        }
    }

    #[test]
    fn rfc9111_4_2_3_no_age_is_less_than_what_is_known_of_it(
        policy in policies(),
        drawn in responses(),
        delay in 0..50_u64,
        elapsed in 0..400_u64,
        later in 0..400_u64,
    ) {
        let received = NOW.plus_seconds(delay);
        let Ok(storable) = policy.storable(&drawn.head, NOW, received, false, LARGEST) else {
            return Ok(());
        };
        let record = record(&storable);
        let at = |now| match policy.freshness(&record, now) {
            Freshness::Fresh { age, .. } => (age, false),
            Freshness::Stale { age, .. } => (age, true),
        };
        let now = received.plus_seconds(elapsed);
        let (age, is_stale) = at(now);
        prop_assert!(age >= drawn.age + delay + elapsed);
        let date = Timestamp::from_unix(NOW.as_unix().saturating_add_signed(drawn.date));
        prop_assert!(age >= now.seconds_since(date) || date > received);
        let (later_age, is_stale_later) = at(now.plus_seconds(later));
        prop_assert_eq!(later_age, age + later);
        prop_assert!(is_stale_later || !is_stale);
        // After the clock was set back, a response is as old as when it arrived.
        prop_assert_eq!(at(Timestamp::from_unix(0)).0, storable.initial_age);
    }

    #[test]
    fn rfc9111_4_3_4_an_answer_changes_no_bytes_and_leaves_nothing_that_is_not_for_all(
        policy in policies(),
        first in responses(),
        second in responses(),
        status in select(vec![304_u16, 304, 304, 304, 200, 500, 404]),
    ) {
        let Ok(storable) = judge(&policy, &first, false) else {
            return Ok(());
        };
        let stored = record(&storable);
        let mut head = second.head.clone();
        head.status = StatusCode::from_u16(status).expect("a status");
        let (updated, is_kept) = match policy.answered(&stored, &head, NOW, NOW) {
            Answered::Unchanged { record, is_kept } => {
                prop_assert!(status == 304 && head.provenance == Provenance::Upstream);
                (record, is_kept)
            }
            Answered::Failed => {
                prop_assert_eq!(status, 500);
                return Ok(());
            }
            Answered::Changed => match policy.checked(&stored, &head, NOW, NOW) {
                Checked::Unchanged(record) => {
                    prop_assert!(status == 200 && head.provenance == Provenance::Upstream);
                    (record, true)
                }
                Checked::Changed | Checked::Nothing => return Ok(()),
            },
        };
        prop_assert_eq!(updated.status, stored.status);
        prop_assert_eq!(updated.body, stored.body);
        prop_assert_eq!(updated.identity, stored.identity);
        prop_assert_eq!(updated.headers.get(CONTENT_TYPE), stored.headers.get(CONTENT_TYPE));
        // A targeted field that was stored before still counts.
        let is_directed_anew = second.meant.is_targeted || !updated.headers.contains_key(CDN);
        for name in forbidden_fields(&second.meant) {
            let may_be = name.starts_with("x-") && !is_directed_anew;
            prop_assert!(may_be || !updated.headers.contains_key(name), "{}", name);
        }
        if is_kept {
            prop_assert!(!updated.headers.contains_key(SET_COOKIE));
            prop_assert!(!second.meant.says(Directive::NoStore));
            prop_assert!(!second.meant.says(Directive::Private));
            prop_assert!(!second.vary.contains('*'));
        }
    }

    #[test]
    fn no_copy_outlives_the_url_that_it_was_given_for(
        drawn in responses(),
        age in 0..400_u64,
        left in 1..400_u64,
    ) {
        let policy = policy(Kind::Imgproxy(imgproxy()));
        let Ok(storable) = judge(&policy, &drawn, false) else {
            return Ok(());
        };
        let end = NOW.plus_seconds(left);
        let path = format!("/x/exp:{}/plain/local:///a.png", end.as_unix());
        let status = HeaderValue::from_static("afterimage; hit");
        let served = policy.serve(&lookup(&policy, &get(path, &[])), &record(&storable), age, &status, NOW);
        let control = CacheControl::of(&served.headers);
        for lifetime in [control.max_age, control.s_maxage].into_iter().flatten() {
            prop_assert!(lifetime <= left + age);
        }
        if control.max_age.is_none() {
            prop_assert!(http_date(served.headers.get(EXPIRES)).is_none_or(|expires| expires <= end));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn what_is_not_in_the_key_does_not_reach_the_upstream(
        (first, second) in two_requests(),
        policy in select(Vec::from(key_policies())),
    ) {
        let (a, b) = (lookup(&policy, &first), lookup(&policy, &second));
        if a.key != b.key {
            return Ok(());
        }
        let controlled = |request| -> Vec<_> {
            let mut fields = forwarded(&policy, request);
            fields.retain(|(name, _)| policy.controls(&HeaderName::try_from(name).expect("a name")));
            fields
        };
        let fields = controlled(&first);
        prop_assert_eq!(&fields, &controlled(&second));
        for name in [RANGE, IF_NONE_MATCH] {
            prop_assert!(fields.iter().all(|(other, _)| name != other.as_str()));
        }
        if let Kind::Generic(_) = policy.kind {
            prop_assert_eq!(a.forward.path.unwrap_or(first.path), b.forward.path.unwrap_or(second.path));
        }
    }

    #[test]
    fn never_looked_up_if_something_outside_the_url_forbids_it(
        request in requests(),
        policy in select(Vec::from(key_policies())),
        method in select(vec!["GET", "GET", "HEAD", "POST", "OPTIONS", "CONNECT", "get"]),
        (has_body, upgrades, is_authorized, keeps_cookies) in any::<(bool, bool, bool, bool)>(),
        (applies_3_5, obeys) in any::<(bool, bool)>(),
    ) {
        let (mut policy, mut request) = (policy, request);
        request.method = method.parse().expect("a method");
        request.has_body = has_body;
        request.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        for (name, is_there) in [(UPGRADE, upgrades), (AUTHORIZATION, is_authorized)] {
            if is_there {
                request.headers.insert(name, HeaderValue::from_static("x"));
            }
        }
        if applies_3_5 {
            policy.authorization = Authorization::Rfc9111;
        }
        if !keeps_cookies {
            policy.cookies = Cookies::Bypass;
        }
        if obeys {
            policy.clients = Clients::Obeyed;
        }
        let has_cookie = request.headers.contains_key(COOKIE);
        let is_forbidden = !matches!(method, "GET" | "HEAD")
            || has_body
            || upgrades
            || is_authorized && !applies_3_5
            || has_cookie && !keeps_cookies;
        match policy.decide(&request, NOW) {
            Decision::Lookup(lookup) => {
                prop_assert!(!is_forbidden);
                prop_assert_eq!(lookup.is_authorized, is_authorized);
                prop_assert_eq!(lookup.control.no_cache, obeys);
            }
            Decision::Bypass(_) => prop_assert!(is_forbidden),
            Decision::Watch => prop_assert!(false, "no policy here watches"),
        }
    }

    #[test]
    fn any_request_is_decided_without_a_panic(
        method in "[!-~]{1,8}",
        authority in vec(any::<u8>(), 0..8),
        path in vec(any::<u8>(), 0..40),
        name in select(DrawnRequest::FIELDS.map(|(name, _)| name).to_vec()),
        value in vec(any::<u8>(), 0..20),
        policy in select(Vec::from(key_policies())),
    ) {
        let mut request = get(path, &[]);
        request.authority = authority.into();
        if let Ok(method) = Method::from_bytes(method.as_bytes()) {
            request.method = method;
        }
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            request.headers.insert(name, value);
        }
        let _ = policy.decide(&request, NOW);
    }

    #[test]
    fn any_answer_is_read_without_a_panic(
        policy in policies(),
        drawn in responses(),
        name in select(vec![
            "age", "cache-control", "cdn-cache-control", "connection", "content-encoding",
            "content-length", "content-location", "content-type", "date", "etag", "expires",
            "last-modified", "location", "transfer-encoding", "vary",
        ]),
        value in vec(any::<u8>(), 0..40),
    ) {
        let mut head = drawn.head;
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            head.headers.insert(name, value);
        }
        let now = NOW.plus_seconds(1);
        policy.invalidated(&get("/a", &[]), &head);
        if let Ok(storable) = policy.storable(&head, NOW, now, true, LARGEST) {
            let record = record(&storable);
            policy.freshness(&record, now);
            policy.answered(&record, &head, NOW, now);
            policy.checked(&record, &head, NOW, now);
            let status = HeaderValue::from_static("afterimage; hit");
            let path = "/s/exp:2000000000/plain/local:///a.png";
            policy.serve(&lookup(&policy, &get(path, &[])), &record, 1, &status, now);
        }
    }
}

/// Asserts that enough of the drawn cases put something at stake.
#[test]
fn what_is_drawn_is_often_stored_and_fresh_and_stale() {
    let mut runner = TestRunner::deterministic();
    let strategy = (policies(), responses(), 0..150_u64);
    let (mut stored, mut fresh, mut windows) = (0, 0, 0);
    for _ in 0..2000 {
        let tree = strategy.new_tree(&mut runner).expect("a case");
        let (policy, drawn, elapsed) = tree.current();
        let Ok(storable) = judge(&policy, &drawn, false) else {
            continue;
        };
        stored += 1;
        match policy.freshness(&record(&storable), NOW.plus_seconds(elapsed)) {
            Freshness::Fresh { .. } => fresh += 1,
            Freshness::Stale {
                while_revalidate,
                if_error,
                ..
            } => {
                windows += u32::from(while_revalidate || if_error);
            }
        }
    }
    assert!(
        stored > 400 && fresh > 80 && windows > 40,
        "{stored} {fresh} {windows}"
    );
}
