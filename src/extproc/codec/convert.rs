//! Converts Envoy's messages to HTTP heads, and answers to Envoy's messages. The conversions are
//! pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::{
    BodySendMode, HeaderSendMode,
};
use envoy_types::pb::envoy::service::ext_proc::v3 as pb;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::streamed_immediate_response::Response as Streamed;
use envoy_types::pb::google::protobuf::Duration as DurationPb;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::field;
use super::request::{HttpHeaders, MessagePart, ProcessingRequest, Struct};
use super::response::EncodedResponse;
use crate::policy::{Forward, Provenance, RequestHead, ResponseHead};
use crate::session::Passed;

use pb::ProcessingResponse;

/// The name under which Envoy sends the attributes that the filter asks for.
const FILTER: &str = "envoy.filters.http.ext_proc";

/// Dynamic metadata namespace.
const NAMESPACE: &str = "afterimage";

/// Fields that a map of a head has room for at first. Most heads have no more.
const EXPECTED_FIELDS: usize = 12;

/// A message, by what it says.
#[derive(Debug)]
pub(crate) enum Message {
    /// Head of the request, and what the route says about itself. The head is `None` when it cannot
    /// be read.
    Request(Option<RequestHead>, RouteAttributes),
    /// Head of the response; `None` when it has no valid status.
    Response(Option<ResponseHead>),
    /// Bytes of the response.
    ResponseBody { bytes: Bytes, is_end: bool },
    /// The response has trailer fields, after its bytes.
    ResponseTrailers,
    /// A message that our modes never ask for.
    Other(Phase),
}

/// The phases of the conversation, which an answer must repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    RequestHeaders,
    RequestBody,
    RequestTrailers,
    ResponseHeaders,
    ResponseBody,
    ResponseTrailers,
}

impl Message {
    /// The phase that the message belongs to.
    pub(crate) fn phase(&self) -> Phase {
        match self {
            Self::Request(..) => Phase::RequestHeaders,
            Self::Response(_) => Phase::ResponseHeaders,
            Self::ResponseBody { .. } => Phase::ResponseBody,
            Self::ResponseTrailers => Phase::ResponseTrailers,
            Self::Other(phase) => *phase,
        }
    }
}

/// What a route says about itself.
#[derive(Debug, Default)]
pub(crate) struct RouteAttributes {
    /// `xds.route_metadata`, in the text format of protocol buffers.
    pub(crate) metadata: Option<String>,
    /// `xds.route_name`.
    pub(crate) name: Option<String>,
}

/// Reads a message; `None` for one without content.
pub(crate) fn read(message: ProcessingRequest) -> Option<Message> {
    let mut attributes = message.attributes.into_iter();
    let attributes = attributes
        .rfind(|attributes| attributes.filter == FILTER)
        .and_then(|attributes| attributes.values)
        .unwrap_or_default();
    Some(match message.request? {
        MessagePart::RequestHeaders(headers) => {
            let peer = attributes.text("source.address").and_then(address);
            let text = |name| attributes.text(name).map(str::to_owned);
            let route = RouteAttributes {
                metadata: text("xds.route_metadata"),
                name: text("xds.route_name"),
            };
            Message::Request(request_head(headers, peer), route)
        }
        MessagePart::ResponseHeaders(headers) => {
            Message::Response(response_head(headers, &attributes))
        }
        MessagePart::ResponseBody(body) => Message::ResponseBody {
            bytes: body.body,
            is_end: body.end_of_stream,
        },
        MessagePart::RequestBody(_) => Message::Other(Phase::RequestBody),
        MessagePart::RequestTrailers(_) => Message::Other(Phase::RequestTrailers),
        MessagePart::ResponseTrailers(_) => Message::ResponseTrailers,
    })
}

/// Answers that the message goes on unchanged.
pub(crate) fn pass(phase: Phase) -> EncodedResponse {
    let headers = pb::HeadersResponse::default();
    let body = pb::BodyResponse::default();
    let trailers = pb::TrailersResponse::default();
    response(match phase {
        Phase::RequestHeaders => Response::RequestHeaders(headers),
        Phase::ResponseHeaders => Response::ResponseHeaders(headers),
        Phase::RequestBody => Response::RequestBody(body),
        Phase::ResponseBody => Response::ResponseBody(body),
        Phase::RequestTrailers => Response::RequestTrailers(trailers),
        Phase::ResponseTrailers => Response::ResponseTrailers(trailers),
    })
}

/// Forwards the request unchanged, and asks for nothing more of this exchange.
pub(crate) fn bypass() -> EncodedResponse {
    let response = Response::RequestHeaders(pb::HeadersResponse::default());
    EncodedResponse::new(&ProcessingResponse {
        mode_override: Some(mode(HeaderSendMode::Skip, BodySendMode::None)),
        ..message(response)
    })
}

/// Forwards the request with this header, by the route that it selects then, and asks for nothing
/// more of this exchange.
pub(crate) fn hand_over(name: &HeaderName, ticket: &HeaderValue) -> EncodedResponse {
    let mutation = pb::HeaderMutation {
        set_headers: vec![header_option(
            name.as_str(),
            ticket.as_bytes().to_vec(),
            HeaderAppendAction::OverwriteIfExistsOrAdd,
        )],
        remove_headers: Vec::new(),
    };
    EncodedResponse::new(&ProcessingResponse {
        mode_override: Some(mode(HeaderSendMode::Skip, BodySendMode::None)),
        ..message(Response::RequestHeaders(pb::HeadersResponse {
            response: Some(pb::CommonResponse {
                header_mutation: Some(mutation),
                clear_route_cache: true,
                ..pb::CommonResponse::default()
            }),
        }))
    })
}

/// Forwards the request with these changes, and asks for the response's head.
pub(crate) fn forward(changes: &Forward) -> EncodedResponse {
    let mutation = pb::HeaderMutation {
        set_headers: changes
            .set
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .chain(changes.path.as_deref().map(|path| (":path", path)))
            .map(|(name, value)| {
                header_option(
                    name,
                    value.to_vec(),
                    HeaderAppendAction::OverwriteIfExistsOrAdd,
                )
            })
            .collect(),
        remove_headers: changes
            .remove
            .iter()
            .map(|name| name.as_str().to_owned())
            .collect(),
    };
    response(Response::RequestHeaders(pb::HeadersResponse {
        response: Some(pb::CommonResponse {
            header_mutation: Some(mutation),
            ..pb::CommonResponse::default()
        }),
    }))
}

/// Asks Envoy to wait for `time` for the answer to this message. It works once for a message.
pub(crate) fn wait(time: Duration) -> EncodedResponse {
    EncodedResponse::new(&ProcessingResponse {
        override_message_timeout: Some(DurationPb {
            seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            // Below a billion.
            nanos: time.subsec_nanos() as i32,
        }),
        ..ProcessingResponse::default()
    })
}

/// Passes the response on with changes, and asks for its body if `wants_body`.
pub(crate) fn respond(passed: &Passed, wants_body: bool) -> EncodedResponse {
    let mutation = pb::HeaderMutation {
        set_headers: [
            ("cache-status", Some(&passed.cache_status)),
            ("via", passed.via.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .map(|(name, value)| {
            header_option(
                name,
                value.as_bytes().to_vec(),
                HeaderAppendAction::AppendIfExistsOrAdd,
            )
        })
        .collect(),
        remove_headers: passed
            .loses_etag
            .then(|| "etag".to_owned())
            .into_iter()
            .collect(),
    };
    let mode = if wants_body {
        ProcessingMode {
            // Without its trailers, a response that has some would never seem to end.
            response_trailer_mode: HeaderSendMode::Send.into(),
            ..mode(HeaderSendMode::Default, BodySendMode::Streamed)
        }
    } else {
        mode(HeaderSendMode::Default, BodySendMode::None)
    };
    EncodedResponse::new(&ProcessingResponse {
        mode_override: Some(mode),
        ..message(Response::ResponseHeaders(pb::HeadersResponse {
            response: Some(pb::CommonResponse {
                header_mutation: Some(mutation),
                ..pb::CommonResponse::default()
            }),
        }))
    })
}

/// Makes a whole answer in one message. Envoy sets `content-length`.
pub(crate) fn immediate(
    status: StatusCode,
    headers: &HeaderMap,
    chunks: Vec<Bytes>,
) -> EncodedResponse {
    let mut answer = EncodedResponse::immediate(chunks);
    answer
        .fields()
        .nested(field::IMMEDIATE_RESPONSE, |response| {
            response.nested(field::immediate_response::STATUS, |message| {
                message.number(field::CODE, u64::from(status.as_u16()));
            });
            response.nested(field::immediate_response::HEADERS, |mutation| {
                for name in headers.keys() {
                    mutation.nested(field::SET_HEADERS, |option| {
                        option.nested(field::HEADER, |header| {
                            header.bytes(field::KEY, name.as_str().as_bytes());
                            header.joined(field::RAW_VALUE, values(headers, name));
                        });
                        let action = HeaderAppendAction::OverwriteIfExistsOrAdd;
                        option.number(field::APPEND_ACTION, action as u64);
                    });
                }
            });
            response.bytes(field::immediate_response::DETAILS, b"afterimage_hit");
        });
    answer
}

/// Makes the first message of a streamed answer of `length` bytes, which is the only one if
/// `is_end`.
pub(crate) fn streamed_head(
    status: StatusCode,
    headers: &HeaderMap,
    length: u64,
    is_end: bool,
) -> EncodedResponse {
    let own = [
        (":status", status.as_str().as_bytes().to_vec()),
        (CONTENT_LENGTH.as_str(), length.to_string().into_bytes()),
    ];
    let headers = own
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .chain(headers.keys().map(|name| {
            let values: Vec<_> = values(headers, name).collect();
            (name.as_str().to_owned(), values.join(&b", "[..]))
        }))
        .map(|(key, raw_value)| core::HeaderValue {
            key,
            raw_value,
            ..core::HeaderValue::default()
        })
        .collect();
    EncodedResponse::new(&streamed(Streamed::HeadersResponse(pb::HttpHeaders {
        headers: Some(core::HeaderMap { headers }),
        end_of_stream: is_end,
        ..pb::HttpHeaders::default()
    })))
}

/// Makes the message with the next bytes of a streamed answer.
pub(crate) fn streamed_body(bytes: Bytes, is_end: bool) -> EncodedResponse {
    let response = streamed(Streamed::BodyResponse(pb::StreamedBodyResponse {
        end_of_stream: is_end,
        ..pb::StreamedBodyResponse::default()
    }));
    EncodedResponse::streamed(&response, bytes)
}

/// Adds our words to the request's dynamic metadata, for access logs.
pub(crate) fn with_outcome(
    mut answer: EncodedResponse,
    policy: &Arc<str>,
    outcome: &str,
    reason: &str,
) -> EncodedResponse {
    answer.fields().nested(field::DYNAMIC_METADATA, |metadata| {
        metadata.nested(field::FIELDS, |entry| {
            entry.bytes(field::KEY, NAMESPACE.as_bytes());
            entry.nested(field::VALUE, |value| {
                value.nested(field::STRUCT_VALUE, |words| {
                    for (name, word) in [
                        ("policy", &**policy),
                        ("outcome", outcome),
                        ("reason", reason),
                    ] {
                        words.nested(field::FIELDS, |entry| {
                            entry.bytes(field::KEY, name.as_bytes());
                            entry.nested(field::VALUE, |value| {
                                value.bytes(field::STRING_VALUE, word.as_bytes());
                            });
                        });
                    }
                });
            });
        });
    });
    answer
}

fn response(response: Response) -> EncodedResponse {
    EncodedResponse::new(&message(response))
}

fn message(response: Response) -> ProcessingResponse {
    ProcessingResponse {
        response: Some(response),
        ..ProcessingResponse::default()
    }
}

fn streamed(part: Streamed) -> ProcessingResponse {
    message(Response::StreamedImmediateResponse(
        pb::StreamedImmediateResponse {
            response: Some(part),
        },
    ))
}

fn mode(response_headers: HeaderSendMode, response_body: BodySendMode) -> ProcessingMode {
    ProcessingMode {
        response_header_mode: response_headers.into(),
        response_body_mode: response_body.into(),
        request_body_mode: BodySendMode::None.into(),
        ..ProcessingMode::default()
    }
}

fn header_option(
    name: &str,
    raw_value: Vec<u8>,
    action: HeaderAppendAction,
) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.to_owned(),
            raw_value,
            ..core::HeaderValue::default()
        }),
        append_action: action.into(),
        ..core::HeaderValueOption::default()
    }
}

/// The field lines of one name. They must be joined to one value (RFC 9110 section 5.3), because
/// Envoy keeps only the last.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes)
}

/// Reads the pseudo-fields and fields of a head; `None` if it cannot be read. A field that HTTP
/// forbids is left out.
fn fields(headers: HttpHeaders) -> Option<(Pseudo, HeaderMap)> {
    let mut pseudo = Pseudo::default();
    let mut map = HeaderMap::with_capacity(EXPECTED_FIELDS);
    let read = headers.each(|header| {
        let value = if header.raw_value.is_empty() {
            header.value
        } else {
            header.raw_value
        };
        match &*header.key {
            b":method" => pseudo.method = value,
            b":path" => pseudo.path = value,
            b":authority" => pseudo.authority = value,
            b":status" => pseudo.status = value,
            [b':', ..] => {}
            name => {
                if let (Ok(name), Ok(value)) = (
                    HeaderName::from_bytes(name),
                    HeaderValue::from_maybe_shared(value),
                ) {
                    map.append(name, value);
                }
            }
        }
    });
    read.ok()?;
    Some((pseudo, map))
}

#[derive(Default)]
struct Pseudo {
    method: Bytes,
    path: Bytes,
    authority: Bytes,
    status: Bytes,
}

/// Reads a request's head; `None` without a method, which is never taken for GET.
fn request_head(headers: HttpHeaders, peer: Option<IpAddr>) -> Option<RequestHead> {
    let has_body = !headers.end_of_stream;
    let (pseudo, headers) = fields(headers)?;
    Some(RequestHead {
        method: Method::from_bytes(&pseudo.method).ok()?,
        authority: pseudo.authority,
        path: pseudo.path,
        headers,
        has_body,
        peer,
    })
}

/// Reads an address, which Envoy writes with its port.
fn address(text: &str) -> Option<IpAddr> {
    let socket: SocketAddr = text.parse().ok()?;
    Some(socket.ip())
}

fn response_head(headers: HttpHeaders, attributes: &Struct) -> Option<ResponseHead> {
    let has_body = !headers.end_of_stream;
    let (pseudo, headers) = fields(headers)?;
    Some(ResponseHead {
        status: StatusCode::from_bytes(&pseudo.status).ok()?,
        headers,
        has_body,
        provenance: match attributes.text("response.code_details") {
            Some("via_upstream") => Provenance::Upstream,
            Some(_) => Provenance::Local,
            None => Provenance::Unknown,
        },
    })
}

#[cfg(test)]
mod tests;
