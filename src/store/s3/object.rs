//! What an object consists of: its head with the record, and its bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use http::HeaderName;
use http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

use crate::entry::Record;
use crate::store::{Error, decode_stored, length_of};

/// Escapes object names in the URLs that we make ourselves.
pub(super) const OBJECT_NAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_');

/// Where an object is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) bucket: String,
    pub(super) name: String,
}

/// Name of the record's metadata value, after `x-amz-meta-`.
pub(super) const RECORD: &str = "afterimage";

/// The same name as a header field.
pub(super) const RECORD_FIELD: &str = "x-amz-meta-afterimage";

/// The head of an object.
#[derive(Debug)]
pub(super) struct ObjectHead {
    pub(super) content_type: Option<String>,
    pub(super) cache_control: Option<String>,
    pub(super) content_disposition: Option<String>,
    pub(super) record: String,
}

/// A request body of shared chunks, which are not joined.
#[derive(Debug, Clone)]
pub(super) struct Chunks {
    chunks: Arc<[Bytes]>,
    next: usize,
    pub(super) remaining_bytes: u64,
}

impl ObjectHead {
    pub(super) fn of(record: &Record) -> Result<Self, Error> {
        Ok(Self {
            content_type: plain(record, &CONTENT_TYPE),
            cache_control: plain(record, &CACHE_CONTROL),
            content_disposition: plain(record, &CONTENT_DISPOSITION),
            record: record.encode()?,
        })
    }
}

impl Chunks {
    pub(super) fn new(chunks: &[Bytes]) -> Self {
        Self {
            chunks: chunks.into(),
            next: 0,
            remaining_bytes: length_of(chunks),
        }
    }

    /// Makes a body that can be sent again.
    pub(super) fn into_stream(self) -> ByteStream {
        ByteStream::new(SdkBody::retryable(move || {
            SdkBody::from_body_1_x(self.clone())
        }))
    }
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(chunk) = self.chunks.get(self.next).cloned() else {
            return Poll::Ready(None);
        };
        self.next += 1;
        self.remaining_bytes -= chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.next == self.chunks.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining_bytes)
    }
}

/// A header's value for the head of an object, if it is visible ASCII with single spaces: servers
/// disagree on how others are signed. The record has the value in any case.
fn plain(record: &Record, name: &HeaderName) -> Option<String> {
    let mut values = record.headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?.trim();
    let is_plain = values.next().is_none()
        && !value.is_empty()
        && !value.contains("  ")
        && !value.contains('\t');
    is_plain.then(|| value.to_owned())
}

/// Decodes the record of an object, and compares its length with the object's.
pub(super) fn record_of(
    encoded: Option<&str>,
    content_length: Option<i64>,
) -> Result<Option<Record>, Error> {
    let Some(encoded) = encoded else {
        return Ok(None);
    };
    let Some(record) = decode_stored(encoded)? else {
        return Ok(None);
    };
    if content_length.and_then(|length| u64::try_from(length).ok())
        != Some(record.body.content_length)
    {
        return Err(Error::Corrupt(
            "the object does not have the length that its record says".to_owned(),
        ));
    }
    Ok(Some(record))
}

pub(super) fn signed(length: u64) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}
