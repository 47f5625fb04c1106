//! Sends `GetObject` without the SDK.
//!
//! Each hit is one such request, and the SDK's work from a call to a connection costs several times
//! the request itself. The request, and what an answer means, are the same.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use percent_encoding::utf8_percent_encode;

use super::connector;
use super::failure::{Attempt, chain};
use super::object::{OBJECT_NAME, Place};
use super::signer::Signer;
use crate::clock::Clock;
use crate::endpoint::Endpoint;
use crate::secret::Secret;
use crate::store::Error;
use crate::transport::{self, Client, is_timeout};

/// The most that is read of an answer without an object. Such answers have a few hundred bytes.
const REFUSAL_BYTES: usize = 64 * 1024;

/// Reads objects.
pub(super) struct Reader {
    client: Client<Empty<Bytes>>,
    url: String,
    signer: Signer,
    clock: Clock,
}

impl Reader {
    /// Makes a reader for one endpoint, with a pool of connections. Each must be made within
    /// `connect`.
    ///
    /// # Errors
    /// For `https`, when the system's root certificates cannot be read.
    pub(super) fn new(
        endpoint: &Endpoint,
        region: String,
        access_key_id: String,
        secret_access_key: Secret,
        connect: Duration,
    ) -> io::Result<Self> {
        let host = endpoint.authority().to_owned();
        Ok(Self {
            client: transport::client(endpoint, connect)?,
            url: connector::url(endpoint),
            signer: Signer::new(host, access_key_id, secret_access_key, region),
            clock: Clock::system(),
        })
    }

    /// Asks for an object, and returns its head with a body to be read; `None` if there is no such
    /// object. It has no deadline of its own.
    ///
    /// # Errors
    /// By what the answer means.
    pub(super) async fn get(
        &self,
        place: &Place,
        attempt: Attempt<'_>,
    ) -> Result<Option<Response<Incoming>>, Error> {
        let name = utf8_percent_encode(&place.name, OBJECT_NAME);
        let path = format!("/{}/{name}", place.bucket);
        let now = self.clock.now();
        let request = self
            .signer
            .get(&self.url, &path, Empty::new(), now)
            .map_err(|error| {
                let reason = format!("the request cannot be made: {error}");
                Error::Unavailable(attempt.failed(reason).into())
            })?;
        let answer = self.client.request(request).await.map_err(|error| {
            if error.is_connect() && is_timeout(&error) {
                Error::TimedOut
            } else {
                Error::Unavailable(attempt.failed(chain(&error)).into())
            }
        })?;
        if answer.status() == StatusCode::OK {
            return Ok(Some(answer));
        }
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), REFUSAL_BYTES);
        let body = body.collect().await.map(|body| body.to_bytes());
        let body = body.unwrap_or_default();
        let text = String::from_utf8_lossy(&body);
        match element(&text, "Code").unwrap_or_default() {
            "NoSuchKey" => Ok(None),
            code => Err(attempt.answered(status, code, element(&text, "Message"))),
        }
    }
}

/// The text of an element in an answer of S3, whose texts have no markup.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once("</")?.0)
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}
