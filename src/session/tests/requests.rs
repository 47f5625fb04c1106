//! Methods that change things, HEAD, and what requests say about caching.

use super::*;
use crate::policy::Clients;

fn policy() -> Policy {
    let mut generic = testing::generic();
    generic.invalidates = true;
    let mut policy = testing::policy(Kind::Generic(generic));
    policy.clients = Clients::Obeyed;
    policy.upstream = super::fetching::policy().upstream.clone();
    policy.via = Some(HeaderValue::from_static("1.1 us"));
    policy
}

fn asking(method: Method, fields: &[(&str, &str)]) -> (Session, Effect) {
    let mut request = testing::get("/a", fields);
    request.method = method;
    let session = Session::new(Arc::new(policy()), LARGEST);
    step(session, Event::Request(request))
}

fn looking_up(method: Method, fields: &[(&str, &str)]) -> (Session, Key) {
    match asking(method, fields) {
        (session, Effect::LookUp { key, .. }) => (session, key),
        other => panic!("{other:?}"),
    }
}

/// `Cache-Status` of the answer to a GET with this directive for an entry of this age that is fresh for a
/// minute, if there is one from the store.
fn served(line: &str, age: u64) -> Option<String> {
    let (session, key) = looking_up(Method::GET, &[("cache-control", line)]);
    let (_, effect) = step(session, found(record(&key, age)));
    match effect {
        Effect::Reply(Reply::Hit(hit)) => {
            let status = hit.headers["cache-status"].to_str().unwrap();
            Some(status.trim_start_matches("afterimage; ").to_owned())
        }
        Effect::Reply(Reply::Forward(_)) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn rfc9111_5_2_1_directives_of_a_request_that_is_obeyed() {
    for (line, age, expected) in [
        ("max-age=10", 10, Some("hit; ttl=50")),
        ("max-age=10", 11, None),
        ("min-fresh=50", 10, Some("hit; ttl=50")),
        ("min-fresh=50", 11, None),
        ("no-cache", 0, None),
        ("max-stale", 1000, Some("hit; ttl=-940")),
        ("max-stale=5", 65, Some("hit; ttl=-5")),
        ("max-stale=5", 66, None),
        ("max-stale=5, no-cache", 62, None),
        ("max-stale=5, max-age=60", 65, Some("hit; ttl=-5")),
        ("max-stale=5, max-age=10", 62, None),
        ("max-stale=x", 62, None),
    ] {
        let served = served(line, age);
        assert_eq!(served.as_deref(), expected, "{line} at {age}");
    }
}

#[test]
fn rfc9111_5_2_1_7_only_if_cached_never_reaches_the_upstream() {
    let line = [("cache-control", "only-if-cached")];
    let absent = |_: &Key| Event::LookedUp(LookupAnswer::Nothing(MissReason::Absent));
    let stale = |key: &Key| found(record(key, 1000));
    let too_large = |key: &Key| large(record(key, 1000));
    for answer in [&absent as &dyn Fn(&Key) -> Event, &stale, &too_large] {
        let (session, key) = looking_up(Method::GET, &line);
        let (session, effect) = step(session, answer(&key));
        assert_eq!(hit(effect).status, 504);
        assert_eq!(session.report().reason(), "only_if_cached");
    }
    let (session, key) = looking_up(Method::GET, &line);
    let (_, effect) = step(session, found(record(&key, 0)));
    assert_eq!(hit(effect).status, 200);
}

#[test]
fn rfc9211_2_2_a_fresh_entry_that_the_client_refuses_says_request() {
    let (session, key) = looking_up(Method::GET, &[("cache-control", "no-cache")]);
    let (session, _) = step(session, found(record(&key, 0)));
    let (session, _) = step(session, response(PNG.len()));
    let (_, effect) = step(session, COPY_BEGUN);
    assert_eq!(
        passed(effect).cache_status,
        "afterimage; fwd=request; fwd-status=200; stored"
    );
}

#[test]
fn rfc9111_4_4_a_successful_unsafe_method_invalidates_before_its_answer_goes_on() {
    for (status, invalidates) in [(204, true), (303, true), (404, false), (500, false)] {
        let (session, effect) = asking(Method::POST, &[("authorization", "x")]);
        assert!(matches!(effect, Effect::Reply(Reply::Forward(_))));
        let (session, effect) = step(session, answer_of(status, Provenance::Upstream));
        let passed = match effect {
            Effect::Invalidate(sources, Reply::Pass(passed)) => {
                let (_, key) = looking_up(Method::GET, &[]);
                assert_eq!(sources, [key.source().clone()]);
                assert!(invalidates, "{status}");
                passed
            }
            Effect::Reply(Reply::Pass(passed)) => {
                assert!(!invalidates, "{status}");
                passed
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(passed.cache_status, "afterimage; fwd=method");
        assert_eq!(session.report(), Report::Method { invalidates });
    }
}

#[test]
fn rfc9111_4_3_5_a_head_that_is_sent_on_asks_what_a_get_would() {
    let fields = [("if-none-match", "\"x\""), ("cookie", "a=b")];
    let stale = |key: &Key| {
        let mut record = Record::clone(&record(key, 60));
        let tag = HeaderValue::from_static("\"up\"");
        record.headers.insert("etag", tag);
        found(Arc::new(record))
    };
    let answered = |tag: &str| {
        let (session, key) = looking_up(Method::HEAD, &fields);
        let (session, effect) = step(session, stale(&key));
        let Effect::Reply(Reply::Forward(forward)) = effect else {
            panic!("{effect:?}")
        };
        // What is not in the key can change neither the answer nor the entry.
        for name in [http::header::IF_NONE_MATCH, http::header::COOKIE] {
            assert!(forward.remove.contains(&name), "{forward:?}");
        }
        let Event::Response(mut head) = answer_of(200, Provenance::Upstream) else {
            unreachable!("it is a response")
        };
        head.headers
            .insert("etag", HeaderValue::from_str(tag).unwrap());
        step(session, Event::Response(head)).1
    };
    assert!(matches!(
        answered("\"up\""),
        Effect::Freshen(_, Reply::Pass(_))
    ));
    assert!(matches!(
        answered("\"other\""),
        Effect::Forget(_, Reply::Pass(_))
    ));
}

#[test]
fn imgproxy_s_answers_to_head_touch_no_entry() {
    let (session, key) = super::looking_up(Method::HEAD);
    let (session, _) = step(session, found(record(&key, 60)));
    let (_, effect) = step(session, response(PNG.len()));
    assert!(matches!(effect, Effect::Reply(Reply::Pass(_))));
}

#[test]
fn rfc9110_7_6_3_via_names_us_on_both_ways_where_the_policy_says_so() {
    let (session, _) = looking_up(Method::GET, &[("via", "1.1 a")]);
    let absent = Event::LookedUp(LookupAnswer::Nothing(MissReason::Absent));
    let (session, effect) = step(session, absent);
    let Effect::Reply(Reply::Forward(forward)) = effect else {
        panic!("{effect:?}")
    };
    let via = (http::header::VIA, HeaderValue::from_static("1.1 a, 1.1 us"));
    assert!(forward.set.contains(&via), "{forward:?}");
    let (_, effect) = step(session, answer_of(404, Provenance::Upstream));
    assert_eq!(passed(effect).via, Some(HeaderValue::from_static("1.1 us")));

    let (session, key) = looking_up(Method::GET, &[]);
    let (_, effect) = step(session, found(record(&key, 0)));
    assert_eq!(hit(effect).headers["via"], "1.1 us");
}
