//! One request carried out: what its session decides is done here, and nowhere else.
//!
//! An [`Exchange`] takes what HTTP does to one request, a client's or one of our own, asks its
//! [`Session`] about it and carries out the effects: lookups, waiting, the copy, what others learn. It knows no
//! protocol of a proxy. Whoever holds it tells it of heads and bytes, and does what it says:
//!
//! ```text
//!  request ──► Turn::Wait ──► (await) ──► resume ──► ... ──► Turn::Go(Next)
//!  response ──► Next::Pass or Next::Mirror ──► body, body, ...
//! ```
//!
//! It is synchronous: a hit from memory is [`Turn::Go`] at once. What takes time is in a [`Wait`], which may be
//! awaited anywhere. Dropping an exchange is how its client leaves.

mod core;
mod delivery;
mod log;
mod own;
mod part;
mod turn;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tracing::warn;

pub use self::core::Core;
pub use self::delivery::{Delivery, DeliveryBody};
pub use self::log::Log;
use self::part::Part;
use self::turn::Waited;
pub use self::turn::{Done, Next, Turn, Wait};
use crate::cache::{
    Follow, Followed, FoundStream, InvalidationSeq, Joined, LookupResult, Published, ResponseCopy,
    VerifiedBody,
};
use crate::clock::Stopwatch;
use crate::entry::Key;
use crate::policy::{LookupMethod, Policy, RequestHead, ResponseHead};
use crate::session::{
    AbortReason, CollapseRole, CopyStep, Effect, Event, FetchOutcome, FillPlan, Freshened, Hit,
    HitBody, Refresh, Reply, Report, Session, Verdict,
};
use crate::telemetry::metrics::{GaugeGuard, ResultLabel};

/// One request.
#[derive(Debug)]
pub struct Exchange {
    core: Arc<Core>,
    session: Session,
    part: Part,
    copy: ResponseCopy,
    /// When the request was sent on; before that, when it came.
    asked: InvalidationSeq,
    /// What was looked up last.
    key: Option<Key>,
    /// When the last lookup began.
    looked_up: Stopwatch,
    /// What all lookups took together.
    lookup_time: Duration,
    /// Since when the request waits for others.
    waiting: Option<Stopwatch>,
    /// What others learned of it last.
    told: Option<Verdict>,
    /// Gives the entry its new record, or removes it.
    change: Option<JoinHandle<bool>>,
}

impl Exchange {
    /// A client's request of a route with this policy.
    pub fn new(core: Arc<Core>, policy: Arc<Policy>) -> Self {
        let session = Session::new(policy, core.cache.largest_bytes());
        Self::with_session(core, session, Part::Alone)
    }

    fn with_session(core: Arc<Core>, session: Session, part: Part) -> Self {
        Self {
            asked: core.cache.now(),
            core,
            session,
            part,
            copy: ResponseCopy::None,
            key: None,
            looked_up: Stopwatch::start(),
            lookup_time: Duration::ZERO,
            waiting: None,
            told: None,
            change: None,
        }
    }

    /// The request's head came.
    pub fn request(&mut self, head: RequestHead) -> Turn {
        self.run(Event::Request(head), None)
    }

    /// What was waited for is over.
    pub fn resume(&mut self, done: Done) -> Turn {
        match done.0 {
            Waited::LookedUp(LookupResult { answer, stream }, took) => {
                self.lookup_time += took;
                self.run(Event::LookedUp(answer), stream)
            }
            Waited::Followed(followed) => {
                let result = followed.as_str();
                let followers = &self.core.metrics.followers;
                followers.get_or_create(&ResultLabel { result }).inc();
                let again = matches!(followed, Followed::Stored(_));
                self.part = match followed {
                    Followed::Lead(lead) => Part::Leads(lead),
                    other => Part::HasFollowed(other),
                };
                self.run(Event::Followed { again }, None)
            }
            Waited::Fetched(outcome) => self.run(Event::Fetched(outcome), None),
        }
    }

    /// The response's head came.
    pub fn response(&mut self, head: ResponseHead) -> Next {
        match self.run(Event::Response(head), None) {
            Turn::Go(next) => next,
            // A request that was sent on waits for nothing but its response.
            Turn::Wait(_) => Next::AsItCame,
        }
    }

    /// The next bytes of a body that is wanted came. They are to be sent on in any case.
    pub fn body(&mut self, bytes: Bytes, is_end: bool) {
        self.run(Event::Body { bytes, is_end }, None);
    }

    /// The response ended with trailer fields, which are to be sent on in any case.
    pub fn trailers(&mut self) {
        self.run(Event::Trailers, None);
    }

    /// How long the copy may go on with what has come of the body, and what it is then; `None` without a copy.
    pub fn time_left(&self) -> Option<(Duration, AbortReason)> {
        self.copy.time_left()
    }

    /// That time is over.
    pub fn expire(&mut self, reason: AbortReason) {
        self.copy.abort(reason);
        let is_followed = self.part.is_followed();
        let event = Event::Expired {
            reason,
            is_followed,
        };
        self.run(event, None);
    }

    /// How it stands, or ended.
    pub fn report(&self) -> Report {
        self.session.report()
    }

    /// Whether it is over, but for the bytes of a delivery.
    pub fn is_over(&self) -> bool {
        self.session.is_done()
    }

    /// What was looked up last.
    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// What all its lookups took.
    pub fn lookup_time(&self) -> Duration {
        self.lookup_time
    }

    /// Gives an event to the session, and does what it says until there is something to say or to wait for.
    /// `found` is the body of the entry that the event tells of, where that is still in the store.
    fn run(&mut self, event: Event, mut found: Option<FoundStream>) -> Turn {
        let mut event = event;
        loop {
            let now = self.core.clock.now();
            let effect = match self.session.advance(event, now) {
                Ok(effect) => effect,
                Err(error) => {
                    warn!(%error, "request is out of order");
                    return Turn::Go(Next::AsItCame);
                }
            };
            event = match effect {
                Effect::LookUp { key, method } => {
                    found = None;
                    match self.look_up(key, method) {
                        Ok(found) => Event::LookedUp(found.answer),
                        Err(wait) => return Turn::Wait(wait),
                    }
                }
                Effect::Join(key) => Event::Joined(self.join(&key)),
                Effect::Follow => {
                    // What is stored is not going to be read.
                    found = None;
                    match self.part.take() {
                        Part::Follows(follow) => return Turn::Wait(self.follow(follow)),
                        other => {
                            self.part = other;
                            Event::Followed { again: false }
                        }
                    }
                }
                Effect::ClaimRefresh(key) => match self.core.cache.refreshes().claim(&key) {
                    Some(claim) => {
                        self.part = Part::Refreshes { _claim: claim };
                        Event::RefreshClaimed
                    }
                    None => Event::RefreshTaken,
                },
                Effect::Fetch(refresh) => {
                    found = None;
                    match self.fetch(*refresh) {
                        Some(wait) => return Turn::Wait(wait),
                        None => Event::Fetched(FetchOutcome::Nothing),
                    }
                }
                Effect::Begin(plan) => self.begin(*plan),
                Effect::Copy(step) => match self.step(step) {
                    Some(event) => event,
                    None => return self.pass(),
                },
                Effect::Complete(refresh) => {
                    let part = self.part.take();
                    drop(own::start(&self.core, *refresh, part));
                    return self.pass();
                }
                Effect::Refresh(refresh, reply) => {
                    let part = self.part.take();
                    drop(own::start(&self.core, *refresh, part));
                    return self.reply(reply, found);
                }
                Effect::Freshen(freshened, reply) => {
                    let published = self.freshen(*freshened);
                    self.tell(published);
                    return self.reply(reply, found);
                }
                Effect::Forget(key, reply) => {
                    let cache = self.core.cache.clone();
                    let forget = async move {
                        cache.forget(&key).await;
                        false
                    };
                    self.change = Some(self.core.cache.tasks().spawn(forget));
                    return self.reply(reply, found);
                }
                Effect::Invalidate(sources, reply) => {
                    self.core.cache.invalidate(sources);
                    return self.reply(reply, found);
                }
                Effect::Reply(reply) => return self.reply(reply, found),
                Effect::Nothing => return self.pass(),
            };
        }
    }

    /// Ends a run that has nothing to say.
    fn pass(&mut self) -> Turn {
        self.tell(self.copy.published());
        Turn::Go(Next::AsItCame)
    }

    /// Tells those that wait, and the table of hit-for-miss, what the session knows by now.
    fn tell(&mut self, published: Option<Arc<Published>>) {
        let verdict = self.session.verdict();
        let Some(verdict) = verdict.filter(|_| self.told != verdict) else {
            return;
        };
        self.told = Some(verdict);
        if self.part.is_lead() {
            self.part.end(verdict, published);
        } else if let (Report::Miss { .. }, Some(key)) = (self.report(), &self.key) {
            self.core.cache.groups().learn(key, verdict);
        }
    }

    /// Looks up in memory, or else in what has to be waited for.
    fn look_up(&mut self, key: Key, method: LookupMethod) -> Result<LookupResult, Wait> {
        self.looked_up = Stopwatch::start();
        self.key = Some(key.clone());
        if let Some(found) = self.core.cache.remembered(&key) {
            self.lookup_time += self.looked_up.elapsed();
            return Ok(found);
        }
        let (cache, spent) = (self.core.cache.clone(), self.lookup_time);
        Err(Wait::new(false, async move {
            let begin = Stopwatch::start();
            let result = cache.look_up(&key, method, spent).await;
            Waited::LookedUp(result, begin.elapsed())
        }))
    }

    fn join(&mut self, key: &Key) -> CollapseRole {
        match self.core.cache.groups().join(key, self.looked_up) {
            Joined::Lead(lead) => {
                self.part = Part::Leads(lead);
                CollapseRole::SentOn
            }
            Joined::Follow(follow) => {
                self.part = Part::Follows(follow);
                CollapseRole::Follows
            }
            Joined::HitForMiss => CollapseRole::SentOn,
        }
    }

    fn follow(&mut self, follow: Follow) -> Wait {
        let following = GaugeGuard::of(&self.core.metrics.following);
        let patience = self.patience();
        Wait::new(true, async move {
            let followed = follow.end(patience).await;
            drop(following);
            Waited::Followed(followed)
        })
    }

    /// Asks the upstream with a request of our own; `None` where that cannot be done now.
    fn fetch(&mut self, refresh: Refresh) -> Option<Wait> {
        let claim = self.core.cache.refreshes().claim(&refresh.key)?;
        let fetch = own::start(&self.core, refresh, Part::Refreshes { _claim: claim })?;
        let patience = self.patience();
        Some(Wait::new(true, async move {
            Waited::Fetched(fetch.end(patience).await)
        }))
    }

    /// What is left of the time that the request may wait for others.
    fn patience(&mut self) -> Duration {
        let waiting = self.waiting.get_or_insert_with(Stopwatch::start);
        self.core.patience.saturating_sub(waiting.elapsed())
    }

    fn begin(&mut self, plan: FillPlan) -> Event {
        match self.core.cache.begin(plan, self.asked) {
            Ok(copy) => {
                self.copy = copy;
                let is_held = self.copy.is_held();
                Event::CopyBegun { is_held }
            }
            Err(reason) => Event::CopyLost(reason),
        }
    }

    /// Does a step of the copy; `None` when the session need not know.
    fn step(&mut self, step: CopyStep) -> Option<Event> {
        let (is_last, is_abort) = match &step {
            CopyStep::Append(_) => (false, false),
            CopyStep::Finish(_) => (true, false),
            CopyStep::Abort(_) => (false, true),
        };
        let was_held = self.copy.is_held();
        match self.copy.step(step) {
            Err(reason) => Some(Event::CopyLost(reason)),
            Ok(()) if is_last => Some(Event::CopyFinished),
            Ok(()) if is_abort => None,
            Ok(()) => (was_held && !self.copy.is_held()).then_some(Event::CopyPassesOn),
        }
    }

    /// Gives an entry its new record in the background, and shows it meanwhile where its body is held.
    fn freshen(&mut self, freshened: Freshened) -> Option<Arc<Published>> {
        let (cache, asked) = (self.core.cache.clone(), self.asked);
        let published = cache.publish_freshened(&freshened, asked);
        let shown = published.clone();
        let freshen = async move {
            let is_fresh = cache.freshen(freshened, asked).await;
            drop(shown);
            is_fresh
        };
        self.change = Some(self.core.cache.tasks().spawn(freshen));
        published
    }

    fn reply(&mut self, reply: Reply, found: Option<FoundStream>) -> Turn {
        self.tell(self.copy.published());
        Turn::Go(match reply {
            Reply::Bypass => Next::Bypass,
            Reply::Forward(changes) => {
                self.asked = self.core.cache.now();
                if let Part::HasFollowed(Followed::Stored(_)) = self.part {
                    // It was not for this request.
                    self.part = Part::Alone;
                }
                Next::Forward(changes)
            }
            Reply::Pass(passed) => Next::Pass(passed),
            Reply::Mirror(passed) => Next::Mirror(passed),
            Reply::Hit(hit) => Next::Deliver(self.delivery(*hit, found)),
        })
    }

    fn delivery(&self, hit: Hit, found: Option<FoundStream>) -> Delivery {
        let body = match (hit.body, found) {
            (HitBody::Nothing, _) => DeliveryBody::Nothing,
            (HitBody::Length(length), _) => DeliveryBody::Length(length),
            (HitBody::Held(chunks), _) => {
                let length = chunks.iter().map(|chunk| chunk.len() as u64).sum();
                self.core.metrics.served_bytes.inc_by(length);
                DeliveryBody::Held { chunks, length }
            }
            (
                HitBody::Streamed {
                    first,
                    length,
                    proof,
                },
                Some(found),
            ) => {
                self.core.metrics.served_bytes.inc_by(length);
                let key = self.key.clone();
                let key = key.expect("what is streamed was looked up");
                let cache = self.core.cache.clone();
                let body = VerifiedBody::part(cache, key, found, first, length, proof);
                let body = Box::new(body);
                DeliveryBody::Streamed { body, length }
            }
            (HitBody::Streamed { .. }, None) => {
                unreachable!("a lookup that says streamed brings the stream")
            }
        };
        Delivery {
            status: hit.status,
            headers: hit.headers,
            body,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.is_over() {
            return;
        }
        // Its room may be needed for what comes in its place.
        self.copy = ResponseCopy::None;
        if self.part.is_lead() {
            let is_followed = self.part.is_followed();
            self.run(Event::ClientLeft { is_followed }, None);
        }
    }
}
