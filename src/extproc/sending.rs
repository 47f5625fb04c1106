//! A hit that is too large for one message.

use tonic::Status;

use super::codec::convert as wire;
use super::codec::response::Answer;
use crate::cache::body_reader::Pieces;
use crate::store;

/// A hit that goes out in several messages.
pub(super) struct Sending(Pieces);

impl Sending {
    pub(super) fn new(pieces: Pieces) -> Self {
        Self(pieces)
    }

    /// The next message; `None` after the last. An error breaks the answer off.
    pub(super) async fn next(&mut self) -> Option<Result<Answer, Status>> {
        match self.0.next().await {
            Ok(piece) => piece.map(|piece| Ok(wire::streamed_body(piece.bytes, piece.is_last))),
            Err(error) => {
                let text = store::Causes(&error).to_string();
                Some(Err(match error {
                    store::Error::Corrupt(_) => Status::data_loss(text),
                    _ => Status::unavailable(text),
                }))
            }
        }
    }
}
