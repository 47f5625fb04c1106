//! Envoy's client in a test.

use std::fmt;
use std::time::Duration;

use afterimage::clock::Stopwatch;
use anyhow::{Context as _, Result, bail};
use bytes::{Bytes, BytesMut};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response, redirect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const GIVES_UP_AFTER: Duration = Duration::from_secs(60);

/// The protocol spoken with Envoy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, known beforehand.
    Http2,
}

/// A client with a connection pool of its own. It follows no redirect, decodes nothing, and sends `Accept: */*` unless told
/// otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// A client of the server at `base` (`http://127.0.0.1:PORT`).
    ///
    /// # Errors
    /// When the library refuses.
    pub(crate) fn new(base: &str, version: Version) -> Result<Self> {
        let builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(GIVES_UP_AFTER);
        let http = match version {
            Version::Http1 => builder.http1_only(),
            Version::Http2 => builder.http2_prior_knowledge(),
        }
        .build()?;
        Ok(Self {
            http,
            base: base.into(),
        })
    }

    /// GETs a path.
    ///
    /// # Errors
    /// When there is no answer at all; a body that breaks off is [`Answer::cut`].
    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::GET, path)).await
    }

    /// A request to be completed, then given to [`Client::send`], or sent by hand to read its body slowly or not at all.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// Sends a request and reads the answer to its end.
    ///
    /// # Errors
    /// When there is no answer at all; a body that breaks off is [`Answer::cut`].
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Answer> {
        let started = Stopwatch::start();
        let response = request.send().await?;
        Ok(Answer::read(response, started).await)
    }

    /// Sends these bytes on a connection of its own and returns whatever comes back until the server closes: for paths that
    /// a URL library would tidy up, and for requests that break the rules. Ask for `Connection: close`.
    ///
    /// # Errors
    /// When the connection fails before its end.
    pub(crate) async fn raw(&self, request: &[u8]) -> Result<Vec<u8>> {
        let address = self
            .base
            .strip_prefix("http://")
            .context("base URLs begin with http://")?;
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request).await?;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        match tokio::time::timeout(GIVES_UP_AFTER, read).await {
            Ok(read) => read?,
            Err(_) => bail!(
                "the server keeps the connection open after {:?}",
                String::from_utf8_lossy(&answer)
            ),
        };
        Ok(answer)
    }
}

/// A response, as far as it came.
#[derive(Clone)]
pub(crate) struct Answer {
    /// The status.
    pub(crate) status: u16,
    /// The header fields.
    pub(crate) headers: HeaderMap,
    /// The body, or what came of it.
    pub(crate) body: Bytes,
    /// Why the body ended too early, if it did.
    pub(crate) cut: Option<String>,
    /// From the request to the end of the body.
    pub(crate) took: Duration,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .field("body_bytes", &self.body.len())
            .field("cut", &self.cut)
            .field("took", &self.took)
            .finish()
    }
}

impl Answer {
    /// Reads the rest of a response.
    pub(crate) async fn read(mut response: Response, since: Stopwatch) -> Self {
        let mut body = BytesMut::new();
        let cut = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break None,
                Err(error) => break Some(format!("{:#}", anyhow::Error::new(error))),
            }
        };
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: body.freeze(),
            cut,
            took: since.elapsed(),
        }
    }

    /// The value of a field that is there once; a field sent twice is no value to rely on, so it is none.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let first = values.next()?;
        if values.next().is_some() {
            return None;
        }
        first.to_str().ok()
    }

    /// `Cache-Status`, empty when there is none.
    pub(crate) fn cache_status(&self) -> &str {
        self.header("cache-status").unwrap_or_default()
    }

    /// Did it come out of the cache?
    pub(crate) fn is_hit(&self) -> bool {
        self.cache_status().starts_with("afterimage; hit")
    }
}
