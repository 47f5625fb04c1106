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
use crate::collapse::Claim;
use crate::fetch::Fetching;
use crate::fill::Copying;
use crate::marks::Moment;
use crate::policy::{BypassReason, Key, RequestHead};
use crate::session::{
    AbortReason, CopyStep, Effect, Event, Fetched, Hit, HitBody, Reply, Report, Session,
};
use crate::store::BodyStream;

/// One gRPC stream. Dropping it is how Envoy, or the client behind it, leaves.
pub(super) struct Conversation {
    shared: Arc<Shared>,
    inbound: Streaming<ProcessingRequest>,
    state: State,
    log: Log,
    /// Held until the conversation is over: by then the refreshed entry is there, or is not coming.
    claim: Option<Claim>,
    /// When the request was sent on; before that, when it came.
    asked: Moment,
    copying: Option<Copying>,
}

enum State {
    /// Nothing was said yet; with the policy that the stream's metadata names.
    Opening(Option<String>),
    /// The session decides.
    Open(Box<Session>),
    /// Envoy was told to wait, while a request of our own is under way.
    Waiting(Box<Waiting>),
    /// A hit is going out in pieces.
    Sending(Box<Sending>),
    /// The last answer that changes anything was given. What still comes is sent on as it is,
    /// because a filter with other modes than ours may go on asking.
    Over,
    /// A terminal answer was given: there is nothing to be said after it.
    Ended,
}

struct Waiting {
    session: Session,
    fetch: Fetching,
}

impl Conversation {
    pub(super) fn new(
        shared: Arc<Shared>,
        inbound: Streaming<ProcessingRequest>,
        policy: Option<String>,
    ) -> Self {
        Self {
            asked: shared.fills.marks.now(),
            copying: None,
            log: Log::new(Arc::clone(&shared)),
            shared,
            inbound,
            state: State::Opening(policy),
            claim: None,
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
                // Nothing would replace the entry as long as it is fresh, and every hit would be
                // broken off.
                if error.code() == Code::DataLoss
                    && let Some(key) = self.log.key.clone()
                {
                    self.forget(key);
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
        if let State::Waiting(_) = self.state {
            return self.waited().await.map(Ok);
        }
        let message = self.receive().await?;
        Some(Ok(self.answer(message).await))
    }

    /// Waits for a message, and meanwhile for the deadline of a fill.
    async fn receive(&mut self) -> Option<Message> {
        loop {
            let deadline = self.shared.fills.deadline;
            let time_left = self.copying.as_ref();
            let time_left = time_left.and_then(|copying| copying.time_left(deadline));
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
            State::Open(session) => self.handle(*session, event, phase).await,
            state @ (State::Opening(_)
            | State::Waiting(_)
            | State::Sending(_)
            | State::Over
            | State::Ended) => {
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
        if self.shared.fetcher.is_own(&head) {
            return self.leave_out(BypassReason::OwnFetch);
        }
        let session = Session::new(policy, self.shared.largest_bytes);
        self.handle(session, Event::Request(head), Phase::RequestHeaders)
            .await
    }

    /// The answer to a request that has waited for one of our own.
    async fn waited(&mut self) -> Option<ProcessingResponse> {
        let State::Waiting(waiting) = std::mem::replace(&mut self.state, State::Over) else {
            return None;
        };
        let Waiting { session, fetch } = *waiting;
        let event = Event::Fetched(fetch.end(self.shared.patience.wait).await);
        Some(self.handle(session, event, Phase::RequestHeaders).await)
    }

    /// Gives an event to the session, and does what it says until the message is answered.
    async fn handle(
        &mut self,
        mut session: Session,
        event: Event,
        phase: Phase,
    ) -> ProcessingResponse {
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
                    self.claim = self.shared.refreshes.claim(&key);
                    event = match self.claim {
                        Some(_) => Event::RefreshClaimed,
                        None => Event::RefreshTaken,
                    };
                }
                Effect::Refresh(refresh, reply) => {
                    if let Some(claim) = self.claim.take() {
                        drop(self.shared.fetcher.start(*refresh, claim));
                    }
                    return self.reply(reply, session, body, phase);
                }
                Effect::Fetch(refresh) => {
                    // The stored body is not going to be read.
                    body = None;
                    self.log.room = None;
                    let claim = self.shared.refreshes.claim(&refresh.key);
                    let fetch = claim.and_then(|claim| self.shared.fetcher.start(*refresh, claim));
                    match fetch {
                        None => event = Event::Fetched(Fetched::Nothing),
                        Some(fetch) => match self.shared.patience.extension {
                            Some(extension) => {
                                self.state = State::Waiting(Box::new(Waiting { session, fetch }));
                                return wire::wait(extension);
                            }
                            None => {
                                let wait = self.shared.patience.wait;
                                event = Event::Fetched(fetch.end(wait).await);
                            }
                        },
                    }
                }
                Effect::Begin(plan) => {
                    match Copying::begin(&self.shared.fills, *plan, self.asked) {
                        Ok(copying) => {
                            self.copying = Some(copying);
                            event = Event::CopyBegun;
                        }
                        Err(reason) => event = Event::CopyLost(reason),
                    }
                }
                Effect::Copy(step) => match self.copy(step) {
                    Err(reason) if !session.is_done() => event = Event::CopyLost(reason),
                    step => {
                        if let Err(reason) = step {
                            self.log.report.lose_copy(reason);
                        }
                        return self.reply(Reply::Continue, session, body, phase);
                    }
                },
                Effect::Finish(reply) => {
                    let finish = CopyStep::Finish(Bytes::new());
                    if let Err(reason) = self.copy(finish) {
                        self.log.report.lose_copy(reason);
                    }
                    return self.reply(reply, session, body, phase);
                }
                Effect::Freshen(freshened, reply) => {
                    let fills = self.shared.fills.clone();
                    let asked = self.asked;
                    let freshen = async move { fills.freshen(*freshened, asked).await };
                    self.shared.fills.tasks.spawn(freshen);
                    return self.reply(reply, session, body, phase);
                }
                Effect::Forget(key, reply) => {
                    self.forget(key);
                    return self.reply(reply, session, body, phase);
                }
                Effect::Invalidate(sources, reply) => {
                    self.shared.fills.invalidate(sources);
                    return self.reply(reply, session, body, phase);
                }
                Effect::Reply(reply) => return self.reply(reply, session, body, phase),
                // The copy of a body was lost on the way; its bytes pass all the same.
                Effect::Nothing => {
                    return self.reply(Reply::Continue, session, body, phase);
                }
            }
        }
    }

    /// Does one step of the copy, if there is one.
    fn copy(&mut self, step: CopyStep) -> Result<(), AbortReason> {
        match &mut self.copying {
            Some(copying) => copying.step(&self.shared.fills, step),
            None => Ok(()),
        }
    }

    fn reply(
        &mut self,
        reply: Reply,
        session: Session,
        body: Option<BodyStream>,
        phase: Phase,
    ) -> ProcessingResponse {
        let is_done = session.is_done();
        let report = session.report();
        self.state = if is_done {
            State::Over
        } else {
            State::Open(Box::new(session))
        };
        let answer = match reply {
            Reply::Bypass => self.with_outcome(wire::bypass(), report),
            Reply::Forward(changes) => {
                self.asked = self.shared.fills.marks.now();
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

    /// Removes an entry in the background.
    fn forget(&self, key: Key) {
        let fills = self.shared.fills.clone();
        self.shared
            .fills
            .tasks
            .spawn(async move { fills.forget(&key).await });
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
        if let Some(copying) = &mut self.copying {
            copying.abort(reason);
        }
        let State::Open(session) = std::mem::replace(&mut self.state, State::Over) else {
            return;
        };
        if let Ok((session, _)) = session.handle(Event::CopyLost(reason), self.shared.clock.now()) {
            self.log.report = session.report();
            self.state = State::Open(Box::new(session));
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
        self.log.end();
    }
}
