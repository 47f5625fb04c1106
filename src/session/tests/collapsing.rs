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

const ABSENT: Event = Event::LookedUp(LookupAnswer::Nothing(MissReason::Absent));

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
    let (session, effect) = step(joining(policy).0, Event::Joined(CollapseRole::SentOn));
    assert!(
        matches!(effect, Effect::Reply(Reply::Forward(_))),
        "{effect:?}"
    );
    session
}

/// A session that has followed another one and looks up again, and its key.
fn followed(again: bool) -> (Session, Key) {
    let (session, key) = joining(policy());
    let (session, effect) = step(session, Event::Joined(CollapseRole::Follows));
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
    let (session, _) = step(session, Event::Joined(CollapseRole::Follows));
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
    let nothing = Event::LookedUp(LookupAnswer::Nothing(MissReason::Budget));
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
    let (session, _) = step(leading(policy()), Event::Response(head));
    lasts(&session)
}

/// How long others do not wait because of what became of this request.
fn lasts(session: &Session) -> Duration {
    match session.verdict() {
        Some(Verdict::NotWorthWaiting(lasts)) => lasts,
        other => panic!("{other:?}"),
    }
}

#[test]
fn hit_for_miss_follows_from_what_a_response_says_and_not_from_an_error() {
    assert_eq!(alone_after(StatusCode::OK), Duration::from_secs(30));
    assert_eq!(alone_after(StatusCode::NOT_FOUND), Duration::from_secs(30));
    assert_eq!(alone_after(StatusCode::SERVICE_UNAVAILABLE), Duration::ZERO);
    assert_eq!(alone_after(StatusCode::TOO_MANY_REQUESTS), Duration::ZERO);
}

#[test]
fn hit_for_miss_does_not_follow_from_what_one_client_says() {
    let mut policy = testing::policy(Kind::Generic(testing::generic()));
    policy.clients = crate::policy::Clients::Obeyed;
    policy.authorization = crate::policy::Authorization::Rfc9111;
    let policy = Arc::new(policy);
    for field in [("cache-control", "no-store"), ("authorization", "x")] {
        let request = Event::Request(testing::get("/a", &[field]));
        let (session, _) = step(Session::new(Arc::clone(&policy), LARGEST), request);
        let (session, _) = step(session, ABSENT);
        let (session, _) = step(session, response(PNG.len()));
        assert_ne!(session.report().copy(), "", "{field:?}");
        assert_eq!(session.verdict(), Some(Verdict::NOTHING), "{field:?}");
    }
}

#[test]
fn a_response_that_is_stale_as_it_comes_answers_nobody_else() {
    let waits = |age: &str| {
        let Event::Response(mut head) = response(PNG.len()) else {
            unreachable!()
        };
        head.headers.insert("age", age.parse().unwrap());
        head.headers
            .insert("etag", HeaderValue::from_static("\"a\""));
        let policy = with_upstream(Completion::Followers);
        match step(leading(policy), Event::Response(head)) {
            (session, Effect::Begin(_)) => step(session, COPY_BEGUN).0.verdict().is_none(),
            _ => false,
        }
    };
    assert!(waits("0"));
    assert!(!waits("1000"));
}

/// A leader whose response has so many bytes, and whose copy was begun.
fn copying(length: usize, is_held: bool) -> Session {
    let (session, _) = step(leading(policy()), response(length));
    step(session, Event::CopyBegun { is_held }).0
}

#[test]
fn nobody_waits_for_what_is_not_held() {
    assert_eq!(copying(PNG.len(), true).verdict(), None);
    let large = copying(PNG.len(), false);
    assert_eq!(lasts(&large), Duration::from_secs(30));
    let (grown, _) = step(copying(PNG.len(), true), Event::CopyPassesOn);
    assert_eq!(lasts(&grown), Duration::from_secs(30));
}

#[test]
fn hit_for_miss_follows_from_bytes_size_and_trailers_too_and_not_from_what_befalls_the_copy() {
    let (bytes, _) = step(copying(4, true), body("html", true));
    assert_eq!(lasts(&bytes), Duration::from_secs(30));
    let (trailers, _) = step(copying(PNG.len(), true), Event::Trailers);
    assert_eq!(lasts(&trailers), Duration::from_secs(30));
    assert_eq!(trailers.report().copy(), "trailers");
    let begin = || step(leading(policy()), response(PNG.len())).0;
    for (reason, expected) in [
        (AbortReason::RecordTooLarge, 30),
        (AbortReason::Budget, 0),
        (AbortReason::Invalidated, 0),
    ] {
        let (session, _) = step(begin(), Event::CopyLost(reason));
        assert_eq!(lasts(&session), Duration::from_secs(expected), "{reason:?}");
    }
    let lost = Event::CopyLost(AbortReason::Store);
    let (lost, _) = step(copying(PNG.len(), true), lost);
    assert_eq!(lasts(&lost), Duration::ZERO);
}

#[test]
fn a_request_that_was_sent_on_never_follows_again() {
    // Its own request about a large stale entry has led to the entry's removal.
    let policy = with_upstream(Completion::Followers);
    let (session, effect) = step(Session::new(policy, LARGEST), request(Method::GET));
    let Effect::LookUp { key, .. } = effect else {
        panic!("{effect:?}")
    };
    let (session, _) = step(session, large(record(&key, 1000)));
    let (session, effect) = step(session, Event::Joined(CollapseRole::SentOn));
    assert!(matches!(effect, Effect::Fetch(_)), "{effect:?}");
    let (session, effect) = step(session, Event::Fetched(FetchOutcome::Freshened));
    assert!(matches!(effect, Effect::LookUp { .. }), "{effect:?}");
    let (_, effect) = step(session, ABSENT);
    let is_sent_on = matches!(effect, Effect::Reply(Reply::Forward(_)));
    assert!(is_sent_on, "{effect:?}");
}

/// What completes this request when its client leaves now.
fn completion(session: Session, is_followed: bool) -> Option<Box<Refresh>> {
    let (session, effect) = step(session, Event::ClientLeft { is_followed });
    assert_eq!(session.verdict(), Some(Verdict::Left));
    match effect {
        Effect::Complete(refresh) => Some(refresh),
        Effect::Nothing => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_cut_is_completed_where_others_wait_or_the_policy_says_so() {
    let cases = [
        (Completion::Followers, true, true),
        (Completion::Followers, false, false),
        (Completion::Always, false, true),
    ];
    for (wanted, is_followed, expected) in cases {
        let sent_on = || leading(with_upstream(wanted));
        let beginning = || step(sent_on(), response(PNG.len())).0;
        let filling = || step(beginning(), COPY_BEGUN).0;
        for cut in [sent_on(), beginning()] {
            assert_eq!(completion(cut, is_followed).is_some(), expected);
        }
        let refresh = completion(filling(), is_followed);
        assert_eq!(refresh.is_some(), expected);
        let (session, _) = step(filling(), body(PNG, true));
        assert!(completion(session, is_followed).is_none());
        if let Some(refresh) = refresh {
            assert!(!refresh.fetch.headers.contains_key("range"));
            let (_, effect) = step(refresh.session, response(PNG.len()));
            assert!(matches!(effect, Effect::Begin(_)), "{effect:?}");
        }
    }
    assert!(completion(leading(policy()), true).is_none());
}

#[test]
fn what_takes_too_long_is_completed_only_where_others_wait() {
    for is_followed in [true, false] {
        let policy = with_upstream(Completion::Always);
        let (session, _) = step(leading(policy), response(PNG.len()));
        let (session, _) = step(session, COPY_BEGUN);
        let expired = Event::Expired {
            reason: AbortReason::Slow,
            is_followed,
        };
        let (session, effect) = step(session, expired);
        assert_eq!(matches!(effect, Effect::Complete(_)), is_followed);
        assert_eq!(session.report().copy(), "slow");
        let (session, effect) = step(session, body(PNG, true));
        assert!(matches!(effect, Effect::Nothing));
        assert!(session.is_done());
    }
}
