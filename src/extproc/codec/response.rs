//! Encodes messages to Envoy, without copying a body into them.

use std::collections::VecDeque;

use bytes::Bytes;
use envoy_types::pb::envoy::service::ext_proc::v3::ProcessingResponse;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

/// Paths of field numbers in `ProcessingResponse`, from the outermost inwards, to the body of an
/// immediate response and of a streamed one.
const IMMEDIATE_BODY: &[u32] = &[7, 3];
const STREAMED_BODY: &[u32] = &[11, 2, 1];

/// The flag and the length before each message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX_BYTES: usize = 5;

/// The payload of an HTTP/2 frame, unless the peer takes larger ones. Pieces never share a frame,
/// so the first piece is filled up to this size.
const FRAME_BYTES: usize = 16 * 1024;

/// Expected length of a message without its body.
const MESSAGE_BYTES: usize = 1000;

/// A message to Envoy, encoded except for its body.
#[derive(Debug)]
pub(crate) struct EncodedResponse {
    /// Bytes kept for the prefix, then fields of `ProcessingResponse`.
    fields: Vec<u8>,
    body: Option<Body>,
}

/// The body that belongs into the message.
#[derive(Debug)]
struct Body {
    /// Path of the field that holds it.
    field: &'static [u32],
    chunks: Vec<Bytes>,
}

impl EncodedResponse {
    fn with_room(room: usize, body: Option<Body>) -> Self {
        let mut fields = Vec::with_capacity(PREFIX_BYTES + room);
        fields.resize(PREFIX_BYTES, 0);
        Self { fields, body }
    }

    /// Encodes a message without a body.
    pub(crate) fn new(message: &ProcessingResponse) -> Self {
        Self::with_room(MESSAGE_BYTES, None).and(message)
    }

    /// Begins an immediate response with this body. Its other fields are written with
    /// [`EncodedResponse::fields`].
    pub(crate) fn immediate(body: Vec<Bytes>) -> Self {
        let length: usize = body.iter().map(Bytes::len).sum();
        let room = (MESSAGE_BYTES + length).min(FRAME_BYTES);
        let body = Body {
            field: IMMEDIATE_BODY,
            chunks: body,
        };
        Self::with_room(room, Some(body))
    }

    /// Encodes a part of a streamed immediate response, with its bytes of body.
    pub(crate) fn streamed(message: &ProcessingResponse, body: Bytes) -> Self {
        let body = Body {
            field: STREAMED_BODY,
            chunks: vec![body],
        };
        Self::with_room(FRAME_BYTES, Some(body)).and(message)
    }

    fn and(mut self, message: &ProcessingResponse) -> Self {
        message.encode_raw(&mut self.fields);
        self
    }

    /// Returns a writer that appends fields to the message.
    pub(crate) fn fields(&mut self) -> Fields<'_> {
        Fields(&mut self.fields)
    }

    /// Returns the message as gRPC sends it, in pieces.
    ///
    /// The body goes last, as if it were a second message after the first. Readers merge the two
    /// (protobuf.dev, "Encoding", "Last One Wins").
    ///
    /// # Errors
    /// The length of the message, when it has 4 GiB or more.
    pub(crate) fn into_pieces(self) -> Result<VecDeque<Bytes>, usize> {
        let (field, chunks) = match self.body {
            Some(body) => (body.field, body.chunks),
            None => (&[][..], Vec::new()),
        };
        let length: usize = chunks.iter().map(Bytes::len).sum();
        let mut first = self.fields;
        if length > 0 {
            first.extend_from_slice(&prefixes(field, length));
        }
        let whole = first.len() - PREFIX_BYTES + length;
        let whole = u32::try_from(whole).map_err(|_| whole)?;
        first[1..PREFIX_BYTES].copy_from_slice(&whole.to_be_bytes());

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

/// Writes the fields of a message, one after the other (protobuf.dev, "Encoding").
///
/// Envoy-types' messages are measured at every level before they are written, and each of their
/// names and values is a string of its own. For a hit, that was a sixth of the work.
pub(crate) struct Fields<'a>(&'a mut Vec<u8>);

impl Fields<'_> {
    /// Writes a number, or a value of an enumeration.
    pub(crate) fn number(&mut self, field: u32, value: u64) {
        encode_key(field, WireType::Varint, self.0);
        encode_varint(value, self.0);
    }

    /// Writes a string or bytes.
    pub(crate) fn bytes(&mut self, field: u32, value: &[u8]) {
        encode_key(field, WireType::LengthDelimited, self.0);
        encode_varint(value.len() as u64, self.0);
        self.0.extend_from_slice(value);
    }

    /// Writes `values`, joined with `", "`, as one field.
    pub(crate) fn joined<'b>(&mut self, field: u32, values: impl Iterator<Item = &'b [u8]>) {
        self.nested(field, |Fields(out)| {
            for (index, value) in values.enumerate() {
                if index > 0 {
                    out.extend_from_slice(b", ");
                }
                out.extend_from_slice(value);
            }
        });
    }

    /// Writes a message, whose fields `write` writes.
    pub(crate) fn nested(&mut self, field: u32, write: impl FnOnce(&mut Fields<'_>)) {
        let out = &mut *self.0;
        encode_key(field, WireType::LengthDelimited, out);
        let place = out.len();
        out.push(0);
        write(&mut Fields(out));
        let length = out.len() - place - 1;
        // Most lengths take the one byte that is kept for them.
        let more = encoded_len_varint(length as u64) - 1;
        if more > 0 {
            out.resize(out.len() + more, 0);
            out.copy_within(place + 1..=place + length, place + 1 + more);
        }
        encode_varint(length as u64, &mut &mut out[place..=place + more]);
    }
}

/// The keys and lengths that precede `length` bytes of this field.
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

    /// Decodes the message as Envoy does.
    fn read(answer: EncodedResponse) -> ProcessingResponse {
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
                let mut answer = EncodedResponse::immediate(chunks);
                answer.fields().nested(7, |fields| fields.bytes(5, b"here"));
                assert_eq!(read(answer), immediate(image.clone()));
            }
            let answer = EncodedResponse::streamed(&streamed(Vec::new()), image.clone().into());
            assert_eq!(read(answer), streamed(image));
        }
    }

    #[test]
    fn nested_messages_of_any_length_are_read() {
        for length in [0, 127, 128, 16_383, 16_384, 2_097_152] {
            let text = "x".repeat(length);
            let mut answer = EncodedResponse::new(&ProcessingResponse::default());
            answer.fields().nested(7, |fields| {
                fields.nested(1, |fields| fields.number(1, 404));
                fields.bytes(5, text.as_bytes());
                fields.nested(2, |fields| {
                    fields.nested(1, |fields| {
                        fields.nested(1, |fields| {
                            fields.joined(3, [text.as_bytes(), b"", b"y"].into_iter());
                        });
                    });
                });
            });
            let Some(Response::ImmediateResponse(read)) = read(answer).response else {
                panic!("{length}")
            };
            assert_eq!(read.status.unwrap().code, 404);
            assert_eq!(read.details, text);
            let field = read.headers.unwrap().set_headers.remove(0);
            let value = field.header.unwrap().raw_value;
            assert_eq!(value, format!("{text}, , y").into_bytes());
        }
    }

    #[test]
    fn only_the_first_frame_of_an_image_is_copied() {
        let image = Bytes::from(vec![7; 3 * FRAME_BYTES]);
        let answer = EncodedResponse::immediate(vec![image.clone()]);
        let pieces = answer.into_pieces().unwrap();
        assert_eq!(pieces[0].len(), FRAME_BYTES);
        let copied = image.len() - pieces[1].len();
        assert_eq!(pieces[1].as_ptr(), image[copied..].as_ptr());
    }
}
