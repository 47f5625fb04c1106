//! What can happen to a request.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::fill::{AbortReason, StoredBody};
use crate::entry::Record;
use crate::policy::{MissReason, RequestHead, ResponseHead};

/// Something that happened. All of it is HTTP's, the store's, or of other requests for the same.
#[derive(Debug)]
pub enum Event {
    /// A request's head arrived.
    Request(RequestHead),
    /// The lookup is over.
    LookedUp(LookupAnswer),
    /// This request has this role among those for the same key.
    Joined(CollapseRole),
    /// The wait for another request is over. `again`: something was stored, so that this request may follow
    /// another one if that is not for it.
    Followed {
        /// Whether something was stored.
        again: bool,
    },
    /// This request refreshes the key, as long as it lasts.
    RefreshClaimed,
    /// Another request refreshes the key.
    RefreshTaken,
    /// The request of our own to the upstream ended.
    Fetched(FetchOutcome),
    /// The response's head arrived.
    Response(ResponseHead),
    /// The next bytes of the response's body arrived.
    Body {
        /// May be empty.
        bytes: Bytes,
        /// Whether the response ends with them.
        is_end: bool,
    },
    /// The response ended with trailer fields.
    Trailers,
    /// The copy of the response was begun.
    CopyBegun {
        /// Whether it is held in memory, so that others can be served from it as soon as it is whole.
        is_held: bool,
    },
    /// The copy is not held any more: it goes to the store while it passes.
    CopyPassesOn,
    /// The copy has its last bytes and was handed over.
    CopyFinished,
    /// The copy could not be begun, or can no longer be kept.
    CopyLost(AbortReason),
    /// The copy took too long. The response goes on.
    Expired {
        /// Which limit it is.
        reason: AbortReason,
        /// Whether others wait for this request.
        is_followed: bool,
    },
    /// The client has left before the end of the response.
    ClientLeft {
        /// Whether others wait for this request.
        is_followed: bool,
    },
}

impl Event {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Request(_) => "request head",
            Self::LookedUp(_) => "end of the lookup",
            Self::Joined(_) => "role among requests",
            Self::Followed { .. } => "end of what was followed",
            Self::RefreshClaimed => "claim of the refresh",
            Self::RefreshTaken => "refusal of the refresh",
            Self::Fetched(_) => "end of the fetch",
            Self::Response(_) => "response head",
            Self::Body { .. } => "response body",
            Self::Trailers => "response trailers",
            Self::CopyBegun { .. } => "begin of the copy",
            Self::CopyPassesOn => "passing on of the copy",
            Self::CopyFinished => "end of the copy",
            Self::CopyLost(_) => "loss of the copy",
            Self::Expired { .. } => "end of the copy's time",
            Self::ClientLeft { .. } => "client's leaving",
        }
    }
}

/// The role of one request among those for the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollapseRole {
    /// It is sent on, whether others wait for it or not.
    SentOn,
    /// It waits for another one.
    Follows,
}

/// How a request of our own to the upstream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FetchOutcome {
    /// The upstream confirmed the entry, which has its new record.
    Freshened,
    /// There is a new entry.
    Stored,
    /// The upstream could not answer; the status that says so.
    Failed(StatusCode),
    /// The upstream's answer was not stored.
    NotStored,
    /// The request was not made, or did not end in time.
    Nothing,
}

impl FetchOutcome {
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
pub enum LookupAnswer {
    /// An entry. The session says whether it can be used.
    Found {
        /// Its record.
        record: Arc<Record>,
        /// Its body, as far as the method needs one.
        body: StoredBody,
    },
    /// Nothing that can be served, and why.
    Nothing(MissReason),
}
