//! The floor: an external processor that does nothing. It says at once, byte for byte, what Afterimage says: to a path that it
//! has a message for, the message of that hit; to every other one, those of a miss whose body is streamed past it.
//!
//! Around that it is what tonic generates, with as many threads and the same limits of HTTP/2 connections as Afterimage.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Asked;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Said;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse,
};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use futures_util::{Stream, stream};
use prost::Message as _;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// Ends the name of a file that holds the message of a hit; beside it is one with the paths that get it, a line each.
const MESSAGE: &str = "message";
const PATHS: &str = "paths";
/// The files that hold what is said to the parts of a miss.
const MISS: [&str; 3] = ["request-headers", "response-headers", "response-body"];

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
    let path = paths.first().context("a path to ask for")?;
    let message = Asking::begin(socket, policy).await?.ask(get(path)).await?;
    match &message.response {
        Some(Said::ImmediateResponse(hit)) if hit.body.len() as u64 == size => {}
        other => bail!("{path} is no hit in one message: {other:?}"),
    }
    let file = directory.join(size.to_string());
    std::fs::write(file.with_extension(MESSAGE), message.encode_to_vec())?;
    std::fs::write(file.with_extension(PATHS), paths.join("\n"))?;
    Ok(())
}

/// As [`record`], with the messages of a miss: those to `path`, which nobody has asked for, and to the first bytes of what
/// the upstream answers with `fields` and `body`. Nothing is stored, because the rest does not follow.
///
/// # Errors
/// When it is none.
pub(crate) async fn record_miss(
    socket: &Path,
    policy: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: &Bytes,
    directory: &Path,
) -> Result<()> {
    let mut asking = Asking::begin(socket, policy).await?;
    let length = body.len().to_string();
    let fields = fields.iter().copied();
    let fields = fields.chain([(":status", "200"), ("content-length", &length)]);
    let messages = [
        get(path),
        from_upstream(asked(Asked::ResponseHeaders(headers(fields, false)))),
        asked(Asked::ResponseBody(HttpBody {
            body: body[..body.len() / 2].to_vec(),
            ..HttpBody::default()
        })),
    ];
    for (name, message) in MISS.into_iter().zip(messages) {
        let answer = asking.ask(message).await?;
        let is_of_a_miss = match (&answer.response, name) {
            (Some(Said::RequestHeaders(answer)), "request-headers") => {
                let mutation = answer.response.as_ref();
                let mutation = mutation.and_then(|common| common.header_mutation.as_ref());
                let set = mutation.iter().flat_map(|mutation| &mutation.set_headers);
                // One path is not another's.
                !set.flat_map(|option| &option.header)
                    .any(|header| header.key == ":path")
            }
            (Some(Said::ResponseHeaders(_)), "response-headers") => {
                let mode = answer.mode_override.as_ref();
                mode.is_some_and(|mode| mode.response_body_mode() == BodySendMode::Streamed)
            }
            (Some(Said::ResponseBody(_)), "response-body") => true,
            _ => false,
        };
        if !is_of_a_miss {
            bail!("{path} is no miss that is stored: {answer:?}");
        }
        std::fs::write(directory.join(name), answer.encode_to_vec())?;
    }
    Ok(())
}

/// A conversation with Afterimage, as Envoy has it.
struct Asking {
    messages: mpsc::Sender<ProcessingRequest>,
    answers: Streaming<ProcessingResponse>,
}

impl Asking {
    async fn begin(socket: &Path, policy: &str) -> Result<Self> {
        let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))?
            .connect()
            .await?;
        let (messages, said) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(said));
        request
            .metadata_mut()
            .insert("x-afterimage-policy", policy.parse()?);
        let answers = ExternalProcessorClient::new(channel)
            .max_decoding_message_size(16 * 1024 * 1024)
            .process(request)
            .await?
            .into_inner();
        Ok(Self { messages, answers })
    }

    async fn ask(&mut self, message: ProcessingRequest) -> Result<ProcessingResponse> {
        self.messages.send(message).await?;
        self.answers.message().await?.context("an answer")
    }
}

struct Messages {
    /// By path.
    hits: HashMap<Vec<u8>, Arc<ProcessingResponse>>,
    /// In the order of [`MISS`].
    miss: [ProcessingResponse; 3],
}

fn read(directory: &Path) -> Result<Messages> {
    let message = |file: &Path| anyhow::Ok(ProcessingResponse::decode(&*std::fs::read(file)?)?);
    let mut hits = HashMap::new();
    for entry in std::fs::read_dir(directory)? {
        let file = entry?.path();
        if file
            .extension()
            .is_none_or(|extension| extension != MESSAGE)
        {
            continue;
        }
        let hit = Arc::new(message(&file)?);
        for path in std::fs::read_to_string(file.with_extension(PATHS))?.lines() {
            hits.insert(path.as_bytes().to_vec(), Arc::clone(&hit));
        }
    }
    let [request, response, body] = MISS.map(|name| message(&directory.join(name)));
    Ok(Messages {
        hits,
        miss: [request?, response?, body?],
    })
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
    asked(Asked::RequestHeaders(headers(fields, true)))
}

fn headers<'a>(
    fields: impl IntoIterator<Item = (&'a str, &'a str)>,
    end_of_stream: bool,
) -> HttpHeaders {
    let fields = fields.into_iter().map(|(key, value)| HeaderValue {
        key: key.to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..HeaderValue::default()
    });
    HttpHeaders {
        headers: Some(HeaderMap {
            headers: fields.collect(),
        }),
        end_of_stream,
        ..HttpHeaders::default()
    }
}

fn asked(part: Asked) -> ProcessingRequest {
    ProcessingRequest {
        request: Some(part),
        ..ProcessingRequest::default()
    }
}

/// As Envoy tells where a response comes from.
fn from_upstream(message: ProcessingRequest) -> ProcessingRequest {
    let code_details = Value {
        kind: Some(Kind::StringValue("via_upstream".into())),
    };
    let attributes = Struct {
        fields: HashMap::from([("response.code_details".into(), code_details)]),
    };
    ProcessingRequest {
        attributes: HashMap::from([("envoy.filters.http.ext_proc".into(), attributes)]),
        ..message
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
        let [request, response, body] = &self.messages.miss;
        Some(match message.request? {
            Asked::RequestHeaders(headers) => match self.hit(&headers) {
                Some(hit) => {
                    self.has_ended = true;
                    hit
                }
                None => request.clone(),
            },
            Asked::ResponseHeaders(_) => response.clone(),
            Asked::ResponseBody(_) => body.clone(),
            Asked::RequestBody(_) | Asked::RequestTrailers(_) | Asked::ResponseTrailers(_) => {
                return None;
            }
        })
    }

    fn hit(&self, headers: &HttpHeaders) -> Option<ProcessingResponse> {
        let mut fields = headers.headers.as_ref()?.headers.iter();
        let path = fields.find(|field| field.key == ":path")?;
        let message = self.messages.hits.get(&path.raw_value)?;
        Some(ProcessingResponse::clone(message))
    }
}
