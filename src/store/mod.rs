//! Keeps entries.
//!
//! A [`Store`] maps a [`Key`] to a [`Record`] and a body. A put is all or nothing: until it returns
//! `Ok`, readers see the earlier entry, or none; afterwards they see the new one. The last writer
//! wins. A store never judges freshness or identity: the reader proves that an entry is for its key
//! and that its body is whole, with [`Record::is_for`] and [`read_whole`].

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

/// A stored body as it is read, in chunks of any size. An error ends it; an end without an error
/// proves nothing about its length.
pub type BodyStream = BoxStream<'static, Result<Bytes, Error>>;

/// Keeps entries. Implementations are shared by every request and bound their own resources.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// Reads only the record, for requests that need no body. `Ok(None)` means that the entry is
    /// absent, or of a format version that this build does not read.
    ///
    /// # Errors
    /// As [`Store::get`].
    async fn head(&self, key: &Key) -> Result<Option<Record>, Error>;

    /// Reads the entry with its body. `Ok(None)` means what it does for [`Store::head`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] when what is under the key is no entry, or its length is not the
    /// record's.
    async fn get(&self, key: &Key) -> Result<Option<Found>, Error>;

    /// Stores a whole body that is held in memory, given as the chunks it arrived in.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when the record or the body is larger than the store keeps;
    /// [`Error::Corrupt`] when the body does not have the record's length. After any other error,
    /// the key has the old entry or the new one, whole in either case.
    async fn put(&self, key: &Key, record: &Record, body: &[Bytes]) -> Result<(), Error>;

    /// Begins an entry whose body comes in chunks, for bodies too large to be held. `draft` is the
    /// record without a body proof: that field is not used.
    async fn begin(&self, key: &Key, draft: &Record) -> Result<Box<dyn Writer>, Error>;

    /// Gives an existing entry a new record for the same body. `Ok(false)` means that the entry is
    /// absent, or that its body is no longer the one that `record` proves.
    async fn replace_record(&self, key: &Key, record: &Record) -> Result<bool, Error>;

    /// Removes the entry. It is no error if it is absent.
    async fn delete(&self, key: &Key) -> Result<(), Error>;

    /// Removes every entry of a source and returns their number. It is no error if there are none.
    /// An entry that is written meanwhile may survive. After an error, or if the caller goes away,
    /// some entries remain, and the next call removes them.
    async fn delete_source(&self, source: &Source) -> Result<u64, Error>;

    /// Checks that the store can be used now: it is reachable and accepts the credentials.
    async fn check(&self) -> Result<(), Error>;
}

/// An entry that is being written. Dropping it without [`Writer::commit`] leaves nothing readable,
/// now or later.
#[async_trait]
pub trait Writer: Send {
    /// Takes the next bytes of the body. Returns how many bytes are held in memory now, given
    /// neither to the store nor to the operating system. After an error, the writer can only be
    /// dropped.
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

/// Why an operation failed, by what that means for the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store is not reachable, or not able to answer.
    #[error("store is unavailable")]
    Unavailable(#[source] Cause),
    /// The store did not answer within the deadline.
    #[error("store did not answer in time")]
    TimedOut,
    /// The store refused because of credentials, permissions or a quota.
    #[error("store denied the request")]
    Denied(#[source] Cause),
    /// What is stored is not a whole entry.
    #[error("stored entry is corrupt: {0}")]
    Corrupt(String),
    /// The record or the body is too large, or no space is left.
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

/// Compares a body's length with its record, just before the body becomes an entry.
fn expect_length(record: &Record, length: u64) -> Result<(), Error> {
    let expected = record.body.content_length;
    if length == expected {
        return Ok(());
    }
    Err(Error::Corrupt(format!(
        "the body has {length} bytes, but its record says {expected}"
    )))
}

/// Decodes a stored record; `Ok(None)` if only another version can read it.
fn decode_stored(encoded: &str) -> Result<Option<Record>, Error> {
    match Record::decode(encoded) {
        Ok(record) => Ok(Some(record)),
        Err(DecodeError::UnknownVersion(_)) => Ok(None),
        Err(error @ DecodeError::Malformed(_)) => Err(Error::Corrupt(error.to_string())),
    }
}

/// Length in bytes of a body that is held as chunks.
fn length_of(chunks: &[Bytes]) -> u64 {
    chunks.iter().map(|chunk| chunk.len() as u64).sum()
}

/// Reads a body to its end and proves it against its record.
///
/// # Errors
/// Those of the stream; [`Error::Corrupt`] when the length or the checksum differs.
pub async fn read_whole(record: &Record, mut body: BodyStream) -> Result<Bytes, Error> {
    let mut checksum = BodyChecksum::new();
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        checksum.update(&chunk);
        if checksum.length() > record.body.content_length {
            return Err(Error::Corrupt(
                "the body is longer than its record says".to_owned(),
            ));
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
            "the body is not the one that was stored".to_owned(),
        ));
    }
    Ok(if rest.is_empty() {
        first.unwrap_or_default()
    } else {
        rest.freeze()
    })
}

/// Displays an error with its causes, for one log line.
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
