//! Decodes Envoy's messages, as far as they are read.
//!
//! These types repeat envoy-types' messages, for one reason: their strings and bytes are slices of
//! the buffer in which a message came. A body is a slice of the buffer into which it was received.
//! A head is kept for longer than such a buffer should be, so it is copied first, as a whole.

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};
use prost::{DecodeError, Message as _};

/// The first byte of a message about a body: the keys of `request_body` and `response_body`, whose
/// wire type is 2.
const BODY_KEYS: [u8; 2] = [4 << 3 | 2, 5 << 3 | 2];

/// `envoy.service.ext_proc.v3.ProcessingRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProcessingRequest {
    #[prost(oneof = "MessagePart", tags = "2, 3, 4, 5, 6, 7")]
    pub(crate) request: Option<MessagePart>,
    /// A map.
    #[prost(message, repeated, tag = "9")]
    pub(crate) attributes: Vec<Attributes>,
}

/// Which part of the exchange a message is about.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum MessagePart {
    #[prost(message, tag = "2")]
    RequestHeaders(HttpHeaders),
    #[prost(message, tag = "3")]
    ResponseHeaders(HttpHeaders),
    #[prost(message, tag = "4")]
    RequestBody(HttpBody),
    #[prost(message, tag = "5")]
    ResponseBody(HttpBody),
    #[prost(message, tag = "6")]
    RequestTrailers(Unread),
    #[prost(message, tag = "7")]
    ResponseTrailers(Unread),
}

/// `envoy.service.ext_proc.v3.HttpHeaders`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HttpHeaders {
    /// `envoy.config.core.v3.HeaderMap`, not decoded; [`HttpHeaders::each`] reads it. A message and
    /// bytes are encoded alike.
    #[prost(bytes = "bytes", tag = "1")]
    headers: Bytes,
    #[prost(bool, tag = "3")]
    pub(crate) end_of_stream: bool,
}

/// `envoy.config.core.v3.HeaderValue`, of whose two values one is empty.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeaderValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) raw_value: Bytes,
}

/// `envoy.service.ext_proc.v3.HttpBody`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HttpBody {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) body: Bytes,
    #[prost(bool, tag = "2")]
    pub(crate) end_of_stream: bool,
}

/// A message whose content is not read.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Unread {}

/// The attributes for one filter.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Attributes {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) filter: Bytes,
    #[prost(message, optional, tag = "2")]
    pub(crate) values: Option<Struct>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Struct {
    /// A map.
    #[prost(message, repeated, tag = "1")]
    pub(crate) fields: Vec<Field>,
}

/// One field of a [`Struct`].
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Field {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) name: Bytes,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<Value>,
}

/// `google.protobuf.Value`, of which only strings are read.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Value {
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(crate) string_value: Option<Bytes>,
}

impl ProcessingRequest {
    /// Reads a message that is all of `bytes`.
    ///
    /// # Errors
    /// When they are not such a message.
    pub(crate) fn read(bytes: &mut impl Buf) -> Result<Self, DecodeError> {
        let first = bytes.chunk().first();
        if first.is_some_and(|first| BODY_KEYS.contains(first)) {
            return Self::decode(bytes);
        }
        let mut copy = BytesMut::with_capacity(bytes.remaining());
        copy.put(bytes);
        Self::decode(copy.freeze())
    }
}

impl HttpHeaders {
    /// Calls `read` with each field, in order.
    ///
    /// # Errors
    /// When the next bytes are not a field.
    pub(crate) fn each(self, mut read: impl FnMut(HeaderValue)) -> Result<(), DecodeError> {
        let mut headers = self.headers;
        while headers.has_remaining() {
            let (tag, wire_type) = decode_key(&mut headers)?;
            if tag == 1 && wire_type == WireType::LengthDelimited {
                read(HeaderValue::decode_length_delimited(&mut headers)?);
            } else {
                skip_field(wire_type, tag, &mut headers, DecodeContext::default())?;
            }
        }
        Ok(())
    }
}

impl Struct {
    /// The text of the field with this name.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().rfind(|field| field.name == name)?;
        std::str::from_utf8(field.value.as_ref()?.string_value.as_ref()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3 as core;
    use envoy_types::pb::envoy::service::ext_proc::v3 as pb;
    use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as PbRequest;
    use envoy_types::pb::google::protobuf as google;

    use super::*;

    fn text(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn read(request: PbRequest) -> ProcessingRequest {
        use google::value::Kind;
        let fields = [
            ("a", Kind::StringValue("b".to_owned())),
            ("c", Kind::NumberValue(1.0)),
        ];
        let values = google::Struct {
            fields: fields
                .map(|(name, kind)| (name.to_owned(), google::Value { kind: Some(kind) }))
                .into(),
        };
        let sent = pb::ProcessingRequest {
            request: Some(request),
            attributes: [("filter".to_owned(), values)].into(),
            observability_mode: true,
            ..pb::ProcessingRequest::default()
        };
        let read = ProcessingRequest::read(&mut &*sent.encode_to_vec()).unwrap();
        let [attributes] = &*read.attributes else {
            panic!("{read:?}")
        };
        assert_eq!(attributes.filter, "filter");
        let values = attributes.values.as_ref().unwrap();
        assert_eq!(values.fields.len(), 2);
        assert_eq!(
            ["a", "c", "d"].map(|name| values.text(name)),
            [Some("b"), None, None]
        );
        read
    }

    /// A head as envoy-types has it, and as it is read.
    fn head() -> (pb::HttpHeaders, HttpHeaders) {
        let sent_headers = pb::HttpHeaders {
            headers: Some(core::HeaderMap {
                headers: vec![core::HeaderValue {
                    key: "name".to_owned(),
                    value: "old".to_owned(),
                    raw_value: b"new".to_vec(),
                }],
            }),
            end_of_stream: true,
            ..pb::HttpHeaders::default()
        };
        let headers = HttpHeaders {
            headers: sent_headers
                .headers
                .as_ref()
                .map(prost::Message::encode_to_vec)
                .unwrap()
                .into(),
            end_of_stream: true,
        };
        let mut fields = Vec::new();
        headers.clone().each(|field| fields.push(field)).unwrap();
        let field = HeaderValue {
            key: text("name"),
            value: text("old"),
            raw_value: text("new"),
        };
        assert_eq!(fields, [field]);
        (sent_headers, headers)
    }

    #[test]
    fn every_message_is_read_as_envoy_means_it() {
        let (sent_headers, headers) = head();
        let sent_body = pb::HttpBody {
            body: b"bytes".to_vec(),
            end_of_stream: true,
            ..pb::HttpBody::default()
        };
        let body = HttpBody {
            body: text("bytes"),
            end_of_stream: true,
        };
        let trailers = pb::HttpTrailers {
            trailers: sent_headers.headers.clone(),
        };
        let pairs = [
            (
                PbRequest::RequestHeaders(sent_headers.clone()),
                MessagePart::RequestHeaders(headers.clone()),
            ),
            (
                PbRequest::ResponseHeaders(sent_headers),
                MessagePart::ResponseHeaders(headers),
            ),
            (
                PbRequest::RequestBody(sent_body.clone()),
                MessagePart::RequestBody(body.clone()),
            ),
            (
                PbRequest::ResponseBody(sent_body),
                MessagePart::ResponseBody(body),
            ),
            (
                PbRequest::RequestTrailers(trailers.clone()),
                MessagePart::RequestTrailers(Unread {}),
            ),
            (
                PbRequest::ResponseTrailers(trailers),
                MessagePart::ResponseTrailers(Unread {}),
            ),
        ];
        for (sent, expected) in pairs {
            assert_eq!(read(sent).request, Some(expected));
        }
    }

    #[test]
    fn fields_that_are_none_are_an_error() {
        let headers = HttpHeaders {
            headers: text("\n\u{7f}"),
            end_of_stream: true,
        };
        assert!(headers.each(|_| {}).is_err());
    }

    #[test]
    fn the_bytes_of_a_body_stay_where_they_are_and_a_head_is_copied() {
        let request = |part| ProcessingRequest {
            request: Some(part),
            attributes: Vec::new(),
        };
        let head = HttpHeaders {
            headers: text("bytes"),
            end_of_stream: false,
        };
        let body = HttpBody {
            body: text("bytes"),
            end_of_stream: false,
        };
        let parts = [
            (MessagePart::RequestHeaders(head.clone()), false),
            (MessagePart::ResponseHeaders(head), false),
            (MessagePart::RequestBody(body.clone()), true),
            (MessagePart::ResponseBody(body), true),
        ];
        for (part, stays) in parts {
            let buffer = Bytes::from(request(part).encode_to_vec());
            let read = ProcessingRequest::read(&mut buffer.clone()).unwrap();
            let bytes = match read.request.unwrap() {
                MessagePart::RequestHeaders(head) | MessagePart::ResponseHeaders(head) => {
                    head.headers
                }
                MessagePart::RequestBody(body) | MessagePart::ResponseBody(body) => body.body,
                MessagePart::RequestTrailers(_) | MessagePart::ResponseTrailers(_) => {
                    panic!("no trailers")
                }
            };
            assert_eq!(buffer.as_ptr_range().contains(&bytes.as_ptr()), stays);
        }
    }
}
