//! Secondary keys (RFC 9111 section 4.1).

use super::*;
use crate::entry::Variants;
use crate::session::VaryIndex;

const LANGUAGE: &str = "accept-language";

fn policy(variants: usize) -> Arc<Policy> {
    let mut policy = testing::policy(Kind::Generic(testing::generic()));
    policy.store.variants = variants;
    Arc::new(policy)
}

fn variants(stored: Vec<u64>) -> Variants {
    Variants {
        fields: vec![HeaderName::from_static(LANGUAGE)],
        stored,
    }
}

/// What stands under a primary key whose responses vary by language.
pub(super) fn vary_index(key: &Key) -> Arc<Record> {
    Arc::new(Record::of_variants(key, variants(vec![1]), NOW))
}

/// A session that looks up the primary key.
fn asking(policy: Arc<Policy>, language: &str) -> (Session, Key) {
    let request = testing::get("/a", &[(LANGUAGE, language)]);
    let (session, effect) = step(Session::new(policy, LARGEST), Event::Request(request));
    let Effect::LookUp { key, .. } = effect else {
        panic!("{effect:?}")
    };
    (session, key)
}

/// The same after it has read the vary_index, and the key that it looks up then.
fn selecting(language: &str) -> (Session, Key, Key) {
    let (session, primary) = asking(policy(2), language);
    let (session, effect) = step(session, found(vary_index(&primary)));
    let Effect::LookUp { key, .. } = effect else {
        panic!("{effect:?}")
    };
    (session, primary, key)
}

fn varying(fields: &str) -> Event {
    let Event::Response(mut head) = response(PNG.len()) else {
        unreachable!("it is a response")
    };
    let value = HeaderValue::from_str(fields).unwrap();
    head.headers.insert("vary", value);
    Event::Response(head)
}

fn plan(session: Session, event: Event) -> FillPlan {
    match step(session, event) {
        (_, Effect::Begin(plan)) => *plan,
        other => panic!("{other:?}"),
    }
}

fn missed(session: Session) -> Session {
    step(
        session,
        Event::LookedUp(LookupAnswer::Nothing(MissReason::Absent)),
    )
    .0
}

#[test]
fn rfc9111_4_1_a_response_is_found_by_what_its_request_had_in_the_fields() {
    let (session, primary, german) = selecting("de");
    assert_ne!(german, primary);
    assert_eq!(selecting("de").2, german);
    assert_ne!(selecting("en").2, german);
    let (session, effect) = step(session, found(record(&german, 0)));
    assert_eq!(hit(effect).status, 200);
    assert_eq!(session.report(), Report::Hit { ttl: 60 });
}

#[test]
fn rfc9211_2_2_a_request_whose_variant_is_not_there_says_vary_miss() {
    let (session, _, german) = selecting("de");
    let session = missed(session);
    let (session, effect) = step(session, varying(LANGUAGE));
    let Effect::Begin(plan) = effect else {
        panic!("{effect:?}")
    };
    assert_eq!(plan.key, german);
    let (_, effect) = step(session, COPY_BEGUN);
    assert_eq!(
        passed(effect).cache_status,
        "afterimage; fwd=vary-miss; stored"
    );
}

#[test]
fn rfc9111_4_1_a_response_that_varies_leaves_an_index_under_the_primary_key() {
    let (session, primary) = asking(policy(2), "de");
    let plan = plan(missed(session), varying(LANGUAGE));
    assert_ne!(plan.key, primary);
    let Some(VaryIndex { key, record }) = plan.vary_index else {
        panic!("{plan:?}")
    };
    assert_eq!(key, primary);
    assert!(record.is_for(&primary));
    let fields = record.variants.map(|variants| variants.fields);
    assert_eq!(fields, Some(vec![HeaderName::from_static(LANGUAGE)]));
}

#[test]
fn rfc9111_4_1_the_most_recent_response_decides_about_the_fields() {
    // It does not vary any more: it stands under the primary key, in the vary_index's place.
    let (session, primary, _) = selecting("de");
    let plain = plan(missed(session), response(PNG.len()));
    assert_eq!(plain.key, primary);
    assert!(plain.vary_index.is_none());
    // It varies by something else.
    let (session, _, german) = selecting("de");
    let other = plan(missed(session), varying("x-theme"));
    assert_ne!(other.key, german);
    assert!(other.vary_index.is_some());
}

#[test]
fn there_are_at_most_so_many_variants() {
    let refused = |language, stored: Vec<u64>| {
        let (session, primary) = asking(policy(2), language);
        let record = Record::of_variants(&primary, variants(stored), NOW);
        let (session, _) = step(session, found(Arc::new(record)));
        let (session, effect) = step(missed(session), varying(LANGUAGE));
        match effect {
            Effect::Begin(_) => None,
            _ => Some(session.report().copy()),
        }
    };
    assert_eq!(refused("de", vec![1]), None);
    assert_eq!(refused("de", vec![1, 2]), Some("variants"));
}

#[test]
fn without_variants_a_response_that_varies_is_not_stored() {
    let (session, _) = asking(policy(0), "de");
    let (session, _) = step(missed(session), varying(LANGUAGE));
    assert_eq!(session.report().copy(), "vary");
}

#[test]
fn an_index_to_an_index_leads_nowhere() {
    let (session, _, german) = selecting("de");
    let (session, effect) = step(session, found(vary_index(&german)));
    assert!(matches!(effect, Effect::Reply(Reply::Forward(_))));
    assert_eq!(session.report().reason(), "corrupt");
}

#[test]
fn rfc9111_4_3_4_a_304_freshens_the_variant_that_was_asked_about() {
    let (session, _, german) = selecting("de");
    let (session, _) = step(session, found(record(&german, 60)));
    let (_, effect) = step(session, answer_of(304, Provenance::Upstream));
    let Effect::Freshen(freshened, _) = effect else {
        panic!("{effect:?}")
    };
    assert_eq!(freshened.key, german);
}
