//! From a request that was sent on to the head of its response.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::Session;
use super::effect::{Effect, Passed, Reply};
use super::fill::{FillPlan, Freshened, StoredBody};
use super::filling::{Beginning, Filling};
use super::keyed_request::{KeyedRequest, Stored, cache_status};
use super::report::{Copied, Report, Staleness, Verdict};
use super::step::{Step, done};
use crate::clock::Timestamp;
use crate::entry::Record;
use crate::policy::{
    Answered, Checked, Forward, MissReason, NotStorable, Policy, RequestHead, ResponseHead,
    Validators,
};

/// The request was sent on because of its method.
#[derive(Debug)]
pub struct Watching {
    policy: Arc<Policy>,
    head: RequestHead,
}

impl Watching {
    pub(super) fn begin(policy: Arc<Policy>, head: RequestHead) -> Step {
        let forward = Forward::default().with_via(&policy, &head.headers);
        let watching = Self { policy, head };
        (
            Session::Watching(watching),
            Effect::Reply(Reply::Forward(forward)),
        )
    }

    pub(super) fn response(self, head: &ResponseHead) -> Step {
        let sources = self.policy.invalidated(&self.head, head);
        let report = Report::Method {
            invalidates: !sources.is_empty(),
        };
        let reply = Reply::Pass(Passed {
            cache_status: cache_status(&self.policy, report),
            loses_etag: false,
            via: self.policy.via.clone(),
        });
        let effect = if sources.is_empty() {
            Effect::Reply(reply)
        } else {
            Effect::Invalidate(sources, reply)
        };
        done(report, Verdict::NOTHING, effect)
    }
}

/// What a request that was sent on is there for.
#[derive(Debug)]
pub(super) enum Role {
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
    request: Box<KeyedRequest>,
    role: Role,
    reason: MissReason,
    request_time: Timestamp,
}

impl Forwarded {
    pub(super) fn new(
        request: Box<KeyedRequest>,
        role: Role,
        reason: MissReason,
        request_time: Timestamp,
    ) -> Self {
        Self {
            request,
            role,
            reason,
            request_time,
        }
    }

    pub(super) fn sent_on(self, forward: Forward) -> Step {
        (
            Session::Forwarded(self),
            Effect::Reply(Reply::Forward(forward)),
        )
    }

    pub(super) fn response(mut self, head: &ResponseHead, now: Timestamp) -> Step {
        match std::mem::replace(&mut self.role, Role::Passes) {
            Role::Passes => self.pass(head.status, Copied::NotWanted, Verdict::NOTHING),
            Role::Leads => self.store(head, now),
            Role::Checks(record) => self.checked(&record, head, now),
            Role::Revalidates(stored) => self.revalidated(stored, head, now),
        }
    }

    /// What is asked for, where a request of our own could get it in the place of this one.
    pub(super) fn completable(&self) -> Option<&KeyedRequest> {
        match self.role {
            Role::Leads | Role::Revalidates(_) => Some(&self.request),
            Role::Checks(_) | Role::Passes => None,
        }
    }

    /// How the request stands with this answer.
    pub(super) fn report(&self, status: Option<StatusCode>, copy: Copied) -> Report {
        Report::Miss {
            reason: self.reason,
            status,
            copy,
        }
    }

    /// The answer to a HEAD passes, and its entry follows it (RFC 9111 section 4.3.5).
    fn checked(self, stored: &Record, head: &ResponseHead, now: Timestamp) -> Step {
        let policy = &self.request.policy;
        let key = self.request.lookup.key.clone();
        let checked = policy.checked(stored, head, self.request_time, now);
        let report = self.report(Some(head.status), Copied::NotWanted);
        let reply = Reply::Pass(self.passed(report));
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
        done(report, Verdict::NOTHING, effect)
    }

    fn revalidated(self, stored: Stored, head: &ResponseHead, now: Timestamp) -> Step {
        let policy = &self.request.policy;
        let body = stored.body;
        match policy.answered(&stored.record, head, self.request_time, now) {
            Answered::Unchanged { record, is_kept } => {
                let report = Report::Revalidated;
                let (age, served) = (record.initial_age, body.clone());
                let reply = self.request.hit(&record, served, age, report, now);
                let key = self.request.lookup.key;
                if is_kept {
                    let record = *record;
                    let freshened = Freshened { key, record, body };
                    let effect = Effect::Freshen(Box::new(freshened), reply);
                    return done(report, Verdict::Stored, effect);
                }
                let verdict = Verdict::NotWorthWaiting(policy.store.hit_for_miss);
                done(report, verdict, Effect::Forget(key, reply))
            }
            Answered::Failed if stored.if_error => {
                let report = Report::Stale(Staleness::IfError(head.status));
                let age = stored.age + now.seconds_since(self.request_time);
                let reply = self.request.hit(&stored.record, body, age, report, now);
                // It is as stale for the others.
                done(report, Verdict::NOTHING, Effect::Reply(reply))
            }
            Answered::Failed | Answered::Changed => self.store(head, now),
        }
    }

    /// Keeps a copy of the response if it may be stored.
    fn store(self, head: &ResponseHead, now: Timestamp) -> Step {
        let request = &self.request;
        let hit_for_miss = request.policy.store.hit_for_miss;
        let (plan, is_fresh) = match self.plan(head, now) {
            Ok(planned) => planned,
            Err(refusal) => {
                let says_nothing_of_the_key = match refusal {
                    NotStorable::Authorized | NotStorable::Client => true,
                    _ => is_failure(head.status),
                };
                let lasts = if says_nothing_of_the_key {
                    Duration::ZERO
                } else {
                    hit_for_miss
                };
                let verdict = Verdict::NotWorthWaiting(lasts);
                return self.pass(head.status, Copied::Refused(refusal), verdict);
            }
        };
        let upstream = request.policy.upstream.as_ref();
        let filling = Filling {
            reason: self.reason,
            status: head.status,
            received: 0,
            content_length: plan.storable.content_length,
            largest_bytes: request.largest_bytes,
            content: plan.storable.content.clone(),
            magic: Vec::new(),
            is_fresh,
            is_held: false,
            hit_for_miss,
            completable: upstream.map(|_| request.clone()),
        };
        let mirrored = self.passed(filling.report(Copied::Begun));
        let beginning = Beginning {
            has_body: head.has_body,
            mirrored: Passed {
                loses_etag: request.policy.validators == Validators::Content,
                ..mirrored
            },
            lost: self.passed(filling.report(Copied::NotWanted)),
            filling,
        };
        (Session::Beginning(beginning), Effect::Begin(Box::new(plan)))
    }

    /// What is stored of the response, and whether it is fresh as it comes.
    fn plan(&self, head: &ResponseHead, now: Timestamp) -> Result<(FillPlan, bool), NotStorable> {
        let request = &self.request;
        let storable = request.policy.storable(
            head,
            self.request_time,
            now,
            request.lookup.is_authorized,
            request.largest_bytes,
        )?;
        if request.lookup.control.no_store {
            return Err(NotStorable::Client);
        }
        let (key, vary_index) = request.place(&storable)?;
        let is_fresh = request.policy.is_fresh(&storable);
        let plan = FillPlan {
            key,
            storable,
            vary_index,
            hit_for_miss: request.policy.store.hit_for_miss,
        };
        Ok((plan, is_fresh))
    }

    fn pass(self, status: StatusCode, copy: Copied, verdict: Verdict) -> Step {
        let report = self.report(Some(status), copy);
        let passed = self.passed(report);
        done(report, verdict, Effect::Reply(Reply::Pass(passed)))
    }

    fn passed(&self, report: Report) -> Passed {
        Passed {
            cache_status: self.request.cache_status(report),
            loses_etag: false,
            via: self.request.policy.via.clone(),
        }
    }
}

/// Whether the next answer may well be another one.
fn is_failure(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}
