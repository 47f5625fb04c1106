//! A stored body on its way out, piece by piece.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio_stream::StreamExt;

use crate::entry::{BodyChecksum, BodyProof};
use crate::store::{BodyStream, Error};

/// Bytes in one piece, at most.
const PIECE_BYTES: usize = 64 * 1024;

/// What one such body holds at a time: two chunks of the store's, at most as large as a read of its
/// connection.
pub const ROOM_BYTES: u64 = 1024 * 1024;

/// A body, or a part of it. The last piece is given only when the whole body was proved, so that a
/// wrong or short one is never taken for whole: the client misses its end.
pub struct Pieces {
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
}

/// Some bytes, not none.
#[derive(Debug)]
pub struct Piece {
    /// At most 64 KiB.
    pub bytes: Bytes,
    /// Whether nothing comes after them.
    pub is_last: bool,
}

impl Pieces {
    /// All of a source that was proved before.
    pub fn proved(source: BodyStream) -> Self {
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
    pub fn part(source: BodyStream, first: u64, length: u64, proof: BodyProof) -> Self {
        Self {
            proof: Some((proof, BodyChecksum::new())),
            skip: first,
            take: length,
            ..Self::proved(source)
        }
    }

    /// The next piece; `None` after the last.
    ///
    /// # Errors
    /// Those of the source, and [`Error::Corrupt`] when it is not what was stored. Nothing comes after
    /// an error.
    pub async fn next(&mut self) -> Result<Option<Piece>, Error> {
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
        Ok(Some(Piece { bytes, is_last }))
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
