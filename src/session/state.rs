//! One struct for each state, each with what is valid there and nothing else.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AGE, CACHE_CONTROL, EXPIRES};
use http::{HeaderName, HeaderValue, StatusCode};

use super::effect::{CopyStep, Effect, FillPlan, Hit, Reply, StoredBody};
use super::event::{AbortReason, Answer};
use super::{Report, Session};
use crate::clock::Timestamp;
use crate::entry::Record;
use crate::policy::{
    CacheStatus, Content, Decision, Forward, Freshness, Lookup, LookupMethod, MAGIC_BYTES,
    MissReason, NotStorable, Policy, RequestHead, ResponseHead, limited_cache_control,
};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What follows from an event: the next state, and what to do.
pub type Step = (Session, Effect);

/// No message yet.
#[derive(Debug)]
pub struct Start {
    pub(super) policy: Arc<Policy>,
    pub(super) largest_bytes: u64,
}

impl Start {
    pub(super) fn request(self, head: &RequestHead, now: Timestamp) -> Step {
        match self.policy.decide(head, now) {
            Decision::Bypass(reason) => (
                Session::Done(Done {
                    report: Report::Bypass(reason),
                }),
                Effect::Reply(Reply::Bypass),
            ),
            Decision::Lookup(lookup) => {
                let effect = Effect::LookUp {
                    key: lookup.key.clone(),
                    method: lookup.method,
                };
                (
                    Session::LookingUp(LookingUp {
                        policy: self.policy,
                        largest_bytes: self.largest_bytes,
                        lookup,
                    }),
                    effect,
                )
            }
        }
    }
}

/// The store was asked.
#[derive(Debug)]
pub struct LookingUp {
    policy: Arc<Policy>,
    largest_bytes: u64,
    lookup: Lookup,
}

impl LookingUp {
    pub(super) fn answer(self, answer: Answer, now: Timestamp) -> Step {
        match answer {
            Answer::Nothing(reason) => self.forward(reason, now),
            Answer::Found { record, body } => {
                if !record.is_for(&self.lookup.key) || record.status != StatusCode::OK {
                    return self.forward(MissReason::Corrupt, now);
                }
                match self.policy.freshness(&record, now) {
                    Freshness::Fresh { age, ttl } => self.hit(&record, body, age, ttl, now),
                    Freshness::Stale { .. } => self.forward(MissReason::Stale, now),
                }
            }
        }
    }

    fn hit(self, record: &Record, body: StoredBody, age: u64, ttl: u64, now: Timestamp) -> Step {
        let mut headers = record.headers.clone();
        if let Some(expires) = self.lookup.expires {
            // A copy further down must not outlive the URL; what it keeps for counts from its age.
            let seconds = expires.seconds_since(now).saturating_add(age);
            if let Some(limited) = limited_cache_control(&headers, seconds) {
                headers.insert(CACHE_CONTROL, limited);
                headers.remove(EXPIRES);
            }
        }
        headers.insert(AGE, HeaderValue::from(age));
        headers.insert(CACHE_STATUS, header_value(CacheStatus::Hit { ttl }));
        let hit = Hit {
            status: record.status,
            headers,
            content_length: record.body.content_length,
            proof: record.body,
            body: match self.lookup.method {
                LookupMethod::Head => StoredBody::NotNeeded,
                LookupMethod::Get => body,
            },
        };
        (
            Session::Done(Done {
                report: Report::Hit,
            }),
            Effect::Reply(Reply::Hit(Box::new(hit))),
        )
    }

    fn forward(self, reason: MissReason, now: Timestamp) -> Step {
        // A HEAD never fills, so there is nothing that its fields could change.
        let (forward, leads) = match self.lookup.method {
            LookupMethod::Get => (self.lookup.forward, true),
            LookupMethod::Head => (Forward::default(), false),
        };
        (
            Session::Forwarded(Forwarded {
                policy: self.policy,
                largest_bytes: self.largest_bytes,
                role: if leads {
                    Role::Leads(self.lookup.key)
                } else {
                    Role::Passes
                },
                reason,
                request_time: now,
            }),
            Effect::Reply(Reply::Forward(forward)),
        )
    }
}

/// What a request that was sent on is there for.
#[derive(Debug)]
enum Role {
    /// Its answer may be stored under the key.
    Leads(crate::policy::Key),
    /// Its answer is not stored.
    Passes,
}

/// The request was sent on; the upstream has not answered yet.
#[derive(Debug)]
pub struct Forwarded {
    policy: Arc<Policy>,
    largest_bytes: u64,
    role: Role,
    pub(super) reason: MissReason,
    request_time: Timestamp,
}

impl Forwarded {
    pub(super) fn response(self, head: &ResponseHead, now: Timestamp) -> Step {
        let status = head.status;
        let Role::Leads(key) = self.role else {
            return pass(self.reason, status, Copied::NotWanted);
        };
        match self
            .policy
            .storable(head, self.request_time, now, self.largest_bytes)
        {
            Err(refusal) => pass(self.reason, status, Copied::Refused(refusal)),
            Ok(storable) => {
                let beginning = Beginning {
                    status,
                    filling: Filling {
                        reason: self.reason,
                        received: 0,
                        content_length: storable.content_length,
                        largest_bytes: self.largest_bytes,
                        content: storable.content.clone(),
                        head: Vec::new(),
                    },
                };
                (
                    Session::Beginning(beginning),
                    Effect::Begin(Box::new(FillPlan { key, storable })),
                )
            }
        }
    }
}

fn pass(reason: MissReason, status: StatusCode, copy: Copied) -> Step {
    let reply = Reply::Pass(cache_status(reason, status, false));
    let report = Report::Miss { reason, copy };
    (Session::Done(Done { report }), Effect::Reply(reply))
}

fn cache_status(reason: MissReason, status: StatusCode, stored: bool) -> CacheStatus {
    match reason {
        MissReason::Stale => CacheStatus::Stale {
            status: status.as_u16(),
            stored,
        },
        MissReason::Absent
        | MissReason::Corrupt
        | MissReason::StoreUnavailable
        | MissReason::StoreTimeout
        | MissReason::StoreDenied
        | MissReason::Budget
        | MissReason::TooLarge => CacheStatus::Miss { stored },
    }
}

/// The response may be stored; the shell was asked for a copy.
#[derive(Debug)]
pub struct Beginning {
    status: StatusCode,
    pub(super) filling: Filling,
}

impl Beginning {
    pub(super) fn begun(self) -> Step {
        let reply = Reply::Mirror(cache_status(self.filling.reason, self.status, true));
        (Session::Filling(self.filling), Effect::Reply(reply))
    }

    pub(super) fn lost(self, reason: AbortReason) -> Step {
        pass(self.filling.reason, self.status, Copied::Aborted(reason))
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
            (
                Session::Done(Done { report }),
                Effect::Copy(CopyStep::Finish(bytes)),
            )
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

fn header_value(status: CacheStatus) -> HeaderValue {
    HeaderValue::try_from(status.to_string()).expect("a Cache-Status member is visible ASCII")
}
