//! Requests of our own: they refresh an entry without a client waiting for it, or before one is answered, and
//! complete what others wait for.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyDataStream, BodyExt as _};
use hyper::body::Incoming;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tracing::debug;

use super::part::Part;
use super::{Core, Exchange, Next};
use crate::cache::ResponseCopy;
use crate::policy::{Fetch, Provenance, ResponseHead};
use crate::session::{AbortReason, Copied, FetchOutcome, Refresh, Report, Staleness, Verdict};
use crate::telemetry::metrics::ResultLabel;

/// A request that is under way, in a task of its own: dropping this does not end it.
#[derive(Debug)]
pub(super) struct FetchHandle(JoinHandle<FetchOutcome>);

impl FetchHandle {
    /// How it ended; [`FetchOutcome::Nothing`] when it has not within `patience`.
    pub(super) async fn end(self, patience: Duration) -> FetchOutcome {
        match tokio::time::timeout(patience, self.0).await {
            Ok(Ok(outcome)) => outcome,
            // It takes too long, or the runtime is going down.
            Ok(Err(_)) | Err(_) => FetchOutcome::Nothing,
        }
    }
}

/// Starts a request; `None` when as many as may are under way. Its part among the requests for the
/// entry lasts as long as it does.
pub(super) fn start(core: &Arc<Core>, refresh: Refresh, part: Part) -> Option<FetchHandle> {
    let Some(place) = core.upstreams.place() else {
        count(core, FetchOutcome::Nothing);
        return None;
    };
    let core = Arc::clone(core);
    let tasks = core.cache.tasks().clone();
    Some(FetchHandle(tasks.spawn(async move {
        let name = refresh.key.object_name();
        let deadline = core.cache.limits().fill_deadline;
        let outcome = tokio::time::timeout(deadline, carry_out(&core, refresh, part))
            .await
            .unwrap_or(FetchOutcome::Nothing);
        count(&core, outcome);
        debug!(key = name, result = outcome.as_str(), "fetched");
        drop(place);
        outcome
    })))
}

fn count(core: &Core, outcome: FetchOutcome) {
    let result = outcome.as_str();
    let fetches = &core.metrics.fetches;
    fetches.get_or_create(&ResultLabel { result }).inc();
}

async fn carry_out(core: &Arc<Core>, refresh: Refresh, part: Part) -> FetchOutcome {
    let Refresh {
        key,
        fetch,
        session,
    } = refresh;
    let mut own = Own(Exchange::with_session(Arc::clone(core), session, part));
    let exchange = &mut own.0;
    exchange.key = Some(key);
    let (head, body) = ask(core, fetch).await;
    let status = head.status;
    if let (Next::Mirror(_), Some(mut body)) = (exchange.response(head), body) {
        while exchange.copy.is_open() {
            match body.next().await {
                Some(Ok(bytes)) => exchange.body(bytes, false),
                None => exchange.body(bytes::Bytes::new(), true),
                // The body is cut: the copy goes, too.
                Some(Err(_)) => exchange.expire(AbortReason::Cut),
            }
        }
    }
    own.outcome(status).await
}

async fn ask(core: &Core, fetch: Fetch) -> (ResponseHead, Option<BodyDataStream<Incoming>>) {
    match core.upstreams.ask(fetch, core.clock.now()).await {
        Ok(response) => read(response),
        Err(error) => {
            debug!(%error, "upstream does not answer");
            (failure(), None)
        }
    }
}

/// The exchange of a request of our own. When it ends early nobody completes it again, and nobody goes on waiting.
struct Own(Exchange);

impl Drop for Own {
    fn drop(&mut self) {
        self.0.part.end(Verdict::NOTHING, None);
    }
}

impl Own {
    /// What it means for the entry, once everything that it has begun is over.
    async fn outcome(mut self, status: StatusCode) -> FetchOutcome {
        let exchange = &mut self.0;
        let report = exchange.report();
        let copy = std::mem::replace(&mut exchange.copy, ResponseCopy::None);
        let change = exchange.change.take();
        match report {
            Report::Revalidated => {
                let is_fresh = match change {
                    // It only fails when the runtime is going down.
                    Some(change) => change.await.unwrap_or(false),
                    None => false,
                };
                if is_fresh {
                    FetchOutcome::Freshened
                } else {
                    FetchOutcome::NotStored
                }
            }
            Report::Miss {
                copy: Copied::Whole,
                ..
            } => {
                if copy.committed().await {
                    FetchOutcome::Stored
                } else {
                    FetchOutcome::NotStored
                }
            }
            Report::Stale(Staleness::IfError(_)) => FetchOutcome::Failed(status),
            Report::Stale(Staleness::WhileRevalidate { .. })
            | Report::Hit { .. }
            | Report::Collapsed
            | Report::Bypass(_)
            | Report::Method { .. }
            | Report::Left
            | Report::Miss { .. } => FetchOutcome::NotStored,
        }
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
