use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::entry::Key;
use crate::entry::{BodyProof, Identity, Record};
use crate::policy::{Kind, MissReason, Provenance, RequestHead, ResponseHead, Validators, testing};

mod collapsing;
mod fetching;
mod requests;
mod vary;

const NOW: Timestamp = testing::NOW;
const LARGEST: u64 = 10_000;
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

fn policy() -> Arc<Policy> {
    let mut policy = testing::policy(Kind::Imgproxy(testing::imgproxy()));
    policy.validators = Validators::Content;
    policy.freshness.stale_if_error = Some(Duration::from_secs(100));
    Arc::new(policy)
}

fn request(method: Method) -> Event {
    Event::Request(RequestHead {
        method,
        authority: Bytes::from_static(b"h"),
        path: Bytes::from_static(b"/x/rs:fill:1:1/plain/local:///a.png"),
        peer: None,
        headers: HeaderMap::new(),
        has_body: false,
    })
}

fn response(length: usize) -> Event {
    let field = |name, value: &str| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_str(value).unwrap(),
        )
    };
    Event::Response(ResponseHead {
        status: StatusCode::OK,
        headers: [
            field("content-type", "image/png"),
            field("cache-control", "max-age=60"),
            field("content-length", &length.to_string()),
        ]
        .into_iter()
        .collect(),
        has_body: true,
        provenance: Provenance::Upstream,
    })
}

/// As if it were held.
const COPY_BEGUN: Event = Event::CopyBegun { is_held: true };

fn body(bytes: impl Into<Bytes>, is_end: bool) -> Event {
    Event::Body {
        bytes: bytes.into(),
        is_end,
    }
}

fn step(session: Session, event: Event) -> Step {
    session.handle(event, NOW).unwrap()
}

/// A session whose lookup is under way, and its key.
fn looking_up(method: Method) -> (Session, Key) {
    let (session, effect) = step(Session::new(policy(), LARGEST), request(method));
    let Effect::LookUp { key, .. } = effect else {
        panic!("{effect:?}")
    };
    (session, key)
}

/// A session that has sent its request on.
fn forwarded(method: Method) -> Session {
    let (session, _) = looking_up(method);
    let (session, effect) = step(
        session,
        Event::LookedUp(LookupAnswer::Nothing(MissReason::Absent)),
    );
    assert!(
        matches!(effect, Effect::Reply(Reply::Forward(_))),
        "{effect:?}"
    );
    session
}

/// A session whose copy was begun, of a body of so many bytes.
fn filling(length: usize) -> Session {
    let (session, effect) = step(forwarded(Method::GET), response(length));
    assert!(matches!(effect, Effect::Begin(_)), "{effect:?}");
    let (session, effect) = step(session, COPY_BEGUN);
    let passed = passed(effect);
    assert_eq!(passed.cache_status, "afterimage; fwd=miss; stored");
    assert!(passed.loses_etag);
    session
}

/// What is changed of a response that passes.
fn passed(effect: Effect) -> Passed {
    match effect {
        Effect::Reply(Reply::Mirror(passed) | Reply::Pass(passed)) => passed,
        other => panic!("{other:?}"),
    }
}

fn hit(effect: Effect) -> Hit {
    match effect {
        Effect::Reply(Reply::Hit(hit)) | Effect::Freshen(_, Reply::Hit(hit)) => *hit,
        other => panic!("{other:?}"),
    }
}

fn record(key: &Key, age: u64) -> Arc<Record> {
    Arc::new(Record {
        variants: None,
        identity: Identity::of(key),
        status: StatusCode::OK,
        headers: [(
            HeaderName::from_static("cache-control"),
            HeaderValue::from_static("max-age=60"),
        )]
        .into_iter()
        .collect(),
        response_time: NOW,
        initial_age: age,
        body: BodyProof::of(&[Bytes::from_static(PNG)]),
    })
}

/// Stale for five seconds, and it may be served for ten.
fn in_window(key: &Key) -> Arc<Record> {
    let mut record = Record::clone(&record(key, 65));
    let line = HeaderValue::from_static("max-age=60, stale-while-revalidate=10");
    record.headers.insert("cache-control", line);
    Arc::new(record)
}

/// An entry whose body is not held.
fn large(record: Arc<Record>) -> Event {
    Event::LookedUp(LookupAnswer::Found {
        record,
        body: StoredBody::Streamed,
    })
}

fn found(record: Arc<Record>) -> Event {
    Event::LookedUp(LookupAnswer::Found {
        record,
        body: StoredBody::Held(vec![Bytes::from_static(PNG)]),
    })
}

#[test]
fn a_fresh_entry_is_a_hit_with_age_and_cache_status() {
    let (session, key) = looking_up(Method::GET);
    let (session, effect) = step(session, found(record(&key, 7)));
    let hit = hit(effect);
    assert_eq!(hit.headers["age"], "7");
    assert_eq!(hit.headers["cache-status"], "afterimage; hit; ttl=53");
    assert!(matches!(hit.body, HitBody::Held(_)));
    assert_eq!(session.report(), Report::Hit { ttl: 53 });
}

#[test]
fn a_head_is_answered_from_the_stored_get_without_its_body() {
    let (session, key) = looking_up(Method::HEAD);
    let (_, effect) = step(session, found(record(&key, 0)));
    let HitBody::Length(length) = hit(effect).body else {
        panic!("a HEAD has a length and no body")
    };
    assert_eq!(length, PNG.len() as u64);
}

#[test]
fn an_entry_of_another_key_is_never_served() {
    let (session, _) = looking_up(Method::GET);
    let other = Key::from_parts("images", 1, [1; 32], [2; 32]);
    let (session, effect) = step(session, found(record(&other, 0)));
    assert!(matches!(effect, Effect::Reply(Reply::Forward(_))));
    assert_eq!(session.report().reason(), "corrupt");
}

#[test]
fn a_stale_entry_is_forwarded_and_says_so() {
    let (session, key) = looking_up(Method::GET);
    let (session, _) = step(session, found(record(&key, 60)));
    let (session, _) = step(session, response(PNG.len()));
    let (_, effect) = step(session, COPY_BEGUN);
    assert_eq!(
        passed(effect).cache_status,
        "afterimage; fwd=stale; fwd-status=200; stored"
    );
}

/// A session that asks about a stale entry with these fields, and what it sends on.
fn asking(age: u64, fields: &[(&'static str, &'static str)]) -> (Session, crate::policy::Forward) {
    let (session, key) = looking_up(Method::GET);
    let mut record = Record::clone(&record(&key, age));
    for (name, value) in fields {
        record
            .headers
            .insert(*name, HeaderValue::from_static(value));
    }
    let (session, effect) = step(session, found(Arc::new(record)));
    let Effect::Reply(Reply::Forward(forward)) = effect else {
        panic!("{effect:?}")
    };
    (session, forward)
}

fn answer_of(status: u16, provenance: Provenance) -> Event {
    Event::Response(ResponseHead {
        status: StatusCode::from_u16(status).unwrap(),
        headers: HeaderMap::new(),
        has_body: false,
        provenance,
    })
}

#[test]
fn rfc9111_4_3_1_a_stale_entry_is_asked_about_with_the_upstream_s_validators() {
    let (_, forward) = asking(60, &[("etag", "\"up\"")]);
    let tag = (
        http::header::IF_NONE_MATCH,
        HeaderValue::from_static("\"up\""),
    );
    assert!(forward.set.contains(&tag), "{forward:?}");
}

#[test]
fn rfc9111_4_3_3_a_304_is_answered_with_the_stored_body_and_freshens_it() {
    let (session, _) = asking(60, &[("etag", "\"up\"")]);
    let (session, effect) = step(session, answer_of(304, Provenance::Upstream));
    assert_eq!(session.report(), Report::Revalidated);
    let Effect::Freshen(freshened, _) = &effect else {
        panic!("{effect:?}")
    };
    assert_eq!(freshened.record.initial_age, 0);
    let hit = hit(effect);
    assert_eq!(hit.status, 200);
    assert_eq!(
        hit.headers["cache-status"],
        "afterimage; fwd=stale; fwd-status=304"
    );
    assert!(matches!(hit.body, HitBody::Held(_)));
}

#[test]
fn rfc5861_4_an_error_is_answered_with_the_stale_entry_inside_its_window() {
    for provenance in [Provenance::Upstream, Provenance::Local] {
        let (session, _) = asking(100, &[]);
        let (session, effect) = step(session, answer_of(503, provenance));
        let failed = Staleness::IfError(StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(session.report(), Report::Stale(failed));
        let hit = hit(effect);
        assert_eq!(hit.headers["age"], "100");
        assert_eq!(
            hit.headers["cache-status"],
            "afterimage; fwd=stale; fwd-status=503"
        );
    }
    let (session, _) = asking(160, &[]);
    let (_, effect) = step(session, answer_of(503, Provenance::Local));
    assert_eq!(
        passed(effect).cache_status,
        "afterimage; fwd=stale; fwd-status=503"
    );
}

#[test]
fn rfc5861_3_in_its_window_one_request_asks_and_the_others_get_the_stale_entry() {
    let claiming = |method| {
        let (session, key) = looking_up(method);
        step(session, found(in_window(&key)))
    };
    let (session, effect) = claiming(Method::GET);
    assert!(matches!(effect, Effect::ClaimRefresh(_)), "{effect:?}");
    let (_, effect) = step(session, Event::RefreshClaimed);
    assert!(
        matches!(effect, Effect::Reply(Reply::Forward(_))),
        "{effect:?}"
    );
    let (session, _) = claiming(Method::GET);
    let (session, effect) = step(session, Event::RefreshTaken);
    assert_eq!(
        hit(effect).headers["cache-status"],
        "afterimage; hit; ttl=-5"
    );
    let refreshed = Staleness::WhileRevalidate { seconds: 5 };
    assert_eq!(session.report(), Report::Stale(refreshed));
    let (_, effect) = claiming(Method::HEAD);
    assert!(matches!(hit(effect).body, HitBody::Length(_)));
}

#[test]
fn a_part_of_a_held_body_is_cut_out_of_its_chunks() {
    let chunks = || {
        vec![
            Bytes::from_static(b"012"),
            Bytes::from_static(b"345"),
            Bytes::from_static(b"6"),
        ]
    };
    for (first, length, expected) in [
        (0, 7, "0123456"),
        (1, 1, "1"),
        (2, 3, "234"),
        (3, 3, "345"),
        (5, 2, "56"),
    ] {
        let part = super::keyed_request::slice(chunks(), first, length).concat();
        assert_eq!(part, expected.as_bytes());
    }
}

#[test]
fn a_head_that_misses_is_forwarded_unchanged_and_never_fills() {
    let (session, _) = looking_up(Method::HEAD);
    let (session, effect) = step(
        session,
        Event::LookedUp(LookupAnswer::Nothing(MissReason::Absent)),
    );
    let Effect::Reply(Reply::Forward(changes)) = effect else {
        panic!("{effect:?}")
    };
    assert_eq!(changes, crate::policy::Forward::default());
    let (session, effect) = step(session, response(PNG.len()));
    let passed = passed(effect);
    assert_eq!(passed.cache_status, "afterimage; fwd=miss");
    assert!(!passed.loses_etag);
    assert!(session.is_done());
}

#[test]
fn a_copy_that_cannot_be_begun_lets_the_response_pass_and_promises_nothing() {
    let (session, _) = step(forwarded(Method::GET), response(PNG.len()));
    let (session, effect) = step(session, Event::CopyLost(AbortReason::Budget));
    let passed = passed(effect);
    assert_eq!(passed.cache_status, "afterimage; fwd=miss");
    assert!(!passed.loses_etag);
    assert_eq!(session.report().copy(), "budget");
}

#[test]
fn a_whole_and_verified_body_finishes_the_copy() {
    let (session, effect) = step(filling(PNG.len() + 1), body(PNG, false));
    assert!(matches!(effect, Effect::Copy(CopyStep::Append(_))));
    let (session, effect) = step(session, body("x", true));
    assert!(matches!(effect, Effect::Copy(CopyStep::Finish(_))));
    assert_eq!(session.report().copy(), "cut");
    let (session, effect) = step(session, Event::CopyFinished);
    assert!(matches!(effect, Effect::Nothing));
    assert_eq!(session.report().copy(), "whole");
    assert_eq!(session.verdict(), Some(Verdict::Stored));
}

#[test]
fn a_copy_that_is_lost_with_its_last_bytes_is_not_whole() {
    let (session, _) = step(filling(PNG.len()), body(PNG, true));
    let (session, effect) = step(session, Event::CopyLost(AbortReason::Budget));
    assert!(matches!(effect, Effect::Nothing));
    assert_eq!(session.report().copy(), "budget");
    assert_eq!(session.verdict(), Some(Verdict::NOTHING));
}

#[test]
fn a_response_without_a_body_promises_a_copy_only_when_there_is_one() {
    let begun = || {
        let Event::Response(mut head) = response(0) else {
            unreachable!("it is a response")
        };
        head.has_body = false;
        let policy = {
            let mut policy = Policy::clone(&policy());
            policy.store.verify = crate::policy::Verify::None;
            Arc::new(policy)
        };
        let (session, _) = step(Session::new(policy, LARGEST), request(Method::GET));
        let absent = Event::LookedUp(LookupAnswer::Nothing(MissReason::Absent));
        let (session, _) = step(session, absent);
        let (session, effect) = step(session, Event::Response(head));
        assert!(matches!(effect, Effect::Begin(_)), "{effect:?}");
        let (session, effect) = step(session, COPY_BEGUN);
        assert!(matches!(effect, Effect::Copy(CopyStep::Finish(_))));
        session
    };
    let (session, effect) = step(begun(), Event::CopyFinished);
    assert_eq!(passed(effect).cache_status, "afterimage; fwd=miss; stored");
    assert_eq!(session.report().copy(), "whole");
    let (session, effect) = step(begun(), Event::CopyLost(AbortReason::Budget));
    assert_eq!(passed(effect).cache_status, "afterimage; fwd=miss");
    assert_eq!(session.report().copy(), "budget");
}

#[test]
fn the_end_may_come_with_an_empty_piece() {
    let (session, _) = step(filling(PNG.len()), body(PNG, false));
    let (_, effect) = step(session, body("", true));
    assert!(matches!(effect, Effect::Copy(CopyStep::Finish(_))));
}

#[test]
fn a_body_that_is_not_as_promised_aborts_the_copy() {
    let cases = [
        (PNG.len() + 1, PNG.to_vec(), AbortReason::Length),
        (PNG.len() - 1, PNG.to_vec(), AbortReason::Length),
        (4, b"html".to_vec(), AbortReason::NotDeclaredImage),
    ];
    for (promised, bytes, reason) in cases {
        let (session, effect) = step(filling(promised), body(bytes, true));
        let Effect::Copy(CopyStep::Abort(aborted)) = effect else {
            panic!("{effect:?}")
        };
        assert_eq!(aborted, reason);
        assert!(session.is_done());
    }
}

#[test]
fn after_the_copy_is_lost_every_piece_still_passes() {
    let (session, effect) = step(filling(100), Event::CopyLost(AbortReason::Deadline));
    assert!(matches!(effect, Effect::Nothing));
    let (session, effect) = step(session, body(PNG, false));
    assert!(matches!(effect, Effect::Nothing));
    let (session, effect) = step(session, body("", true));
    assert!(matches!(effect, Effect::Nothing));
    assert_eq!(session.report().copy(), "deadline");
}

#[test]
fn what_is_cut_is_never_reported_as_whole() {
    let (session, _) = step(filling(100), body(PNG, false));
    assert_eq!(session.report().copy(), "cut");
    assert_eq!(forwarded(Method::GET).report().copy(), "cut");
    assert_eq!(looking_up(Method::GET).0.report(), Report::Left);
}

#[test]
fn an_event_that_cannot_be_names_state_and_event() {
    let error = forwarded(Method::GET).handle(body(PNG, true), NOW);
    assert_eq!(
        error.unwrap_err().to_string(),
        "unexpected response body while waiting for a response"
    );
}

/// What an arbitrary shell, proxy and store could do.
fn any_event() -> impl Strategy<Value = u8> {
    0_u8..31
}

fn event(number: u8, key: &Key) -> Event {
    match number {
        0 => request(Method::GET),
        1 => request(Method::HEAD),
        2 => request(Method::POST),
        3 => Event::LookedUp(LookupAnswer::Nothing(MissReason::Absent)),
        4 => found(record(key, 0)),
        5 => found(record(key, 1000)),
        6 => response(PNG.len()),
        7 => response(100_000),
        8 => COPY_BEGUN,
        9 => Event::CopyLost(AbortReason::Store),
        10 => body(PNG, false),
        11 => body(PNG, true),
        12 => body("", true),
        13 => Event::RefreshClaimed,
        14 => Event::RefreshTaken,
        15 => found(in_window(key)),
        16 => large(record(key, 1000)),
        17 => found(vary::vary_index(key)),
        18 => Event::Fetched(FetchOutcome::Freshened),
        19 => Event::Fetched(FetchOutcome::Nothing),
        20 => Event::Joined(CollapseRole::SentOn),
        21 => Event::Joined(CollapseRole::Follows),
        22 => Event::Followed { again: true },
        23 => Event::Followed { again: false },
        24 => Event::CopyBegun { is_held: false },
        25 => Event::CopyPassesOn,
        26 => Event::CopyFinished,
        27 => Event::Trailers,
        28 => Event::ClientLeft { is_followed: true },
        29 => Event::Expired {
            reason: AbortReason::Slow,
            is_followed: true,
        },
        _ => body(vec![0; 20_000], false),
    }
}

proptest! {
    /// However events are ordered: a copy is begun once, ends at most once, is finished only after
    /// exactly the promised bytes, and nothing is done after the session is over.
    #[test]
    fn any_order_of_events_keeps_the_rules(numbers in proptest::collection::vec(any_event(), 1..40)) {
        let (_, key) = looking_up(Method::GET);
        let mut policy = Policy::clone(&fetching::policy());
        policy.collapses = true;
        let mut session = Session::new(Arc::new(policy), LARGEST);
        let mut begun = false;
        let mut ended = false;
        let mut answers = 0;
        let mut messages = 0;
        let mut copied = 0;
        for number in numbers {
            let was_done = session.is_done();
            let event = event(number, &key);
            let is_message = matches!(event, Event::Request(_) | Event::Response(_) | Event::Body { .. });
            let Ok((next, effect)) = session.handle(event, NOW) else {
                // The shell ends the conversation here.
                return Ok(());
            };
            prop_assert!(!was_done);
            messages += u32::from(is_message);
            match effect {
                Effect::LookUp { .. }
                | Effect::ClaimRefresh(_)
                | Effect::Join(_)
                | Effect::Follow
                | Effect::Fetch(_)
                | Effect::Complete(_)
                | Effect::Nothing => {}
                Effect::Reply(_)
                | Effect::Freshen(..)
                | Effect::Forget(..)
                | Effect::Invalidate(..)
                | Effect::Refresh(..) => answers += 1,
                Effect::Begin(_) => {
                    prop_assert!(!begun);
                    begun = true;
                }
                Effect::Copy(step) => {
                    prop_assert!(begun && !ended);
                    match step {
                        CopyStep::Append(bytes) => copied += bytes.len(),
                        CopyStep::Finish(bytes) => {
                            prop_assert_eq!(copied + bytes.len(), PNG.len());
                            ended = true;
                        }
                        CopyStep::Abort(_) => ended = true,
                    }
                }
            }
            prop_assert!(answers <= messages);
            session = next;
        }
    }
}
