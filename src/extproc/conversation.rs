//! One conversation with Envoy: from its messages to an [`Exchange`], and back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::{Status, Streaming};
use tracing::warn;

use super::Processor;
use super::codec::convert::{self, Message, Phase, RouteAttributes};
use super::codec::request::ProcessingRequest;
use super::codec::response::EncodedResponse;
use crate::cache::VerifiedBody;
use crate::exchange::{Delivery, DeliveryBody, Exchange, Log, Next, Turn, Wait};
use crate::large_hits::{LargeHits, Offer, TICKET};
use crate::policy::{BypassReason, RequestHead};
use crate::session::Report;
use crate::store;

/// One gRPC stream. Dropping it is how Envoy, or the client behind it, leaves.
pub(super) struct Conversation {
    processor: Arc<Processor>,
    inbound: Streaming<ProcessingRequest>,
    state: State,
    log: Log,
    /// The request, from its head on; `None` for one without a policy. What others wait for is over when this is
    /// dropped.
    exchange: Option<Exchange>,
    /// Whether Envoy was told to wait for the answer to a request; it can be told once.
    is_extended: bool,
}

enum State {
    /// Nothing was said yet; with the policy that the stream's metadata names.
    Opening(Option<String>),
    /// The exchange decides about the next message.
    Open,
    /// Envoy was told to wait for this.
    Waiting(Wait),
    /// A hit goes out in pieces.
    Sending(Box<VerifiedBody>),
    /// The last answer that changes anything was given. What still comes is sent on as it is,
    /// because a filter with other modes than ours may go on asking.
    Over,
    /// A terminal answer was given: there is nothing to be said after it.
    Ended,
}

impl Conversation {
    pub(super) fn new(
        processor: Arc<Processor>,
        inbound: Streaming<ProcessingRequest>,
        policy: Option<String>,
    ) -> Self {
        let no_policy = Arc::clone(processor.routes.no_policy());
        Self {
            log: Log::new(Arc::clone(&processor.core), no_policy),
            processor,
            inbound,
            state: State::Opening(policy),
            exchange: None,
            is_extended: false,
        }
    }

    /// The next answer. `None` ends the stream well; an error ends it so that Envoy breaks off
    /// whatever it is sending.
    pub(super) async fn next(&mut self) -> Option<Result<EncodedResponse, Status>> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Ended => return None,
            State::Sending(body) => return self.send(body).await,
            State::Waiting(wait) => return Some(Ok(self.waited(wait).await)),
            state @ (State::Opening(_) | State::Open | State::Over) => self.state = state,
        }
        if self.log.is_to_be_written() {
            // The last answer goes out first.
            tokio::task::yield_now().await;
            self.log.write();
        }
        let message = self.receive().await?;
        Some(Ok(self.answer(message).await))
    }

    /// Waits for a message, and meanwhile for the end of a copy's time.
    async fn receive(&mut self) -> Option<Message> {
        loop {
            let exchange = self.exchange.as_ref();
            let message = match exchange.and_then(Exchange::time_left) {
                None => self.inbound.message().await,
                Some((time_left, reason)) => {
                    match tokio::time::timeout(time_left, self.inbound.message()).await {
                        Ok(message) => message,
                        Err(_) => {
                            if let Some(exchange) = &mut self.exchange {
                                exchange.expire(reason);
                            }
                            continue;
                        }
                    }
                }
            };
            match message {
                Ok(Some(message)) => match convert::read(message) {
                    Some(message) => return Some(message),
                    None => self.processor.unexpected_messages.inc(),
                },
                // How the stream ends proves nothing: Envoy resets it after every exchange.
                Ok(None) | Err(_) => return None,
            };
        }
    }

    async fn answer(&mut self, message: Message) -> EncodedResponse {
        let is_open = matches!(self.state, State::Open);
        match (message, &mut self.exchange) {
            (Message::Request(head, route), _) => self.open(head, &route).await,
            (Message::Response(Some(head)), Some(exchange)) if is_open => {
                self.log.set_status(head.status);
                let next = exchange.response(head);
                self.say(next, Phase::ResponseHeaders)
            }
            (Message::ResponseBody { bytes, is_end }, Some(exchange)) if is_open => {
                exchange.body(bytes, is_end);
                self.passed(Phase::ResponseBody)
            }
            (Message::ResponseTrailers, Some(exchange)) if is_open => {
                exchange.trailers();
                self.passed(Phase::ResponseTrailers)
            }
            (message, _) => self.unexpected(message.phase()),
        }
    }

    /// Answers a part of a body.
    fn passed(&mut self, phase: Phase) -> EncodedResponse {
        if let Some(exchange) = &self.exchange {
            self.log.take(exchange);
            if exchange.is_over() {
                self.state = State::Over;
                self.log.end();
            }
        }
        convert::pass(phase)
    }

    /// Answers the first message.
    async fn open(
        &mut self,
        head: Option<RequestHead>,
        route: &RouteAttributes,
    ) -> EncodedResponse {
        let State::Opening(named) = &mut self.state else {
            return self.unexpected(Phase::RequestHeaders);
        };
        let named = named.take();
        self.state = State::Over;
        let policy = match self.processor.routes.policy(named.as_deref(), route) {
            Ok(policy) => policy,
            Err(reason) => return self.leave_out(reason),
        };
        self.log.set_policy(&policy.name);
        let Some(head) = head else {
            return self.leave_out(BypassReason::Unparsable);
        };
        if self.processor.core.is_own(&head) {
            return self.leave_out(BypassReason::OwnFetch);
        }
        let exchange = Exchange::new(Arc::clone(&self.processor.core), policy);
        let turn = self.exchange.insert(exchange).request(head);
        self.turn(turn).await
    }

    /// Answers a request that Envoy was told to wait for.
    async fn waited(&mut self, wait: Wait) -> EncodedResponse {
        let done = wait.done().await;
        match &mut self.exchange {
            Some(exchange) => {
                let turn = exchange.resume(done);
                self.turn(turn).await
            }
            None => self.unexpected(Phase::RequestHeaders),
        }
    }

    /// Answers a request as soon as it can be answered, or tells Envoy to wait.
    async fn turn(&mut self, mut turn: Turn) -> EncodedResponse {
        loop {
            let wait = match turn {
                Turn::Go(next) => return self.say(next, Phase::RequestHeaders),
                Turn::Wait(wait) => wait,
            };
            if wait.is_long
                && let Some(extension) = self.extension()
            {
                self.state = State::Waiting(wait);
                return convert::wait(extension);
            }
            let done = wait.done().await;
            match &mut self.exchange {
                Some(exchange) => turn = exchange.resume(done),
                None => return self.unexpected(Phase::RequestHeaders),
            }
        }
    }

    /// How long Envoy is asked to wait, where it has not been asked yet.
    fn extension(&mut self) -> Option<Duration> {
        if std::mem::replace(&mut self.is_extended, true) {
            return None;
        }
        self.processor.extension
    }

    /// Answers a head.
    fn say(&mut self, next: Next, phase: Phase) -> EncodedResponse {
        if let Some(exchange) = &self.exchange {
            self.log.take(exchange);
            self.state = if exchange.is_over() {
                State::Over
            } else {
                State::Open
            };
        }
        let answer = match next {
            Next::Bypass => self.with_outcome(convert::bypass()),
            Next::Forward(changes) => convert::forward(&changes),
            Next::Pass(passed) => self.with_outcome(convert::respond(&passed, false)),
            Next::Mirror(passed) => self.with_outcome(convert::respond(&passed, true)),
            Next::Deliver(delivery) => {
                self.log.set_status(delivery.status);
                let answer = self.deliver(delivery, phase);
                self.with_outcome(answer)
            }
            Next::AsItCame => return self.unexpected(phase),
        };
        if matches!(self.state, State::Over | State::Ended) {
            self.log.end();
        }
        answer
    }

    /// Begins a hit. As the answer to a response it must be one message; its body is held then.
    fn deliver(&mut self, delivery: Delivery, phase: Phase) -> EncodedResponse {
        self.state = State::Ended;
        let Delivery {
            status,
            headers,
            body,
        } = delivery;
        let is_request = phase == Phase::RequestHeaders;
        let immediate_cap = self.processor.core.cache().limits().immediate_cap;
        let (body, length) = match body {
            DeliveryBody::Nothing => return convert::immediate(status, &headers, Vec::new()),
            DeliveryBody::Length(length) => {
                return convert::streamed_head(status, &headers, length, true);
            }
            // Without a body Envoy would take the type out of an immediate response.
            DeliveryBody::Held { length: 0, .. } if is_request => {
                return convert::streamed_head(status, &headers, 0, true);
            }
            DeliveryBody::Held { chunks, length } if length <= immediate_cap || !is_request => {
                return convert::immediate(status, &headers, chunks);
            }
            DeliveryBody::Held { chunks, length } => match self.held(chunks) {
                Some(body) => (body, length),
                None => return self.unexpected(phase),
            },
            DeliveryBody::Streamed { body, length } => {
                if is_request
                    && let Some(large_hits) = &self.processor.large_hits
                    && length > large_hits.above_bytes
                {
                    let offer = Offer {
                        status,
                        headers,
                        length,
                        body,
                    };
                    return hand_over(large_hits, offer);
                }
                (body, length)
            }
        };
        self.state = State::Sending(body);
        convert::streamed_head(status, &headers, length, false)
    }

    /// A held body that is too large for one message.
    fn held(&self, chunks: Vec<Bytes>) -> Option<Box<VerifiedBody>> {
        let key = self.exchange.as_ref()?.key()?.clone();
        let cache = self.processor.core.cache().clone();
        Some(Box::new(VerifiedBody::held(cache, key, chunks)))
    }

    /// Sends the next piece of a hit. An error breaks it off.
    async fn send(
        &mut self,
        mut body: Box<VerifiedBody>,
    ) -> Option<Result<EncodedResponse, Status>> {
        match body.next().await {
            Ok(Some(piece)) => {
                self.state = State::Sending(body);
                Some(Ok(convert::streamed_body(piece.bytes, piece.is_last)))
            }
            Ok(None) => {
                self.log.end();
                None
            }
            Err(error) => {
                self.log.end();
                let text = store::Causes(&error).to_string();
                Some(Err(match error {
                    store::Error::Corrupt(_) => Status::data_loss(text),
                    _ => Status::unavailable(text),
                }))
            }
        }
    }

    /// Leaves this request to Envoy.
    fn leave_out(&mut self, reason: BypassReason) -> EncodedResponse {
        self.log.answered(Report::Bypass(reason));
        self.log.end();
        self.with_outcome(convert::bypass())
    }

    /// Sends on what does not fit: the client must not suffer from it.
    fn unexpected(&self, phase: Phase) -> EncodedResponse {
        self.processor.unexpected_messages.inc();
        convert::pass(phase)
    }

    fn with_outcome(&self, answer: EncodedResponse) -> EncodedResponse {
        let report = self.log.report();
        convert::with_outcome(
            answer,
            self.log.policy(),
            report.outcome().as_str(),
            report.reason(),
        )
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if let Some(exchange) = &self.exchange {
            self.log.take(exchange);
        }
        // What others wait for ends before the line is written.
        self.exchange = None;
        self.log.end();
        self.log.write();
    }
}

/// Lets Envoy fetch a hit.
fn hand_over(large_hits: &LargeHits, offer: Offer) -> EncodedResponse {
    match large_hits.offer(offer) {
        Ok(ticket) => convert::hand_over(&TICKET, &ticket),
        Err(error) => {
            warn!(%error, "large hit cannot be handed over, request is sent on");
            convert::bypass()
        }
    }
}
