use std::time::Duration;

use super::super::Heuristic;
use super::*;
use crate::entry::{BodyProof, Identity};
use crate::policy::Kind;
use crate::policy::testing::{NOW, generic, imgproxy, policy};

const DAY: u64 = 24 * 3600;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, http::HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn date(time: Timestamp) -> String {
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(time.as_unix()))
}

fn ago(seconds: u64) -> String {
    date(Timestamp::from_unix(NOW.as_unix() - seconds))
}

/// The terms of a 200 under rules that are changed from none.
fn terms_by(
    change: impl FnOnce(&mut FreshnessRules),
    pairs: &[(&'static str, &str)],
) -> Option<Terms> {
    let mut policy = policy(Kind::Generic(generic()));
    change(&mut policy.freshness);
    policy.terms(StatusCode::OK, &headers(pairs), NOW)
}

fn lifetime(pairs: &[(&'static str, &str)]) -> Option<u64> {
    terms_by(|_| {}, pairs).map(|terms| terms.lifetime)
}

#[test]
fn rfc9111_4_2_1_s_maxage_wins_over_max_age_over_expires() {
    let expires = date(NOW.plus_seconds(50));
    let all = [
        ("cache-control", "max-age=10, s-maxage=99"),
        ("expires", &*expires),
    ];
    assert_eq!(lifetime(&all), Some(99));
    assert_eq!(
        lifetime(&[("cache-control", "max-age=10"), all[1]]),
        Some(10)
    );
    assert_eq!(lifetime(&[all[1]]), Some(50));
    assert_eq!(lifetime(&[]), None);
}

#[test]
fn rfc9111_5_3_expires_counts_from_date() {
    let pairs = [
        ("date", &*date(NOW.plus_seconds(20))),
        ("expires", &*date(NOW.plus_seconds(50))),
    ];
    assert_eq!(lifetime(&pairs), Some(30));
}

#[test]
fn rfc9111_5_3_an_expires_that_is_no_date_is_in_the_past() {
    for text in [
        "0",
        "-1",
        "tomorrow",
        "Thu, 18 Aug 2050 02:01:18 UTC",
        "Thu, 18 Aug 2050 02:01:18 AEST",
        "Thu, 18 Aug 50 02:01:18 GMT",
        "Thu 18 Aug 2050 02:01:18 GMT",
        "Thu, 18  Aug  2050 02:01:18 GMT",
        "Thu, 18-Aug-2050 02:01:18 GMT",
        "Thu, 18 Aug 2050 02.01.18 GMT",
        "Thu, 18 Aug 2050 2:01:18 GMT",
    ] {
        assert_eq!(lifetime(&[("expires", text)]), Some(0), "{text}");
    }
    let twice = [
        ("expires", "0"),
        ("expires", "Thu, 18 Aug 2050 02:01:18 GMT"),
    ];
    assert_eq!(lifetime(&twice), Some(0));
}

#[test]
fn rfc9110_5_6_7_obsolete_dates_are_read() {
    for text in [
        "Thursday, 18-Aug-50 02:01:18 GMT",
        "Thu Aug 18 02:01:18 2050",
    ] {
        assert!(lifetime(&[("expires", text)]).unwrap() > 0, "{text}");
    }
}

#[test]
fn rfc9111_4_2_dates_are_read_in_any_case() {
    for text in [
        "THU, 18 Aug 2050 02:01:18 GMT",
        "thu, 18 aug 2050 02:01:18 gmt",
        "Thu, 18 AUG 2050 02:01:18 gMt",
        "tHURSDAY, 18-aug-50 02:01:18 GMT",
        "thu aug 18 02:01:18 2050",
    ] {
        assert!(lifetime(&[("expires", text)]).unwrap() > 0, "{text}");
    }
}

#[test]
fn rfc9213_2_2_a_targeted_field_leaves_expires_out() {
    let cdn = |value| {
        [
            ("cdn-cache-control", value),
            ("expires", "Thu, 18 Aug 2050 02:01:18 GMT"),
        ]
    };
    assert_eq!(lifetime(&cdn("max-age=7")), Some(7));
    assert_eq!(lifetime(&cdn("foo")), None);
}

#[test]
fn floor_and_ceiling_bound_what_the_response_says() {
    let short = [("cache-control", "max-age=1")];
    let floor = |rules: &mut FreshnessRules| rules.floor = Duration::from_secs(60);
    assert_eq!(terms_by(floor, &short).unwrap().lifetime, 60);
    assert_eq!(
        lifetime(&[("cache-control", "max-age=31536000")]),
        Some(30 * DAY)
    );
}

#[test]
fn what_says_nothing_has_the_default_of_the_policy() {
    let default = |rules: &mut FreshnessRules| rules.default = Some(Duration::from_secs(5));
    assert_eq!(terms_by(default, &[]).unwrap().lifetime, 5);
}

#[test]
fn rfc9111_4_2_2_heuristics_are_a_share_of_the_time_unchanged() {
    let guess = |rules: &mut FreshnessRules| {
        rules.heuristic = Some(Heuristic {
            percent: 10,
            ceiling: Duration::from_secs(DAY),
        });
    };
    let lifetime = |status: u16, pairs: &[(&'static str, &str)]| {
        let mut policy = policy(Kind::Generic(generic()));
        guess(&mut policy.freshness);
        let status = StatusCode::from_u16(status).unwrap();
        policy
            .terms(status, &headers(pairs), NOW)
            .map(|terms| terms.lifetime)
    };
    let modified = ("last-modified", &*ago(1000));
    assert_eq!(lifetime(200, &[modified]), Some(100));
    assert_eq!(
        lifetime(200, &[("last-modified", &*ago(100 * DAY))]),
        Some(DAY)
    );
    assert_eq!(lifetime(200, &[]), None);
    for status in [201, 202, 302, 403, 502, 503, 504, 599] {
        assert_eq!(lifetime(status, &[modified]), None, "{status}");
        let public = [modified, ("cache-control", "public")];
        assert_eq!(lifetime(status, &public), Some(100), "{status}");
    }
    assert_eq!(super::tests::lifetime(&[modified]), None);
}

#[test]
fn negative_statuses_have_the_policy_s_own_short_time() {
    let mut policy = policy(Kind::Generic(generic()));
    policy.freshness.negative = vec![(StatusCode::NOT_FOUND, Duration::from_secs(9))];
    let lifetime = |status, pairs: &[(&'static str, &str)]| {
        policy
            .terms(status, &headers(pairs), NOW)
            .map(|terms| terms.lifetime)
    };
    assert_eq!(lifetime(StatusCode::NOT_FOUND, &[]), Some(9));
    assert_eq!(lifetime(StatusCode::GONE, &[]), None);
    let explicit = [("cache-control", "max-age=60")];
    assert_eq!(lifetime(StatusCode::NOT_FOUND, &explicit), Some(9));
}

#[test]
fn a_negative_status_is_kept_no_longer_than_the_policy_says() {
    let mut policy = policy(Kind::Imgproxy(imgproxy()));
    policy.freshness.negative = vec![(StatusCode::NOT_FOUND, Duration::from_secs(60))];
    policy.freshness.floor = Duration::from_secs(3600);
    for (line, expected) in [("max-age=31536000", 60), ("max-age=5", 5)] {
        let fields = headers(&[("cache-control", line)]);
        let lifetime = |status| {
            let terms = policy.terms(status, &fields, NOW);
            terms.map(|terms| terms.lifetime)
        };
        assert_eq!(lifetime(StatusCode::NOT_FOUND), Some(expected), "{line}");
        assert!(lifetime(StatusCode::OK) >= Some(3600), "{line}");
    }
}

#[test]
fn rfc5861_3_and_4_stale_windows_come_from_the_response_then_from_the_policy() {
    let policy_says = |rules: &mut FreshnessRules| {
        rules.stale_if_error = Some(Duration::from_secs(100));
    };
    let own = [(
        "cache-control",
        "max-age=1, stale-if-error=7, stale-while-revalidate=3",
    )];
    let terms = terms_by(policy_says, &own).unwrap();
    assert_eq!((terms.stale_if_error, terms.stale_while_revalidate), (7, 3));
    let silent = [("cache-control", "max-age=1")];
    assert_eq!(terms_by(policy_says, &silent).unwrap().stale_if_error, 100);
}

#[test]
fn rfc9111_4_2_4_no_stale_window_where_the_response_forbids_it() {
    let policy_says = |rules: &mut FreshnessRules| {
        rules.stale_if_error = Some(Duration::from_secs(100));
    };
    for directive in [
        "must-revalidate",
        "proxy-revalidate",
        "s-maxage=1",
        "no-cache",
    ] {
        let line = format!("max-age=1, stale-if-error=9, {directive}");
        let terms = terms_by(policy_says, &[("cache-control", &line)]).unwrap();
        assert_eq!(terms.stale_if_error, 0, "{directive}");
    }
}

#[test]
fn a_fallback_image_is_kept_as_long_as_it_says_and_no_longer() {
    let rules = |rules: &mut FreshnessRules| {
        rules.floor = Duration::from_secs(3600);
        rules.stale_if_error = Some(Duration::from_secs(3600));
        rules.fallback_max_age = Some(Duration::from_secs(60));
    };
    let fallback = terms_by(rules, &[("cache-control", "max-age=60, public")]).unwrap();
    assert_eq!((fallback.lifetime, fallback.stale_if_error), (60, 0));
    let image = terms_by(rules, &[("cache-control", "max-age=61, public")]).unwrap();
    assert_eq!((image.lifetime, image.stale_if_error), (3600, 3600));
    assert_eq!(terms_by(rules, &[]), None);
}

#[test]
fn rfc9111_4_2_3_initial_age_is_the_larger_of_date_and_age_with_delay() {
    let received = NOW.plus_seconds(3);
    let by_age = headers(&[("age", "10"), ("date", &date(NOW))]);
    assert_eq!(initial_age(&by_age, NOW, received), 13);
    let by_date = headers(&[("age", "1"), ("date", &ago(100))]);
    assert_eq!(initial_age(&by_date, NOW, received), 103);
    let future = headers(&[("date", &date(NOW.plus_seconds(1000)))]);
    assert_eq!(initial_age(&future, NOW, NOW), 0);
}

#[test]
fn rfc9111_5_1_the_first_member_of_the_first_age_counts() {
    for (lines, age) in [
        (&["7200, 0"][..], 7200),
        (&["0, 7200"], 0),
        (&["7200", "0"], 7200),
        (&["0", "7200"], 0),
        (&["x"], 0),
        (&["-1"], 0),
        (&["7200.0"], 0),
        (&["2147483648"], 1 << 31),
        (&["99999999999"], 1 << 31),
    ] {
        let pairs: Vec<_> = lines.iter().map(|line| ("age", *line)).collect();
        assert_eq!(initial_age(&headers(&pairs), NOW, NOW), age, "{lines:?}");
    }
}

#[test]
fn rfc9111_4_2_an_entry_is_fresh_then_in_its_window_then_stale() {
    let policy = policy(Kind::Generic(generic()));
    let record = Record {
        variants: None,
        identity: Identity::of(&crate::entry::Key::from_parts("test", 1, [0; 32], [0; 32])),
        status: StatusCode::OK,
        headers: headers(&[(
            "cache-control",
            "max-age=60, stale-if-error=30, stale-while-revalidate=10",
        )]),
        response_time: NOW,
        initial_age: 5,
        body: BodyProof::of(&[]),
    };
    let at = |seconds| policy.freshness(&record, NOW.plus_seconds(seconds));
    assert_eq!(at(54), Freshness::Fresh { age: 59, ttl: 1 });
    let stale = |age, staleness, while_revalidate, if_error| Freshness::Stale {
        if_taken: true,
        age,
        staleness,
        while_revalidate,
        if_error,
    };
    assert_eq!(at(55), stale(60, 0, true, true));
    assert_eq!(at(65), stale(70, 10, false, true));
    assert_eq!(at(85), stale(90, 30, false, false));
}

#[test]
fn rfc9111_4_2_4_what_no_client_may_take_stale() {
    for (line, expected) in [
        ("max-age=60", true),
        ("max-age=60, must-revalidate", false),
        ("max-age=60, proxy-revalidate", false),
        ("s-maxage=60", false),
        ("no-cache", false),
    ] {
        let record = Record {
            variants: None,
            identity: Identity::of(&crate::entry::Key::from_parts("test", 1, [0; 32], [0; 32])),
            status: StatusCode::OK,
            headers: headers(&[("cache-control", line)]),
            response_time: NOW,
            initial_age: 100,
            body: BodyProof::of(&[]),
        };
        match policy(Kind::Generic(generic())).freshness(&record, NOW) {
            Freshness::Stale { if_taken, .. } => assert_eq!(if_taken, expected, "{line}"),
            fresh => panic!("{line}: {fresh:?}"),
        }
    }
}
