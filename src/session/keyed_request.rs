//! A request that has a key, and what its answers are made of.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;

use super::effect::{Effect, Hit, HitBody, Reply};
use super::fill::{StoredBody, VaryIndex};
use super::filling::{Step, done};
use super::report::{Report, Verdict};
use crate::clock::Timestamp;
use crate::entry::{Key, Record, Variants};
use crate::policy::{
    CACHE_STATUS, Forward, Lookup, NotStorable, Policy, RequestHead, ServedBody, Storable,
    forwarded_validators,
};

/// A request that has a key, and what it is judged by.
#[derive(Debug, Clone)]
pub(super) struct KeyedRequest {
    pub(super) policy: Arc<Policy>,
    pub(super) head: RequestHead,
    /// What it asks for; its key is that of a variant as soon as one is selected.
    pub(super) lookup: Lookup,
    /// What was read before the variant, where the responses vary by more than the primary key.
    pub(super) selected: Option<Selected>,
    pub(super) following: Following,
    pub(super) largest_bytes: u64,
}

/// What a request still may, and has, waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Following {
    /// How often it may still wait for another request; 0 once it is sent on.
    pub(super) rounds: u8,
    /// Whether it has.
    pub(super) has_followed: bool,
}

/// What stands under the primary key of a request that asks for a variant.
#[derive(Debug, Clone)]
pub(super) struct Selected {
    pub(super) primary: Key,
    pub(super) variants: Variants,
}

/// A stored response that the upstream is asked about.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) record: Arc<Record>,
    pub(super) body: StoredBody,
    /// In seconds, when it was looked up.
    pub(super) age: u64,
    /// Whether it may stand in for an error.
    pub(super) if_error: bool,
}

impl KeyedRequest {
    /// The key without what `Vary` names.
    pub(super) fn primary(&self) -> &Key {
        match &self.selected {
            Some(selected) => &selected.primary,
            None => &self.lookup.key,
        }
    }

    /// Answers out of a stored response: the end of the request.
    pub(super) fn hit(
        &self,
        record: &Record,
        body: StoredBody,
        age: u64,
        report: Report,
        now: Timestamp,
    ) -> Reply {
        let cache_status = self.cache_status(report);
        let served = self
            .policy
            .serve(&self.lookup, record, age, &cache_status, now);
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

    /// Answers without a stored response (RFC 9111 section 5.2.1.7).
    pub(super) fn refuse(&self, report: Report) -> Step {
        let hit = Hit {
            status: http::StatusCode::GATEWAY_TIMEOUT,
            headers: [(CACHE_STATUS, self.cache_status(report))]
                .into_iter()
                .collect(),
            body: HitBody::Nothing,
        };
        let reply = Reply::Hit(Box::new(hit));
        done(report, Verdict::NOTHING, Effect::Reply(reply))
    }

    /// Our member of `Cache-Status`.
    pub(super) fn cache_status(&self, report: Report) -> HeaderValue {
        cache_status(&self.policy, report)
    }

    /// Under which key a response is stored, and what has to stand under the primary one then.
    pub(super) fn place(
        &self,
        storable: &Storable,
    ) -> Result<(Key, Option<VaryIndex>), NotStorable> {
        let primary = self.primary();
        if storable.varies_by.is_empty() {
            return Ok((primary.clone(), None));
        }
        let key = primary.variant(&storable.varies_by, &self.head.headers);
        let known = self.selected.as_ref().map(|selected| &selected.variants);
        let most = self.policy.store.variants;
        let variants = Variants::with(known, storable.varies_by.clone(), &key, most)
            .ok_or(NotStorable::Variants)?;
        let vary_index = (known != Some(&variants)).then(|| VaryIndex {
            key: primary.clone(),
            record: Record::of_variants(primary, variants, storable.response_time),
        });
        Ok((key, vary_index))
    }

    /// The changes to the request's head, with the validators of what is stored.
    pub(super) fn conditional(&self, record: &Record) -> Forward {
        let mut forward = self.lookup.forward.clone();
        let validators = forwarded_validators(&record.headers);
        forward
            .remove
            .retain(|name| !validators.iter().any(|(set, _)| set == name));
        forward.set.extend(validators);
        forward
    }
}

/// Our member of `Cache-Status`.
///
/// # Panics
/// For a request that was not looked up, or has no end yet: neither is answered with one.
pub(super) fn cache_status(policy: &Policy, report: Report) -> HeaderValue {
    let reason = policy.shows_detail.then_some(report.reason());
    let status = report.cache_status();
    status
        .expect("a request that is answered was looked up")
        .to_value(reason)
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
