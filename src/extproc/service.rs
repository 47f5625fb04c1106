//! The gRPC service: one conversation for each stream, driven by whoever reads its answers.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status, Streaming};

use super::driver::Conversation;
use super::route_metadata;
use super::shared::Shared;
use super::wire::{
    ExternalProcessor, ExternalProcessorServer, ProcessingRequest, ProcessingResponse,
    RouteAttributes,
};
use crate::policy::{BypassReason, Policy};

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

/// The service, ready to be served.
pub fn service(shared: Arc<Shared>) -> ExternalProcessorServer<impl ExternalProcessor> {
    ExternalProcessorServer::new(Service { shared })
        .max_decoding_message_size(LARGEST_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX)
}

struct Service {
    shared: Arc<Shared>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ExternalProcessor for Service {
    type ProcessStream = Answers;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let policy = request
            .metadata()
            .get(POLICY_METADATA)
            .map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
        let conversation =
            Conversation::new(Arc::clone(&self.shared), request.into_inner(), policy);
        let answers = stream::unfold(conversation, async |mut conversation| {
            let answer = conversation.next().await?;
            Some((answer, conversation))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
