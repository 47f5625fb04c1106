//! Entries in S3 buckets, Garage's above all; this module and the ones below it are the only ones
//! that name the SDK.
//!
//! The object's bytes are the body, untouched, with its real `Content-Type`, `Cache-Control` and
//! `Content-Disposition`, so that a bucket can be browsed. The record is one metadata value,
//! `x-amz-meta-afterimage`. Not relied on: conditional writes, tags, `ETag` as MD5, and listings but
//! to delete a source.

mod connector;
mod failure;
mod reader;
mod signer;
mod upload;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Credentials, IdentityCache, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::{Delete, MetadataDirective, ObjectIdentifier};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::HeaderName;
use http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::Semaphore;

use self::failure::{Attempt, chain, has_status};
use self::reader::Reader;
use self::upload::{PartsWriter, Upload};
use super::{BodyStream, Error, Found, Store, Writer, decode_stored, expect_length, length_of};
use crate::endpoint::Endpoint;
use crate::entry::Record;
use crate::entry::{Key, Source};
use crate::secret::Secret;

/// Name of the record's metadata value, after `x-amz-meta-`.
const RECORD: &str = "afterimage";

/// The same, as a header.
const RECORD_FIELD: &str = "x-amz-meta-afterimage";
/// Garage's limit for object names is 479 bytes, and `Key::object_name` takes up to 180.
const MAX_PREFIX_BYTES: usize = 256;
/// The first try of a write, and two more.
const WRITE_ATTEMPTS: u32 = 3;
const WRITE_BACKOFF: Duration = Duration::from_millis(100);
/// Clean-ups at a time; beyond them the bucket's lifecycle rules do the work.
const CLEANUPS: usize = 16;
/// Objects that are listed and deleted at a time: the most that S3 takes.
const PAGE_OBJECTS: i32 = 1000;
/// A million objects; a listing that goes on after them is no answer.
const MAX_PAGES: u32 = 1000;
/// Object names in URLs that we make ourselves.
const OBJECT_NAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_');

/// Where an [`S3Store`] keeps its entries.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// The service.
    pub endpoint: Endpoint,
    /// The region that requests are signed for; Garage compares it with its `s3_region`.
    pub region: String,
    /// At least one. The hash of an entry's source chooses; a bucket appended to the list takes
    /// over an equal share of the entries, every other change of the list forgets more.
    pub buckets: Vec<String>,
    /// Before every object name, without a slash at either end; may be empty, at most 256 bytes.
    pub prefix: String,
    /// Identifies the key.
    pub access_key_id: String,
    /// Signs requests.
    pub secret_access_key: Secret,
    /// How long to wait for what.
    pub timeouts: S3Timeouts,
}

/// How long an [`S3Store`] waits. The deadline of an operation as a whole is the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct S3Timeouts {
    /// For a connection; default 500 ms, many round trips inside a region.
    pub connect: Duration,
    /// For the head of an answer to a request that carries no body, except [`Store::get`], whose only
    /// deadline is the caller's; default 2 s.
    pub attempt: Duration,
    /// For one attempt at sending an object or a part of one, its answer included; default 30 s,
    /// which is 8 MiB at 280 KB/s.
    pub write: Duration,
    /// For each piece of a body that is read; default 2 s. Servers send the head of an answer
    /// before they have the first block of the body.
    pub read: Duration,
}

impl Default for S3Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_millis(500),
            attempt: Duration::from_secs(2),
            write: Duration::from_secs(30),
            read: Duration::from_secs(2),
        }
    }
}

/// Why there can be no [`S3Store`] with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum S3ConfigError {
    /// The list of buckets is empty.
    #[error("no S3 bucket is named")]
    NoBucket,
    /// The prefix is too long, or has a slash at an end.
    #[error("S3 prefix {0:?} begins or ends with a slash, or has more than 256 bytes")]
    Prefix(String),
    /// The system's root certificates, needed for `https`, could not be read.
    #[error("the system's root certificates cannot be read")]
    RootCertificates(#[source] io::Error),
}

/// Keeps each entry as one object. Clones share their connections.
#[derive(Debug, Clone)]
pub struct S3Store {
    service: Arc<Service>,
}

/// What operations of all kinds have in common.
struct Service {
    endpoint: Endpoint,
    buckets: Vec<String>,
    prefix: String,
    read_timeout: Duration,
    /// One attempt at reading an object.
    reader: Reader,
    /// One attempt, with a short deadline.
    once: Client,
    /// Several attempts, with a deadline that bodies have time in. Same connections.
    patient: Client,
    cleanups: Arc<Semaphore>,
}

/// Where an entry is.
#[derive(Debug, Clone)]
struct Place {
    bucket: String,
    name: String,
}

/// What goes into the head of an object.
#[derive(Debug)]
struct ObjectHead {
    content_type: Option<String>,
    cache_control: Option<String>,
    content_disposition: Option<String>,
    record: String,
}

/// Shared chunks as a request body, without joining them.
#[derive(Debug, Clone)]
struct Chunks {
    chunks: Arc<[Bytes]>,
    next: usize,
    remaining_bytes: u64,
}

impl S3Store {
    /// A store on the buckets of `config`; connects when it is first used. To be called inside a
    /// runtime.
    ///
    /// # Errors
    /// [`S3ConfigError`] for what can be told without asking the service; the rest is
    /// [`Store::check`]'s.
    pub fn new(config: S3Config) -> Result<Self, S3ConfigError> {
        if config.buckets.is_empty() {
            return Err(S3ConfigError::NoBucket);
        }
        let prefix = config.prefix;
        if prefix.starts_with('/') || prefix.ends_with('/') || prefix.len() > MAX_PREFIX_BYTES {
            return Err(S3ConfigError::Prefix(prefix));
        }
        let timeouts = config.timeouts;
        let http_client = connector::http_client(&config.endpoint, timeouts.connect)
            .map_err(S3ConfigError::RootCertificates)?;
        let credentials = Credentials::new(
            config.access_key_id.clone(),
            config.secret_access_key.expose(),
            None,
            None,
            "afterimage",
        );
        let reader = Reader::new(
            &config.endpoint,
            config.region.clone(),
            config.access_key_id,
            config.secret_access_key,
            timeouts.connect,
        )
        .map_err(S3ConfigError::RootCertificates)?;
        let once = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(connector::url(&config.endpoint))
            .force_path_style(true)
            .region(Region::new(config.region))
            .credentials_provider(credentials)
            // They are at hand; a cache would only cost.
            .identity_cache(IdentityCache::no_cache())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .operation_attempt_timeout(timeouts.attempt)
                    .build(),
            )
            .http_client(http_client)
            .build();
        let patient = once
            .to_builder()
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(WRITE_ATTEMPTS)
                    .with_initial_backoff(WRITE_BACKOFF),
            )
            .timeout_config(
                TimeoutConfig::builder()
                    .operation_attempt_timeout(timeouts.write)
                    .build(),
            )
            .build();
        Ok(Self {
            service: Arc::new(Service {
                endpoint: config.endpoint,
                buckets: config.buckets,
                prefix,
                read_timeout: timeouts.read,
                reader,
                once: Client::from_conf(once),
                patient: Client::from_conf(patient),
                cleanups: Arc::new(Semaphore::new(CLEANUPS)),
            }),
        })
    }
}

#[async_trait]
impl Store for S3Store {
    async fn head(&self, key: &Key) -> Result<Option<Record>, Error> {
        let place = self.service.place(key);
        Ok(self.service.head(&place).await?.map(|(record, _)| record))
    }

    async fn get(&self, key: &Key) -> Result<Option<Found>, Error> {
        let service = &self.service;
        let place = service.place(key);
        let attempt = service.attempt("GetObject", &place);
        let Some(answer) = service.reader.get(&place, attempt).await? else {
            return Ok(None);
        };
        let field = |name: &str| answer.headers().get(name)?.to_str().ok();
        let length = field("content-length").and_then(|length| length.parse().ok());
        let Some(record) = record_of(field(RECORD_FIELD), length)? else {
            return Ok(None);
        };
        let body = ByteStream::from_body_1_x(answer.into_body());
        let body = service.body(body, place.bucket);
        Ok(Some(Found { record, body }))
    }

    async fn put(&self, key: &Key, record: &Record, body: &[Bytes]) -> Result<(), Error> {
        let length = length_of(body);
        expect_length(record, length)?;
        let head = ObjectHead::of(record)?;
        let place = self.service.place(key);
        self.service.put(&place, head, Chunks::new(body)).await
    }

    async fn begin(&self, key: &Key, _draft: &Record) -> Result<Box<dyn Writer>, Error> {
        let place = self.service.place(key);
        let upload = Upload::begin(&self.service, &place.bucket).await?;
        Ok(Box::new(PartsWriter::new(upload, place)))
    }

    async fn replace_record(&self, key: &Key, record: &Record) -> Result<bool, Error> {
        let head = ObjectHead::of(record)?;
        let place = self.service.place(key);
        let etag = match self.service.head(&place).await? {
            Some((stored, etag)) if stored.body == record.body => etag,
            Some(_) | None => return Ok(false),
        };
        self.service.copy(&place.name, etag, &place, head).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        let place = self.service.place(key);
        self.service.delete(&place).await
    }

    async fn delete_source(&self, source: &Source) -> Result<u64, Error> {
        let below = Place {
            bucket: self.service.bucket(source).to_owned(),
            name: self.service.name(&source.prefix()),
        };
        self.service.delete_below(&below).await
    }

    /// Asks each bucket for one name, because a refusal of `HeadBucket` does not say its reason.
    async fn check(&self) -> Result<(), Error> {
        let service = &self.service;
        for bucket in &service.buckets {
            let place = Place {
                bucket: bucket.clone(),
                name: String::new(),
            };
            let listing = service.once.list_objects_v2().bucket(bucket).max_keys(1);
            let listing = listing.prefix(service.name("v1/"));
            if let Err(error) = listing.send().await {
                return Err(service.attempt("ListObjectsV2", &place).by_meaning(error));
            }
        }
        Ok(())
    }
}

impl Service {
    fn place(&self, key: &Key) -> Place {
        Place {
            bucket: self.bucket(key.source()).to_owned(),
            name: self.name(&key.object_name()),
        }
    }

    /// The bucket that has all entries of a source.
    fn bucket(&self, source: &Source) -> &str {
        let mut hash = [0; 8];
        hash.copy_from_slice(&source.digest()[..8]);
        &self.buckets[choose(u64::from_be_bytes(hash), self.buckets.len())]
    }

    fn name(&self, rest: &str) -> String {
        if self.prefix.is_empty() {
            rest.to_owned()
        } else {
            format!("{}/{rest}", self.prefix)
        }
    }

    fn attempt<'a>(&'a self, operation: &'static str, place: &'a Place) -> Attempt<'a> {
        Attempt {
            operation,
            bucket: &place.bucket,
            endpoint: &self.endpoint,
        }
    }

    /// The record and the `ETag` of an entry.
    async fn head(&self, place: &Place) -> Result<Option<(Record, Option<String>)>, Error> {
        let answer = self.once.head_object();
        match answer.bucket(&place.bucket).key(&place.name).send().await {
            Ok(answer) => {
                let encoded = answer.metadata.as_ref();
                let encoded = encoded.and_then(|metadata| metadata.get(RECORD));
                let record = record_of(encoded.map(String::as_str), answer.content_length)?;
                Ok(record.map(|record| (record, answer.e_tag)))
            }
            Err(error) if has_status(&error, 404) => Ok(None),
            Err(error) => Err(self.attempt("HeadObject", place).by_meaning(error)),
        }
    }

    async fn put(&self, place: &Place, head: ObjectHead, body: Chunks) -> Result<(), Error> {
        let put = self.patient.put_object();
        put.bucket(&place.bucket)
            .key(&place.name)
            .set_content_type(head.content_type)
            .set_cache_control(head.cache_control)
            .set_content_disposition(head.content_disposition)
            .metadata(RECORD, head.record)
            .content_length(signed(body.remaining_bytes))
            .body(body.into_stream())
            .customize()
            .disable_payload_signing()
            .send()
            .await
            .map_err(|error| self.attempt("PutObject", place).by_meaning(error))?;
        Ok(())
    }

    /// Copies an object within its bucket, giving the copy another head. `Ok(false)` when the
    /// source is gone, or is no longer the one with this `ETag`.
    async fn copy(
        &self,
        from: &str,
        if_match: Option<String>,
        to: &Place,
        head: ObjectHead,
    ) -> Result<bool, Error> {
        let source = utf8_percent_encode(from, OBJECT_NAME);
        let copy = self.patient.copy_object();
        let copied = copy
            .copy_source(format!("{}/{source}", to.bucket))
            .set_copy_source_if_match(if_match)
            .bucket(&to.bucket)
            .key(&to.name)
            .metadata_directive(MetadataDirective::Replace)
            .set_content_type(head.content_type)
            .set_cache_control(head.cache_control)
            .set_content_disposition(head.content_disposition)
            .metadata(RECORD, head.record)
            .send()
            .await;
        match copied {
            Ok(_) => Ok(true),
            Err(error) if has_status(&error, 412) => Ok(false),
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(|e| e.meta().code() == Some("NoSuchKey")) =>
            {
                Ok(false)
            }
            Err(error) => Err(self.attempt("CopyObject", to).by_meaning(error)),
        }
    }

    async fn delete(&self, place: &Place) -> Result<(), Error> {
        let delete = self.patient.delete_object();
        let deleted = delete.bucket(&place.bucket).key(&place.name).send().await;
        match deleted {
            Ok(_) => Ok(()),
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(|e| e.meta().code() == Some("NoSuchKey")) =>
            {
                Ok(())
            }
            Err(error) => Err(self.attempt("DeleteObject", place).by_meaning(error)),
        }
    }

    /// Deletes the objects whose names begin with `below`'s, in one pass, and counts them.
    async fn delete_below(&self, below: &Place) -> Result<u64, Error> {
        let mut deleted = 0;
        let mut from = None;
        for _ in 0..MAX_PAGES {
            let list = self.patient.list_objects_v2();
            let page = list
                .bucket(&below.bucket)
                .prefix(&below.name)
                .max_keys(PAGE_OBJECTS)
                .set_continuation_token(from)
                .send()
                .await
                .map_err(|error| self.attempt("ListObjectsV2", below).by_meaning(error))?;
            // A server that ignores the prefix must not lose other objects by it.
            let names = page.contents().iter().filter_map(|object| object.key());
            let names: Vec<_> = names.filter(|name| name.starts_with(&below.name)).collect();
            deleted += self.delete_all(below, &names).await?;
            from = page.next_continuation_token;
            if from.is_none() {
                return Ok(deleted);
            }
        }
        let failure = self.attempt("ListObjectsV2", below);
        let failure = failure.failed(format!("the listing has no end after {MAX_PAGES} pages"));
        Err(Error::Unavailable(failure.into()))
    }

    /// Deletes the objects of one page, and gives the number of those that were there.
    async fn delete_all(&self, below: &Place, names: &[&str]) -> Result<u64, Error> {
        if names.is_empty() {
            return Ok(0);
        }
        let objects = names.iter().map(|name| {
            let object = ObjectIdentifier::builder().key(*name);
            object.build().expect("it has its key")
        });
        let objects = Delete::builder().set_objects(Some(objects.collect()));
        let objects = objects.quiet(true).build().expect("it has its objects");
        let delete = self.patient.delete_objects();
        let answer = delete.bucket(&below.bucket).delete(objects).send().await;
        let attempt = self.attempt("DeleteObjects", below);
        let answer = answer.map_err(|error| attempt.by_meaning(error))?;
        let mut deleted = names.len() as u64;
        for error in answer.errors() {
            let code = error.code().unwrap_or_default();
            if code != "NoSuchKey" {
                return Err(attempt.refused(code, error.message()));
            }
            deleted = deleted.saturating_sub(1);
        }
        Ok(deleted)
    }

    /// The body of an answer, with a deadline for each of its pieces.
    fn body(self: &Arc<Self>, body: ByteStream, bucket: String) -> BodyStream {
        let service = Arc::clone(self);
        stream::try_unfold((body, bucket), move |(mut body, bucket)| {
            let service = Arc::clone(&service);
            async move {
                let next = tokio::time::timeout(service.read_timeout, body.next()).await;
                match next.map_err(|_| Error::TimedOut)? {
                    Some(Ok(bytes)) => Ok(Some((bytes, (body, bucket)))),
                    Some(Err(error)) => {
                        let attempt = Attempt {
                            operation: "reading a body",
                            bucket: &bucket,
                            endpoint: &service.endpoint,
                        };
                        Err(Error::Unavailable(attempt.failed(chain(&error)).into()))
                    }
                    None => Ok(None),
                }
            }
        })
        .into_stream()
        .boxed()
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("endpoint", &self.endpoint)
            .field("buckets", &self.buckets)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl ObjectHead {
    fn of(record: &Record) -> Result<Self, Error> {
        Ok(Self {
            content_type: plain(record, &CONTENT_TYPE),
            cache_control: plain(record, &CACHE_CONTROL),
            content_disposition: plain(record, &CONTENT_DISPOSITION),
            record: record.encode()?,
        })
    }
}

impl Chunks {
    fn new(chunks: &[Bytes]) -> Self {
        Self {
            chunks: chunks.into(),
            next: 0,
            remaining_bytes: length_of(chunks),
        }
    }

    /// As a body that can be sent again.
    fn into_stream(self) -> ByteStream {
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

/// A header's value for the head of an object, where it can be signed: visible ASCII and single
/// spaces, because servers disagree on what becomes of others. The record has it in any case.
fn plain(record: &Record, name: &HeaderName) -> Option<String> {
    let mut values = record.headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?.trim();
    let is_plain = values.next().is_none()
        && !value.is_empty()
        && !value.contains("  ")
        && !value.contains('\t');
    is_plain.then(|| value.to_owned())
}

fn record_of(encoded: Option<&str>, content_length: Option<i64>) -> Result<Option<Record>, Error> {
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
            "object has not the length of its record".to_owned(),
        ));
    }
    Ok(Some(record))
}

fn signed(length: u64) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// Jump consistent hash (Lamping and Veach, 2014): growing from `n` to `n + 1` moves one entry in
/// `n + 1`.
fn choose(mut hash: u64, buckets: usize) -> usize {
    let mut chosen = 0;
    let mut next = 0;
    while next < buckets {
        chosen = next;
        hash = hash.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let step = (1_u64 << 31) as f64 / ((hash >> 33) + 1) as f64;
        next = ((chosen + 1) as f64 * step) as usize;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_bucket_takes_its_share_and_moves_nothing_else() {
        let hashes = (0..10_000_u64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut moved = 0;
        for hash in hashes {
            let (three, four) = (choose(hash, 3), choose(hash, 4));
            if three != four {
                assert_eq!(four, 3);
                moved += 1;
            }
        }
        assert!((2_300..2_700).contains(&moved), "{moved} of 10000");
    }

    #[test]
    fn the_choice_of_a_bucket_is_pinned() {
        // As other implementations of the same hash choose.
        assert_eq!(choose(42, 57), 43);
        assert_eq!(choose(0xDEAD_10CC, 666), 361);
        assert_eq!(choose(256, 1024), 520);
        assert_eq!(choose(u64::MAX, 1), 0);
    }
}
