//! Signs requests for objects.
//!
//! The AWS library derives the signing key from the secret anew for each request, and can sign any
//! request. Here all requests look alike, and the key is derived once a day.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use aws_sigv4::sign::v4::generate_signing_key;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderValue, Request};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::secret::Secret;

/// SHA-256 of the empty body of these requests.
const NO_PAYLOAD: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "s3";
const SIGNED: &str = "host;x-amz-content-sha256;x-amz-date";
const PAYLOAD_FIELD: &str = "x-amz-content-sha256";
const TIME_FIELD: &str = "x-amz-date";

/// Signs `GET` without query and body ("Signature Calculations for the Authorization Header" in the Amazon S3
/// API reference).
pub(super) struct Signer {
    host: String,
    access_key_id: String,
    secret_access_key: Secret,
    region: String,
    latest: Mutex<Option<Arc<Stamp>>>,
}

/// What the requests of one second share.
struct Stamp {
    time: Timestamp,
    /// `20261123T174148Z`.
    text: String,
    /// `20261123/REGION/s3/aws4_request`.
    scope: String,
    /// The signing key of the day.
    key: Hmac<Sha256>,
}

impl Signer {
    /// Signs requests to `host`, written as in their `Host` field.
    pub(super) fn new(
        host: String,
        access_key_id: String,
        secret_access_key: Secret,
        region: String,
    ) -> Self {
        Self {
            host,
            access_key_id,
            secret_access_key,
            region,
            latest: Mutex::default(),
        }
    }

    /// Makes the signed request for `path`, which is percent-encoded, below `url`.
    ///
    /// # Errors
    /// When `url`, `path` or a field has a form that no request can have.
    pub(super) fn get<B>(
        &self,
        url: &str,
        path: &str,
        body: B,
        now: Timestamp,
    ) -> Result<Request<B>, http::Error> {
        let stamp = self.stamp(now);
        let Stamp {
            text, scope, key, ..
        } = &*stamp;
        let (host, id) = (&self.host, &self.access_key_id);
        let canonical = format!(
            "GET\n{path}\n\nhost:{host}\n{PAYLOAD_FIELD}:{NO_PAYLOAD}\n{TIME_FIELD}:{text}\n\n{SIGNED}\n{NO_PAYLOAD}"
        );
        let canonical = HEXLOWER.encode(&Sha256::digest(canonical));
        let mut signature = key.clone();
        signature.update(format!("{ALGORITHM}\n{text}\n{scope}\n{canonical}").as_bytes());
        let signature = HEXLOWER.encode(&signature.finalize().into_bytes());
        let authorization = format!(
            "{ALGORITHM} Credential={id}/{scope}, SignedHeaders={SIGNED}, Signature={signature}"
        );
        let mut authorization = HeaderValue::try_from(authorization)?;
        authorization.set_sensitive(true);
        Request::get(format!("{url}{path}"))
            .header(HOST, host)
            .header(PAYLOAD_FIELD, HeaderValue::from_static(NO_PAYLOAD))
            .header(TIME_FIELD, text)
            .header(AUTHORIZATION, authorization)
            .body(body)
    }

    fn stamp(&self, now: Timestamp) -> Arc<Stamp> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        match &*latest {
            Some(stamp) if stamp.time == now => Arc::clone(stamp),
            earlier => {
                let stamp = Arc::new(self.stamped(now, earlier.as_deref()));
                *latest = Some(Arc::clone(&stamp));
                stamp
            }
        }
    }

    fn stamped(&self, now: Timestamp, earlier: Option<&Stamp>) -> Stamp {
        let seconds = now.as_unix();
        let time = DateTime::from_secs(i64::try_from(seconds).unwrap_or_default());
        let mut text = time.fmt(Format::DateTime).unwrap_or_default();
        text.retain(|letter| !matches!(letter, '-' | ':'));
        let date = text.get(..8).unwrap_or_default();
        let scope = format!("{date}/{}/{SERVICE}/aws4_request", self.region);
        let key = match earlier {
            Some(earlier) if earlier.scope == scope => earlier.key.clone(),
            _ => {
                let time = UNIX_EPOCH + Duration::from_secs(seconds);
                let secret = self.secret_access_key.expose();
                let key = generate_signing_key(secret, time, &self.region, SERVICE);
                Hmac::new_from_slice(key.as_ref()).expect("a key may have any length")
            }
        };
        Stamp {
            time: now,
            text,
            scope,
            key,
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::config::Credentials;
    use aws_sigv4::http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
        UriPathNormalizationMode, sign,
    };
    use aws_sigv4::sign::v4;
    use aws_smithy_runtime_api::client::identity::Identity;

    use super::*;

    const URL: &str = "http://garage:3900";

    fn signer() -> Signer {
        let secret = Secret::from("a secret".to_owned());
        Signer::new(
            "garage:3900".to_owned(),
            "GK1".to_owned(),
            secret,
            "garage".to_owned(),
        )
    }

    /// The same request as the library signs it.
    fn by_the_library(path: &str, now: Timestamp) -> Request<()> {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        let identity: Identity = Credentials::new("GK1", "a secret", None, None, "test").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region("garage")
            .name(SERVICE)
            .time(UNIX_EPOCH + Duration::from_secs(now.as_unix()))
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let url = format!("{URL}{path}");
        let body = SignableBody::Precomputed(NO_PAYLOAD.to_owned());
        let headers = [("host", "garage:3900")].into_iter();
        let signable = SignableRequest::new("GET", &url, headers, body).unwrap();
        let (instructions, _) = sign(signable, &params).unwrap().into_parts();
        let mut request = Request::get(&url).header(HOST, "garage:3900").body(());
        instructions.apply_to_request_http1x(request.as_mut().unwrap());
        request.unwrap()
    }

    #[test]
    fn requests_are_those_of_the_aws_library_on_every_day() {
        let signer = signer();
        let midnight = 1_795_392_000;
        for (path, seconds) in [
            ("/images/v1/images/1/ab/cd", midnight - 1),
            ("/images/v1/a-b.c_d/1/ab/cd", midnight),
            ("/images/%C3%A4%20b/v1/images/1/ab/cd", midnight + 1),
            ("/images/v1/images/1/ab/cd", 0),
            ("/images/v1/images/1/ab/cd", midnight - 1),
        ] {
            let now = Timestamp::from_unix(seconds);
            let ours = signer.get(URL, path, (), now).unwrap();
            let library = by_the_library(path, now);
            assert_eq!(ours.headers(), library.headers(), "{path} {seconds}");
            assert_eq!(ours.uri(), library.uri());
        }
    }
}
