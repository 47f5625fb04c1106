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
use envoy_types::pb::google::protobuf::Duration as DurationPb;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::request::{HttpHeaders, MessagePart, ProcessingRequest, Struct};
use super::response::EncodedResponse;
use crate::config::TICKET;
use crate::policy::{Forward, Provenance, RequestHead, ResponseHead};
use crate::session::Passed;

use pb::ProcessingResponse;

/// The name under which Envoy sends the attributes that the filter asks for.
const FILTER: &str = "envoy.filters.http.ext_proc";

/// Dynamic metadata namespace.
const NAMESPACE: &str = "afterimage";

/// Most heads have no more fields; with as many a map has the smallest of its sizes that holds them.
const EXPECTED_FIELDS: usize = 12;

/// Numbers of the fields that we write ourselves, by the message that they are in.
mod field {
    /// `envoy.service.ext_proc.v3.ProcessingResponse`
    pub(super) const IMMEDIATE_RESPONSE: u32 = 7;
    pub(super) const DYNAMIC_METADATA: u32 = 8;

    /// `envoy.service.ext_proc.v3.ImmediateResponse`
    pub(super) mod immediate_response {
        pub(in super::super) const STATUS: u32 = 1;
        pub(in super::super) const HEADERS: u32 = 2;
        pub(in super::super) const DETAILS: u32 = 5;
    }

    /// `envoy.type.v3.HttpStatus`
    pub(super) const CODE: u32 = 1;

    /// `envoy.service.ext_proc.v3.HeaderMutation`
    pub(super) const SET_HEADERS: u32 = 1;

    /// `envoy.config.core.v3.HeaderValueOption`
    pub(super) const HEADER: u32 = 1;
    pub(super) const APPEND_ACTION: u32 = 3;

    /// `envoy.config.core.v3.HeaderValue`, and the entries of a map
    pub(super) const KEY: u32 = 1;
    pub(super) const RAW_VALUE: u32 = 3;
    pub(super) const VALUE: u32 = 2;

    /// `google.protobuf.Struct`
    pub(super) const FIELDS: u32 = 1;

    /// `google.protobuf.Value`
    pub(super) const STRING_VALUE: u32 = 3;
    pub(super) const STRUCT_VALUE: u32 = 5;
}

/// A message, by what it says.
#[derive(Debug)]
pub(crate) enum Message {
    /// Head of the request, and what the route says about itself.
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

/// The phases of the conversation, for answers that change nothing.
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
    /// Which message of Envoy's it is.
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

/// Sends the message on as it is.
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

/// Sends the request on as it is, and asks for nothing more of this exchange.
pub(crate) fn bypass() -> EncodedResponse {
    let response = Response::RequestHeaders(pb::HeadersResponse::default());
    EncodedResponse::new(&ProcessingResponse {
        mode_override: Some(mode(HeaderSendMode::Skip, BodySendMode::None)),
        ..message(response)
    })
}

/// Sends the request on with this header by the route that it selects then, and asks for nothing more of
/// this exchange.
pub(crate) fn hand_over(ticket: &HeaderValue) -> EncodedResponse {
    let mutation = pb::HeaderMutation {
        set_headers: vec![header_option(
            TICKET.as_str(),
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

/// Sends the request on with these changes, and asks for the response's head.
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

/// Asks for as much time for the answer to this message. Works once for a message.
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

/// Sends the response on, changed; its body is shown if `wants_body`.
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
            // Without them a response that has trailers would never seem to end.
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

/// A whole answer in one message. Envoy sets `content-length`.
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

/// The first message of a streamed answer of `length` bytes, the only one if `is_end`.
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

/// The next bytes of a streamed answer.
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

/// The field lines of one name. They are to become one value (RFC 9110 section 5.3), since Envoy keeps
/// only the last.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes)
}

/// A head's pseudo-fields and fields; `None` where it cannot be read. A field that HTTP forbids is left
/// out.
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

/// `None` without a method: never taken for a GET.
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

/// Envoy writes addresses with their ports.
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
mod tests {
    use envoy_types::pb::envoy::r#type::v3::HttpStatus;
    use envoy_types::pb::google::protobuf as google;
    use prost::Message as _;

    use super::super::request as incoming;
    use super::*;

    fn head(pairs: &[(&str, &[u8])], end_of_stream: bool) -> HttpHeaders {
        let sent = pb::HttpHeaders {
            headers: Some(core::HeaderMap {
                headers: pairs
                    .iter()
                    .map(|&(key, value)| core::HeaderValue {
                        key: key.to_owned(),
                        raw_value: value.to_vec(),
                        ..core::HeaderValue::default()
                    })
                    .collect(),
            }),
            end_of_stream,
            ..pb::HttpHeaders::default()
        };
        HttpHeaders::decode(&*sent.encode_to_vec()).unwrap()
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
        let attributes = |details: &'static str| Struct {
            fields: vec![incoming::Field {
                name: "response.code_details".into(),
                value: Some(incoming::Value {
                    string_value: Some(details.into()),
                }),
            }],
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

    /// What Envoy reads.
    fn sent(answer: EncodedResponse) -> ProcessingResponse {
        let sent = answer.into_pieces().unwrap().into_iter().flatten();
        let sent: Vec<u8> = sent.skip(5).collect();
        ProcessingResponse::decode(&*sent).unwrap()
    }

    fn headers() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.append("link", HeaderValue::from_static("<a>"));
        headers.append("link", HeaderValue::from_static("<b>"));
        headers.append("age", HeaderValue::from_static("7"));
        headers
    }

    /// Repeated fields are joined because Envoy keeps the last.
    #[test]
    fn a_hit_is_read_as_it_is_meant() {
        let option = |(name, value): (&str, &[u8])| {
            let action = HeaderAppendAction::OverwriteIfExistsOrAdd;
            header_option(name, value.to_vec(), action)
        };
        let fields = [("link", &b"<a>, <b>"[..]), ("age", b"7")];
        let meant = pb::ImmediateResponse {
            status: Some(HttpStatus { code: 206 }),
            headers: Some(pb::HeaderMutation {
                set_headers: fields.map(option).into(),
                remove_headers: Vec::new(),
            }),
            body: b"image".to_vec(),
            grpc_status: None,
            details: "afterimage_hit".to_owned(),
        };
        let read = sent(immediate(
            StatusCode::PARTIAL_CONTENT,
            &headers(),
            vec![Bytes::from_static(b"image")],
        ));
        assert_eq!(read, message(Response::ImmediateResponse(meant)));

        let read = sent(streamed_head(
            StatusCode::PARTIAL_CONTENT,
            &headers(),
            5,
            false,
        ));
        let Some(Response::StreamedImmediateResponse(read)) = read.response else {
            panic!("{read:?}")
        };
        let Some(Streamed::HeadersResponse(head)) = read.response else {
            panic!("{read:?}")
        };
        let fields: Vec<_> = head
            .headers
            .unwrap()
            .headers
            .into_iter()
            .map(|field| (field.key, String::from_utf8(field.raw_value).unwrap()))
            .collect();
        let expected = [
            (":status", "206"),
            ("content-length", "5"),
            ("link", "<a>, <b>"),
            ("age", "7"),
        ];
        assert_eq!(fields, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn our_words_are_read_beside_whatever_the_answer_says() {
        let text = |text: &str| google::Value {
            kind: Some(google::value::Kind::StringValue(text.to_owned())),
        };
        let words = google::Struct {
            fields: [("policy", "p"), ("outcome", "hit"), ("reason", "")]
                .map(|(name, word)| (name.to_owned(), text(word)))
                .into(),
        };
        let words = google::Value {
            kind: Some(google::value::Kind::StructValue(words)),
        };
        let metadata = google::Struct {
            fields: [(NAMESPACE.to_owned(), words)].into(),
        };
        let bare = ProcessingResponse {
            mode_override: Some(mode(HeaderSendMode::Skip, BodySendMode::None)),
            ..message(Response::RequestHeaders(pb::HeadersResponse::default()))
        };
        let read = sent(with_outcome(bypass(), &"p".into(), "hit", ""));
        let expected = ProcessingResponse {
            dynamic_metadata: Some(metadata),
            ..bare
        };
        assert_eq!(read, expected);
    }
}
