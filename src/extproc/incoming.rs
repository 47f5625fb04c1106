//! What Envoy says, as far as it is read.
//!
//! These are two of envoy-types' messages again, for one reason: the bytes of a body are not copied out of
//! the buffer in which they came. Heads are, because they are kept for longer than such a buffer should be.

use std::collections::HashMap;

use bytes::Bytes;
use envoy_types::pb::envoy::service::ext_proc::v3::{HttpHeaders, HttpTrailers};
use envoy_types::pb::google::protobuf::Struct;

/// `envoy.service.ext_proc.v3.ProcessingRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ProcessingRequest {
    #[prost(oneof = "Part", tags = "2, 3, 4, 5, 6, 7")]
    pub(super) request: Option<Part>,
    #[prost(map = "string, message", tag = "9")]
    pub(super) attributes: HashMap<String, Struct>,
}

/// Which part of the exchange a message is about.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Part {
    #[prost(message, tag = "2")]
    RequestHeaders(HttpHeaders),
    #[prost(message, tag = "3")]
    ResponseHeaders(HttpHeaders),
    #[prost(message, tag = "4")]
    RequestBody(HttpBody),
    #[prost(message, tag = "5")]
    ResponseBody(HttpBody),
    #[prost(message, tag = "6")]
    RequestTrailers(HttpTrailers),
    #[prost(message, tag = "7")]
    ResponseTrailers(HttpTrailers),
}

/// `envoy.service.ext_proc.v3.HttpBody`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HttpBody {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) body: Bytes,
    #[prost(bool, tag = "2")]
    pub(super) end_of_stream: bool,
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::ext_proc::v3 as pb;
    use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as PbRequest;
    use prost::Message as _;

    use super::*;

    fn read(request: PbRequest) -> ProcessingRequest {
        let attributes = [("a".to_owned(), Struct::default())];
        let sent = pb::ProcessingRequest {
            request: Some(request),
            attributes: attributes.into(),
            observability_mode: true,
            ..pb::ProcessingRequest::default()
        };
        let read = ProcessingRequest::decode(&*sent.encode_to_vec()).unwrap();
        assert_eq!(read.attributes, sent.attributes);
        read
    }

    #[test]
    fn every_message_is_read_as_envoy_means_it() {
        let headers = pb::HttpHeaders {
            end_of_stream: true,
            ..pb::HttpHeaders::default()
        };
        let sent_body = pb::HttpBody {
            body: b"bytes".to_vec(),
            end_of_stream: true,
            ..pb::HttpBody::default()
        };
        let body = HttpBody {
            body: Bytes::from_static(b"bytes"),
            end_of_stream: true,
        };
        let trailers = pb::HttpTrailers::default();
        let pairs = [
            (
                PbRequest::RequestHeaders(headers.clone()),
                Part::RequestHeaders(headers.clone()),
            ),
            (
                PbRequest::ResponseHeaders(headers.clone()),
                Part::ResponseHeaders(headers),
            ),
            (
                PbRequest::RequestBody(sent_body.clone()),
                Part::RequestBody(body.clone()),
            ),
            (PbRequest::ResponseBody(sent_body), Part::ResponseBody(body)),
            (
                PbRequest::RequestTrailers(trailers.clone()),
                Part::RequestTrailers(trailers.clone()),
            ),
            (
                PbRequest::ResponseTrailers(trailers.clone()),
                Part::ResponseTrailers(trailers),
            ),
        ];
        for (sent, expected) in pairs {
            assert_eq!(read(sent).request, Some(expected));
        }
    }
}
