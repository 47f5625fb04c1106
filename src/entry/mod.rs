//! The entries that are stored: their keys, and the records that are kept beside their bodies. It
//! stores nothing itself.

mod key;
mod record;
mod variants;

pub(crate) use self::key::KeyHasher;
pub use self::key::{Key, Source};
pub use self::record::{
    BodyChecksum, BodyProof, DecodeError, FORMAT_VERSION, Identity, MAX_ENCODED_BYTES, Record,
    RecordTooLarge,
};
pub use self::variants::Variants;
pub(crate) use self::variants::members;
