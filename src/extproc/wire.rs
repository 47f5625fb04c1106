//! Envoy's messages to HTTP and back; pure conversions.

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
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::{Duration as DurationPb, Struct, Value, value};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::answer::Answer;
use super::incoming::{Part, ProcessingRequest};
use crate::policy::{Forward, Provenance, RequestHead, ResponseHead};
use crate::session::{Hit, Passed};

use pb::ProcessingResponse;
pub(super) use pb::external_processor_server::SERVICE_NAME;

/// The name under which Envoy sends the attributes that the filter asks for.
const FILTER: &str = "envoy.filters.http.ext_proc";

/// Dynamic metadata namespace.
const NAMESPACE: &str = "afterimage";

/// A message, by what it says.
#[derive(Debug)]
pub(super) enum Message {
    /// Head of the request, and what the route says about itself.
    Request(Option<RequestHead>, RouteAttributes),
    /// Head of the response; `None` when it has no valid status.
    Response(Option<ResponseHead>),
    /// Bytes of the response.
    ResponseBody { bytes: Bytes, is_end: bool },
    /// A message that our modes never ask for.
    Other(Phase),
}

/// The phases of the conversation, for answers that change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    RequestHeaders,
    RequestBody,
    RequestTrailers,
    ResponseHeaders,
    ResponseBody,
    ResponseTrailers,
}

/// What a route says about itself.
#[derive(Debug, Default)]
pub(super) struct RouteAttributes {
    /// `xds.route_metadata`, in the text format of protocol buffers.
    pub(super) metadata: Option<String>,
    /// `xds.route_name`.
    pub(super) name: Option<String>,
}

/// Reads a message; `None` for one without content.
pub(super) fn read(message: ProcessingRequest) -> Option<Message> {
    let mut attributes = message.attributes;
    let attributes = attributes.remove(FILTER).unwrap_or_default();
    Some(match message.request? {
        Part::RequestHeaders(headers) => {
            let peer = text(&attributes, "source.address").and_then(address);
            Message::Request(request_head(headers, peer), route_attributes(attributes))
        }
        Part::ResponseHeaders(headers) => Message::Response(response_head(headers, &attributes)),
        Part::ResponseBody(body) => Message::ResponseBody {
            bytes: body.body,
            is_end: body.end_of_stream,
        },
        Part::RequestBody(_) => Message::Other(Phase::RequestBody),
        Part::RequestTrailers(_) => Message::Other(Phase::RequestTrailers),
        Part::ResponseTrailers(_) => Message::Other(Phase::ResponseTrailers),
    })
}

/// Sends the message on as it is.
pub(super) fn pass(phase: Phase) -> Answer {
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

/// Sends the request on as it is, and asks for nothing more of this exchange.
pub(super) fn bypass() -> Answer {
    let response = Response::RequestHeaders(pb::HeadersResponse::default());
    Answer::new(ProcessingResponse {
        mode_override: Some(mode(HeaderSendMode::Skip, BodySendMode::None)),
        ..message(response)
    })
}

/// Sends the request on with this header by the route that it selects then, and asks for nothing more of
/// this exchange.
pub(super) fn hand_over(name: &HeaderName, value: &HeaderValue) -> Answer {
    let mutation = pb::HeaderMutation {
        set_headers: vec![header_option(
            name.as_str(),
            value.as_bytes().to_vec(),
            HeaderAppendAction::OverwriteIfExistsOrAdd,
        )],
        remove_headers: Vec::new(),
    };
    Answer::new(ProcessingResponse {
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

/// Sends the request on with these changes, and asks for the response's head.
pub(super) fn forward(changes: &Forward) -> Answer {
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

/// Asks for as much time for the answer to this message. Works once for a message.
pub(super) fn wait(time: Duration) -> Answer {
    Answer::new(ProcessingResponse {
        override_message_timeout: Some(DurationPb {
            seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            // Below a billion.
            nanos: time.subsec_nanos() as i32,
        }),
        ..ProcessingResponse::default()
    })
}

/// Sends the response on, changed; its body is shown if `wants_body`.
pub(super) fn respond(passed: &Passed, wants_body: bool) -> Answer {
    let mutation = pb::HeaderMutation {
        set_headers: [
            ("cache-status", Some(&passed.status)),
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
    let body = if wants_body {
        BodySendMode::Streamed
    } else {
        BodySendMode::None
    };
    Answer::new(ProcessingResponse {
        mode_override: Some(mode(HeaderSendMode::Default, body)),
        ..message(Response::ResponseHeaders(pb::HeadersResponse {
            response: Some(pb::CommonResponse {
                header_mutation: Some(mutation),
                ..pb::CommonResponse::default()
            }),
        }))
    })
}

/// A whole answer in one message. Envoy sets `content-length`.
pub(super) fn immediate(hit: &Hit, chunks: Vec<Bytes>) -> Answer {
    let response = message(Response::ImmediateResponse(pb::ImmediateResponse {
        status: Some(HttpStatus {
            code: i32::from(hit.status.as_u16()),
        }),
        headers: Some(pb::HeaderMutation {
            set_headers: joined(&hit.headers)
                .map(|(name, value)| {
                    header_option(
                        name.as_str(),
                        value,
                        HeaderAppendAction::OverwriteIfExistsOrAdd,
                    )
                })
                .collect(),
            remove_headers: Vec::new(),
        }),
        body: Vec::new(),
        grpc_status: None,
        details: "afterimage_hit".to_owned(),
    }));
    Answer::immediate(response, chunks)
}

/// The first message of a streamed answer of `length` bytes, the only one if `is_end`.
pub(super) fn streamed_head(hit: &Hit, length: u64, is_end: bool) -> Answer {
    let own = [
        (":status", hit.status.as_str().as_bytes().to_vec()),
        (CONTENT_LENGTH.as_str(), length.to_string().into_bytes()),
    ];
    let headers = own
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .chain(joined(&hit.headers).map(|(name, value)| (name.as_str().to_owned(), value)))
        .map(|(key, raw_value)| core::HeaderValue {
            key,
            raw_value,
            ..core::HeaderValue::default()
        })
        .collect();
    Answer::new(streamed(Streamed::HeadersResponse(pb::HttpHeaders {
        headers: Some(core::HeaderMap { headers }),
        end_of_stream: is_end,
        ..pb::HttpHeaders::default()
    })))
}

/// The next bytes of a streamed answer.
pub(super) fn streamed_body(bytes: Bytes, is_end: bool) -> Answer {
    let response = streamed(Streamed::BodyResponse(pb::StreamedBodyResponse {
        end_of_stream: is_end,
        ..pb::StreamedBodyResponse::default()
    }));
    Answer::streamed(response, bytes)
}

/// Adds our words to the request's dynamic metadata, for access logs.
pub(super) fn with_outcome(
    mut answer: Answer,
    policy: &Arc<str>,
    outcome: &str,
    reason: &str,
) -> Answer {
    let text = |text: &str| Value {
        kind: Some(value::Kind::StringValue(text.to_owned())),
    };
    let words = Struct {
        fields: [
            ("policy".to_owned(), text(policy)),
            ("outcome".to_owned(), text(outcome)),
            ("reason".to_owned(), text(reason)),
        ]
        .into(),
    };
    answer.message.dynamic_metadata = Some(Struct {
        fields: [(
            NAMESPACE.to_owned(),
            Value {
                kind: Some(value::Kind::StructValue(words)),
            },
        )]
        .into(),
    });
    answer
}

fn response(response: Response) -> Answer {
    Answer::new(message(response))
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

/// Field lines of one name as one value (RFC 9110 section 5.3), since Envoy keeps only the last.
fn joined(headers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, Vec<u8>)> {
    headers.keys().map(|name| {
        let mut values = headers.get_all(name).iter();
        let mut value = values
            .next()
            .map(|value| value.as_bytes().to_vec())
            .unwrap_or_default();
        for next in values {
            value.extend_from_slice(b", ");
            value.extend_from_slice(next.as_bytes());
        }
        (name, value)
    })
}

/// A head's pseudo-fields and fields. A field that HTTP forbids is left out.
fn fields(headers: pb::HttpHeaders) -> (Pseudo, HeaderMap) {
    let list = headers.headers.unwrap_or_default().headers;
    let mut pseudo = Pseudo::default();
    let mut map = HeaderMap::with_capacity(list.len());
    for header in list {
        let value = if header.raw_value.is_empty() {
            Bytes::from(header.value)
        } else {
            Bytes::from(header.raw_value)
        };
        match header.key.as_str() {
            ":method" => pseudo.method = value,
            ":path" => pseudo.path = value,
            ":authority" => pseudo.authority = value,
            ":status" => pseudo.status = value,
            key if key.starts_with(':') => {}
            _ => {
                if let (Ok(name), Ok(value)) = (
                    HeaderName::try_from(header.key),
                    HeaderValue::from_maybe_shared(value),
                ) {
                    map.append(name, value);
                }
            }
        }
    }
    (pseudo, map)
}

#[derive(Default)]
struct Pseudo {
    method: Bytes,
    path: Bytes,
    authority: Bytes,
    status: Bytes,
}

/// `None` without a method: never taken for a GET.
fn request_head(headers: pb::HttpHeaders, peer: Option<IpAddr>) -> Option<RequestHead> {
    let has_body = !headers.end_of_stream;
    let (pseudo, headers) = fields(headers);
    Some(RequestHead {
        method: Method::from_bytes(&pseudo.method).ok()?,
        authority: pseudo.authority,
        path: pseudo.path,
        headers,
        has_body,
        peer,
    })
}

/// Envoy writes addresses with their ports.
fn address(text: &str) -> Option<IpAddr> {
    let socket: SocketAddr = text.parse().ok()?;
    Some(socket.ip())
}

fn response_head(headers: pb::HttpHeaders, attributes: &Struct) -> Option<ResponseHead> {
    let has_body = !headers.end_of_stream;
    let (pseudo, headers) = fields(headers);
    Some(ResponseHead {
        status: StatusCode::from_bytes(&pseudo.status).ok()?,
        headers,
        has_body,
        provenance: match text(attributes, "response.code_details") {
            Some("via_upstream") => Provenance::Upstream,
            Some(_) => Provenance::Local,
            None => Provenance::Unknown,
        },
    })
}

fn route_attributes(mut attributes: Struct) -> RouteAttributes {
    let mut take = |name: &str| match attributes.fields.remove(name)?.kind? {
        value::Kind::StringValue(text) => Some(text),
        _ => None,
    };
    RouteAttributes {
        metadata: take("xds.route_metadata"),
        name: take("xds.route_name"),
    }
}

fn text<'a>(attributes: &'a Struct, name: &str) -> Option<&'a str> {
    match attributes.fields.get(name)?.kind.as_ref()? {
        value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(pairs: &[(&str, &[u8])], end_of_stream: bool) -> pb::HttpHeaders {
        pb::HttpHeaders {
            headers: Some(core::HeaderMap {
                headers: pairs
                    .iter()
                    .map(|(key, value)| core::HeaderValue {
                        key: (*key).to_owned(),
                        raw_value: value.to_vec(),
                        ..core::HeaderValue::default()
                    })
                    .collect(),
            }),
            end_of_stream,
            ..pb::HttpHeaders::default()
        }
    }

    #[test]
    fn a_request_without_a_method_is_no_request() {
        assert!(request_head(head(&[(":path", b"/a")], true), None).is_none());
    }

    #[test]
    fn values_that_are_not_utf_8_pass_unchanged() {
        let head = request_head(
            head(
                &[(":method", b"GET"), (":path", b"/\xff"), ("x", b"\xe4")],
                true,
            ),
            None,
        )
        .unwrap();
        assert_eq!(head.path.as_ref(), b"/\xff");
        assert_eq!(head.headers["x"].as_bytes(), b"\xe4");
    }

    #[test]
    fn only_via_upstream_counts_as_the_upstream_s() {
        let attributes = |details: &str| Struct {
            fields: [(
                "response.code_details".to_owned(),
                Value {
                    kind: Some(value::Kind::StringValue(details.to_owned())),
                },
            )]
            .into(),
        };
        let provenance = |attributes: &Struct| {
            response_head(head(&[(":status", b"200")], false), attributes)
                .unwrap()
                .provenance
        };
        assert_eq!(
            provenance(&attributes("via_upstream")),
            Provenance::Upstream
        );
        assert_eq!(
            provenance(&attributes("direct_response")),
            Provenance::Local
        );
        assert_eq!(provenance(&Struct::default()), Provenance::Unknown);
    }

    #[test]
    fn repeated_fields_of_a_hit_are_joined_because_envoy_keeps_the_last() {
        let mut headers = HeaderMap::new();
        headers.append("link", HeaderValue::from_static("<a>"));
        headers.append("link", HeaderValue::from_static("<b>"));
        let values: Vec<_> = joined(&headers).collect();
        assert_eq!(
            values,
            [(&HeaderName::from_static("link"), b"<a>, <b>".to_vec())]
        );
    }
}
