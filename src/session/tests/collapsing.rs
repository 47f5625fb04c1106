//! One request for those for the same.

use super::*;
use crate::policy::{Completion, Upstream};

fn policy() -> Arc<Policy> {
    let mut policy = Policy::clone(&super::policy());
    policy.collapses = true;
    Arc::new(policy)
}

fn with_upstream(completion: Completion) -> Arc<Policy> {
    let mut policy = Policy::clone(&policy());
    policy.upstream = Some(Arc::new(Upstream {
        endpoint: "http://127.0.0.1:1".parse().unwrap(),
        base_path: String::new(),
        host: None,
        completion,
    }));
    Arc::new(policy)
}

const ABSENT: Event = Event::Answer(Answer::Nothing(MissReason::Absent));

/// A session that found nothing, and its key.
fn joining(policy: Arc<Policy>) -> (Session, Key) {
    let (session, effect) = step(Session::new(policy, LARGEST), request(Method::GET));
    let Effect::LookUp { key, .. } = effect else {
        panic!("{effect:?}")
    };
    let (session, effect) = step(session, ABSENT);
    assert!(
        matches!(&effect, Effect::Join(joined) if *joined == key),
        "{effect:?}"
    );
    (session, key)
}

/// A session whose request was sent on.
fn leading(policy: Arc<Policy>) -> Session {
    let (session, effect) = step(joining(policy).0, Event::Part(Part::SentOn));
    assert!(
        matches!(effect, Effect::Reply(Reply::Forward(_))),
        "{effect:?}"
    );
    session
}

/// A session that has followed another one and looks up again, and its key.
fn followed(again: bool) -> (Session, Key) {
    let (session, key) = joining(policy());
    let (session, effect) = step(session, Event::Part(Part::Follows));
    assert!(matches!(effect, Effect::Follow), "{effect:?}");
    assert_eq!(session.report(), Report::Left);
    let (session, effect) = step(session, Event::Followed { again });
    assert!(matches!(effect, Effect::LookUp { .. }), "{effect:?}");
    (session, key)
}

#[test]
fn rfc9211_2_6_a_follower_is_answered_with_what_the_leader_stored() {
    let (session, key) = followed(true);
    let (session, effect) = step(session, found(record(&key, 0)));
    assert_eq!(
        hit(effect).headers["cache-status"],
        "afterimage; fwd=miss; collapsed"
    );
    assert_eq!(session.report(), Report::Collapsed);
}

#[test]
fn a_follower_that_finds_nothing_for_it_follows_once_more_and_no_further() {
    let (session, _) = followed(true);
    let (session, effect) = step(session, ABSENT);
    assert!(matches!(effect, Effect::Join(_)), "{effect:?}");
    let (session, _) = step(session, Event::Part(Part::Follows));
    let (session, _) = step(session, Event::Followed { again: true });
    let (_, effect) = step(session, ABSENT);
    assert!(
        matches!(effect, Effect::Reply(Reply::Forward(_))),
        "{effect:?}"
    );
}

#[test]
fn a_follower_that_is_released_is_sent_on() {
    let (session, _) = followed(false);
    let (_, effect) = step(session, ABSENT);
    assert!(
        matches!(effect, Effect::Reply(Reply::Forward(_))),
        "{effect:?}"
    );
}

#[test]
fn a_released_follower_of_a_stale_entry_asks_with_its_validators() {
    let (session, key) = followed(false);
    let mut stale = Record::clone(&record(&key, 1000));
    let tag = HeaderValue::from_static("\"a\"");
    stale.headers.insert("etag", tag);
    let (_, effect) = step(session, found(Arc::new(stale)));
    let Effect::Reply(Reply::Forward(forward)) = effect else {
        panic!("{effect:?}")
    };
    assert!(forward.set.iter().any(|(name, _)| name == "if-none-match"));
}

#[test]
fn a_head_follows_nobody() {
    let (session, _) = step(Session::new(policy(), LARGEST), request(Method::HEAD));
    let (_, effect) = step(session, ABSENT);
    assert!(
        matches!(effect, Effect::Reply(Reply::Forward(_))),
        "{effect:?}"
    );
}

#[test]
fn a_request_for_which_there_is_no_room_follows_nobody() {
    let (session, _) = step(Session::new(policy(), LARGEST), request(Method::GET));
    let nothing = Event::Answer(Answer::Nothing(MissReason::Budget));
    let (_, effect) = step(session, nothing);
    assert!(
        matches!(effect, Effect::Reply(Reply::Forward(_))),
        "{effect:?}"
    );
}

/// How long others do not wait, after an answer with this status and nothing that lets it be stored.
fn alone_after(status: StatusCode) -> Duration {
    let head = ResponseHead {
        status,
        headers: HeaderMap::new(),
        has_body: true,
        provenance: Provenance::Upstream,
    };
    let (_, effect) = step(leading(policy()), Event::Response(head));
    passed(effect).alone
}

#[test]
fn hit_for_miss_follows_from_what_a_response_says_and_not_from_an_error() {
    assert_eq!(alone_after(StatusCode::OK), Duration::from_secs(30));
    assert_eq!(alone_after(StatusCode::NOT_FOUND), Duration::from_secs(30));
    assert_eq!(alone_after(StatusCode::SERVICE_UNAVAILABLE), Duration::ZERO);
    assert_eq!(alone_after(StatusCode::TOO_MANY_REQUESTS), Duration::ZERO);
}

#[test]
fn a_response_that_is_stale_as_it_comes_answers_nobody_else() {
    let plan = |age: &str| {
        let Event::Response(mut head) = response(PNG.len()) else {
            unreachable!()
        };
        head.headers.insert("age", age.parse().unwrap());
        head.headers
            .insert("etag", HeaderValue::from_static("\"a\""));
        let policy = with_upstream(Completion::Followers);
        match step(leading(policy), Event::Response(head)) {
            (_, Effect::Begin(plan)) => Some(plan.is_fresh),
            _ => None,
        }
    };
    assert_eq!(plan("0"), Some(true));
    assert_ne!(plan("1000"), Some(true));
}

#[test]
fn what_is_cut_is_completed_where_others_wait_or_the_policy_says_so() {
    let cases = [
        (Completion::Followers, true, true),
        (Completion::Followers, false, false),
        (Completion::Always, false, true),
    ];
    for (completion, is_followed, expected) in cases {
        let sent_on = leading(with_upstream(completion));
        assert_eq!(sent_on.completion(is_followed, NOW).is_some(), expected);
        let (session, _) = step(sent_on, response(PNG.len()));
        assert_eq!(session.completion(is_followed, NOW).is_some(), expected);
        let (session, _) = step(session, Event::CopyBegun);
        let refresh = session.completion(is_followed, NOW);
        assert_eq!(refresh.is_some(), expected);
        let (session, _) = step(session, body(PNG, true));
        assert!(session.completion(is_followed, NOW).is_none());
        if let Some(refresh) = refresh {
            assert!(!refresh.fetch.headers.contains_key("range"));
            let (_, effect) = step(refresh.session, response(PNG.len()));
            assert!(matches!(effect, Effect::Begin(_)), "{effect:?}");
        }
    }
    assert!(leading(policy()).completion(true, NOW).is_none());
}
