//! `GetObject` without the SDK around it.
//!
//! Each hit is one such request, and the SDK's way from a call to a connection costs several times the
//! request itself. What is sent, and what an answer means, is the same.

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_s3::config::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SessionTokenMode, SignableBody, SignableRequest,
    SigningError, SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use percent_encoding::utf8_percent_encode;

use super::connector;
use super::failure::{Attempt, chain};
use super::{OBJECT_NAME, Place};
use crate::clock::Clock;
use crate::store::Error;
use crate::transport::{self, Client, Endpoint, is_timeout};

/// An answer that says why there is no object has a few hundred bytes.
const REFUSAL_BYTES: usize = 64 * 1024;

/// SHA-256 of nothing.
const NO_PAYLOAD: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Reads objects.
pub(super) struct Reader {
    client: Client<Empty<Bytes>>,
    url: String,
    host: String,
    region: String,
    identity: Identity,
    settings: SigningSettings,
    clock: Clock,
    timeout: Duration,
}

impl Reader {
    /// A client for one endpoint, with a pool of connections. Heads of answers have to come within
    /// `timeout`.
    ///
    /// # Errors
    /// Those of reading the system's root certificates, for `https` alone.
    pub(super) fn new(
        endpoint: &Endpoint,
        region: String,
        credentials: Credentials,
        connect: Duration,
        timeout: Duration,
    ) -> io::Result<Self> {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.session_token_mode = SessionTokenMode::Exclude;
        Ok(Self {
            client: transport::client(endpoint, connect)?,
            url: connector::url(endpoint),
            host: endpoint.authority().to_owned(),
            region,
            identity: credentials.into(),
            settings,
            clock: Clock::system(),
            timeout,
        })
    }

    /// The object's head, with its body to be read; `None` when there is no such object.
    ///
    /// # Errors
    /// What the answer means.
    pub(super) async fn get(
        &self,
        place: &Place,
        attempt: Attempt<'_>,
    ) -> Result<Option<Response<Incoming>>, Error> {
        let request = self
            .signed(place)
            .map_err(|error| Error::Unavailable(attempt.failed(error.to_string()).into()))?;
        let answering = async {
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
        };
        tokio::time::timeout(self.timeout, answering)
            .await
            .unwrap_or(Err(Error::TimedOut))
    }

    fn signed(&self, place: &Place) -> Result<Request<Empty<Bytes>>, SigningFailed> {
        let name = utf8_percent_encode(&place.name, OBJECT_NAME);
        let uri = format!("{}/{}/{name}", self.url, place.bucket);
        let params = v4::SigningParams::builder()
            .identity(&self.identity)
            .region(&self.region)
            .name("s3")
            .time(self.now())
            .settings(self.settings.clone())
            .build()?
            .into();
        let headers = [("host", self.host.as_str())].into_iter();
        let body = SignableBody::Precomputed(NO_PAYLOAD.to_owned());
        let signable = SignableRequest::new("GET", &uri, headers, body)?;
        let (instructions, _) = sign(signable, &params)?.into_parts();
        let mut request = Request::get(&uri)
            .header("host", &self.host)
            .body(Empty::new())?;
        instructions.apply_to_request_http1x(&mut request);
        Ok(request)
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.clock.now().as_unix())
    }
}

/// A request that could not be made; endpoint, region or bucket have a form that no URL has.
#[derive(Debug, thiserror::Error)]
enum SigningFailed {
    #[error("request cannot be signed: {0}")]
    Params(#[from] v4::signing_params::BuildError),
    #[error("request cannot be signed: {0}")]
    Signing(#[from] SigningError),
    #[error("request cannot be made: {0}")]
    Request(#[from] http::Error),
}

/// The text of an element of S3's answers, which have no markup in texts.
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
