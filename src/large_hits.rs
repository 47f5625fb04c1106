//! Large hits, fetched by the proxy from an HTTP listener of ours.
//!
//! A message of the proxy's protocol has no flow control but that of its stream, and the proxy buffers
//! what a slow client does not take. So a large hit is not sent to it: the request gets a header with a
//! ticket, and goes on to [`router`] by a route that matches that header. There the answer is an
//! ordinary response, as slow as the client. A ticket is a number of 128 random bits, good for one
//! answer and for a short while: nobody but whoever was told it can ask for anything.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use data_encoding::HEXLOWER;
use futures_util::stream;
use http::header::CONTENT_LENGTH;
use http::{HeaderName, HeaderValue};
use tracing::warn;

use crate::cache::body_reader::Pieces;
use crate::cache::budget::Reservation;
use crate::cache::fill::Fills;
use crate::entry::Key;
use crate::session::Hit;
use crate::store::{self, Error};

/// The header that has the ticket.
pub const TICKET: HeaderName = HeaderName::from_static("x-afterimage-object");

/// How long a ticket is good. The proxy asks at once.
const LASTS: Duration = Duration::from_secs(30);

/// Answers that wait to be fetched; clones share them.
#[derive(Debug, Clone)]
pub struct Objects {
    /// Hits above this many bytes are handed over.
    pub above_bytes: u64,
    offered: Arc<Mutex<HashMap<[u8; 16], Offer>>>,
    fills: Fills,
}

/// One answer.
pub struct Offer {
    /// Its head.
    pub hit: Hit,
    /// Bytes of its body.
    pub length: u64,
    /// Its body.
    pub pieces: Pieces,
    /// Whose body it is.
    pub key: Key,
    /// What it holds.
    pub room: Option<Arc<Reservation>>,
}

impl Objects {
    /// Hits above so many bytes are handed over.
    pub fn new(above_bytes: u64, fills: Fills) -> Self {
        Self {
            above_bytes,
            offered: Arc::default(),
            fills,
        }
    }

    /// Keeps an answer until it is fetched with this ticket, or not in time.
    ///
    /// # Errors
    /// Those of the system's source of randomness.
    pub fn offer(&self, offer: Offer) -> io::Result<HeaderValue> {
        let mut number = [0; 16];
        getrandom::fill(&mut number).map_err(io::Error::other)?;
        self.lock().insert(number, offer);
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
        self.lock().remove(&<[u8; 16]>::try_from(number).ok()?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 16], Offer>> {
        lock(&self.offered)
    }
}

fn lock(
    offered: &Mutex<HashMap<[u8; 16], Offer>>,
) -> std::sync::MutexGuard<'_, HashMap<[u8; 16], Offer>> {
    offered.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer")
            .field("hit", &self.hit)
            .field("length", &self.length)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// Answers requests with a ticket, whatever their method and path; 403 without.
pub fn router(objects: Objects) -> Router {
    Router::new().fallback(fetch).with_state(objects)
}

async fn fetch(State(objects): State<Objects>, headers: HeaderMap) -> Response {
    let Some(offer) = objects.redeem(&headers) else {
        let mut refused = Response::new(Body::from("no such object\n"));
        *refused.status_mut() = StatusCode::FORBIDDEN;
        return refused;
    };
    let Offer {
        hit,
        length,
        pieces,
        key,
        room,
    } = offer;
    let rest = Rest {
        pieces,
        key,
        _room: room,
        fills: objects.fills,
    };
    let body = stream::try_unfold(rest, async |mut rest| match rest.pieces.next().await {
        Ok(piece) => Ok(piece.map(|piece| (piece.bytes, rest))),
        Err(error) => Err(rest.broken(error)),
    });
    let mut response = Response::new(Body::from_stream(body));
    *response.status_mut() = hit.status;
    *response.headers_mut() = hit.headers;
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response
}

/// What is still to go out.
struct Rest {
    pieces: Pieces,
    key: Key,
    _room: Option<Arc<Reservation>>,
    fills: Fills,
}

impl Rest {
    /// The connection ends before the body does, so that the client knows.
    fn broken(&self, error: Error) -> Error {
        self.fills.metrics.broken_hit();
        warn!(error = %store::Causes(&error), "large hit was broken off");
        if let Error::Corrupt(_) = error {
            let (fills, key) = (self.fills.clone(), self.key.clone());
            self.fills
                .tasks
                .spawn(async move { fills.forget(&key).await });
        }
        error
    }
}
