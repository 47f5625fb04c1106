//! A message to Envoy, whose image is not copied into it.

use std::collections::VecDeque;

use bytes::Bytes;
use envoy_types::pb::envoy::service::ext_proc::v3::ProcessingResponse;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};

/// Fields of `ProcessingResponse` by their numbers, from the outermost inwards: an immediate response's
/// body, and a streamed one's.
const IMMEDIATE_BODY: &[u32] = &[7, 3];
const STREAMED_BODY: &[u32] = &[11, 2, 1];

/// The flag and the length before each message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

/// The payload of an HTTP/2 frame, unless the peer takes larger ones. Each frame is a write of its own,
/// so that the first one is filled up.
const FRAME_BYTES: usize = 16 * 1024;

/// A message to Envoy.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// All but the image.
    pub(super) message: ProcessingResponse,
    image: Option<Image>,
}

/// Bytes that belong into the message.
#[derive(Debug)]
struct Image {
    /// Where.
    field: &'static [u32],
    chunks: Vec<Bytes>,
}

impl Answer {
    /// A message without an image.
    pub(super) fn new(message: ProcessingResponse) -> Self {
        Self {
            message,
            image: None,
        }
    }

    /// An immediate response, with its body.
    pub(super) fn immediate(message: ProcessingResponse, body: Vec<Bytes>) -> Self {
        Self {
            message,
            image: Some(Image {
                field: IMMEDIATE_BODY,
                chunks: body,
            }),
        }
    }

    /// A part of a streamed immediate response, with its body.
    pub(super) fn streamed(message: ProcessingResponse, body: Bytes) -> Self {
        Self {
            message,
            image: Some(Image {
                field: STREAMED_BODY,
                chunks: vec![body],
            }),
        }
    }

    /// The message as gRPC sends it, in pieces.
    ///
    /// The image goes last, as if the message were two messages after each other, which is read as their
    /// union (protobuf.dev, "Encoding", "Last One Wins").
    ///
    /// # Errors
    /// The length of a message of 4 GiB and more.
    pub(super) fn into_pieces(self) -> Result<VecDeque<Bytes>, usize> {
        let (field, chunks) = match self.image {
            Some(image) => (image.field, image.chunks),
            None => (&[][..], Vec::new()),
        };
        let length: usize = chunks.iter().map(Bytes::len).sum();
        let path = if length > 0 {
            prefixes(field, length)
        } else {
            Vec::new()
        };
        let own = self.message.encoded_len() + path.len();
        let whole = u32::try_from(own + length).map_err(|_| own + length)?;

        let mut first = Vec::with_capacity((PREFIX_BYTES + own + length).min(FRAME_BYTES.max(own)));
        first.push(0);
        first.extend_from_slice(&whole.to_be_bytes());
        self.message.encode_raw(&mut first);
        first.extend_from_slice(&path);
        let mut pieces = VecDeque::with_capacity(chunks.len() + 1);
        for mut chunk in chunks {
            let room = FRAME_BYTES.saturating_sub(first.len());
            if pieces.is_empty() && room > 0 {
                first.extend_from_slice(&chunk.split_to(room.min(chunk.len())));
            }
            if !chunk.is_empty() {
                pieces.push_back(chunk);
            }
        }
        pieces.push_front(first.into());
        Ok(pieces)
    }
}

/// What goes before `length` bytes of this field.
fn prefixes(field: &[u32], length: usize) -> Vec<u8> {
    field.iter().rev().fold(Vec::new(), |inner, &number| {
        let mut outer = Vec::new();
        encode_key(number, WireType::LengthDelimited, &mut outer);
        encode_varint((inner.len() + length) as u64, &mut outer);
        outer.extend_from_slice(&inner);
        outer
    })
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::ext_proc::v3 as pb;
    use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
    use envoy_types::pb::envoy::service::ext_proc::v3::streamed_immediate_response::Response as Streamed;

    use super::*;

    fn immediate(body: Vec<u8>) -> ProcessingResponse {
        ProcessingResponse {
            response: Some(Response::ImmediateResponse(pb::ImmediateResponse {
                body,
                details: "here".to_owned(),
                ..pb::ImmediateResponse::default()
            })),
            ..ProcessingResponse::default()
        }
    }

    fn streamed(body: Vec<u8>) -> ProcessingResponse {
        ProcessingResponse {
            response: Some(Response::StreamedImmediateResponse(
                pb::StreamedImmediateResponse {
                    response: Some(Streamed::BodyResponse(pb::StreamedBodyResponse {
                        body,
                        end_of_stream: true,
                        ..pb::StreamedBodyResponse::default()
                    })),
                },
            )),
            ..ProcessingResponse::default()
        }
    }

    /// What Envoy reads.
    fn read(answer: Answer) -> ProcessingResponse {
        let sent = answer.into_pieces().unwrap().into_iter().flatten();
        let sent: Vec<u8> = sent.collect();
        let (prefix, message) = sent.split_at(PREFIX_BYTES);
        assert_eq!(prefix[0], 0);
        assert_eq!(prefix[1..], (message.len() as u32).to_be_bytes());
        ProcessingResponse::decode(message).unwrap()
    }

    #[test]
    fn an_image_is_read_as_part_of_its_message() {
        for length in [
            0, 1, 127, 128, 16_000, 16_370, 16_384, 16_385, 50_000, 1_048_576,
        ] {
            let image: Vec<u8> = (0..length).map(|index| index as u8).collect();
            for size in [1000, 16_384, usize::MAX] {
                let chunks = image.chunks(size.min(length.max(1)));
                let chunks = chunks.map(Bytes::copy_from_slice).collect();
                let answer = Answer::immediate(immediate(Vec::new()), chunks);
                assert_eq!(read(answer), immediate(image.clone()));
            }
            let answer = Answer::streamed(streamed(Vec::new()), image.clone().into());
            assert_eq!(read(answer), streamed(image));
        }
    }

    #[test]
    fn only_the_first_frame_of_an_image_is_copied() {
        let image = Bytes::from(vec![7; 3 * FRAME_BYTES]);
        let answer = Answer::immediate(immediate(Vec::new()), vec![image.clone()]);
        let pieces = answer.into_pieces().unwrap();
        assert_eq!(pieces[0].len(), FRAME_BYTES);
        let copied = image.len() - pieces[1].len();
        assert_eq!(pieces[1].as_ptr(), image[copied..].as_ptr());
    }
}
