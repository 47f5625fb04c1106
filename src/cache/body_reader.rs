//! A stored body on its way out, piece by piece.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;
use futures_util::stream;
use prometheus_client::metrics::counter::Counter;
use tokio_stream::StreamExt;
use tracing::warn;

use super::Cache;
use super::budget::Reservation;
use super::lookup::FoundStream;
use crate::entry::{BodyChecksum, BodyProof, Key};
use crate::store::{self, BodyStream, Error};
use crate::telemetry::Metrics;

/// Bytes in one piece, at most.
const PIECE_BYTES: usize = 64 * 1024;

/// What one such body holds at a time: two chunks of the store's, at most as large as a read of its
/// connection.
pub(super) const STREAM_BYTES: u64 = 1024 * 1024;

/// What is counted of bodies on their way out.
#[derive(Debug)]
pub(super) struct BodyMetrics {
    broken: Counter,
}

impl BodyMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            broken: metrics.counter(
                "broken_hits",
                "Streamed hits that had to be broken off, because the store failed or the body was not the stored one",
            ),
        }
    }
}

/// A body, or a part of it. The last piece is given only when the whole body was proved, so that a
/// wrong or short one is never taken for whole: the client misses its end.
pub struct VerifiedBody {
    cache: Cache,
    key: Key,
    source: BodyStream,
    /// What the whole source must be; `None` where that is known already.
    proof: Option<(BodyProof, BodyChecksum)>,
    /// Bytes of the source that are not given, before those that are.
    skip: u64,
    /// Bytes that are still to be taken from the source.
    take: u64,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    has_ended: bool,
    _reservation: Option<Reservation>,
}

/// Some bytes, not none.
#[derive(Debug)]
pub struct BodyPiece {
    /// At most 64 KiB.
    pub bytes: Bytes,
    /// Whether nothing comes after them.
    pub is_last: bool,
}

impl VerifiedBody {
    /// All of a body of the entry under `key` that is held and was proved before.
    pub fn held(cache: Cache, key: Key, chunks: Vec<Bytes>) -> Self {
        Self {
            cache,
            key,
            source: Box::pin(stream::iter(chunks.into_iter().map(Ok))),
            proof: None,
            skip: 0,
            take: u64::MAX,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            has_ended: false,
            _reservation: None,
        }
    }

    /// `length` bytes from `first` on of the body of the entry under `key`.
    pub fn part(
        cache: Cache,
        key: Key,
        found: FoundStream,
        first: u64,
        length: u64,
        proof: BodyProof,
    ) -> Self {
        Self {
            source: found.body,
            proof: Some((proof, BodyChecksum::new())),
            skip: first,
            take: length,
            _reservation: Some(found.reservation),
            ..Self::held(cache, key, Vec::new())
        }
    }

    /// The next piece; `None` after the last. A body that fails is counted, and one that is corrupt is forgotten: as
    /// long as its entry is fresh nothing would replace it, and every hit would be broken off.
    ///
    /// # Errors
    /// Those of the source, and [`Error::Corrupt`] when it is not what was stored. Nothing comes after
    /// an error.
    pub async fn next(&mut self) -> Result<Option<BodyPiece>, Error> {
        let next = self.read().await;
        if let Err(error) = &next {
            self.cache.0.body_metrics.broken.inc();
            warn!(error = %store::Causes(error), "streamed hit was broken off");
            if let Error::Corrupt(_) = error {
                let (cache, key) = (self.cache.clone(), self.key.clone());
                let forget = async move { cache.forget(&key).await };
                self.cache.0.tasks.spawn(forget);
            }
        }
        next
    }

    async fn read(&mut self) -> Result<Option<BodyPiece>, Error> {
        // Until the end was seen and proved, some bytes are always kept back.
        while !self.has_ended && (self.waiting_bytes <= PIECE_BYTES || self.take == 0) {
            match self.source.next().await.transpose()? {
                Some(chunk) => {
                    if let Some((proof, checksum)) = &mut self.proof {
                        checksum.update(&chunk);
                        if checksum.length() > proof.content_length {
                            return Err(Error::Corrupt("body is too long".to_owned()));
                        }
                    }
                    self.keep(chunk);
                }
                None => {
                    let proof = self.proof.as_ref();
                    if !proof.is_none_or(|(proof, checksum)| proof.holds_for(checksum)) {
                        return Err(Error::Corrupt("body is not the one stored".to_owned()));
                    }
                    self.has_ended = true;
                }
            }
        }
        let Some(chunk) = self.waiting.front_mut() else {
            return Ok(None);
        };
        let bytes = chunk.split_to(chunk.len().min(PIECE_BYTES));
        if chunk.is_empty() {
            self.waiting.pop_front();
        }
        self.waiting_bytes -= bytes.len();
        let is_last = self.has_ended && self.waiting_bytes == 0;
        Ok(Some(BodyPiece { bytes, is_last }))
    }

    /// Keeps what is to be given of the source's next bytes.
    fn keep(&mut self, mut chunk: Bytes) {
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        // At most the chunk's length.
        let _ = chunk.split_to(skipped as usize);
        let taken = self.take.min(chunk.len() as u64);
        self.take -= taken;
        chunk.truncate(taken as usize);
        if !chunk.is_empty() {
            self.waiting_bytes += chunk.len();
            self.waiting.push_back(chunk);
        }
    }
}

impl fmt::Debug for VerifiedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedBody")
            .field("key", &self.key)
            .field("take", &self.take)
            .finish_non_exhaustive()
    }
}
