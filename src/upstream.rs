//! Requests of our own to upstreams: they refresh an entry without a client waiting for it, or
//! before one is answered.
//!
//! A [`Fetcher`] asks what the proxy would ask, and gives the answer to a [`Session`], which decides
//! about it as about any other. At most so many run at a time as the configuration says; there is no
//! queue. It follows no redirects, and goes nowhere but to the upstreams of policies. Each request
//! carries a mark of this process, so that one that comes back through the proxy is left alone.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyDataStream, BodyExt, Empty};
use hyper::body::Incoming;
use sha2::Sha256;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tracing::debug;

use crate::cache::collapse::Lead;
use crate::cache::fill::{Copying, Fills};
use crate::cache::invalidations::Moment;
use crate::cache::refreshes::Claim;
use crate::clock::{Clock, Timestamp};
use crate::policy::{Fetch, Provenance, RequestHead, ResponseHead};
use crate::session::{
    AbortReason, Copied, CopyStep, Effect, Event, Fetched, Refresh, Report, Session,
};
use crate::transport::{self, Client, Endpoint};

/// Marks our own requests: seconds since the epoch, a dot, and a MAC over them and the path.
const MARK: HeaderName = HeaderName::from_static("afterimage-fetch");

/// How long a mark is believed. Longer than a request is on its way, shorter than it takes to find
/// a use for somebody else's.
const MARK_SECONDS: u64 = 60;

/// For a connection to an upstream.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes requests; clones share everything.
#[derive(Clone)]
pub struct Fetcher {
    clients: Arc<HashMap<Endpoint, Client<Empty<Bytes>>>>,
    fills: Fills,
    clock: Clock,
    slots: Arc<Semaphore>,
    marker: Marker,
}

/// The part of a request among those for the same entry.
#[derive(Debug)]
pub enum Part {
    /// It refreshes what others are served meanwhile.
    Refreshes(Claim),
    /// Others wait for it.
    Leads(Lead),
}

/// A request that is under way, in a task of its own: dropping this does not end it.
#[derive(Debug)]
pub struct Fetching(JoinHandle<Fetched>);

impl Fetching {
    /// How it ended; [`Fetched::Nothing`] when it has not within `patience`.
    pub async fn end(self, patience: Duration) -> Fetched {
        match tokio::time::timeout(patience, self.0).await {
            Ok(Ok(fetched)) => fetched,
            // It takes too long, or the runtime is going down.
            Ok(Err(_)) | Err(_) => Fetched::Nothing,
        }
    }
}

impl Fetcher {
    /// Makes at most `most` requests at a time, to these upstreams.
    ///
    /// # Errors
    /// Those of reading the system's root certificates, where an upstream is `https`; those of the
    /// system's source of randomness.
    pub fn new(
        upstreams: impl IntoIterator<Item = Endpoint>,
        most: usize,
        fills: Fills,
        clock: Clock,
    ) -> io::Result<Self> {
        let clients = upstreams
            .into_iter()
            .map(|endpoint| {
                let client = transport::client(&endpoint, CONNECT_TIMEOUT)?;
                Ok((endpoint, client))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            clients: Arc::new(clients),
            fills,
            clock,
            slots: Arc::new(Semaphore::new(most)),
            marker: Marker::new()?,
        })
    }

    /// Whether `request` is one of ours.
    pub fn is_own(&self, request: &RequestHead) -> bool {
        request
            .headers
            .get(MARK)
            .is_some_and(|mark| self.marker.made(mark, &request.path, self.clock.now()))
    }

    /// Starts a request; `None` when as many as may are under way. Its part among the requests for the
    /// entry lasts as long as it does.
    pub fn start(&self, refresh: Refresh, part: Part) -> Option<Fetching> {
        let metrics = &self.fills.metrics;
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            metrics.fetched(Fetched::Nothing);
            return None;
        };
        let fetcher = self.clone();
        Some(Fetching(self.fills.tasks.spawn(async move {
            let name = refresh.key.object_name();
            let (claim, lead) = match part {
                Part::Refreshes(claim) => (Some(claim), None),
                Part::Leads(lead) => (None, Some(lead)),
            };
            let run = fetcher.run(refresh, lead);
            let fetched = tokio::time::timeout(fetcher.fills.pace.deadline, run)
                .await
                .unwrap_or(Fetched::Nothing);
            fetcher.fills.metrics.fetched(fetched);
            debug!(key = name, result = fetched.as_str(), "fetched");
            drop((claim, slot));
            fetched
        })))
    }

    async fn run(&self, refresh: Refresh, lead: Option<Lead>) -> Fetched {
        let Refresh { fetch, session, .. } = refresh;
        let mut run = Run {
            asked: self.fills.marks.now(),
            copying: None,
            lead,
        };
        let (head, body) = match self.ask(fetch).await {
            Ok(response) => read(response),
            Err(error) => {
                debug!(error = %error, "upstream does not answer");
                (failure(), None)
            }
        };
        let status = head.status;
        let Some(mut session) = self.handle(session, Event::Response(head), &mut run).await else {
            return Fetched::Nothing;
        };
        let mut body = body;
        while let Session::Filling(_) = session {
            let event = match &mut body {
                None => break,
                Some(body) => match body.next().await {
                    // The body is cut: the copy goes, too.
                    Some(Err(_)) => break,
                    Some(Ok(bytes)) => Event::Body {
                        bytes,
                        is_end: false,
                    },
                    None => Event::Body {
                        bytes: Bytes::new(),
                        is_end: true,
                    },
                },
            };
            match self.handle(session, event, &mut run).await {
                Some(next) => session = next,
                None => return Fetched::Nothing,
            }
        }
        run.lead_ends();
        if let Some(copying) = run.copying.take() {
            copying.committed().await;
        }
        fetched(session.report(), status)
    }

    async fn ask(&self, fetch: Fetch) -> Result<Response<Incoming>, Box<dyn std::error::Error>> {
        let client = self
            .clients
            .get(&fetch.endpoint)
            .ok_or("upstream was not configured")?;
        let uri = Uri::builder()
            .scheme(fetch.endpoint.scheme())
            .authority(fetch.endpoint.authority())
            .path_and_query(fetch.path.as_ref())
            .build()?;
        let mut request = Request::get(uri).body(Empty::new())?;
        *request.headers_mut() = fetch.headers;
        let mark = self.marker.mark(&fetch.path, self.clock.now());
        request.headers_mut().insert(MARK, mark);
        Ok(client.request(request).await?)
    }

    /// Gives an event to the session, and does what it says; `None` when the event does not fit.
    async fn handle(
        &self,
        mut session: Session,
        mut event: Event,
        run: &mut Run,
    ) -> Option<Session> {
        loop {
            let (next, effect) = session.handle(event, self.clock.now()).ok()?;
            session = next;
            let lost = match effect {
                Effect::Begin(plan) => match Copying::begin(&self.fills, *plan, run.asked) {
                    Ok(copying) => {
                        run.copying = Some(copying);
                        event = Event::CopyBegun;
                        continue;
                    }
                    Err(reason) => Some(reason),
                },
                Effect::Copy(step) => run.copy(&self.fills, step),
                Effect::Finish(_) => run.copy(&self.fills, CopyStep::Finish(Bytes::new())),
                Effect::Freshen(freshened, _) => {
                    self.fills.freshen(*freshened, run.asked).await;
                    None
                }
                Effect::Forget(key, _) => {
                    self.fills.forget(&key).await;
                    None
                }
                // There is nobody to reply to, and nothing to look up.
                Effect::Reply(_)
                | Effect::Nothing
                | Effect::LookUp { .. }
                | Effect::Join(_)
                | Effect::Follow
                | Effect::ClaimRefresh(_)
                | Effect::Refresh(..)
                | Effect::Invalidate(..)
                | Effect::Fetch(_) => None,
            };
            match lost {
                Some(reason) if !session.is_done() => event = Event::CopyLost(reason),
                _ => return Some(session),
            }
        }
    }
}

/// What one request has so far.
struct Run {
    /// When it was made.
    asked: Moment,
    copying: Option<Copying>,
    /// Others wait for this one.
    lead: Option<Lead>,
}

impl Run {
    fn copy(&mut self, fills: &Fills, step: CopyStep) -> Option<AbortReason> {
        self.copying.as_mut()?.step(fills, step).err()
    }

    /// Lets those go who wait for this request, which has all of its response, or will not have it.
    fn lead_ends(&mut self) {
        let shown = self.copying.as_ref().and_then(Copying::shown);
        match (self.lead.take(), shown) {
            (None, _) => {}
            (Some(lead), Some(shown)) => lead.stored(Some(shown)),
            (Some(lead), None) => lead.refused(Duration::ZERO),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.lead_ends();
    }
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher")
            .field("upstreams", &self.clients.keys())
            .finish_non_exhaustive()
    }
}

/// What the end of the session means for the entry.
fn fetched(report: Report, status: StatusCode) -> Fetched {
    match report {
        Report::Revalidated => Fetched::Freshened,
        Report::Miss {
            copy: Copied::Whole,
            ..
        } => Fetched::Stored,
        Report::Stale => Fetched::Failed(status),
        Report::Hit
        | Report::Collapsed
        | Report::Bypass(_)
        | Report::Method { .. }
        | Report::Left
        | Report::Miss { .. } => Fetched::NotStored,
    }
}

fn read(response: Response<Incoming>) -> (ResponseHead, Option<BodyDataStream<Incoming>>) {
    let (parts, body) = response.into_parts();
    let has_body = !hyper::body::Body::is_end_stream(&body);
    let head = ResponseHead {
        status: parts.status,
        headers: parts.headers,
        has_body,
        provenance: Provenance::Upstream,
    };
    (head, has_body.then(|| body.into_data_stream()))
}

/// What a proxy would make of an upstream that does not answer.
fn failure() -> ResponseHead {
    ResponseHead {
        status: StatusCode::SERVICE_UNAVAILABLE,
        headers: HeaderMap::new(),
        has_body: false,
        provenance: Provenance::Local,
    }
}

/// Makes and knows the marks of this process.
#[derive(Clone)]
struct Marker(Hmac<Sha256>);

impl Marker {
    fn new() -> io::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        Ok(Self(Hmac::new_from_slice(&key).map_err(io::Error::other)?))
    }

    fn mark(&self, path: &[u8], now: Timestamp) -> HeaderValue {
        let code = self.code(path, now.as_unix()).finalize().into_bytes();
        let mark = format!("{}.{}", now.as_unix(), HEXLOWER.encode(&code));
        HeaderValue::try_from(mark).expect("digits, a dot and hexadecimal digits are visible ASCII")
    }

    fn made(&self, mark: &HeaderValue, path: &[u8], now: Timestamp) -> bool {
        let Some((time, code)) = mark.to_str().ok().and_then(|mark| mark.split_once('.')) else {
            return false;
        };
        let (Ok(time), Ok(code)) = (time.parse(), HEXLOWER.decode(code.as_bytes())) else {
            return false;
        };
        now.seconds_since(Timestamp::from_unix(time)) <= MARK_SECONDS
            && self.code(path, time).verify_slice(&code).is_ok()
    }

    fn code(&self, path: &[u8], time: u64) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(&time.to_be_bytes());
        mac.update(path);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

    #[test]
    fn a_mark_is_known_by_whoever_made_it_for_this_path_and_for_a_while() {
        let marker = Marker::new().unwrap();
        let mark = marker.mark(b"/a", NOW);
        assert!(marker.made(&mark, b"/a", NOW.plus_seconds(MARK_SECONDS)));
        assert!(!marker.made(&mark, b"/b", NOW));
        assert!(!marker.made(&mark, b"/a", NOW.plus_seconds(MARK_SECONDS + 1)));
        assert!(!Marker::new().unwrap().made(&mark, b"/a", NOW));
    }

    #[test]
    fn what_is_no_mark_is_nobody_s() {
        let marker = Marker::new().unwrap();
        for text in ["", ".", "1800000000.", "1800000000.00", "x.y", "1800000000"] {
            let mark = HeaderValue::from_static(text);
            assert!(!marker.made(&mark, b"/a", NOW), "{text}");
        }
    }
}
