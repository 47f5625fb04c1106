//! From the request's head to a hit, or to sending it on.

use std::sync::Arc;

use super::Session;
use super::effect::{Effect, Refresh};
use super::event::{CollapseRole, FetchOutcome, LookupAnswer};
use super::fill::StoredBody;
use super::filling::{Step, done};
use super::forwarded::{Forwarded, Role, Watching};
use super::keyed_request::{Following, KeyedRequest, Selected, Stored};
use super::report::{Copied, Report, Staleness, Verdict};
use crate::clock::Timestamp;
use crate::entry::{Record, Variants};
use crate::policy::{
    Completion, Decision, Forward, Freshness, Kind, Lookup, LookupMethod, MissReason, Policy,
    RequestHead,
};

/// How often a request may follow others: one that stores another variant than this one asks for, and
/// one that asks for the same.
const ROUNDS: u8 = 2;

/// No message yet.
#[derive(Debug)]
pub struct Start {
    pub(super) policy: Arc<Policy>,
    pub(super) largest_bytes: u64,
}

impl Start {
    pub(super) fn request(self, head: RequestHead, now: Timestamp) -> Step {
        match self.policy.decide(&head, now) {
            Decision::Bypass(reason) => Session::bypassed(reason),
            Decision::Watch => Watching::begin(self.policy, head),
            Decision::Lookup(lookup) => {
                let effect = Effect::LookUp {
                    key: lookup.key.clone(),
                    method: lookup.method,
                };
                let control = &lookup.control;
                let follows = self.policy.collapses
                    && lookup.method == LookupMethod::Get
                    && !control.no_store
                    && !control.only_if_cached;
                let request = Box::new(KeyedRequest {
                    policy: self.policy,
                    selected: None,
                    following: Following {
                        rounds: if follows { ROUNDS } else { 0 },
                        has_followed: false,
                    },
                    head,
                    lookup: *lookup,
                    largest_bytes: self.largest_bytes,
                });
                let after = None;
                (Session::LookingUp(LookingUp { request, after }), effect)
            }
        }
    }
}

/// The lookup is under way.
#[derive(Debug)]
pub struct LookingUp {
    request: Box<KeyedRequest>,
    /// What we fetched for this request before.
    after: Option<AfterFetch>,
}

/// What a request of our own has given.
#[derive(Debug, Clone, Copy)]
struct AfterFetch {
    outcome: FetchOutcome,
    /// When it was made.
    since: Timestamp,
}

impl LookingUp {
    pub(super) fn answered(self, answer: LookupAnswer, now: Timestamp) -> Step {
        let Self { request, after } = self;
        let (record, body) = match answer {
            LookupAnswer::Nothing(MissReason::Absent) if request.selected.is_some() => {
                return request.send_on(MissReason::Variant, None, now);
            }
            LookupAnswer::Nothing(reason) => return request.send_on(reason, None, now),
            LookupAnswer::Found { record, body } => (record, body),
        };
        if !record.is_for(&request.lookup.key) {
            return request.send_on(MissReason::Corrupt, None, now);
        }
        if let Some(variants) = &record.variants {
            return request.select(variants, after, now);
        }
        let freshness = request.policy.freshness(&record, now);
        match after {
            None => request.judged(record, body, freshness, now),
            Some(after) => request.served_after(after, &record, body, freshness, now),
        }
    }
}

/// Nothing usable is stored.
#[derive(Debug)]
pub struct Joining {
    request: Box<KeyedRequest>,
    reason: MissReason,
    stored: Option<Stored>,
}

impl Joining {
    pub(super) fn joined(self, role: CollapseRole, now: Timestamp) -> Step {
        let mut request = self.request;
        match role {
            CollapseRole::SentOn => {
                // From here on others may wait for it: it must never wait for itself.
                request.following.rounds = 0;
                request.ask(self.reason, self.stored, now)
            }
            // What is stored is looked up again.
            CollapseRole::Follows => (
                Session::Following(FollowingAnother { request }),
                Effect::Follow,
            ),
        }
    }
}

/// Another request for the same is under way.
#[derive(Debug)]
pub struct FollowingAnother {
    request: Box<KeyedRequest>,
}

impl FollowingAnother {
    pub(super) fn ended(self, again: bool) -> Step {
        let mut request = self.request;
        let following = &mut request.following;
        following.has_followed = true;
        following.rounds = if again { following.rounds - 1 } else { 0 };
        request.look_up_again(None)
    }
}

/// The entry is stale but may be served while one request refreshes it.
#[derive(Debug)]
pub struct Claiming {
    request: Box<KeyedRequest>,
    stored: Stored,
    staleness: u64,
}

impl Claiming {
    /// This request does, or one of our own in its place.
    pub(super) fn claimed(self, now: Timestamp) -> Step {
        let Some(refresh) = self.request.refresh(&self.stored, now) else {
            return self
                .request
                .forward(MissReason::Stale, Some(self.stored), now);
        };
        let (report, reply) = self.stale_hit(now);
        let effect = Effect::Refresh(Box::new(refresh), reply);
        done(report, Verdict::NOTHING, effect)
    }

    /// Another one does.
    pub(super) fn taken(self, now: Timestamp) -> Step {
        let (report, reply) = self.stale_hit(now);
        done(report, Verdict::NOTHING, Effect::Reply(reply))
    }

    fn stale_hit(self, now: Timestamp) -> (Report, super::Reply) {
        let seconds = self.staleness;
        let report = Report::Stale(Staleness::WhileRevalidate { seconds });
        let Stored {
            record, body, age, ..
        } = self.stored;
        (report, self.request.hit(&record, body, age, report, now))
    }
}

/// A request of our own asks about the entry, while this one waits.
#[derive(Debug)]
pub struct AwaitingFetch {
    request: Box<KeyedRequest>,
    since: Timestamp,
}

impl AwaitingFetch {
    pub(super) fn ended(self, outcome: FetchOutcome, now: Timestamp) -> Step {
        match outcome {
            FetchOutcome::Freshened | FetchOutcome::Stored | FetchOutcome::Failed(_) => {
                let since = self.since;
                self.request
                    .look_up_again(Some(AfterFetch { outcome, since }))
            }
            FetchOutcome::NotStored | FetchOutcome::Nothing => {
                self.request.forward(MissReason::Stale, None, now)
            }
        }
    }
}

impl KeyedRequest {
    /// A stored response was found.
    fn judged(
        self: Box<Self>,
        record: Arc<Record>,
        body: StoredBody,
        freshness: Freshness,
        now: Timestamp,
    ) -> Step {
        let control = &self.lookup.control;
        let stored = |age, if_error| Stored {
            record: Arc::clone(&record),
            body: body.clone(),
            age,
            if_error,
        };
        match freshness {
            Freshness::Fresh { age, ttl } if control.takes_fresh(age, ttl) => {
                let report = if self.following.has_followed {
                    Report::Collapsed
                } else {
                    Report::Hit { ttl }
                };
                let reply = self.hit(&record, body, age, report, now);
                done(report, Verdict::Stored, Effect::Reply(reply))
            }
            Freshness::Fresh { age, .. } => {
                self.send_on(MissReason::Client, Some(stored(age, false)), now)
            }
            Freshness::Stale {
                age,
                staleness,
                if_taken: true,
                ..
            } if control.takes_stale(age, staleness) => {
                let seconds = staleness;
                let report = Report::Stale(Staleness::WhileRevalidate { seconds });
                let reply = self.hit(&record, body, age, report, now);
                done(report, Verdict::NOTHING, Effect::Reply(reply))
            }
            Freshness::Stale {
                age,
                staleness,
                while_revalidate: true,
                if_error,
                ..
            } if control.takes_fresh(age, 0) => {
                let stored = stored(age, if_error);
                let claiming = Claiming {
                    request: self,
                    stored,
                    staleness,
                };
                if claiming.request.can_refresh() {
                    let key = claiming.request.lookup.key.clone();
                    (Session::Claiming(claiming), Effect::ClaimRefresh(key))
                } else {
                    claiming.taken(now)
                }
            }
            Freshness::Stale { age, if_error, .. } => {
                self.send_on(MissReason::Stale, Some(stored(age, if_error)), now)
            }
        }
    }

    /// The upstream was asked for this request; what is stored now is its answer to it.
    fn served_after(
        self: Box<Self>,
        after: AfterFetch,
        record: &Record,
        body: StoredBody,
        freshness: Freshness,
        now: Timestamp,
    ) -> Step {
        let (age, if_error) = match freshness {
            Freshness::Fresh { age, .. } => (age, false),
            Freshness::Stale { age, if_error, .. } => (age, if_error),
        };
        // What came after we asked is the answer, even if it has to be asked about again next time.
        let is_answer = record.response_time >= after.since;
        let (report, verdict) = match after.outcome {
            FetchOutcome::Freshened if is_answer => (Report::Revalidated, Verdict::Stored),
            FetchOutcome::Stored if is_answer => {
                let report = Report::Miss {
                    reason: MissReason::Stale,
                    status: Some(record.status),
                    copy: Copied::Whole,
                };
                (report, Verdict::Stored)
            }
            FetchOutcome::Failed(error) if if_error => {
                let report = Report::Stale(Staleness::IfError(error));
                // It is as stale for the others.
                (report, Verdict::NOTHING)
            }
            FetchOutcome::Freshened
            | FetchOutcome::Stored
            | FetchOutcome::Failed(_)
            | FetchOutcome::NotStored
            | FetchOutcome::Nothing => return self.forward(MissReason::Stale, None, now),
        };
        let reply = self.hit(record, body, age, report, now);
        done(report, verdict, Effect::Reply(reply))
    }

    /// Whether a request can be made that refreshes the entry: this one, or one of our own.
    fn can_refresh(&self) -> bool {
        self.lookup.method == LookupMethod::Get || self.policy.upstream.is_some()
    }

    /// Looks up once more, from the primary key on: another variant may be the one by now.
    fn look_up_again(mut self: Box<Self>, after: Option<AfterFetch>) -> Step {
        if let Some(selected) = self.selected.take() {
            self.lookup.key = selected.primary;
        }
        self.look_up(after)
    }

    fn look_up(self: Box<Self>, after: Option<AfterFetch>) -> Step {
        let effect = Effect::LookUp {
            key: self.lookup.key.clone(),
            method: self.lookup.method,
        };
        let request = self;
        (Session::LookingUp(LookingUp { request, after }), effect)
    }

    /// Looks up the variant that this request selects.
    fn select(
        mut self: Box<Self>,
        variants: &Variants,
        after: Option<AfterFetch>,
        now: Timestamp,
    ) -> Step {
        if self.selected.is_some() {
            return self.forward(MissReason::Corrupt, None, now);
        }
        let primary = self.lookup.key;
        self.lookup.key = primary.variant(&variants.fields, &self.head.headers);
        self.selected = Some(Selected {
            primary,
            variants: variants.clone(),
        });
        self.look_up(after)
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
        if self.following.rounds == 0 || !is_same_for_all {
            return self.ask(reason, stored, now);
        }
        let effect = Effect::Join(self.lookup.key.clone());
        let request = self;
        let joining = Joining {
            request,
            reason,
            stored,
        };
        (Session::Joining(joining), effect)
    }

    /// Asks the upstream: about what is stored with this request where its body is held, else with one of
    /// our own while this one waits.
    fn ask(self: Box<Self>, reason: MissReason, stored: Option<Stored>, now: Timestamp) -> Step {
        if let (Some(stored), MissReason::Stale) = (&stored, reason)
            && matches!(stored.body, StoredBody::Streamed)
            && !self.lookup.control.only_if_cached
            && let Some(refresh) = self.refresh(stored, now)
        {
            let awaiting = AwaitingFetch {
                request: self,
                since: now,
            };
            let effect = Effect::Fetch(Box::new(refresh));
            return (Session::AwaitingFetch(awaiting), effect);
        }
        self.forward(reason, stored, now)
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
            return self.refuse(Report::Miss {
                reason: MissReason::OnlyIfCached,
                status: None,
                copy: Copied::NotWanted,
            });
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
        let forward = forward.with_via(&self.policy, &self.head.headers);
        Forwarded::new(self, role, reason, now).sent_on(forward)
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

    /// A request of our own for what a client does not wait for any more; `None` where the policy names no
    /// upstream, or wants it only where others wait.
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
        let fetch = self.policy.fetch(&self.head, forward)?;
        let request = Box::new(Self {
            lookup: Lookup {
                method: LookupMethod::Get,
                ..self.lookup.clone()
            },
            ..self.clone()
        });
        Some(Refresh {
            key: self.lookup.key.clone(),
            fetch,
            session: Session::Forwarded(Forwarded::new(request, role, reason, now)),
        })
    }
}
