//! Large hits, fetched by the proxy from an HTTP listener of ours.
//!
//! A message of the proxy's protocol has no flow control but that of its stream, and the proxy buffers
//! what a slow client does not take. So a large hit is not sent to it: the request gets a header with a
//! ticket, and goes on to [`router`] by a route that matches that header. There the answer is an
//! ordinary response, as slow as the client. A ticket is a number of 128 random bits, good for one
//! answer and for a short while: nobody but whoever was told it can ask for anything.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use data_encoding::HEXLOWER;
use futures_util::stream;
use http::HeaderValue;
use http::header::CONTENT_LENGTH;

use crate::cache::VerifiedBody;
use crate::config::TICKET;

/// How long a ticket is good. The proxy asks at once.
const LASTS: Duration = Duration::from_secs(30);

/// Answers that wait to be fetched; clones share them.
#[derive(Debug, Clone)]
pub struct LargeHits {
    /// Hits above this many bytes are handed over.
    pub above_bytes: u64,
    offered: Offered,
}

type Offered = Arc<Mutex<HashMap<[u8; 16], Offer>>>;

/// One answer.
#[derive(Debug)]
pub struct Offer {
    /// Its status.
    pub status: StatusCode,
    /// Its fields, without `content-length`.
    pub headers: HeaderMap,
    /// Bytes of its body.
    pub length: u64,
    /// Its body.
    pub body: Box<VerifiedBody>,
}

impl LargeHits {
    /// Hits above so many bytes are handed over.
    pub fn new(above_bytes: u64) -> Self {
        Self {
            above_bytes,
            offered: Arc::default(),
        }
    }

    /// Keeps an answer until it is fetched with this ticket, or not in time.
    ///
    /// # Errors
    /// Those of the system's source of randomness.
    pub fn offer(&self, offer: Offer) -> io::Result<HeaderValue> {
        let mut number = [0; 16];
        getrandom::fill(&mut number).map_err(io::Error::other)?;
        lock(&self.offered).insert(number, offer);
        let offered = Arc::downgrade(&self.offered);
        tokio::spawn(async move {
            tokio::time::sleep(LASTS).await;
            if let Some(offered) = offered.upgrade() {
                lock(&offered).remove(&number);
            }
        });
        let ticket = HEXLOWER.encode(&number);
        Ok(HeaderValue::try_from(ticket).expect("hexadecimal digits are visible ASCII"))
    }

    fn redeem(&self, headers: &HeaderMap) -> Option<Offer> {
        let mut tickets = headers.get_all(TICKET).iter();
        let (Some(ticket), None) = (tickets.next(), tickets.next()) else {
            return None;
        };
        let number = HEXLOWER.decode(ticket.as_bytes()).ok()?;
        lock(&self.offered).remove(&<[u8; 16]>::try_from(number).ok()?)
    }
}

fn lock(offered: &Offered) -> MutexGuard<'_, HashMap<[u8; 16], Offer>> {
    offered.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers requests with a ticket, whatever their method and path; 403 without.
pub fn router(large_hits: LargeHits) -> Router {
    Router::new().fallback(fetch).with_state(large_hits)
}

async fn fetch(State(large_hits): State<LargeHits>, headers: HeaderMap) -> Response {
    let Some(offer) = large_hits.redeem(&headers) else {
        let mut refused = Response::new(Body::from("no such object\n"));
        *refused.status_mut() = StatusCode::FORBIDDEN;
        return refused;
    };
    let Offer {
        status,
        headers,
        length,
        body,
    } = offer;
    // An error ends the connection before the body ends, so that the client knows.
    let pieces = stream::try_unfold(body, async |mut body| {
        let piece = body.next().await?;
        Ok::<_, crate::store::Error>(piece.map(|piece| (piece.bytes, body)))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response
}
