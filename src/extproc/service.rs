//! The gRPC service: one conversation for each stream, driven by whoever reads its answers.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body::Frame;
use prost::Message as _;
use tonic::body::Body;
use tonic::codec::{DecodeBuf, Decoder};
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::NamedService;
use tonic::{Status, Streaming};

use super::answer::Answer;
use super::driver::Conversation;
use super::incoming::ProcessingRequest;
use super::route_metadata;
use super::shared::Shared;
use super::wire::{RouteAttributes, SERVICE_NAME};
use crate::policy::{BypassReason, Policy};

/// The only method of the service.
const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// Metadata of the gRPC stream by which a route names its policy.
const POLICY_METADATA: &str = "x-afterimage-policy";

/// The largest message that is taken. Envoy sends a body in pieces of at most its buffer limit,
/// 1 MiB unless raised.
const LARGEST_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Which policy a route means.
#[derive(Debug)]
pub struct Routes {
    policies: HashMap<Arc<str>, Arc<Policy>>,
    by_route_name: HashMap<String, Arc<Policy>>,
    default: Option<Arc<Policy>>,
    no_policy: Arc<str>,
}

impl Routes {
    /// `by_route_name` maps Envoy's route names; `default` is for routes that name nothing.
    pub fn new(
        policies: impl IntoIterator<Item = Arc<Policy>>,
        by_route_name: HashMap<String, Arc<Policy>>,
        default: Option<Arc<Policy>>,
    ) -> Self {
        Self {
            policies: policies
                .into_iter()
                .map(|policy| (Arc::clone(&policy.name), policy))
                .collect(),
            by_route_name,
            default,
            no_policy: "none".into(),
        }
    }

    /// The label of requests without a policy.
    pub(super) fn no_policy(&self) -> &Arc<str> {
        &self.no_policy
    }

    /// In this order: the stream's metadata, the route's metadata, the route's name, the default.
    /// `bypass` as a name stands for no policy.
    pub(super) fn policy(
        &self,
        named: Option<&str>,
        route: &RouteAttributes,
    ) -> Result<Arc<Policy>, BypassReason> {
        if let Some(name) = named {
            return self.by_name(name);
        }
        if let Some(text) = &route.metadata {
            let named =
                route_metadata::policy_name(text).map_err(|_| BypassReason::RouteMetadata)?;
            if let Some(name) = named {
                return self.by_name(&name);
            }
        }
        route
            .name
            .as_ref()
            .and_then(|name| self.by_route_name.get(name))
            .or(self.default.as_ref())
            .cloned()
            .ok_or(BypassReason::NoPolicy)
    }

    fn by_name(&self, name: &str) -> Result<Arc<Policy>, BypassReason> {
        match self.policies.get(name) {
            Some(policy) => Ok(Arc::clone(policy)),
            None if name == "bypass" => Err(BypassReason::NoPolicy),
            None => Err(BypassReason::UnknownPolicy),
        }
    }
}

/// The gRPC service `envoy.service.ext_proc.v3.ExternalProcessor`.
///
/// It stands in the place of tonic's generated one, which copies every image into its message, and the
/// message into its frames.
#[derive(Debug, Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

impl Service {
    /// A service of conversations that share this.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        if request.uri().path() != PROCESS {
            return Status::unimplemented(request.uri().path().to_owned()).into_http();
        }
        let (head, body) = request.into_parts();
        let policy = head
            .headers
            .get(POLICY_METADATA)
            .map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
        let inbound = Streaming::new_request(Messages, body, None, Some(LARGEST_MESSAGE_BYTES));
        let conversation = Conversation::new(Arc::clone(&self.shared), inbound, policy);
        let answers = stream::unfold(conversation, async |mut conversation| {
            let answer = conversation.next().await?;
            Some((answer, conversation))
        });
        let mut response = http::Response::new(Body::new(Answers {
            answers: Some(answers.boxed()),
            pieces: VecDeque::new(),
        }));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
        response
    }
}

impl NamedService for Service {
    const NAME: &'static str = SERVICE_NAME;
}

impl tower_service::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        ready(Ok(self.answer(request)))
    }
}

/// Reads messages.
struct Messages;

impl Decoder for Messages {
    type Item = ProcessingRequest;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        ProcessingRequest::decode(bytes)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

/// The body of the HTTP/2 response: answers as they come, and the status as its trailers.
struct Answers {
    /// `None` after the last.
    answers: Option<BoxStream<'static, Result<Answer, Status>>>,
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
