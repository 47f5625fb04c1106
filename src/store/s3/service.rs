//! Carries out operations on objects through the SDK.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, MetadataDirective, ObjectIdentifier};
use futures_util::{StreamExt, TryStreamExt, stream};
use percent_encoding::utf8_percent_encode;
use tokio::sync::Semaphore;

use super::failure::{Attempt, chain, has_status};
use super::object::{Chunks, OBJECT_NAME, ObjectHead, Place, RECORD, record_of, signed};
use super::reader::Reader;
use crate::endpoint::Endpoint;
use crate::entry::{Key, Record, Source};
use crate::store::{BodyStream, Error};

/// Objects that are listed and deleted at a time: the most that S3 allows.
const PAGE_OBJECTS: i32 = 1000;
/// The most pages of one listing: a million objects. A longer listing is taken for an error.
const MAX_PAGES: u32 = 1000;
/// What all operations share.
pub(super) struct Service {
    pub(super) endpoint: Endpoint,
    pub(super) buckets: Vec<String>,
    pub(super) prefix: String,
    pub(super) read_timeout: Duration,
    /// Reads objects, in one attempt.
    pub(super) reader: Reader,
    /// Makes one attempt, with a short deadline.
    pub(super) once: Client,
    /// Makes several attempts, each with a deadline long enough for a body. It shares the
    /// connections of `once`.
    pub(super) patient: Client,
    pub(super) cleanups: Arc<Semaphore>,
}

impl Service {
    pub(super) fn place(&self, key: &Key) -> Place {
        Place {
            bucket: self.bucket(key.source()).to_owned(),
            name: self.name(&key.object_name()),
        }
    }

    /// Chooses the bucket that has all entries of a source.
    pub(super) fn bucket(&self, source: &Source) -> &str {
        let mut hash = [0; 8];
        hash.copy_from_slice(&source.digest()[..8]);
        &self.buckets[choose(u64::from_be_bytes(hash), self.buckets.len())]
    }

    pub(super) fn name(&self, rest: &str) -> String {
        if self.prefix.is_empty() {
            rest.to_owned()
        } else {
            format!("{}/{rest}", self.prefix)
        }
    }

    pub(super) fn attempt<'a>(&'a self, operation: &'static str, place: &'a Place) -> Attempt<'a> {
        Attempt {
            operation,
            bucket: &place.bucket,
            endpoint: &self.endpoint,
        }
    }

    /// Reads the record and the `ETag` of an entry.
    pub(super) async fn head(
        &self,
        place: &Place,
    ) -> Result<Option<(Record, Option<String>)>, Error> {
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

    pub(super) async fn put(
        &self,
        place: &Place,
        head: ObjectHead,
        body: Chunks,
    ) -> Result<(), Error> {
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

    /// Copies an object within its bucket and gives the copy another head. `Ok(false)` means that
    /// the object is gone or no longer has this `ETag`.
    pub(super) async fn copy(
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

    pub(super) async fn delete(&self, place: &Place) -> Result<(), Error> {
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
    pub(super) async fn delete_below(&self, below: &Place) -> Result<u64, Error> {
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
            // A server that ignores the prefix must not make us delete other objects.
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

    /// Deletes the objects of one page, and returns how many were there.
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

    /// Makes a stream of an answer's body, with a deadline for each chunk.
    pub(super) fn body(self: &Arc<Self>, body: ByteStream, bucket: String) -> BodyStream {
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

/// Chooses a bucket by jump consistent hash (Lamping and Veach, 2014): growing from `n` to `n + 1`
/// moves one entry in `n + 1`.
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
        // Other implementations of the same hash choose these.
        assert_eq!(choose(42, 57), 43);
        assert_eq!(choose(0xDEAD_10CC, 666), 361);
        assert_eq!(choose(256, 1024), 520);
        assert_eq!(choose(u64::MAX, 1), 0);
    }
}
