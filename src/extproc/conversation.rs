//! One conversation: message, event, session, effect, answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::HeaderValue;
use tonic::{Code, Status, Streaming};
use tracing::warn;

use super::codec::convert::{self as wire, Message, Phase, RouteAttributes};
use super::codec::request::ProcessingRequest;
use super::codec::response::Answer;
use super::log::Log;
use super::sending::Sending;
use super::shared::Shared;
use crate::cache::body_reader::Pieces;
use crate::cache::collapse::{Follow, Followed, Joined, Lead};
use crate::cache::fill::Copying;
use crate::cache::invalidations::Moment;
use crate::cache::refreshes::Claim;
use crate::clock::Stopwatch;
use crate::entry::Key;
use crate::large_hits::{self, Offer};
use crate::policy::{BypassReason, RequestHead};
use crate::session::{
    AbortReason, CopyStep, Effect, Event, Fetched, Hit, HitBody, Part, Reply, Report, Session,
};
use crate::store::BodyStream;
use crate::upstream::{self, Fetching};

/// One gRPC stream. Dropping it is how Envoy, or the client behind it, leaves.
pub(super) struct Conversation {
    shared: Arc<Shared>,
    inbound: Streaming<ProcessingRequest>,
    state: State,
    log: Log,
    /// Held until the conversation is over: by then the refreshed entry is there, or is not coming.
    claim: Option<Claim>,
    /// Others may wait for this request.
    lead: Option<Lead>,
    /// What this request is going to wait for.
    follow: Option<Follow>,
    /// What it has waited for: held until the conversation is over.
    followed: Option<Followed>,
    /// Since when the request waits for others; Envoy was told once.
    waiting: Option<Stopwatch>,
    /// When the request was sent on; before that, when it came.
    asked: Moment,
    copying: Option<Copying>,
}

enum State {
    /// Nothing was said yet; with the policy that the stream's metadata names.
    Opening(Option<String>),
    /// The session decides.
    Open(Box<Session>),
    /// Envoy was told to wait, while a request of our own, or another one for the same, is under way.
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
    wait: Wait,
}

enum Wait {
    Fetch(Fetching),
    Follow(Follow),
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
            lead: None,
            follow: None,
            followed: None,
            waiting: None,
        }
    }

    /// The next answer. `None` ends the stream well; an error ends it so that Envoy breaks off
    /// whatever it is sending.
    pub(super) async fn next(&mut self) -> Option<Result<Answer, Status>> {
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
        if self.log.is_to_be_written() {
            // The last answer goes out first.
            tokio::task::yield_now().await;
            self.log.write();
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
            let pace = self.shared.fills.pace;
            let copying = self.copying.as_ref();
            let message = match copying.and_then(|copying| copying.time_left(pace)) {
                None => self.inbound.message().await,
                Some((time_left, reason)) => {
                    match tokio::time::timeout(time_left, self.inbound.message()).await {
                        Ok(message) => message,
                        Err(_) => {
                            self.lose_copy(reason);
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

    async fn answer(&mut self, message: Message) -> Answer {
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
    async fn open(&mut self, head: Option<RequestHead>, route: &RouteAttributes) -> Answer {
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

    /// The answer to a request that has waited.
    async fn waited(&mut self) -> Option<Answer> {
        let State::Waiting(waiting) = std::mem::replace(&mut self.state, State::Over) else {
            return None;
        };
        let Waiting { session, wait } = *waiting;
        let event = Box::pin(self.wait(wait)).await;
        Some(self.handle(session, event, Phase::RequestHeaders).await)
    }

    /// Waits, for all that a request waits for together at most as long as Envoy does.
    async fn wait(&mut self, wait: Wait) -> Event {
        let waiting = self.waiting.get_or_insert_with(Stopwatch::start);
        let time_left = self.shared.patience.wait.saturating_sub(waiting.elapsed());
        match wait {
            Wait::Fetch(fetch) => Event::Fetched(fetch.end(time_left).await),
            Wait::Follow(follow) => {
                let following = self.shared.metrics.following();
                let followed = follow.end(time_left).await;
                drop(following);
                self.shared.metrics.followed(&followed);
                let again = matches!(followed, Followed::Stored(_));
                match followed {
                    Followed::Lead(lead) => self.lead = Some(lead),
                    held => self.followed = Some(held),
                }
                Event::Followed { again }
            }
        }
    }

    /// Gives an event to the session, and does what it says until the message is answered.
    async fn handle(&mut self, mut session: Session, event: Event, phase: Phase) -> Answer {
        let mut event = event;
        let mut body = None;
        let mut looked_up = Stopwatch::start();
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
                    looked_up = Stopwatch::start();
                    let fetched = self.shared.look_up(&key, method, looked_up).await;
                    self.log.lookup = looked_up.elapsed();
                    self.log.key = Some(key);
                    self.log.room = fetched.room;
                    body = fetched.body;
                    event = Event::Answer(fetched.answer);
                }
                Effect::Join(key) => {
                    event = Event::Part(match self.shared.groups.join(&key, looked_up) {
                        Joined::Lead(lead) => {
                            self.lead = Some(lead);
                            Part::SentOn
                        }
                        Joined::Follow(follow) => {
                            self.follow = Some(follow);
                            Part::Follows
                        }
                        Joined::Alone => Part::SentOn,
                    });
                }
                Effect::Follow => {
                    // The stored body is not going to be read.
                    body = None;
                    self.log.room = None;
                    let Some(follow) = self.follow.take() else {
                        event = Event::Followed { again: false };
                        continue;
                    };
                    match self.extension() {
                        Some(extension) => {
                            let wait = Wait::Follow(follow);
                            self.state = State::Waiting(Box::new(Waiting { session, wait }));
                            return wire::wait(extension);
                        }
                        None => event = Box::pin(self.wait(Wait::Follow(follow))).await,
                    }
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
                        let part = upstream::Part::Refreshes(claim);
                        drop(self.shared.fetcher.start(*refresh, part));
                    }
                    return self.reply(reply, session, body, phase);
                }
                Effect::Fetch(refresh) => {
                    // The stored body is not going to be read.
                    body = None;
                    self.log.room = None;
                    let claim = self.shared.refreshes.claim(&refresh.key);
                    let fetch = claim.map(upstream::Part::Refreshes);
                    let fetch = fetch.and_then(|part| self.shared.fetcher.start(*refresh, part));
                    match fetch {
                        None => event = Event::Fetched(Fetched::Nothing),
                        Some(fetch) => match self.extension() {
                            Some(extension) => {
                                let wait = Wait::Fetch(fetch);
                                self.state = State::Waiting(Box::new(Waiting { session, wait }));
                                return wire::wait(extension);
                            }
                            None => event = Box::pin(self.wait(Wait::Fetch(fetch))).await,
                        },
                    }
                }
                Effect::Begin(plan) => {
                    let (is_fresh, alone) = (plan.is_fresh, plan.alone);
                    match Copying::begin(&self.shared.fills, *plan, self.asked) {
                        Ok(copying) => {
                            if !(is_fresh && copying.is_held()) {
                                self.refuse_followers(alone);
                            }
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
                    let shown = fills.show_freshened(&freshened, asked);
                    if let Some(lead) = self.lead.take() {
                        lead.stored(shown.clone());
                    }
                    self.shared.fills.tasks.spawn(async move {
                        fills.freshen(*freshened, asked).await;
                        drop(shown);
                    });
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
        let Some(copying) = &mut self.copying else {
            return Ok(());
        };
        let result = copying.step(&self.shared.fills, step);
        if let Some(shown) = copying.shown() {
            if let Some(lead) = self.lead.take() {
                lead.stored(Some(shown));
            }
        } else if !copying.is_held() {
            self.refuse_followers(Duration::ZERO);
        }
        result
    }

    /// Lets those go that wait for this request.
    fn refuse_followers(&mut self, alone: Duration) {
        if let Some(lead) = self.lead.take() {
            lead.refused(alone);
        }
    }

    /// How long Envoy is asked to wait, where it has not been asked yet.
    fn extension(&mut self) -> Option<Duration> {
        if self.waiting.is_some() {
            return None;
        }
        self.waiting = Some(Stopwatch::start());
        self.shared.patience.extension
    }

    fn reply(
        &mut self,
        reply: Reply,
        session: Session,
        body: Option<BodyStream>,
        phase: Phase,
    ) -> Answer {
        let is_done = session.is_done();
        let report = session.report();
        match (&reply, report) {
            (Reply::Pass(passed), _) => self.refuse_followers(passed.alone),
            // It is as stale for the others.
            (Reply::Hit(_), Report::Stale) => self.refuse_followers(Duration::ZERO),
            (Reply::Hit(_), _) => {
                if let Some(lead) = self.lead.take() {
                    lead.stored(None);
                }
            }
            (Reply::Bypass | Reply::Forward(_) | Reply::Mirror(_) | Reply::Continue, _) => {}
        }
        self.state = if is_done {
            State::Over
        } else {
            State::Open(Box::new(session))
        };
        let answer = match reply {
            Reply::Bypass => self.with_outcome(wire::bypass(), report),
            Reply::Forward(changes) => {
                self.asked = self.shared.fills.marks.now();
                if let Some(Followed::Stored(_)) = self.followed {
                    // It was not for this request.
                    self.followed = None;
                }
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
    fn hit(&mut self, hit: Hit, body: Option<BodyStream>, phase: Phase) -> Answer {
        self.state = State::Ended;
        self.log.status = Some(hit.status.as_u16());
        let is_whole =
            |length| length <= self.shared.immediate_bytes || phase == Phase::ResponseHeaders;
        let (source, length) = match (&hit.body, body) {
            (HitBody::Nothing, _) => return wire::immediate(&hit, Vec::new()),
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
                    return wire::immediate(&hit, chunks.clone());
                }
                let source = stream::iter(chunks.clone().into_iter().map(Ok)).boxed();
                (Pieces::proved(source), length)
            }
            (
                HitBody::Streamed {
                    first,
                    length,
                    proof,
                },
                Some(body),
            ) => {
                let length = *length;
                self.shared.metrics.served(length);
                let pieces = Pieces::part(body, *first, length, *proof);
                if phase == Phase::RequestHeaders
                    && let Some(objects) = &self.shared.objects
                    && length > objects.above_bytes
                    && let Some(key) = self.log.key.clone()
                {
                    let room = self.log.room.take();
                    let offer = Offer {
                        hit,
                        length,
                        pieces,
                        key,
                        room,
                    };
                    return self.hand_over(objects.offer(offer));
                }
                (pieces, length)
            }
            (HitBody::Streamed { .. }, None) => {
                unreachable!("a lookup that says streamed brings the stream")
            }
        };
        self.state = State::Sending(Box::new(Sending::new(source)));
        wire::streamed_head(&hit, length, false)
    }

    /// Lets Envoy fetch a hit.
    fn hand_over(&self, ticket: io::Result<HeaderValue>) -> Answer {
        match ticket {
            Ok(ticket) => wire::hand_over(&large_hits::TICKET, &ticket),
            Err(error) => {
                warn!(%error, "large hit cannot be handed over, request is sent on");
                wire::bypass()
            }
        }
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
    fn leave_out(&mut self, reason: BypassReason) -> Answer {
        self.log.report = Report::Bypass(reason);
        self.log.answered();
        self.log.end();
        self.with_outcome(wire::bypass(), Report::Bypass(reason))
    }

    /// Sends on what does not fit: the client must not suffer from it.
    fn unexpected(&self, phase: Phase) -> Answer {
        self.shared.metrics.unexpected_message();
        wire::pass(phase)
    }

    /// Gets what this request will not, with one of our own, where others wait for it or the policy
    /// wants it. Otherwise one of those that wait takes its place if it `left`, or all are let go.
    fn complete(&mut self, session: &Session, left: bool) {
        let Some(lead) = self.lead.take() else {
            return;
        };
        let is_followed = lead.is_followed();
        let now = self.shared.clock.now();
        let wanted = left || is_followed;
        let completion = wanted.then(|| session.completion(is_followed, now));
        if let Some(refresh) = completion.flatten() {
            let part = upstream::Part::Leads(lead);
            drop(self.shared.fetcher.start(refresh, part));
        } else if !left {
            lead.refused(Duration::ZERO);
        }
    }

    fn lose_copy(&mut self, reason: AbortReason) {
        if let Some(copying) = &mut self.copying {
            copying.abort(reason);
        }
        let State::Open(session) = std::mem::replace(&mut self.state, State::Over) else {
            return;
        };
        self.complete(&session, false);
        if let Ok((session, _)) = session.handle(Event::CopyLost(reason), self.shared.clock.now()) {
            self.log.report = session.report();
            self.state = State::Open(Box::new(session));
        }
    }

    fn with_outcome(&self, answer: Answer, report: Report) -> Answer {
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
        // Its room may be needed for what comes in its place.
        self.copying = None;
        if let State::Open(session) = std::mem::replace(&mut self.state, State::Ended) {
            self.complete(&session, true);
        }
        self.log.end();
        self.log.write();
    }
}
