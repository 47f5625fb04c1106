//! One conversation: message, event, session, effect, answer.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tonic::{Code, Status, Streaming};
use tracing::warn;

use super::log::Log;
use super::sending::Sending;
use super::shared::Shared;
use super::wire::{self, Message, Phase, ProcessingRequest, ProcessingResponse, RouteAttributes};
use crate::clock::Stopwatch;
use crate::collapse::Refresh;
use crate::fill::Fill;
use crate::policy::{BypassReason, RequestHead};
use crate::session::{
    AbortReason, CopyStep, Effect, Event, Freshened, Hit, HitBody, Reply, Report, Session,
};
use crate::store::{self, BodyStream};

/// One gRPC stream. Dropping it is how Envoy, or the client behind it, leaves.
pub(super) struct Conversation {
    shared: Arc<Shared>,
    inbound: Streaming<ProcessingRequest>,
    state: State,
    log: Log,
    /// Held until the conversation is over: by then the refreshed entry is there, or is not coming.
    refresh: Option<Refresh>,
}

enum State {
    /// Nothing was said yet; with the policy that the stream's metadata names.
    Opening(Option<String>),
    /// The session decides.
    Open(Box<Open>),
    /// A hit is going out in pieces.
    Sending(Box<Sending>),
    /// The last answer that changes anything was given. What still comes is sent on as it is,
    /// because a filter with other modes than ours may go on asking.
    Over,
    /// A terminal answer was given: there is nothing to be said after it.
    Ended,
}

struct Open {
    session: Session,
    fill: Option<OpenFill>,
}

struct OpenFill {
    fill: Fill,
    since: Stopwatch,
}

impl Conversation {
    pub(super) fn new(
        shared: Arc<Shared>,
        inbound: Streaming<ProcessingRequest>,
        policy: Option<String>,
    ) -> Self {
        Self {
            log: Log::new(Arc::clone(&shared)),
            shared,
            inbound,
            state: State::Opening(policy),
            refresh: None,
        }
    }

    /// The next answer. `None` ends the stream well; an error ends it so that Envoy breaks off
    /// whatever it is sending.
    pub(super) async fn next(&mut self) -> Option<Result<ProcessingResponse, Status>> {
        if let State::Sending(sending) = &mut self.state {
            let piece = sending.next().await;
            if let Some(Err(error)) = &piece {
                self.shared.metrics.broken_hit();
                warn!(error = error.message(), "streamed hit was broken off");
                if error.code() == Code::DataLoss {
                    self.forget_entry();
                }
            }
            if !matches!(piece, Some(Ok(_))) {
                self.state = State::Ended;
                self.log.end();
            }
            return piece;
        }
        if let State::Ended = self.state {
            return None;
        }
        let message = self.receive().await?;
        Some(Ok(self.answer(message).await))
    }

    /// Waits for a message, and meanwhile for the deadline of a fill.
    async fn receive(&mut self) -> Option<Message> {
        loop {
            let time_left = match &self.state {
                State::Open(open) => open.fill.as_ref().map(|fill| {
                    let deadline = self.shared.fills.deadline;
                    deadline.saturating_sub(fill.since.elapsed())
                }),
                State::Opening(_) | State::Sending(_) | State::Over | State::Ended => None,
            };
            let message = match time_left {
                None => self.inbound.message().await,
                Some(time_left) => {
                    match tokio::time::timeout(time_left, self.inbound.message()).await {
                        Ok(message) => message,
                        Err(_) => {
                            self.lose_copy(AbortReason::Deadline);
                            continue;
                        }
                    }
                }
            };
            match message {
                Ok(Some(message)) => match wire::read(message) {
                    Some(message) => return Some(message),
                    None => self.shared.metrics.unexpected_message(),
                },
                // How the stream ends proves nothing: Envoy resets it after every exchange.
                Ok(None) | Err(_) => return None,
            }
        }
    }

    async fn answer(&mut self, message: Message) -> ProcessingResponse {
        let (event, phase) = match message {
            Message::Request(head, route) => return self.open(head, &route).await,
            Message::Response(Some(head)) => {
                self.log.status = Some(head.status.as_u16());
                (Event::Response(head), Phase::ResponseHeaders)
            }
            Message::Response(None) => return self.unexpected(Phase::ResponseHeaders),
            Message::ResponseBody { bytes, is_end } => {
                (Event::Body { bytes, is_end }, Phase::ResponseBody)
            }
            Message::Other(phase) => return self.unexpected(phase),
        };
        match std::mem::replace(&mut self.state, State::Over) {
            State::Open(open) => self.handle(*open, event, phase).await,
            state @ (State::Opening(_) | State::Sending(_) | State::Over | State::Ended) => {
                self.state = state;
                self.unexpected(phase)
            }
        }
    }

    /// The first message.
    async fn open(
        &mut self,
        head: Option<RequestHead>,
        route: &RouteAttributes,
    ) -> ProcessingResponse {
        let State::Opening(named) = std::mem::replace(&mut self.state, State::Over) else {
            return self.unexpected(Phase::RequestHeaders);
        };
        let policy = match self.shared.routes.policy(named.as_deref(), route) {
            Ok(policy) => policy,
            Err(reason) => return self.leave_out(reason),
        };
        self.log.policy = Arc::clone(&policy.name);
        let Some(head) = head else {
            return self.leave_out(BypassReason::Unparsable);
        };
        let open = Open {
            session: Session::new(policy, self.shared.largest_bytes),
            fill: None,
        };
        self.handle(open, Event::Request(head), Phase::RequestHeaders)
            .await
    }

    /// Gives an event to the session, and does what it says until the message is answered.
    async fn handle(&mut self, open: Open, event: Event, phase: Phase) -> ProcessingResponse {
        let Open {
            mut session,
            mut fill,
        } = open;
        let mut event = event;
        let mut body = None;
        loop {
            let (next, effect) = match session.handle(event, self.shared.clock.now()) {
                Ok(step) => step,
                Err(error) => {
                    warn!(%error, "conversation is out of order");
                    return self.unexpected(phase);
                }
            };
            session = next;
            self.log.report = session.report();
            match effect {
                Effect::LookUp { key, method } => {
                    let (fetched, took) = self.shared.look_up(&key, method).await;
                    self.log.lookup = took;
                    self.log.key = Some(key);
                    self.log.room = fetched.room;
                    body = fetched.body;
                    event = Event::Answer(fetched.answer);
                }
                Effect::ClaimRefresh(key) => {
                    self.refresh = self.shared.refreshes.claim(&key);
                    event = match self.refresh {
                        Some(_) => Event::RefreshClaimed,
                        None => Event::RefreshTaken,
                    };
                }
                Effect::Begin(plan) => match self.shared.fills.begin(*plan) {
                    Ok(begun) => {
                        fill = Some(OpenFill {
                            fill: begun,
                            since: Stopwatch::start(),
                        });
                        event = Event::CopyBegun;
                    }
                    Err(reason) => {
                        self.shared.metrics.aborted(reason);
                        event = Event::CopyLost(reason);
                    }
                },
                Effect::Copy(step) => match self.copy(&mut fill, step) {
                    Some(reason) if !session.is_done() => event = Event::CopyLost(reason),
                    lost => {
                        if let Some(reason) = lost {
                            self.log.report.lose_copy(reason);
                        }
                        return self.reply(Reply::Continue, session, fill, body, phase);
                    }
                },
                Effect::Finish(reply) => {
                    if let Some(reason) = self.copy(&mut fill, CopyStep::Finish(Bytes::new())) {
                        self.log.report.lose_copy(reason);
                    }
                    return self.reply(reply, session, fill, body, phase);
                }
                Effect::Freshen(freshened, reply) => {
                    self.freshen(*freshened);
                    return self.reply(reply, session, fill, body, phase);
                }
                Effect::Reply(reply) => return self.reply(reply, session, fill, body, phase),
                // The copy of a body was lost on the way; its bytes pass all the same.
                Effect::Nothing => {
                    return self.reply(Reply::Continue, session, fill, body, phase);
                }
            }
        }
    }

    /// Does one step of the copy. Whatever reason comes back, the copy is gone and counted.
    fn copy(&self, fill: &mut Option<OpenFill>, step: CopyStep) -> Option<AbortReason> {
        let OpenFill { fill: copy, since } = fill.take()?;
        let fills = &self.shared.fills;
        let lost = match step {
            CopyStep::Append(bytes) => match fills.append(copy, bytes) {
                Ok(copy) => {
                    *fill = Some(OpenFill { fill: copy, since });
                    None
                }
                Err(reason) => Some(reason),
            },
            CopyStep::Finish(bytes) => match fills.append(copy, bytes) {
                Ok(copy) => {
                    fills.finish(copy);
                    None
                }
                Err(reason) => Some(reason),
            },
            CopyStep::Abort(reason) => {
                self.shared.metrics.aborted(reason);
                return None;
            }
        };
        if let Some(reason) = lost {
            self.shared.metrics.aborted(reason);
        }
        lost
    }

    fn reply(
        &mut self,
        reply: Reply,
        session: Session,
        fill: Option<OpenFill>,
        body: Option<BodyStream>,
        phase: Phase,
    ) -> ProcessingResponse {
        let is_done = session.is_done();
        let report = session.report();
        self.state = if is_done {
            State::Over
        } else {
            State::Open(Box::new(Open { session, fill }))
        };
        let answer = match reply {
            Reply::Bypass => self.with_outcome(wire::bypass(), report),
            Reply::Forward(changes) => {
                if body.is_some() {
                    // The stored body is not going to be read.
                    self.log.room = None;
                }
                wire::forward(&changes)
            }
            Reply::Pass(passed) => self.with_outcome(wire::respond(&passed, false), report),
            Reply::Mirror(passed) => self.with_outcome(wire::respond(&passed, true), report),
            Reply::Continue => wire::pass(Phase::ResponseBody),
            Reply::Hit(hit) => {
                let answer = self.hit(*hit, body, phase);
                self.with_outcome(answer, report)
            }
        };
        self.log.answered();
        if is_done && !matches!(self.state, State::Sending(_)) {
            self.log.end();
        }
        answer
    }

    /// Begins a hit. As the answer to a response it must be one message; its body is held then.
    fn hit(&mut self, hit: Hit, body: Option<BodyStream>, phase: Phase) -> ProcessingResponse {
        self.state = State::Ended;
        self.log.status = Some(hit.status.as_u16());
        let is_whole =
            |length| length <= self.shared.immediate_bytes || phase == Phase::ResponseHeaders;
        let (source, length) = match (&hit.body, body) {
            (HitBody::Nothing, _) => return wire::immediate(&hit, &[]),
            (HitBody::Length(length), _) => {
                return wire::streamed_head(&hit, *length, true);
            }
            (HitBody::Held(chunks), _) => {
                let length = chunks.iter().map(|chunk| chunk.len() as u64).sum();
                self.shared.metrics.served(length);
                // Without a body Envoy would take the type out of an immediate response.
                if length == 0 && phase == Phase::RequestHeaders {
                    return wire::streamed_head(&hit, 0, true);
                }
                if is_whole(length) {
                    return wire::immediate(&hit, chunks);
                }
                let source = stream::iter(chunks.clone().into_iter().map(Ok)).boxed();
                (Sending::proved(source), length)
            }
            (
                HitBody::Streamed {
                    first,
                    length,
                    proof,
                },
                Some(body),
            ) => {
                self.shared.metrics.served(*length);
                (Sending::part(body, *first, *length, *proof), *length)
            }
            (HitBody::Streamed { .. }, None) => {
                unreachable!("a lookup that says streamed brings the stream")
            }
        };
        self.state = State::Sending(Box::new(source));
        wire::streamed_head(&hit, length, false)
    }

    /// Removes an entry whose body is not the one that was stored: nothing would replace it as long
    /// as it is fresh, and every hit would be broken off.
    fn forget_entry(&self) {
        let Some(key) = self.log.key.clone() else {
            return;
        };
        let store = Arc::clone(&self.shared.store);
        self.shared.fills.tasks.spawn(async move {
            if let Err(error) = store.delete(&key).await {
                warn!(key = %key.object_name(), error = %store::Causes(&error), "corrupt entry was not removed");
            }
        });
    }

    /// Gives an entry the record that the upstream has confirmed.
    fn freshen(&self, freshened: Freshened) {
        let store = Arc::clone(&self.shared.store);
        self.shared.fills.tasks.spawn(async move {
            let Freshened { key, record } = freshened;
            if let Err(error) = store.replace_record(&key, &record).await {
                warn!(key = %key.object_name(), error = %store::Causes(&error), "entry was not freshened");
            }
        });
    }

    /// Leaves this request to Envoy.
    fn leave_out(&mut self, reason: BypassReason) -> ProcessingResponse {
        self.log.report = Report::Bypass(reason);
        self.log.answered();
        self.log.end();
        self.with_outcome(wire::bypass(), Report::Bypass(reason))
    }

    /// Sends on what does not fit: the client must not suffer from it.
    fn unexpected(&self, phase: Phase) -> ProcessingResponse {
        self.shared.metrics.unexpected_message();
        wire::pass(phase)
    }

    fn lose_copy(&mut self, reason: AbortReason) {
        let State::Open(open) = std::mem::replace(&mut self.state, State::Over) else {
            return;
        };
        self.shared.metrics.aborted(reason);
        if let Ok((session, _)) = open
            .session
            .handle(Event::CopyLost(reason), self.shared.clock.now())
        {
            self.log.report = session.report();
            self.state = State::Open(Box::new(Open {
                session,
                fill: None,
            }));
        }
    }

    fn with_outcome(&self, answer: ProcessingResponse, report: Report) -> ProcessingResponse {
        wire::with_outcome(
            answer,
            &self.log.policy,
            report.outcome().as_str(),
            report.reason(),
        )
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if let State::Open(open) = &self.state
            && open.fill.is_some()
        {
            self.shared.metrics.aborted(AbortReason::Cut);
        }
        self.log.end();
    }
}
