//! The gRPC service: one conversation for each stream, driven by whoever reads its answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error;
use std::future::{poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::serve::Listener;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::{Status, Streaming};
use tracing::debug;

use super::Processor;
use super::codec::request::ProcessingRequest;
use super::codec::response::EncodedResponse;
use super::conversation::Conversation;
use super::write_buffer::WriteBuffer;

/// Streams that one connection of Envoy may have at a time; Envoy opens a connection for each of
/// its workers, and another when this is reached.
const STREAMS_PER_CONNECTION: u32 = 4096;

/// What Envoy may send on one stream, and on one connection, before it waits for us. Bodies pass in
/// pieces of up to 1 MiB, and all streams of a worker share a connection.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Request heads of Envoy have up to 60 KiB; metadata of the stream comes on top.
const HEADER_LIST_BYTES: u32 = 64 * 1024;

/// The only method of the service.
const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// Metadata of the gRPC stream by which a route names its policy.
const POLICY_METADATA: &str = "x-afterimage-policy";

/// The largest message that is taken. Envoy sends a body in pieces of at most its buffer limit,
/// 1 MiB unless raised.
const LARGEST_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// What a stream's buffer for messages begins with: a request's head, mostly.
const RECEIVED_BYTES: usize = 1024;

/// Answers the streams of Envoy's connections to `listener` until `draining` is cancelled; returns when
/// those that are open then have ended.
///
/// This is the gRPC service `envoy.service.ext_proc.v3.ExternalProcessor` with tonic's messages and
/// statuses, but without its server, which copies every image into its message and the message into its
/// frames, and takes every request through layers that a service with one method does not need.
pub async fn serve<L: Listener>(
    mut listener: L,
    processor: Arc<Processor>,
    draining: CancellationToken,
) {
    let connections = GracefulShutdown::new();
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = draining.cancelled() => break,
        };
        let processor = Arc::clone(&processor);
        let stream = WriteBuffer::new(stream);
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES)
            // The peer is our own Envoy, which resets a stream whenever one of its clients leaves, as many at a
            // time as these like. To end the connection for it would cut the streams of all others. What a reset
            // stream takes is given back as soon as it is read.
            .max_pending_accept_reset_streams(usize::MAX)
            .max_local_error_reset_streams(None)
            .auto_date_header(false)
            .serve_connection(
                TokioIo::new(stream.clone()),
                service_fn(move |request| ready(Ok::<_, Infallible>(answer(&processor, request)))),
            );
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = talk(connection, stream).await {
                debug!(%error, "connection of Envoy has ended");
            }
        });
    }
    drop(listener);
    connections.shutdown().await;
}

/// Lets a connection have its turns, and sends what it has written in each.
async fn talk<S: AsyncWrite + Unpin>(
    connection: impl Future<Output = hyper::Result<()>>,
    stream: WriteBuffer<S>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut connection = pin!(connection);
    poll_fn(|context| {
        let turn = connection.as_mut().poll(context);
        if let Poll::Ready(Err(error)) = stream.send(context) {
            return Poll::Ready(Err(error.into()));
        }
        turn.map_err(Into::into)
    })
    .await
}

fn answer(processor: &Arc<Processor>, request: Request<Incoming>) -> Response<Answers> {
    if request.uri().path() != PROCESS {
        return Status::unimplemented(request.uri().path()).into_http();
    }
    let (head, body) = request.into_parts();
    let policy = head
        .headers
        .get(POLICY_METADATA)
        .map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
    let inbound = Streaming::new_request(Messages, body, None, Some(LARGEST_MESSAGE_BYTES));
    let conversation = Box::new(Conversation::new(Arc::clone(processor), inbound, policy));
    let answers = stream::unfold(conversation, async |mut conversation| {
        let answer = conversation.next().await?;
        Some((answer, conversation))
    });
    // Its head does not wait for the first answer: a client may wait for it before it says anything.
    let mut response = Response::new(Answers {
        answers: Some(answers.boxed()),
        pieces: VecDeque::new(),
    });
    response
        .headers_mut()
        .insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// Reads messages.
struct Messages;

impl Decoder for Messages {
    type Item = ProcessingRequest;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        ProcessingRequest::read(bytes)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(RECEIVED_BYTES, RECEIVED_BYTES)
    }
}

/// The body of the HTTP/2 response: answers as they come, and the status as its trailers.
#[derive(Default)]
struct Answers {
    /// `None` after the last.
    answers: Option<BoxStream<'static, Result<EncodedResponse, Status>>>,
    /// What is still to be sent of the last one.
    pieces: VecDeque<Bytes>,
}

impl http_body::Body for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let Some(answers) = &mut self.answers else {
                return Poll::Ready(None);
            };
            let pieces = match std::task::ready!(answers.as_mut().poll_next(context)) {
                None => Err(Status::ok("")),
                Some(Err(status)) => Err(status),
                Some(Ok(answer)) => answer.into_pieces().map_err(|length| {
                    Status::resource_exhausted(format!("message of {length} bytes"))
                }),
            };
            match pieces {
                Ok(pieces) => self.pieces = pieces,
                Err(status) => {
                    self.answers = None;
                    let mut trailers = HeaderMap::new();
                    let ended = status.add_header(&mut trailers);
                    return Poll::Ready(Some(ended.map(|()| Frame::trailers(trailers))));
                }
            }
        }
    }
}
