//! Stores bodies that are too large to be held. It uploads parts to a staging object while they
//! stream, and then copies that object, with its final head, to its final name.
//!
//! ```text
//! begin ── Uploading ── complete ── Staged ── copy ── delete ── Gone
//!              │            │          │
//!              └────────────┴──────────┴── dropped: abort, delete
//! ```

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use tokio::runtime::Handle;

use super::failure::chain;
use super::object::{Chunks, ObjectHead, Place, signed};
use super::service::Service;
use crate::entry::Record;
use crate::store::{Error, Writer, expect_length};

/// Size of every part but the last: R2 wants equal parts, and S3 takes 5 MiB or more.
const PART_BYTES: usize = 8 * 1024 * 1024;

/// Uploads each part when it is full. It holds at most one part.
pub(super) struct PartsWriter {
    upload: Upload,
    to: Place,
    parts: Vec<CompletedPart>,
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    length: u64,
}

/// A multipart upload to a staging object. Dropping it removes what is left of it on the server.
#[derive(Debug)]
pub(super) struct Upload {
    service: Arc<Service>,
    staging: Place,
    id: String,
    state: State,
    runtime: Handle,
}

/// What is on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// An upload.
    Uploading,
    /// An upload or an object: the completion was sent and is not confirmed.
    Completing,
    /// An object.
    Staged,
    /// Nothing.
    Gone,
}

impl PartsWriter {
    pub(super) fn new(upload: Upload, to: Place) -> Self {
        Self {
            upload,
            to,
            parts: Vec::new(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            length: 0,
        }
    }

    async fn send_part(&mut self) -> Result<(), Error> {
        let number = i32::try_from(self.parts.len() + 1)
            .map_err(|_| Error::TooLarge("too many parts".to_owned()))?;
        let body = Chunks::new(&std::mem::take(&mut self.waiting));
        self.waiting_bytes = 0;
        let part = self.upload.send_part(number, body).await?;
        self.parts.push(part);
        Ok(())
    }
}

#[async_trait]
impl Writer for PartsWriter {
    async fn append(&mut self, mut chunk: Bytes) -> Result<u64, Error> {
        self.length += chunk.len() as u64;
        while self.waiting_bytes + chunk.len() >= PART_BYTES {
            self.waiting
                .push(chunk.split_to(PART_BYTES - self.waiting_bytes));
            self.send_part().await?;
        }
        if !chunk.is_empty() {
            self.waiting_bytes += chunk.len();
            self.waiting.push(chunk);
        }
        Ok(self.waiting_bytes as u64)
    }

    async fn commit(mut self: Box<Self>, record: &Record) -> Result<(), Error> {
        expect_length(record, self.length)?;
        let head = ObjectHead::of(record)?;
        if self.parts.is_empty() {
            // A body that fits in one part needs no staging. The upload is aborted on drop.
            let body = Chunks::new(&self.waiting);
            return self.upload.service.put(&self.to, head, body).await;
        }
        if self.waiting_bytes > 0 {
            self.send_part().await?;
        }
        let Self {
            mut upload,
            to,
            parts,
            ..
        } = *self;
        upload.complete(parts).await?;
        let staged = &upload.staging;
        if !upload.service.copy(&staged.name, None, &to, head).await? {
            let attempt = upload.service.attempt("CopyObject", staged);
            return Err(Error::Unavailable(
                attempt
                    .failed("the staged object is gone".to_owned())
                    .into(),
            ));
        }
        clean(&upload.service, staged, &upload.id, upload.state).await;
        upload.state = State::Gone;
        Ok(())
    }
}

impl Upload {
    pub(super) async fn begin(service: &Arc<Service>, bucket: &str) -> Result<Self, Error> {
        let service = Arc::clone(service);
        let staging = Place {
            bucket: bucket.to_owned(),
            name: service.name(&format!("staging/{:032x}", fastrand::u128(..))),
        };
        // This is a task of its own, so that an upload is aborted even if the answer comes after
        // the caller has gone.
        let begun = tokio::spawn(async move {
            let create = service.patient.create_multipart_upload();
            let created = create.bucket(&staging.bucket).key(&staging.name).send();
            let attempt = service.attempt("CreateMultipartUpload", &staging);
            let created = created.await.map_err(|error| attempt.by_meaning(error))?;
            let Some(id) = created.upload_id else {
                let failure = attempt.failed("the answer has no upload id".to_owned());
                return Err(Error::Unavailable(failure.into()));
            };
            Ok(Self {
                service,
                staging,
                id,
                state: State::Uploading,
                runtime: Handle::current(),
            })
        });
        begun
            .await
            .map_err(|failed| Error::Unavailable(failed.into()))?
    }

    async fn send_part(&self, number: i32, body: Chunks) -> Result<CompletedPart, Error> {
        let send = self.service.patient.upload_part();
        let sent = send
            .bucket(&self.staging.bucket)
            .key(&self.staging.name)
            .upload_id(&self.id)
            .part_number(number)
            .content_length(signed(body.remaining_bytes))
            .body(body.into_stream())
            .customize()
            .disable_payload_signing()
            .send()
            .await
            .map_err(|error| {
                let attempt = self.service.attempt("UploadPart", &self.staging);
                attempt.by_meaning(error)
            })?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(sent.e_tag)
            .build())
    }

    async fn complete(&mut self, parts: Vec<CompletedPart>) -> Result<(), Error> {
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        self.state = State::Completing;
        let complete = self.service.patient.complete_multipart_upload();
        complete
            .bucket(&self.staging.bucket)
            .key(&self.staging.name)
            .upload_id(&self.id)
            .multipart_upload(parts)
            .send()
            .await
            .map_err(|error| {
                let attempt = self
                    .service
                    .attempt("CompleteMultipartUpload", &self.staging);
                attempt.by_meaning(error)
            })?;
        self.state = State::Staged;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.state == State::Gone {
            return;
        }
        let Ok(permit) = Arc::clone(&self.service.cleanups).try_acquire_owned() else {
            tracing::warn!("too many clean-ups: an upload is left to the bucket's lifecycle rules");
            return;
        };
        let service = Arc::clone(&self.service);
        let (staging, id, state) = (self.staging.clone(), self.id.clone(), self.state);
        self.runtime.spawn(async move {
            clean(&service, &staging, &id, state).await;
            drop(permit);
        });
    }
}

/// Removes what is on the server. The bucket's lifecycle rules remove what this cannot.
async fn clean(service: &Service, staging: &Place, id: &str, state: State) {
    if matches!(state, State::Uploading | State::Completing) {
        let abort = service.patient.abort_multipart_upload();
        let abort = abort.bucket(&staging.bucket).key(&staging.name);
        match abort.upload_id(id).send().await {
            Ok(_) => {}
            // The upload was completed, so it is gone.
            Err(_) if state == State::Completing => {}
            Err(error) => {
                let attempt = service.attempt("AbortMultipartUpload", staging);
                let error = attempt.by_meaning(error);
                tracing::warn!(error = %chain(&error), "an upload could not be aborted");
            }
        }
    }
    if matches!(state, State::Completing | State::Staged)
        && let Err(error) = service.delete(staging).await
    {
        tracing::warn!(error = %chain(&error), "a staged object could not be deleted");
    }
}
