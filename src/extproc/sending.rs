//! A hit that is too large for one message.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::StreamExt;
use tonic::Status;

use super::wire::{self, ProcessingResponse};
use crate::entry::{BodyChecksum, BodyProof};
use crate::store::{self, BodyStream};

/// Bytes in one message.
const PIECE_BYTES: usize = 64 * 1024;

/// What one such hit holds at a time: two chunks of the store's, at most as large as a read of its
/// connection.
pub(super) const ROOM_BYTES: u64 = 1024 * 1024;

/// A hit that goes out in pieces. The last piece leaves only when the whole body was proved, so
/// that a wrong or short one is never taken for whole: the client misses its end.
pub(super) struct Sending {
    source: BodyStream,
    /// What the whole source must be; `None` where that is known already.
    proof: Option<(BodyProof, BodyChecksum)>,
    /// Bytes of the source that are not sent, before those that are.
    skip: u64,
    /// Bytes that are still to be taken from the source.
    take: u64,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    has_ended: bool,
}

impl Sending {
    /// All of a source that was proved before.
    pub(super) fn proved(source: BodyStream) -> Self {
        Self {
            source,
            proof: None,
            skip: 0,
            take: u64::MAX,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            has_ended: false,
        }
    }

    /// `length` bytes from `first` on.
    pub(super) fn part(source: BodyStream, first: u64, length: u64, proof: BodyProof) -> Self {
        Self {
            proof: Some((proof, BodyChecksum::new())),
            skip: first,
            take: length,
            ..Self::proved(source)
        }
    }

    /// The next message; `None` after the last. An error breaks the answer off.
    pub(super) async fn next(&mut self) -> Option<Result<ProcessingResponse, Status>> {
        // Until the end was seen and proved, some bytes are always kept back.
        while !self.has_ended && (self.waiting_bytes <= PIECE_BYTES || self.take == 0) {
            match self.source.next().await {
                Some(Ok(chunk)) => {
                    if let Some((proof, checksum)) = &mut self.proof {
                        checksum.update(&chunk);
                        if checksum.length() > proof.content_length {
                            return Some(Err(Status::data_loss("stored body is too long")));
                        }
                    }
                    self.keep(chunk);
                }
                Some(Err(error @ store::Error::Corrupt(_))) => {
                    return Some(Err(Status::data_loss(store::Causes(&error).to_string())));
                }
                Some(Err(error)) => {
                    return Some(Err(Status::unavailable(store::Causes(&error).to_string())));
                }
                None => {
                    let is_whole = self
                        .proof
                        .as_ref()
                        .is_none_or(|(proof, checksum)| proof.holds_for(checksum));
                    if !is_whole {
                        return Some(Err(Status::data_loss("stored body is not the one stored")));
                    }
                    self.has_ended = true;
                }
            }
        }
        let chunk = self.waiting.front_mut()?;
        let piece = chunk.split_to(chunk.len().min(PIECE_BYTES));
        if chunk.is_empty() {
            self.waiting.pop_front();
        }
        self.waiting_bytes -= piece.len();
        Some(Ok(wire::streamed_body(
            &piece,
            self.has_ended && self.waiting_bytes == 0,
        )))
    }

    /// Keeps what is to be sent of the source's next bytes.
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
