//! What is to be done about it.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::Session;
use super::fill::{CopyStep, FillPlan, Freshened};
use crate::entry::{BodyProof, Key, Source};
use crate::policy::{Fetch, Forward, LookupMethod};

/// What the shell does next. A request head and a response head are each answered by exactly one [`Reply`];
/// the bytes of a body are never changed.
#[derive(Debug)]
pub enum Effect {
    /// Look the key up; the next event is its answer.
    LookUp {
        /// The key.
        key: Key,
        /// Whether the body is needed.
        method: LookupMethod,
    },
    /// Take the role that is left among the requests for this key; it is the next event.
    Join(Key),
    /// Wait for the request that this one follows; its end is the next event.
    Follow,
    /// Take the task to refresh this key; the next event tells whether it was free.
    ClaimRefresh(Key),
    /// Ask the upstream in the background, with a session of its own, and reply. Only reply where that cannot be
    /// done now.
    Refresh(Box<Refresh>, Reply),
    /// Ask the upstream with a session of its own; how that ended is the next event.
    Fetch(Box<Refresh>),
    /// Ask the upstream in the background, in the place of this request.
    Complete(Box<Refresh>),
    /// Begin a copy of the response; the next event tells whether it could be begun.
    Begin(Box<FillPlan>),
    /// Do this for the copy. [`CopyStep::Finish`] is followed by an event, the others only when the copy is lost.
    Copy(CopyStep),
    /// Reply.
    Reply(Reply),
    /// Give a stored response its new record in the background, and reply.
    Freshen(Box<Freshened>, Reply),
    /// Remove this entry in the background, and reply.
    Forget(Key, Reply),
    /// From now on use nothing of these sources that was stored or asked for before, and reply.
    Invalidate(Vec<Source>, Reply),
    /// Do nothing: bytes pass, or nobody is there to reply to.
    Nothing,
}

/// The answer to a request head or a response head.
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
}

/// What is changed of a response that passes.
#[derive(Debug)]
pub struct Passed {
    /// Our member of `Cache-Status`, added to those that are there.
    pub cache_status: HeaderValue,
    /// Whether its entity tag is taken out: hits will have one of their own.
    pub loses_etag: bool,
    /// Added to `Via`.
    pub via: Option<HeaderValue>,
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
    /// These bytes of the store's stream, which the shell holds. It proves all of the stream before the last of
    /// them leaves.
    Streamed {
        /// Offset of the first byte.
        first: u64,
        /// Bytes from there.
        length: u64,
        /// What the whole stream must be.
        proof: BodyProof,
    },
}

/// A request of our own, and what follows from its answer.
#[derive(Debug)]
pub struct Refresh {
    /// The entry.
    pub key: Key,
    /// The request.
    pub fetch: Fetch,
    /// Takes the response. Nobody is there for its replies.
    pub session: Session,
}
