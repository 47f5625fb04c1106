//! The upstreams of policies, asked without the proxy.
//!
//! [`Upstreams`] asks what the proxy would ask. At most so many requests run at a time as the configuration says;
//! there is no queue. It follows no redirects, and goes nowhere but to the upstreams of policies. Each request
//! carries a mark of this process, so that one that comes back through the proxy is left alone.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use sha2::Sha256;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::Timestamp;
use crate::endpoint::Endpoint;
use crate::policy::{Fetch, RequestHead};
use crate::transport::{self, Client};

/// Marks our own requests: seconds since the epoch, a dot, and a MAC over them and the path.
const MARK: HeaderName = HeaderName::from_static("afterimage-fetch");

/// How long a mark is believed. Longer than a request is on its way, shorter than it takes to find
/// a use for somebody else's.
const MARK_SECONDS: u64 = 60;

/// For a connection to an upstream.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The upstreams.
pub struct Upstreams {
    clients: HashMap<Endpoint, Client<Empty<Bytes>>>,
    places: Arc<Semaphore>,
    marker: Marker,
}

impl Upstreams {
    /// Makes at most `most` requests at a time, to these upstreams.
    ///
    /// # Errors
    /// Those of reading the system's root certificates, where an upstream is `https`; those of the
    /// system's source of randomness.
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>, most: usize) -> io::Result<Self> {
        let clients = endpoints
            .into_iter()
            .map(|endpoint| {
                let client = transport::client(&endpoint, CONNECT_TIMEOUT)?;
                Ok((endpoint, client))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            clients,
            places: Arc::new(Semaphore::new(most)),
            marker: Marker::new()?,
        })
    }

    /// Whether `request` is one of ours.
    pub fn is_own(&self, request: &RequestHead, now: Timestamp) -> bool {
        request
            .headers
            .get(MARK)
            .is_some_and(|mark| self.marker.made(mark, &request.path, now))
    }

    /// A place for one more request, until it is dropped; `None` when as many as may are under way.
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Those of the connection, and of an upstream that was not configured.
    pub async fn ask(
        &self,
        fetch: Fetch,
        now: Timestamp,
    ) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
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
        let mark = self.marker.mark(&fetch.path, now);
        request.headers_mut().insert(MARK, mark);
        Ok(client.request(request).await?)
    }
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstreams")
            .field("clients", &self.clients.keys())
            .finish_non_exhaustive()
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
