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

/// Decodes the message as Envoy does.
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
