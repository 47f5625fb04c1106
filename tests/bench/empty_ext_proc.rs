//! The floor: an external processor that does nothing. A path that it has a message for gets that message at once, byte for
//! byte what Afterimage says to a hit; on every other one the body is asked for as Afterimage asks for it, and all messages
//! are answered empty.
//!
//! Around that it is what tonic generates, with as many threads and the same limits of HTTP/2 connections as Afterimage.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::{
    BodySendMode, HeaderSendMode,
};
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Asked;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Said;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyResponse, HeadersResponse, HttpHeaders, ProcessingRequest, ProcessingResponse,
};
use futures_util::{Stream, stream};
use prost::Message as _;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// Ends the name of a file that holds a message; beside it is one with the paths that get it, a line each.
const MESSAGE: &str = "message";
const PATHS: &str = "paths";

/// Serves until the process is killed.
///
/// # Errors
/// When the messages in `directory` cannot be read, or nothing can listen on the socket.
pub(crate) async fn serve(socket: &Path, directory: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket).context("the processor's socket")?;
    let processor = Empty {
        messages: Arc::new(read(directory)?),
    };
    let service =
        ExternalProcessorServer::new(processor).max_decoding_message_size(16 * 1024 * 1024);
    Server::builder()
        .max_concurrent_streams(4096)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .http2_max_header_list_size(64 * 1024)
        .add_service(service)
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await?;
    Ok(())
}

/// Asks the processor on `socket` as Envoy does, on a route with `policy`, and keeps its message for [`serve`], to be given
/// to these paths.
///
/// # Errors
/// When it does not answer with an immediate response of `size` bytes.
pub(crate) async fn record(
    socket: &Path,
    policy: &str,
    size: u64,
    paths: &[String],
    directory: &Path,
) -> Result<()> {
    let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))?
        .connect()
        .await?;
    let path = paths.first().context("a path to ask for")?;
    let mut request = Request::new(stream::iter([get(path)]));
    request
        .metadata_mut()
        .insert("x-afterimage-policy", policy.parse()?);
    let mut answers = ExternalProcessorClient::new(channel)
        .max_decoding_message_size(16 * 1024 * 1024)
        .process(request)
        .await?
        .into_inner();
    let message = answers.message().await?.context("an answer")?;
    match &message.response {
        Some(Said::ImmediateResponse(hit)) if hit.body.len() as u64 == size => {}
        other => bail!("{path} is no hit in one message: {other:?}"),
    }
    let file = directory.join(size.to_string());
    std::fs::write(file.with_extension(MESSAGE), message.encode_to_vec())?;
    std::fs::write(file.with_extension(PATHS), paths.join("\n"))?;
    Ok(())
}

type Messages = HashMap<Vec<u8>, Arc<ProcessingResponse>>;

fn read(directory: &Path) -> Result<Messages> {
    let mut messages = Messages::new();
    for entry in std::fs::read_dir(directory)? {
        let file = entry?.path();
        if file
            .extension()
            .is_none_or(|extension| extension != MESSAGE)
        {
            continue;
        }
        let message = Arc::new(ProcessingResponse::decode(&*std::fs::read(&file)?)?);
        for path in std::fs::read_to_string(file.with_extension(PATHS))?.lines() {
            messages.insert(path.as_bytes().to_vec(), Arc::clone(&message));
        }
    }
    Ok(messages)
}

/// What Envoy says first about a GET.
fn get(path: &str) -> ProcessingRequest {
    let fields = [
        (":method", "GET"),
        (":path", path),
        (":authority", "127.0.0.1"),
        (":scheme", "http"),
        ("accept", "image/avif,image/webp,*/*"),
    ];
    let headers = fields.map(|(key, value)| HeaderValue {
        key: key.to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..HeaderValue::default()
    });
    ProcessingRequest {
        request: Some(Asked::RequestHeaders(HttpHeaders {
            headers: Some(HeaderMap {
                headers: headers.into(),
            }),
            end_of_stream: true,
            ..HttpHeaders::default()
        })),
        ..ProcessingRequest::default()
    }
}

struct Empty {
    messages: Arc<Messages>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ExternalProcessor for Empty {
    type ProcessStream = Answers;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let conversation = Conversation {
            messages: Arc::clone(&self.messages),
            inbound: request.into_inner(),
            has_ended: false,
        };
        let answers = stream::unfold(conversation, async |mut conversation| {
            let answer = conversation.next().await?;
            Some((Ok(answer), conversation))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

struct Conversation {
    messages: Arc<Messages>,
    inbound: Streaming<ProcessingRequest>,
    has_ended: bool,
}

impl Conversation {
    async fn next(&mut self) -> Option<ProcessingResponse> {
        if self.has_ended {
            return None;
        }
        let message = self.inbound.message().await.ok()??;
        let (response, mode_override) = match message.request? {
            Asked::RequestHeaders(headers) => {
                if let Some(message) = self.message_for(&headers) {
                    self.has_ended = true;
                    return Some(message);
                }
                (Said::RequestHeaders(HeadersResponse::default()), None)
            }
            Asked::ResponseHeaders(_) => {
                let streamed = ProcessingMode {
                    response_header_mode: HeaderSendMode::Default.into(),
                    response_body_mode: BodySendMode::Streamed.into(),
                    request_body_mode: BodySendMode::None.into(),
                    ..ProcessingMode::default()
                };
                let response = Said::ResponseHeaders(HeadersResponse::default());
                (response, Some(streamed))
            }
            Asked::ResponseBody(_) => (Said::ResponseBody(BodyResponse::default()), None),
            Asked::RequestBody(_) | Asked::RequestTrailers(_) | Asked::ResponseTrailers(_) => {
                return None;
            }
        };
        Some(ProcessingResponse {
            response: Some(response),
            mode_override,
            ..ProcessingResponse::default()
        })
    }

    fn message_for(&self, headers: &HttpHeaders) -> Option<ProcessingResponse> {
        let mut fields = headers.headers.as_ref()?.headers.iter();
        let path = fields.find(|field| field.key == ":path")?;
        let message = self.messages.get(&path.raw_value)?;
        Some(ProcessingResponse::clone(message))
    }
}
