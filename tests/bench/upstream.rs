//! A server in imgproxy's place that has every image ready: any path, the size it names, imgproxy's header fields.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::urls::SOURCE;

/// Asked for, it tells how many images were sent since the start.
const COUNT: &str = "/count";
/// A name that begins like this is answered so many milliseconds later: `slow-1000-anything`.
const SLOW: &str = "slow-";

/// Serves until the process is killed.
///
/// # Errors
/// When nothing can listen there.
pub(crate) async fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let images = Arc::new(Upstream::default());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let images = Arc::clone(&images);
        tokio::spawn(async move {
            let service = service_fn(async |request| images.answer(&request).await);
            // A client that leaves is none of our business.
            drop(
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}

/// How many images the upstream at that address has sent.
///
/// # Errors
/// When it does not answer.
pub(crate) async fn count(upstream: SocketAddr) -> Result<u64> {
    let answer = reqwest::get(format!("http://{upstream}{COUNT}")).await?;
    Ok(answer.text().await?.parse()?)
}

#[derive(Default)]
struct Upstream {
    bodies: Mutex<HashMap<usize, Bytes>>,
    sent: AtomicU64,
}

impl Upstream {
    async fn answer(
        &self,
        request: &Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path();
        if path == COUNT {
            let count = self.sent.load(Ordering::Relaxed).to_string();
            return Ok(Response::new(Full::from(count)));
        }
        let Some((size, delay)) = asked_for(path) else {
            let mut answer = Response::new(Full::default());
            *answer.status_mut() = StatusCode::NOT_FOUND;
            return Ok(answer);
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        let mut answer = Response::new(Full::new(self.body(size)));
        let fields = answer.headers_mut();
        for (name, value) in FIELDS {
            fields.insert(name, HeaderValue::from_static(value));
        }
        Ok(answer)
    }

    fn body(&self, size: usize) -> Bytes {
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        bodies.entry(size).or_insert_with(|| webp(size)).clone()
    }
}

/// What imgproxy sends with a WebP, as recorded in `tests/imgproxy/recorded.json`.
pub(crate) const FIELDS: [(&str, &str); 7] = [
    ("cache-control", "max-age=31536000, public"),
    ("content-disposition", "inline; filename=\"image.webp\""),
    (
        "content-security-policy",
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox",
    ),
    ("content-type", "image/webp"),
    ("etag", "\"4QYhmMeyg9RM5XPQRDjJkAs7NBpdVRRh1mXlLNXwhME\""),
    ("last-modified", "Sun, 22 Nov 2026 18:46:11 GMT"),
    ("server", "imgproxy"),
];

fn asked_for(path: &str) -> Option<(usize, Duration)> {
    let (_, source) = path.split_once(SOURCE)?;
    let (size, name) = source.split_once('/')?;
    let delay = name
        .strip_prefix(SLOW)
        .and_then(|rest| rest.split_once('-')?.0.parse().ok())
        .unwrap_or(0);
    Some((size.parse().ok()?, Duration::from_millis(delay)))
}

/// Bytes that begin like a WebP and go on like noise.
pub(crate) fn webp(size: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    b"RIFF\0\0\0\0WEBPVP8 "
        .iter()
        .copied()
        .chain(noise.flatten())
        .take(size)
        .collect()
}
