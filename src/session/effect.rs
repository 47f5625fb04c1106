//! What is to be done about it.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::Session;
use super::event::AbortReason;
use crate::entry::{BodyProof, Record};
use crate::entry::{Key, Source};
use crate::policy::{Fetch, Forward, LookupMethod, Storable};

/// What the shell does next. Every message of the proxy is answered by exactly one [`Reply`].
#[derive(Debug)]
pub enum Effect {
    /// Ask the store; its answer is the next event. The message stays unanswered until then.
    LookUp {
        /// What to ask for.
        key: Key,
        /// Whether the body is needed.
        method: LookupMethod,
    },
    /// Take the part that is left among the requests for this key; it is the next event. The message
    /// stays unanswered until then.
    Join(Key),
    /// Wait for what becomes of the request that this one follows; its end is the next event. The
    /// message stays unanswered until then.
    Follow,
    /// Take the task to refresh this key; whether it was free is the next event. The message stays
    /// unanswered until then.
    ClaimRefresh(Key),
    /// Ask the upstream, in the background and with a session of its own, and answer the message.
    /// Does nothing else where that cannot be done now.
    Refresh(Box<Refresh>, Reply),
    /// Ask the upstream with a session of its own; how that ended is the next event. The message
    /// stays unanswered until then.
    Fetch(Box<Refresh>),
    /// Begin a copy of the response; whether it could be begun is the next event. The message
    /// stays unanswered until then.
    Begin(Box<FillPlan>),
    /// Answer the message.
    Reply(Reply),
    /// Do this for the copy, and answer the message with [`Reply::Continue`].
    Copy(CopyStep),
    /// The copy of a response without a body is whole: finish it, and answer the message.
    Finish(Reply),
    /// Give a stored response its new record in the background, and answer the message.
    Freshen(Box<Freshened>, Reply),
    /// Remove this entry in the background, and answer the message.
    Forget(Key, Reply),
    /// From now on use nothing of these sources that was stored or asked for before, and answer the
    /// message.
    Invalidate(Vec<Source>, Reply),
    /// Nothing: the event was not a message.
    Nothing,
}

/// The answer to one message.
#[derive(Debug)]
pub enum Reply {
    /// Send the request on as it is and leave this cache out of the rest.
    Bypass,
    /// Send the request on with these changes, and show the response.
    Forward(Forward),
    /// Answer the request from the store; nothing comes after it.
    Hit(Box<Hit>),
    /// Send the response on; its body is not wanted.
    Pass(Passed),
    /// Send the response on and show its body.
    Mirror(Passed),
    /// Send these bytes on.
    Continue,
}

/// What is changed of a response that passes.
#[derive(Debug)]
pub struct Passed {
    /// Our member of `Cache-Status`, added to those that are there.
    pub status: HeaderValue,
    /// Whether its entity tag is taken out: hits will have one of their own.
    pub loses_etag: bool,
    /// Added to `Via`.
    pub via: Option<HeaderValue>,
    /// How long requests for this key do not wait for each other, because of what this response says
    /// (hit-for-miss).
    pub alone: Duration,
}

/// A complete answer out of the store.
#[derive(Debug)]
pub struct Hit {
    /// Status of the answer.
    pub status: StatusCode,
    /// All its fields but `content-length`.
    pub headers: HeaderMap,
    /// Its body.
    pub body: HitBody,
}

/// The body of a hit.
#[derive(Debug)]
pub enum HitBody {
    /// None, and no length: 304, 416.
    Nothing,
    /// None, but the length of one: HEAD.
    Length(u64),
    /// Here, whole and proved.
    Held(Vec<Bytes>),
    /// These bytes of the store's stream, which the shell holds. It proves all of the stream before
    /// the last of them leaves.
    Streamed {
        /// Offset of the first byte.
        first: u64,
        /// Bytes from there.
        length: u64,
        /// What the whole stream must be.
        proof: BodyProof,
    },
}

/// Where the body of a stored response is.
#[derive(Debug, Clone)]
pub enum StoredBody {
    /// The method asks for none.
    NotNeeded,
    /// Here, whole and proved.
    Held(Vec<Bytes>),
    /// In the store's stream, which the shell holds.
    Streamed,
}

/// A request of our own, and what follows from its answer.
#[derive(Debug)]
pub struct Refresh {
    /// The entry.
    pub key: Key,
    /// The request.
    pub fetch: Fetch,
    /// Takes the response; whatever it wants to reply has nobody to go to.
    pub session: Session,
}

/// A stored response that the upstream confirmed.
#[derive(Debug)]
pub struct Freshened {
    /// Its key.
    pub key: Key,
    /// Its record from now on.
    pub record: Record,
    /// Its body, as far as it is here.
    pub body: StoredBody,
}

/// What happens to the copy of a response.
#[derive(Debug)]
pub enum CopyStep {
    /// The next bytes.
    Append(Bytes),
    /// The last bytes: the copy is whole and verified, and may be committed.
    Finish(Bytes),
    /// Nothing must be left behind.
    Abort(AbortReason),
}

/// What a fill will store, and under which key.
#[derive(Debug)]
pub struct FillPlan {
    /// The entry's key.
    pub key: Key,
    /// Everything about it but its body.
    pub storable: Storable,
    /// What is stored beside it, once it is stored.
    pub signpost: Option<Signpost>,
    /// Whether it answers requests that wait for it, too: it is fresh as it comes.
    pub is_fresh: bool,
    /// Otherwise, how long requests for this key do not wait for each other (hit-for-miss).
    pub alone: Duration,
}

/// The record without a body under the primary key of responses that vary by more than that.
#[derive(Debug, Clone)]
pub struct Signpost {
    /// The primary key.
    pub key: Key,
    /// Its record.
    pub record: Record,
}
