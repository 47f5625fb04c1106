//! Requests of our own.

use super::*;
use crate::policy::{Completion, Upstream};
use crate::session::{FetchOutcome, Refresh};

/// As that of the other tests, with an upstream.
pub(super) fn policy() -> Arc<Policy> {
    let mut policy = Policy::clone(&super::policy());
    policy.upstream = Some(Arc::new(Upstream {
        endpoint: "http://127.0.0.1:1".parse().unwrap(),
        base_path: String::new(),
        host: None,
        completion: Completion::Followers,
    }));
    Arc::new(policy)
}

fn looking_up(method: Method) -> (Session, Key) {
    let (session, effect) = step(Session::new(policy(), LARGEST), request(method));
    let Effect::LookUp { key, .. } = effect else {
        panic!("{effect:?}")
    };
    (session, key)
}

/// A session that waits for a request of our own about an entry of this age, and that request.
fn fetching(age: u64) -> (Session, Refresh, Key) {
    let (session, key) = looking_up(Method::GET);
    let (session, effect) = step(session, large(record(&key, age)));
    let Effect::Fetch(refresh) = effect else {
        panic!("{effect:?}")
    };
    (session, *refresh, key)
}

/// The same after our own request has ended, with this answer of the store.
fn ended(age: u64, fetched: FetchOutcome, answer: impl FnOnce(&Key) -> Event) -> (Session, Effect) {
    let (session, _, key) = fetching(age);
    let (session, effect) = step(session, Event::Fetched(fetched));
    assert!(matches!(effect, Effect::LookUp { .. }), "{effect:?}");
    step(session, answer(&key))
}

#[test]
fn rfc5861_3_with_an_upstream_every_request_gets_the_stale_entry_and_we_ask() {
    for method in [Method::GET, Method::HEAD] {
        let (session, key) = looking_up(method);
        let (session, effect) = step(session, found(in_window(&key)));
        assert!(matches!(effect, Effect::ClaimRefresh(_)));
        let (session, effect) = step(session, Event::RefreshClaimed);
        let Effect::Refresh(refresh, Reply::Hit(hit)) = effect else {
            panic!("{effect:?}")
        };
        assert_eq!(hit.headers["cache-status"], "afterimage; hit; ttl=-5");
        let refreshed = Staleness::WhileRevalidate { seconds: 5 };
        assert_eq!(session.report(), Report::Stale(refreshed));
        assert_eq!(refresh.key, key);
        // The refresh goes on as any request that was sent on.
        let (session, effect) = step(refresh.session, answer_of(304, Provenance::Upstream));
        assert!(matches!(effect, Effect::Freshen(..)), "{effect:?}");
        assert_eq!(session.report(), Report::Revalidated);
    }
}

#[test]
fn rfc9111_4_3_1_our_own_request_has_the_upstream_s_validators() {
    let (session, key) = looking_up(Method::GET);
    let mut record = Record::clone(&record(&key, 60));
    let tag = HeaderValue::from_static("\"up\"");
    record.headers.insert("etag", tag.clone());
    let (_, effect) = step(session, large(Arc::new(record)));
    let Effect::Fetch(refresh) = effect else {
        panic!("{effect:?}")
    };
    assert_eq!(refresh.fetch.headers[http::header::IF_NONE_MATCH], tag);
    assert_eq!(refresh.fetch.headers[http::header::HOST], "h");
}

#[test]
fn what_is_too_large_to_be_held_is_served_after_the_upstream_confirmed_it() {
    let (session, effect) = ended(60, FetchOutcome::Freshened, |key| large(record(key, 0)));
    let hit = hit(effect);
    assert_eq!(
        hit.headers["cache-status"],
        "afterimage; fwd=stale; fwd-status=304"
    );
    assert!(matches!(hit.body, HitBody::Streamed { .. }));
    assert_eq!(session.report(), Report::Revalidated);
}

#[test]
fn rfc9111_5_2_2_4_what_must_be_asked_about_each_time_is_served_when_it_was() {
    let stale_at_once = |key: &Key| {
        let mut record = Record::clone(&record(key, 0));
        let line = HeaderValue::from_static("no-cache");
        record.headers.insert("cache-control", line);
        large(Arc::new(record))
    };
    let (session, _) = ended(60, FetchOutcome::Freshened, stale_at_once);
    assert_eq!(session.report(), Report::Revalidated);
}

#[test]
fn what_is_too_large_to_be_held_gives_way_to_a_new_body() {
    let (session, effect) = ended(60, FetchOutcome::Stored, |key| large(record(key, 0)));
    assert_eq!(
        hit(effect).headers["cache-status"],
        "afterimage; fwd=stale; fwd-status=200; stored"
    );
    assert_eq!(session.report().outcome().as_str(), "miss");
}

#[test]
fn rfc5861_4_what_is_too_large_to_be_held_stands_in_for_an_error() {
    let (session, effect) = ended(60, FetchOutcome::Failed(StatusCode::BAD_GATEWAY), |key| {
        large(record(key, 60))
    });
    assert_eq!(
        hit(effect).headers["cache-status"],
        "afterimage; fwd=stale; fwd-status=502"
    );
    let failed = Staleness::IfError(StatusCode::BAD_GATEWAY);
    assert_eq!(session.report(), Report::Stale(failed));
    // Not after its window.
    let (_, effect) = ended(160, FetchOutcome::Failed(StatusCode::BAD_GATEWAY), |key| {
        large(record(key, 160))
    });
    assert!(matches!(effect, Effect::Reply(Reply::Forward(_))));
}

#[test]
fn a_request_of_our_own_that_gave_nothing_leaves_the_request_to_the_proxy() {
    for fetched in [FetchOutcome::Nothing, FetchOutcome::NotStored] {
        let (session, _, _) = fetching(60);
        let (session, effect) = step(session, Event::Fetched(fetched));
        let Effect::Reply(Reply::Forward(forward)) = effect else {
            panic!("{effect:?}")
        };
        // Without the body there must be no validators.
        let condition = http::header::IF_NONE_MATCH;
        assert!(forward.set.iter().all(|(name, _)| *name != condition));
        assert_eq!(session.report().reason(), "stale");
    }
}

#[test]
fn a_refresh_that_was_too_slow_to_be_found_leaves_the_request_to_the_proxy() {
    let before = |key: &Key| {
        let mut record = Record::clone(&record(key, 0));
        record.response_time = Timestamp::from_unix(NOW.as_unix() - 60);
        large(Arc::new(record))
    };
    for fetched in [FetchOutcome::Stored, FetchOutcome::Freshened] {
        let (_, effect) = ended(60, fetched, before);
        assert!(matches!(effect, Effect::Reply(Reply::Forward(_))));
    }
    let absent = |_: &Key| Event::LookedUp(LookupAnswer::Nothing(MissReason::Absent));
    let (_, effect) = ended(60, FetchOutcome::Stored, absent);
    assert!(matches!(effect, Effect::Reply(Reply::Forward(_))));
}

#[test]
fn without_an_upstream_what_is_too_large_to_be_held_is_fetched_anew() {
    let (session, key) = super::looking_up(Method::GET);
    let (_, effect) = step(session, large(record(&key, 60)));
    let Effect::Reply(Reply::Forward(forward)) = effect else {
        panic!("{effect:?}")
    };
    let condition = http::header::IF_NONE_MATCH;
    assert!(forward.set.iter().all(|(name, _)| *name != condition));
}
