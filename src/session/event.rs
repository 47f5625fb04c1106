//! What can happen to a request.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::effect::StoredBody;
use crate::entry::Record;
use crate::policy::{MissReason, RequestHead, ResponseHead};

/// Something that happened. All of it is HTTP's or the store's.
#[derive(Debug)]
pub enum Event {
    /// A request's head arrived.
    Request(RequestHead),
    /// The store answered the lookup.
    Answer(Answer),
    /// Which part this request has among those for the same key.
    Part(Part),
    /// What this request has followed is over. `again`: something was stored, so that it may follow
    /// another one if that is not for it.
    Followed {
        /// See above.
        again: bool,
    },
    /// The task to refresh the key is this request's, as long as it lasts.
    RefreshClaimed,
    /// Another request refreshes the key.
    RefreshTaken,
    /// Our own request to the upstream ended.
    Fetched(Fetched),
    /// The response's head arrived.
    Response(ResponseHead),
    /// The next bytes of the response's body arrived.
    Body {
        /// May be empty.
        bytes: Bytes,
        /// Whether the response ends with them.
        is_end: bool,
    },
    /// The copy of the response was begun.
    CopyBegun,
    /// The copy could not be begun, or can no longer be kept.
    CopyLost(AbortReason),
}

impl Event {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Request(_) => "request head",
            Self::Answer(_) => "store's answer",
            Self::Part(_) => "part among requests",
            Self::Followed { .. } => "end of what was followed",
            Self::RefreshClaimed => "claim of the refresh",
            Self::RefreshTaken => "refusal of the refresh",
            Self::Fetched(_) => "end of the fetch",
            Self::Response(_) => "response head",
            Self::Body { .. } => "response body",
            Self::CopyBegun => "begin of the copy",
            Self::CopyLost(_) => "loss of the copy",
        }
    }
}

/// The part of one request among those for the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It is sent on, whether others wait for it or not.
    SentOn,
    /// It waits for another one.
    Follows,
}

/// How a request of our own to the upstream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fetched {
    /// The entry was confirmed, and has its new record.
    Freshened,
    /// There is a new entry.
    Stored,
    /// The upstream could not answer; the status that says so.
    Failed(StatusCode),
    /// The upstream's answer was not stored.
    NotStored,
    /// It was not made, or did not end in time.
    Nothing,
}

impl Fetched {
    /// The word for labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Freshened => "freshened",
            Self::Stored => "stored",
            Self::Failed(_) => "failed",
            Self::NotStored => "not_stored",
            Self::Nothing => "nothing",
        }
    }
}

/// What a lookup gave.
#[derive(Debug)]
pub enum Answer {
    /// An entry; whether it can be used is for the session to say.
    Found {
        /// Its record.
        record: Arc<Record>,
        /// Its body, as far as the method needs one.
        body: StoredBody,
    },
    /// Nothing that can be served, and why.
    Nothing(MissReason),
}

/// Why a fill leaves nothing behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AbortReason {
    /// The response was cut before its end, by the upstream or because the client left.
    Cut,
    /// The body was not as long as declared.
    Length,
    /// The body does not begin like the image that it is declared to be.
    NotDeclaredImage,
    /// The body grew beyond what can be served again.
    TooLarge,
    /// No room in the memory budget.
    Budget,
    /// The fill's deadline passed.
    Deadline,
    /// The body came more slowly than a copy may.
    Slow,
    /// The store could not take it, or not as fast as it came.
    Store,
    /// The record was too large to be kept.
    RecordTooLarge,
    /// What it is for was invalidated meanwhile.
    Invalidated,
}

impl AbortReason {
    /// The word for labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Length => "length",
            Self::NotDeclaredImage => "not_declared_image",
            Self::TooLarge => "too_large",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
            Self::Slow => "slow",
            Self::Store => "store",
            Self::RecordTooLarge => "record_too_large",
            Self::Invalidated => "invalidated",
        }
    }
}
