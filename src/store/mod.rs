//! Where entries are kept.
//!
//! A [`Store`] maps a [`Key`] to a [`Record`] and a body. A put is all or nothing: until it has
//! returned `Ok`, readers see the entry that was there before, or none; afterwards they see the new
//! one. The last writer wins. A store never judges freshness or identity: whether an entry is for
//! the key and whether the body is whole is proved by the reader, with [`Record::is_for`] and
//! [`read_whole`].

mod faulty;
mod limited;
mod local;
mod memory;
mod metered;
mod s3;

use std::fmt;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use crate::entry::{BodyChecksum, DecodeError, Record, RecordTooLarge};
use crate::entry::{Key, Source};

#[doc(hidden)]
pub use self::faulty::{Fault, FaultyStore};
pub use self::limited::{Limited, WriteLimit};
pub use self::local::{LocalConfig, LocalStore, OpenError};
pub use self::memory::MemoryStore;
pub use self::metered::{
    BreakerOpen, BreakerState, Limits, Metered, Observe, OpResult, Operation, Unobserved,
};
pub use self::s3::{S3Config, S3ConfigError, S3Store, S3Timeouts};

/// A stored body on its way out, in chunks of any size. An error ends it; the end without an error
/// proves nothing about its length.
pub type BodyStream = BoxStream<'static, Result<Bytes, Error>>;

/// Keeps entries. Implementations are shared by every request and bound their own resources.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// The record alone, for requests that need no body. Absent is `Ok(None)`, and so is an entry
    /// of a format version that this build does not read.
    ///
    /// # Errors
    /// As [`Store::get`].
    async fn head(&self, key: &Key) -> Result<Option<Record>, Error>;

    /// The entry with its body. Absent is `Ok(None)`, as with [`Store::head`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] when there is something under the key that is no entry, or whose length
    /// is not the record's.
    async fn get(&self, key: &Key) -> Result<Option<Found>, Error>;

    /// Stores a whole body that is held in memory, given as the chunks it arrived in.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when the record or the body is more than the store keeps;
    /// [`Error::Corrupt`] when the body has not the record's length. After any other error the entry
    /// may be the old one or the new one, whole in either case.
    async fn put(&self, key: &Key, record: &Record, body: &[Bytes]) -> Result<(), Error>;

    /// Begins an entry whose body will come in chunks, for bodies too large to be held.
    /// `draft` is the record as far as it is known: its body proof is not used.
    async fn begin(&self, key: &Key, draft: &Record) -> Result<Box<dyn Writer>, Error>;

    /// Gives an existing entry a new record with the same body. `Ok(false)` when it is absent, or
    /// when its body is no longer the one that `record` proves.
    async fn replace_record(&self, key: &Key, record: &Record) -> Result<bool, Error>;

    /// Removes the entry; absent is no error.
    async fn delete(&self, key: &Key) -> Result<(), Error>;

    /// Removes every entry of a source, and gives their number; none is no error. An entry that is
    /// written meanwhile may survive. So may entries after an error, and when a caller goes away:
    /// what was removed until then stays removed, and the next call goes on.
    async fn delete_source(&self, source: &Source) -> Result<u64, Error>;

    /// Whether the store can be used now: reachable, and the credentials are good.
    async fn check(&self) -> Result<(), Error>;
}

/// An entry that is being written. Dropping it without [`Writer::commit`] leaves nothing readable,
/// now or later.
#[async_trait]
pub trait Writer: Send {
    /// Takes the next bytes of the body, and tells how many bytes of it are held now: neither in the store nor
    /// the operating system's. After an error only dropping the writer makes sense.
    async fn append(&mut self, chunk: Bytes) -> Result<u64, Error>;

    /// Makes the entry readable under its key, with this record. The caller has verified the bytes.
    ///
    /// # Errors
    /// As [`Store::put`].
    async fn commit(self: Box<Self>, record: &Record) -> Result<(), Error>;
}

/// An entry as the store holds it.
pub struct Found {
    /// The stored record.
    pub record: Record,
    /// The stored body.
    pub body: BodyStream,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found")
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

/// What went wrong, by what it means for the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not reachable, or reachable and not able to answer.
    #[error("store is unavailable")]
    Unavailable(#[source] Cause),
    /// No answer within the deadline.
    #[error("store did not answer in time")]
    TimedOut,
    /// Credentials, permissions or a quota.
    #[error("store denied the request")]
    Denied(#[source] Cause),
    /// There is something, but it is not a whole entry.
    #[error("stored entry is corrupt: {0}")]
    Corrupt(String),
    /// More than the store keeps: record, body or space.
    #[error("too large to be stored: {0}")]
    TooLarge(String),
}

/// The cause of an [`Error`], of the backend's own type.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

impl From<RecordTooLarge> for Error {
    fn from(error: RecordTooLarge) -> Self {
        Self::TooLarge(format!("record_too_large: {error}"))
    }
}

/// The last check before a body becomes an entry.
fn expect_length(record: &Record, length: u64) -> Result<(), Error> {
    let expected = record.body.content_length;
    if length == expected {
        return Ok(());
    }
    Err(Error::Corrupt(format!(
        "body to be stored has {length} bytes, its record says {expected}"
    )))
}

/// What a stored record is to a reader: nothing, if only another version can read it.
fn decode_stored(encoded: &str) -> Result<Option<Record>, Error> {
    match Record::decode(encoded) {
        Ok(record) => Ok(Some(record)),
        Err(DecodeError::UnknownVersion(_)) => Ok(None),
        Err(error @ DecodeError::Malformed(_)) => Err(Error::Corrupt(error.to_string())),
    }
}

/// Bytes in a body that is held as chunks.
fn length_of(chunks: &[Bytes]) -> u64 {
    chunks.iter().map(|chunk| chunk.len() as u64).sum()
}

/// Reads a body to its end and proves it against its record.
///
/// # Errors
/// The stream's own, or [`Error::Corrupt`] when length or checksum disagree.
pub async fn read_whole(record: &Record, mut body: BodyStream) -> Result<Bytes, Error> {
    let mut checksum = BodyChecksum::new();
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        checksum.update(&chunk);
        if checksum.length() > record.body.content_length {
            return Err(Error::Corrupt("body is longer than its record".to_owned()));
        }
        match &first {
            None => first = Some(chunk),
            Some(first) => {
                if rest.is_empty() {
                    rest.reserve(usize::try_from(record.body.content_length).unwrap_or(0));
                    rest.extend_from_slice(first);
                }
                rest.extend_from_slice(&chunk);
            }
        }
    }
    if !record.body.holds_for(&checksum) {
        return Err(Error::Corrupt(
            "body is not the one that was stored".to_owned(),
        ));
    }
    Ok(if rest.is_empty() {
        first.unwrap_or_default()
    } else {
        rest.freeze()
    })
}

/// An error with its causes, for one log line.
#[derive(Debug)]
pub struct Causes<'a>(pub &'a Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = std::error::Error::source(self.0);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
