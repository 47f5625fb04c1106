//! The words of fills: what is stored, how its copy goes on, and why it ends.

use bytes::Bytes;

use crate::entry::{Key, Record};
use crate::policy::Storable;

/// What a fill stores, and under which key.
#[derive(Debug)]
pub struct FillPlan {
    /// The entry's key.
    pub key: Key,
    /// Everything about the entry but its body.
    pub storable: Storable,
    /// What is stored beside it, once it is stored.
    pub vary_index: Option<VaryIndex>,
}

/// The record without a body under the primary key of responses that vary by more than that.
#[derive(Debug, Clone)]
pub struct VaryIndex {
    /// The primary key.
    pub key: Key,
    /// Its record.
    pub record: Record,
}

/// What happens to the copy of a response.
#[derive(Debug)]
pub enum CopyStep {
    /// The copy takes the next bytes.
    Append(Bytes),
    /// The copy takes the last bytes. It is whole and verified, and may be committed.
    Finish(Bytes),
    /// The copy leaves nothing behind.
    Abort(AbortReason),
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

/// Why a fill leaves nothing behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AbortReason {
    /// The response was cut before its end, by the upstream or because the client left.
    Cut,
    /// The body was not as long as declared.
    Length,
    /// The body does not begin like the image that it is declared to be.
    NotDeclaredImage,
    /// The response ended with trailer fields (RFC 9110 section 6.5), which are not stored.
    Trailers,
    /// The body grew beyond what can be served again.
    TooLarge,
    /// The memory budget had no room.
    Budget,
    /// The fill's deadline passed.
    Deadline,
    /// The body came more slowly than a copy may.
    Slow,
    /// The store could not take the body, or not as fast as it came.
    Store,
    /// The record was too large to be stored.
    RecordTooLarge,
    /// The entry was invalidated meanwhile.
    Invalidated,
}

impl AbortReason {
    /// The word for labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Length => "length",
            Self::NotDeclaredImage => "not_declared_image",
            Self::Trailers => "trailers",
            Self::TooLarge => "too_large",
            Self::Budget => "budget",
            Self::Deadline => "deadline",
            Self::Slow => "slow",
            Self::Store => "store",
            Self::RecordTooLarge => "record_too_large",
            Self::Invalidated => "invalidated",
        }
    }

    /// Whether the next response for the same request would most likely end the same way, so that
    /// nobody should wait for it.
    pub fn lies_in_the_response(self) -> bool {
        match self {
            Self::NotDeclaredImage | Self::Trailers | Self::TooLarge | Self::RecordTooLarge => true,
            Self::Cut
            | Self::Length
            | Self::Budget
            | Self::Deadline
            | Self::Slow
            | Self::Store
            | Self::Invalidated => false,
        }
    }
}
