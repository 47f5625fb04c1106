//! One struct for each state, each with what is valid there and nothing else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::effect::{
    CopyStep, Effect, FillPlan, Freshened, Hit, HitBody, Passed, Refresh, Reply, Signpost,
    StoredBody,
};
use super::event::{AbortReason, Answer, Fetched, Part};
use super::{Report, Session};
use crate::clock::Timestamp;
use crate::entry::Record;
use crate::entry::{Key, Variants};
use crate::policy::{
    Answered, CACHE_STATUS, CacheStatus, Checked, Completion, Content, Decision, Forward,
    Freshness, Kind, Lookup, LookupMethod, MAGIC_BYTES, MissReason, NotStorable, Policy,
    RequestHead, ResponseHead, ServedBody, Storable, Validators, forwarded_validators,
};

/// What follows from an event: the next state, and what to do.
pub type Step = (Session, Effect);

/// No message yet.
#[derive(Debug)]
pub struct Start {
    pub(super) policy: Arc<Policy>,
    pub(super) largest_bytes: u64,
}

impl Start {
    pub(super) fn request(self, head: RequestHead, now: Timestamp) -> Step {
        match self.policy.decide(&head, now) {
            Decision::Bypass(reason) => done(Report::Bypass(reason), Effect::Reply(Reply::Bypass)),
            Decision::Watch => {
                let forward = Forward::default().with_via(&self.policy, &head.headers);
                let watching = Watching {
                    policy: self.policy,
                    request: head,
                };
                (
                    Session::Watching(watching),
                    Effect::Reply(Reply::Forward(forward)),
                )
            }
            Decision::Lookup(lookup) => {
                let effect = Effect::LookUp {
                    key: lookup.key.clone(),
                    method: lookup.method,
                };
                let control = &lookup.control;
                let joins = self.policy.collapses
                    && lookup.method == LookupMethod::Get
                    && !control.no_store
                    && !control.only_if_cached;
                let asked = Box::new(Asked {
                    policy: self.policy,
                    selected: None,
                    joins: if joins { ROUNDS } else { 0 },
                    has_followed: false,
                    request: head,
                    lookup: *lookup,
                    largest_bytes: self.largest_bytes,
                });
                (Session::LookingUp(LookingUp { asked, after: None }), effect)
            }
        }
    }
}

/// The request was sent on because of its method.
#[derive(Debug)]
pub struct Watching {
    policy: Arc<Policy>,
    request: RequestHead,
}

impl Watching {
    pub(super) fn response(self, head: &ResponseHead) -> Step {
        let sources = self.policy.invalidated(&self.request, head);
        let reply = Reply::Pass(Passed {
            status: CacheStatus::Method.to_value(None),
            loses_etag: false,
            via: self.policy.via.clone(),
            alone: Duration::ZERO,
        });
        let report = Report::Method {
            invalidates: !sources.is_empty(),
        };
        let effect = if sources.is_empty() {
            Effect::Reply(reply)
        } else {
            Effect::Invalidate(sources, reply)
        };
        done(report, effect)
    }
}

/// How often a request may follow others: one that stores another variant than this one asks for, and
/// one that asks for the same.
const ROUNDS: u8 = 2;

/// A request that has a key, and what it is judged by.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    policy: Arc<Policy>,
    request: RequestHead,
    /// What is asked for; its key is that of a variant as soon as one is selected.
    lookup: Lookup,
    /// What was read before the variant, where the responses vary by more than the primary key.
    selected: Option<Selected>,
    /// How often it may still follow another one.
    joins: u8,
    /// Whether it has.
    has_followed: bool,
    largest_bytes: u64,
}

/// What stands under the primary key of a request that asks for a variant.
#[derive(Debug, Clone)]
struct Selected {
    primary: Key,
    variants: Variants,
}

impl Asked {
    /// The key without what `Vary` names.
    fn primary(&self) -> &Key {
        match &self.selected {
            Some(selected) => &selected.primary,
            None => &self.lookup.key,
        }
    }

    /// The answer out of a stored response.
    fn hit(
        &self,
        record: &Record,
        body: StoredBody,
        age: u64,
        status: CacheStatus,
        reason: &'static str,
        now: Timestamp,
    ) -> Reply {
        let status = self.member(status, reason);
        let served = self.policy.serve(&self.lookup, record, age, &status, now);
        let length = record.body.content_length;
        let part = |first, length| match body {
            StoredBody::Held(chunks) => HitBody::Held(slice(chunks, first, length)),
            StoredBody::Streamed => HitBody::Streamed {
                first,
                length,
                proof: record.body,
            },
            StoredBody::NotNeeded => HitBody::Length(length),
        };
        Reply::Hit(Box::new(Hit {
            status: served.status,
            headers: served.headers,
            body: match served.body {
                ServedBody::Nothing => HitBody::Nothing,
                ServedBody::Length(length) => HitBody::Length(length),
                ServedBody::Part { first, last } => part(first, last - first + 1),
                ServedBody::Whole => part(0, length),
            },
        }))
    }

    /// Our member of `Cache-Status`.
    fn member(&self, status: CacheStatus, reason: &'static str) -> HeaderValue {
        status.to_value(self.policy.shows_detail.then_some(reason))
    }
}

/// `length` bytes from `first` on; the caller has seen that they are there.
pub(super) fn slice(chunks: Vec<Bytes>, mut first: u64, mut length: u64) -> Vec<Bytes> {
    let mut part = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let size = chunk.len() as u64;
        if first >= size {
            first -= size;
            continue;
        }
        let taken = (size - first).min(length);
        // Both are at most the chunk's length.
        part.push(chunk.slice(first as usize..(first + taken) as usize));
        first = 0;
        length -= taken;
        if length == 0 {
            break;
        }
    }
    part
}

/// The store was asked.
#[derive(Debug)]
pub struct LookingUp {
    asked: Box<Asked>,
    /// What we fetched for this request before.
    after: Option<After>,
}

impl LookingUp {
    pub(super) fn answer(self, answer: Answer, now: Timestamp) -> Step {
        let (record, body) = match answer {
            Answer::Nothing(MissReason::Absent) if self.asked.selected.is_some() => {
                return self.asked.send_on(MissReason::Variant, None, now);
            }
            Answer::Nothing(reason) => return self.asked.send_on(reason, None, now),
            Answer::Found { record, body } => (record, body),
        };
        if !record.is_for(&self.asked.lookup.key) {
            return self.asked.send_on(MissReason::Corrupt, None, now);
        }
        if let Some(variants) = &record.variants {
            return self.asked.select(variants, self.after, now);
        }
        let freshness = self.asked.policy.freshness(&record, now);
        match self.after {
            None => self.asked.judged(record, body, freshness, now),
            Some(after) => self
                .asked
                .served_after(after, &record, body, freshness, now),
        }
    }
}

impl Asked {
    /// What is stored was found as it is.
    fn judged(
        self: Box<Self>,
        record: Arc<Record>,
        body: StoredBody,
        freshness: Freshness,
        now: Timestamp,
    ) -> Step {
        let control = &self.lookup.control;
        match freshness {
            Freshness::Fresh { age, ttl } if control.takes_fresh(age, ttl) => {
                let (report, status) = if self.has_followed {
                    (Report::Collapsed, CacheStatus::Collapsed)
                } else {
                    (Report::Hit, CacheStatus::Hit { ttl })
                };
                let reply = self.hit(&record, body, age, status, "", now);
                done(report, Effect::Reply(reply))
            }
            Freshness::Fresh { age, .. } => {
                let stored = Stored::new(record, body, age, false);
                self.send_on(MissReason::Client, Some(stored), now)
            }
            Freshness::Stale {
                age,
                staleness,
                if_taken: true,
                ..
            } if control.takes_stale(age, staleness) => {
                let status = CacheStatus::StaleHit { staleness };
                let reply = self.hit(&record, body, age, status, "", now);
                done(Report::Stale, Effect::Reply(reply))
            }
            Freshness::Stale {
                age,
                staleness,
                while_revalidate: true,
                if_error,
                ..
            } if control.takes_fresh(age, 0) => {
                let claiming = Claiming {
                    asked: self,
                    record,
                    body,
                    age,
                    staleness,
                    if_error,
                };
                if claiming.asked.can_refresh() {
                    let key = claiming.asked.lookup.key.clone();
                    (Session::Claiming(claiming), Effect::ClaimRefresh(key))
                } else {
                    claiming.taken(now)
                }
            }
            Freshness::Stale { age, if_error, .. } => {
                let stored = Stored::new(record, body, age, if_error);
                self.send_on(MissReason::Stale, Some(stored), now)
            }
        }
    }

    /// The upstream was asked for this request; what is stored now is its answer to it.
    fn served_after(
        self: Box<Self>,
        after: After,
        record: &Record,
        body: StoredBody,
        freshness: Freshness,
        now: Timestamp,
    ) -> Step {
        let status = |status, stored| CacheStatus::Stale { status, stored };
        let (age, if_error) = match freshness {
            Freshness::Fresh { age, .. } => (age, false),
            Freshness::Stale { age, if_error, .. } => (age, if_error),
        };
        // What came after we asked is the answer, even if it has to be asked about again next time.
        let is_answer = record.response_time >= after.since;
        let (report, status) = match after.fetched {
            Fetched::Freshened if is_answer => (Report::Revalidated, status(304, false)),
            Fetched::Stored if is_answer => {
                let report = Report::Miss {
                    reason: MissReason::Stale,
                    copy: Copied::Whole,
                };
                (report, status(record.status.as_u16(), true))
            }
            Fetched::Failed(error) if if_error => (Report::Stale, status(error.as_u16(), false)),
            _ => return self.forward(MissReason::Stale, None, now),
        };
        let reply = self.hit(record, body, age, status, MissReason::Stale.as_str(), now);
        done(report, Effect::Reply(reply))
    }

    /// Whether a request can be made that refreshes the entry: this one, or one of our own.
    fn can_refresh(&self) -> bool {
        self.lookup.method == LookupMethod::Get || self.policy.upstream.is_some()
    }

    /// Asks the upstream: about what is stored with this request where its body is held, else with one of
    /// our own while this one waits.
    fn ask(self: Box<Self>, reason: MissReason, stored: Option<Stored>, now: Timestamp) -> Step {
        if let (Some(stored), MissReason::Stale) = (&stored, reason)
            && matches!(stored.body, StoredBody::Streamed)
            && !self.lookup.control.only_if_cached
            && let Some(refresh) = self.refresh(stored, now)
        {
            let fetching = Fetching {
                asked: self,
                since: now,
            };
            return (
                Session::Fetching(fetching),
                Effect::Fetch(Box::new(refresh)),
            );
        }
        self.forward(reason, stored, now)
    }

    /// A request of our own about what is stored; `None` where the policy names no upstream.
    fn refresh(&self, stored: &Stored, now: Timestamp) -> Option<Refresh> {
        let stored = Stored {
            body: StoredBody::NotNeeded,
            ..stored.clone()
        };
        let forward = self.conditional(&stored.record);
        self.of_our_own(&forward, Role::Revalidates(stored), MissReason::Stale, now)
    }

    /// A request of our own for what a client does not wait for any more.
    pub(super) fn completion(&self, is_followed: bool, now: Timestamp) -> Option<Refresh> {
        let upstream = self.policy.upstream.as_ref()?;
        if !is_followed && upstream.completion == Completion::Followers {
            return None;
        }
        self.of_our_own(&self.lookup.forward, Role::Leads, MissReason::Absent, now)
    }

    fn of_our_own(
        &self,
        forward: &Forward,
        role: Role,
        reason: MissReason,
        now: Timestamp,
    ) -> Option<Refresh> {
        let fetch = self.policy.fetch(&self.request, forward)?;
        let asked = Box::new(Self {
            lookup: Lookup {
                method: LookupMethod::Get,
                ..self.lookup.clone()
            },
            ..self.clone()
        });
        Some(Refresh {
            key: self.lookup.key.clone(),
            fetch,
            session: Session::Forwarded(Forwarded {
                asked,
                role,
                reason,
                request_time: now,
            }),
        })
    }

    /// The changes to the request's head, with the validators of what is stored.
    fn conditional(&self, record: &Record) -> Forward {
        let mut forward = self.lookup.forward.clone();
        let validators = forwarded_validators(&record.headers);
        forward
            .remove
            .retain(|name| !validators.iter().any(|(set, _)| set == name));
        forward.set.extend(validators);
        forward
    }
}

/// A request of our own asks about the entry, while this one waits.
#[derive(Debug)]
pub struct Fetching {
    asked: Box<Asked>,
    since: Timestamp,
}

/// What a request of our own has given.
#[derive(Debug, Clone, Copy)]
struct After {
    fetched: Fetched,
    /// When it was made.
    since: Timestamp,
}

impl Fetching {
    pub(super) fn ended(self, fetched: Fetched, now: Timestamp) -> Step {
        match fetched {
            Fetched::Freshened | Fetched::Stored | Fetched::Failed(_) => {
                let after = After {
                    fetched,
                    since: self.since,
                };
                self.asked.look_up_again(Some(after))
            }
            Fetched::NotStored | Fetched::Nothing => {
                self.asked.forward(MissReason::Stale, None, now)
            }
        }
    }
}

/// Nothing usable is stored.
#[derive(Debug)]
pub struct Joining {
    asked: Box<Asked>,
    reason: MissReason,
    stored: Option<Stored>,
}

impl Joining {
    pub(super) fn joined(self, part: Part, now: Timestamp) -> Step {
        match part {
            Part::SentOn => self.asked.ask(self.reason, self.stored, now),
            // What is stored is looked up again.
            Part::Follows => (
                Session::Following(Following { asked: self.asked }),
                Effect::Follow,
            ),
        }
    }
}

/// Another request for the same is under way.
#[derive(Debug)]
pub struct Following {
    asked: Box<Asked>,
}

impl Following {
    pub(super) fn ended(self, again: bool) -> Step {
        let mut asked = self.asked;
        asked.has_followed = true;
        asked.joins = if again { asked.joins - 1 } else { 0 };
        asked.look_up_again(None)
    }
}

/// The entry is stale but may be served while one request refreshes it.
#[derive(Debug)]
pub struct Claiming {
    asked: Box<Asked>,
    record: Arc<Record>,
    body: StoredBody,
    age: u64,
    staleness: u64,
    if_error: bool,
}

impl Claiming {
    /// This request does, or one of our own in its place.
    pub(super) fn claimed(self, now: Timestamp) -> Step {
        let stored = Stored::new(
            Arc::clone(&self.record),
            self.body.clone(),
            self.age,
            self.if_error,
        );
        let Some(refresh) = self.asked.refresh(&stored, now) else {
            return self.asked.forward(MissReason::Stale, Some(stored), now);
        };
        match self.taken(now) {
            (session, Effect::Reply(reply)) => (session, Effect::Refresh(Box::new(refresh), reply)),
            other => other,
        }
    }

    /// Another one does.
    pub(super) fn taken(self, now: Timestamp) -> Step {
        let status = CacheStatus::StaleHit {
            staleness: self.staleness,
        };
        let reply = self
            .asked
            .hit(&self.record, self.body, self.age, status, "", now);
        done(Report::Stale, Effect::Reply(reply))
    }
}

impl Asked {
    /// Looks up once more, from the primary key on: another variant may be the one by now.
    fn look_up_again(mut self: Box<Self>, after: Option<After>) -> Step {
        if let Some(selected) = self.selected.take() {
            self.lookup.key = selected.primary;
        }
        let effect = Effect::LookUp {
            key: self.lookup.key.clone(),
            method: self.lookup.method,
        };
        (Session::LookingUp(LookingUp { asked: self, after }), effect)
    }

    /// Sends the request on, unless another one for the same is under way.
    fn send_on(
        self: Box<Self>,
        reason: MissReason,
        stored: Option<Stored>,
        now: Timestamp,
    ) -> Step {
        let is_same_for_all = match reason {
            MissReason::Absent
            | MissReason::Variant
            | MissReason::Stale
            | MissReason::Corrupt
            | MissReason::StoreUnavailable
            | MissReason::StoreTimeout
            | MissReason::StoreDenied
            | MissReason::Invalidated => true,
            // Nobody else wants it anew, or could be served with it.
            MissReason::Client
            | MissReason::Budget
            | MissReason::TooLarge
            | MissReason::OnlyIfCached => false,
        };
        if self.joins == 0 || !is_same_for_all {
            return self.ask(reason, stored, now);
        }
        let effect = Effect::Join(self.lookup.key.clone());
        let joining = Joining {
            asked: self,
            reason,
            stored,
        };
        (Session::Joining(joining), effect)
    }

    /// Looks up the variant that this request selects.
    fn select(
        mut self: Box<Self>,
        variants: &Variants,
        after: Option<After>,
        now: Timestamp,
    ) -> Step {
        if self.selected.is_some() {
            return self.forward(MissReason::Corrupt, None, now);
        }
        let primary = self.lookup.key;
        self.lookup.key = primary.variant(&variants.fields, &self.request.headers);
        self.selected = Some(Selected {
            primary,
            variants: variants.clone(),
        });
        let effect = Effect::LookUp {
            key: self.lookup.key.clone(),
            method: self.lookup.method,
        };
        (Session::LookingUp(LookingUp { asked: self, after }), effect)
    }

    /// Under which key a response is stored, and what has to stand under the primary one then.
    fn place(&self, storable: &Storable) -> Result<(Key, Option<Signpost>), NotStorable> {
        if storable.varies_by.is_empty() {
            return Ok((self.primary().clone(), None));
        }
        let primary = self.primary();
        let key = primary.variant(&storable.varies_by, &self.request.headers);
        let known = self.selected.as_ref().map(|selected| &selected.variants);
        let most = self.policy.store.variants;
        let variants = Variants::with(known, storable.varies_by.clone(), &key, most)
            .ok_or(NotStorable::Variants)?;
        let signpost = (known != Some(&variants)).then(|| Signpost {
            key: primary.clone(),
            record: Record::of_variants(primary, variants, storable.response_time),
        });
        Ok((key, signpost))
    }

    /// Answers without a stored response (RFC 9111 section 5.2.1.7).
    fn refuse(self: Box<Self>, reason: MissReason) -> Step {
        let status = self.member(CacheStatus::Refused, reason.as_str());
        let report = Report::Miss {
            reason,
            copy: Copied::NotWanted,
        };
        let hit = Hit {
            status: StatusCode::GATEWAY_TIMEOUT,
            headers: [(CACHE_STATUS, status)].into_iter().collect(),
            body: HitBody::Nothing,
        };
        done(report, Effect::Reply(Reply::Hit(Box::new(hit))))
    }

    /// Sends the request on. What is `stored` and held is asked about with its own validators, and
    /// stands in for an error where it may.
    fn forward(
        self: Box<Self>,
        reason: MissReason,
        stored: Option<Stored>,
        now: Timestamp,
    ) -> Step {
        if self.lookup.control.only_if_cached {
            return self.refuse(MissReason::OnlyIfCached);
        }
        let (role, forward) = match (self.lookup.method, stored) {
            // Without an entry there is nothing that the answer to a HEAD could change.
            (LookupMethod::Head, None) => (Role::Passes, Forward::default()),
            (LookupMethod::Head, Some(stored)) => match self.policy.kind {
                Kind::Imgproxy(_) => (Role::Passes, Forward::default()),
                Kind::Generic(_) => (Role::Checks(stored.record), self.lookup.forward.clone()),
            },
            (LookupMethod::Get, Some(stored)) if matches!(stored.body, StoredBody::Held(_)) => {
                let forward = self.conditional(&stored.record);
                (Role::Revalidates(stored), forward)
            }
            (LookupMethod::Get, _) => (Role::Leads, self.lookup.forward.clone()),
        };
        let forward = forward.with_via(&self.policy, &self.request.headers);
        (
            Session::Forwarded(Forwarded {
                asked: self,
                role,
                reason,
                request_time: now,
            }),
            Effect::Reply(Reply::Forward(forward)),
        )
    }
}

/// A stored response that the upstream is asked about.
#[derive(Debug, Clone)]
struct Stored {
    record: Arc<Record>,
    body: StoredBody,
    /// In seconds, when it was looked up.
    age: u64,
    /// Whether it may stand in for an error.
    if_error: bool,
}

impl Stored {
    fn new(record: Arc<Record>, body: StoredBody, age: u64, if_error: bool) -> Self {
        Self {
            record,
            body,
            age,
            if_error,
        }
    }
}

/// What a request that was sent on is there for.
#[derive(Debug)]
enum Role {
    /// Its answer may be stored.
    Leads,
    /// The same, and it was asked with the validators of what is stored.
    Revalidates(Stored),
    /// The answer to a HEAD says whether this is still what a GET would get.
    Checks(Arc<Record>),
    /// Its answer is not stored.
    Passes,
}

/// The request was sent on; the upstream has not answered yet.
#[derive(Debug)]
pub struct Forwarded {
    asked: Box<Asked>,
    role: Role,
    pub(super) reason: MissReason,
    request_time: Timestamp,
}

impl Forwarded {
    pub(super) fn response(mut self, head: &ResponseHead, now: Timestamp) -> Step {
        match std::mem::replace(&mut self.role, Role::Passes) {
            Role::Passes => self.pass(head.status, Copied::NotWanted),
            Role::Leads => self.store(head, now),
            Role::Checks(record) => self.checked(&record, head, now),
            Role::Revalidates(stored) => self.revalidated(stored, head, now),
        }
    }

    /// The answer to a HEAD passes, and its entry follows it (RFC 9111 section 4.3.5).
    fn checked(self, stored: &Record, head: &ResponseHead, now: Timestamp) -> Step {
        let policy = &self.asked.policy;
        let key = self.asked.lookup.key.clone();
        let checked = policy.checked(stored, head, self.request_time, now);
        match self.pass(head.status, Copied::NotWanted) {
            (session, Effect::Reply(reply)) => {
                let effect = match checked {
                    Checked::Unchanged(record) => {
                        let freshened = Freshened {
                            key,
                            record: *record,
                            body: StoredBody::NotNeeded,
                        };
                        Effect::Freshen(Box::new(freshened), reply)
                    }
                    Checked::Changed => Effect::Forget(key, reply),
                    Checked::Nothing => Effect::Reply(reply),
                };
                (session, effect)
            }
            other => other,
        }
    }

    fn revalidated(self, stored: Stored, head: &ResponseHead, now: Timestamp) -> Step {
        let policy = &self.asked.policy;
        let status = CacheStatus::Stale {
            status: head.status.as_u16(),
            stored: false,
        };
        let body = stored.body;
        match policy.answered(&stored.record, head, self.request_time, now) {
            Answered::Unchanged { record, is_kept } => {
                let age = record.initial_age;
                let reason = self.reason.as_str();
                let served = body.clone();
                let reply = self.asked.hit(&record, served, age, status, reason, now);
                let key = self.asked.lookup.key;
                let effect = if is_kept {
                    let record = *record;
                    Effect::Freshen(Box::new(Freshened { key, record, body }), reply)
                } else {
                    Effect::Forget(key, reply)
                };
                done(Report::Revalidated, effect)
            }
            Answered::Failed if stored.if_error => {
                let age = stored.age + now.seconds_since(self.request_time);
                let reason = self.reason.as_str();
                let reply = self
                    .asked
                    .hit(&stored.record, body, age, status, reason, now);
                done(Report::Stale, Effect::Reply(reply))
            }
            Answered::Failed | Answered::Changed => self.store(head, now),
        }
    }

    /// What is asked for, where a request of our own could get it in the place of this one.
    pub(super) fn asked(&self) -> Option<&Asked> {
        match self.role {
            Role::Leads | Role::Revalidates(_) => Some(&self.asked),
            Role::Checks(_) | Role::Passes => None,
        }
    }

    /// Keeps a copy of the response if it may be stored.
    fn store(self, head: &ResponseHead, now: Timestamp) -> Step {
        let asked = &self.asked;
        let judged = asked.policy.storable(
            head,
            self.request_time,
            now,
            asked.lookup.is_authorized,
            asked.largest_bytes,
        );
        let placed = judged.and_then(|storable| {
            if asked.lookup.control.no_store {
                return Err(NotStorable::Client);
            }
            let (key, signpost) = asked.place(&storable)?;
            Ok(FillPlan {
                key,
                is_fresh: asked.policy.is_fresh(&storable),
                storable,
                signpost,
                alone: asked.policy.store.hit_for_miss,
            })
        });
        match placed {
            Err(refusal) => {
                let alone = if is_failure(head.status) {
                    Duration::ZERO
                } else {
                    self.asked.policy.store.hit_for_miss
                };
                let mut passed = self.passed(head.status, false);
                passed.alone = alone;
                self.pass_with(passed, Copied::Refused(refusal))
            }
            Ok(plan) => {
                let storable = &plan.storable;
                let beginning = Beginning {
                    has_body: head.has_body,
                    filling: Filling {
                        reason: self.reason,
                        received: 0,
                        content_length: storable.content_length,
                        largest_bytes: asked.largest_bytes,
                        content: storable.content.clone(),
                        head: Vec::new(),
                        asked: asked.policy.upstream.is_some().then(|| asked.clone()),
                    },
                    begun: self.passed(head.status, true),
                    lost: self.passed(head.status, false),
                };
                (Session::Beginning(beginning), Effect::Begin(Box::new(plan)))
            }
        }
    }

    fn pass(self, status: StatusCode, copy: Copied) -> Step {
        let passed = self.passed(status, false);
        self.pass_with(passed, copy)
    }

    fn pass_with(self, passed: Passed, copy: Copied) -> Step {
        let report = Report::Miss {
            reason: self.reason,
            copy,
        };
        done(report, Effect::Reply(Reply::Pass(passed)))
    }

    fn passed(&self, status: StatusCode, stored: bool) -> Passed {
        let cache_status = match self.reason {
            MissReason::Stale => CacheStatus::Stale {
                status: status.as_u16(),
                stored,
            },
            MissReason::Client => CacheStatus::Request {
                status: status.as_u16(),
                stored,
            },
            MissReason::Variant => CacheStatus::VaryMiss { stored },
            MissReason::Absent
            | MissReason::Corrupt
            | MissReason::StoreUnavailable
            | MissReason::StoreTimeout
            | MissReason::StoreDenied
            | MissReason::Budget
            | MissReason::Invalidated
            | MissReason::OnlyIfCached
            | MissReason::TooLarge => CacheStatus::Miss { stored },
        };
        Passed {
            status: self.asked.member(cache_status, self.reason.as_str()),
            loses_etag: stored && self.asked.policy.validators == Validators::Content,
            via: self.asked.policy.via.clone(),
            alone: Duration::ZERO,
        }
    }
}

/// Whether the next answer may well be another one.
fn is_failure(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

/// The response may be stored; the shell was asked for a copy.
#[derive(Debug)]
pub struct Beginning {
    has_body: bool,
    pub(super) filling: Filling,
    begun: Passed,
    lost: Passed,
}

impl Beginning {
    pub(super) fn begun(self) -> Step {
        if self.has_body {
            return (
                Session::Filling(self.filling),
                Effect::Reply(Reply::Mirror(self.begun)),
            );
        }
        let report = Report::Miss {
            reason: self.filling.reason,
            copy: Copied::Whole,
        };
        done(report, Effect::Finish(Reply::Pass(self.begun)))
    }

    pub(super) fn lost(self, reason: AbortReason) -> Step {
        let report = Report::Miss {
            reason: self.filling.reason,
            copy: Copied::Aborted(reason),
        };
        done(report, Effect::Reply(Reply::Pass(self.lost)))
    }
}

/// The body passes, and its copy is kept.
#[derive(Debug)]
pub struct Filling {
    pub(super) reason: MissReason,
    received: u64,
    content_length: Option<u64>,
    largest_bytes: u64,
    content: Content,
    /// The first [`MAGIC_BYTES`] of the body, as far as they have come.
    head: Vec<u8>,
    /// What is asked for, where a request of our own could get it in the place of this one.
    asked: Option<Box<Asked>>,
}

impl Filling {
    pub(super) fn body(mut self, bytes: Bytes, is_end: bool) -> Step {
        self.received += bytes.len() as u64;
        let missing = MAGIC_BYTES.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..missing]);
        if let Some(reason) = self.objection(is_end) {
            return self.abort(reason, is_end);
        }
        if is_end {
            let report = Report::Miss {
                reason: self.reason,
                copy: Copied::Whole,
            };
            done(report, Effect::Copy(CopyStep::Finish(bytes)))
        } else {
            (
                Session::Filling(self),
                Effect::Copy(CopyStep::Append(bytes)),
            )
        }
    }

    pub(super) fn lost(self, reason: AbortReason) -> Step {
        (
            Session::Draining(Draining {
                reason: self.reason,
                abort: reason,
            }),
            Effect::Nothing,
        )
    }

    /// What is asked for, where a request of our own could get it in the place of this one.
    pub(super) fn asked(&self) -> Option<&Asked> {
        self.asked.as_deref()
    }

    /// How the request ended if nothing more comes.
    pub(super) fn cut(&self) -> Report {
        Report::Miss {
            reason: self.reason,
            copy: Copied::Aborted(AbortReason::Cut),
        }
    }

    /// What speaks against what has come so far.
    fn objection(&self, is_end: bool) -> Option<AbortReason> {
        let promised = self.content_length;
        if promised.is_some_and(|length| self.received > length) {
            return Some(AbortReason::Length);
        }
        if self.received > self.largest_bytes {
            return Some(AbortReason::TooLarge);
        }
        if !is_end {
            return None;
        }
        if promised.is_some_and(|length| self.received < length) {
            return Some(AbortReason::Length);
        }
        (!self.content.agrees_with(&self.head)).then_some(AbortReason::NotDeclaredImage)
    }

    fn abort(self, abort: AbortReason, is_end: bool) -> Step {
        let draining = Draining {
            reason: self.reason,
            abort,
        };
        let next = if is_end {
            Session::Done(Done {
                report: draining.report(),
            })
        } else {
            Session::Draining(draining)
        };
        (next, Effect::Copy(CopyStep::Abort(abort)))
    }
}

/// The body passes, and nothing of it is kept any more.
#[derive(Debug)]
pub struct Draining {
    reason: MissReason,
    abort: AbortReason,
}

impl Draining {
    pub(super) fn body(self, is_end: bool) -> Step {
        let next = if is_end {
            Session::Done(Done {
                report: self.report(),
            })
        } else {
            Session::Draining(self)
        };
        (next, Effect::Reply(Reply::Continue))
    }

    pub(super) fn report(&self) -> Report {
        Report::Miss {
            reason: self.reason,
            copy: Copied::Aborted(self.abort),
        }
    }
}

/// The last answer was given.
#[derive(Debug)]
pub struct Done {
    pub(super) report: Report,
}

/// What became of the copy of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// The request could not lead.
    NotWanted,
    /// The response may not be stored.
    Refused(NotStorable),
    /// It was whole and verified, and went to the store.
    Whole,
    /// It was given up.
    Aborted(AbortReason),
}

fn done(report: Report, effect: Effect) -> Step {
    (Session::Done(Done { report }), effect)
}
