//! Keeps entries in S3 buckets, Garage's above all. Only this module and those below it name the
//! SDK.
//!
//! The object's bytes are the body, unchanged, with its own `Content-Type`, `Cache-Control` and
//! `Content-Disposition`, so that a bucket can be browsed. The record is one metadata value,
//! `x-amz-meta-afterimage`. The store does not rely on conditional writes, on tags, on `ETag` being
//! an MD5, or on listings, except to delete a source.

mod connector;
mod failure;
mod object;
mod reader;
mod service;
mod signer;
mod upload;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Credentials, IdentityCache, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use tokio::sync::Semaphore;

use self::object::{Chunks, ObjectHead, Place, RECORD_FIELD, record_of};
use self::reader::Reader;
use self::service::Service;
use self::upload::{PartsWriter, Upload};
use super::{Error, Found, Store, Writer, expect_length, length_of};
use crate::endpoint::Endpoint;
use crate::entry::{Key, Record, Source};
use crate::secret::Secret;

/// Garage's limit for object names is 479 bytes, and `Key::object_name` takes up to 180.
const MAX_PREFIX_BYTES: usize = 256;
/// Attempts at a write: the first and two more.
const WRITE_ATTEMPTS: u32 = 3;
const WRITE_BACKOFF: Duration = Duration::from_millis(100);
/// Clean-ups at a time. Beyond them, the bucket's lifecycle rules do the work.
const CLEANUPS: usize = 16;

/// Where an [`S3Store`] keeps its entries.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// The service.
    pub endpoint: Endpoint,
    /// The region that requests are signed for; Garage compares it with its `s3_region`.
    pub region: String,
    /// Names of the buckets, at least one. The hash of an entry's source chooses among them. A
    /// bucket appended to the list takes over an equal share of the entries; any other change loses
    /// more entries.
    pub buckets: Vec<String>,
    /// Precedes every object name: at most 256 bytes, without a slash at either end, or empty.
    pub prefix: String,
    /// Identifies the access key.
    pub access_key_id: String,
    /// Signs requests.
    pub secret_access_key: Secret,
    /// How long to wait for each step.
    pub timeouts: S3Timeouts,
}

/// How long an [`S3Store`] waits for each step. The caller sets the deadline of a whole operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct S3Timeouts {
    /// Waits so long for a connection; default 500 ms, which is many round trips inside a region.
    pub connect: Duration,
    /// Waits so long for the head of the answer to a request without a body; default 2 s.
    /// [`Store::get`] has only the caller's deadline.
    pub attempt: Duration,
    /// Waits so long for one attempt to send an object or a part of one, until the answer; default
    /// 30 s, which is 8 MiB at 280 KB/s.
    pub write: Duration,
    /// Waits so long for each chunk of a body that is read; default 2 s. Servers send the head of
    /// an answer before they have the first block of the body.
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

/// Why an [`S3Store`] cannot have a configuration.
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

impl S3Store {
    /// Makes a store on the buckets of `config`, which connects when it is first used. It must be
    /// called inside a runtime.
    ///
    /// # Errors
    /// [`S3ConfigError`] for what is wrong without asking the service. [`Store::check`] finds the
    /// rest.
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
        let once = once(
            connector::url(&config.endpoint),
            config.region,
            credentials,
            timeouts.attempt,
            http_client,
        );
        let patient = patient(&once, timeouts.write);
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

/// Configures a client that makes one attempt within `attempt`.
fn once(
    url: String,
    region: String,
    credentials: Credentials,
    attempt: Duration,
    http_client: SharedHttpClient,
) -> Config {
    Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(url)
        .force_path_style(true)
        .region(Region::new(region))
        .credentials_provider(credentials)
        // The credentials are in memory, so a cache would only cost.
        .identity_cache(IdentityCache::no_cache())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .operation_attempt_timeout(attempt)
                .build(),
        )
        .http_client(http_client)
        .build()
}

/// Configures a client that makes several attempts, each within `write`, over the connections of
/// `once`.
fn patient(once: &Config, write: Duration) -> Config {
    once.to_builder()
        .retry_config(
            RetryConfig::standard()
                .with_max_attempts(WRITE_ATTEMPTS)
                .with_initial_backoff(WRITE_BACKOFF),
        )
        .timeout_config(
            TimeoutConfig::builder()
                .operation_attempt_timeout(write)
                .build(),
        )
        .build()
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

    /// Lists one name of each bucket, because a refused `HeadBucket` does not say why.
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
