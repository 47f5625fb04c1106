//! What is to be done about it.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::event::AbortReason;
use crate::entry::BodyProof;
use crate::policy::{CacheStatus, Forward, Key, LookupMethod, Storable};

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
    /// Begin a copy of the response; whether it could be begun is the next event. The message
    /// stays unanswered until then.
    Begin(Box<FillPlan>),
    /// Answer the message.
    Reply(Reply),
    /// Do this for the copy, and answer the message with [`Reply::Continue`].
    Copy(CopyStep),
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
    Pass(CacheStatus),
    /// Send the response on and show its body.
    Mirror(CacheStatus),
    /// Send these bytes on.
    Continue,
}

/// A complete answer out of the store.
#[derive(Debug)]
pub struct Hit {
    /// Status of the answer.
    pub status: StatusCode,
    /// All its fields but `content-length`.
    pub headers: HeaderMap,
    /// Length of the representation, also where there is no body.
    pub content_length: u64,
    /// What a body that is streamed must be.
    pub proof: BodyProof,
    /// Its body.
    pub body: StoredBody,
}

/// Where a hit's body is.
#[derive(Debug, Clone)]
pub enum StoredBody {
    /// The method asks for none.
    NotNeeded,
    /// Here, whole and proved.
    Held(Vec<Bytes>),
    /// In the store's stream, which the shell holds; it proves it as it passes.
    Streamed,
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
}
