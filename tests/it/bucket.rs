//! The bucket of a stack's Garage as somebody else sees it, who may also meddle with it.

use afterimage::clock::Clock;
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::{Method, Response};
use sha2::{Digest as _, Sha256};

use crate::support::garage::{ACCESS_KEY_ID, BUCKET, Garage, REGION, SECRET_ACCESS_KEY};

/// The metadata in which Afterimage keeps an entry's record.
const RECORD: &str = "x-amz-meta-afterimage";

/// A bucket of a Garage that speaks TCP.
pub(crate) struct Bucket {
    endpoint: String,
    http: reqwest::Client,
}

/// An object with what makes it an entry.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) content_type: String,
    /// Absent where it is no entry.
    pub(crate) record: Option<String>,
    pub(crate) body: Bytes,
}

impl Bucket {
    pub(crate) fn of(garage: &Garage) -> Result<Self> {
        Ok(Self {
            endpoint: garage.endpoint().to_owned(),
            http: reqwest::Client::builder().no_proxy().build()?,
        })
    }

    /// The names of all objects.
    pub(crate) async fn names(&self) -> Result<Vec<String>> {
        let listing = self.send(Method::GET, "", "list-type=2", None).await?;
        let listing = listing.text().await?;
        Ok(listing
            .split("<Key>")
            .skip(1)
            .filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned()))
            .collect())
    }

    pub(crate) async fn get(&self, name: &str) -> Result<Object> {
        let answer = self.send(Method::GET, name, "", None).await?;
        let text = |field: &str| {
            let value = answer.headers().get(field)?;
            value.to_str().ok().map(str::to_owned)
        };
        Ok(Object {
            content_type: text("content-type").context("a content type")?,
            record: text(RECORD),
            body: answer.bytes().await?,
        })
    }

    pub(crate) async fn put(&self, name: &str, object: &Object) -> Result<()> {
        self.send(Method::PUT, name, "", Some(object)).await?;
        Ok(())
    }

    /// Sends a request with AWS Signature Version 4; the payload is not signed.
    async fn send(
        &self,
        method: Method,
        name: &str,
        query: &str,
        object: Option<&Object>,
    ) -> Result<Response> {
        let host = self.endpoint.strip_prefix("http://").context("TCP")?;
        let now =
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(Clock::system().now().as_unix());
        let time = humantime::format_rfc3339_seconds(now)
            .to_string()
            .replace(['-', ':'], "");
        let day = &time[..8];
        let mut signed = vec![
            ("host", host.to_owned()),
            ("x-amz-content-sha256", "UNSIGNED-PAYLOAD".to_owned()),
            ("x-amz-date", time.clone()),
        ];
        if let Some(record) = object.and_then(|object| object.record.clone()) {
            signed.push((RECORD, record));
        }
        let names: Vec<_> = signed.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines: String = signed
            .iter()
            .map(|(name, value)| format!("{name}:{value}\n"))
            .collect();
        let canonical =
            format!("{method}\n/{BUCKET}/{name}\n{query}\n{lines}\n{names}\nUNSIGNED-PAYLOAD");
        let scope = format!("{day}/{REGION}/s3/aws4_request");
        let digest = HEXLOWER.encode(&Sha256::digest(canonical));
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}");
        let secret = format!("AWS4{SECRET_ACCESS_KEY}").into_bytes();
        let key = [day, REGION, "s3", "aws4_request"]
            .iter()
            .fold(secret, |key, part| mac(&key, part));
        let signature = HEXLOWER.encode(&mac(&key, &to_sign));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={ACCESS_KEY_ID}/{scope},SignedHeaders={names},Signature={signature}"
        );

        let url = format!("{}/{BUCKET}/{name}?{query}", self.endpoint);
        let mut request = self.http.request(method, url);
        for (name, value) in signed.into_iter().skip(1) {
            request = request.header(name, value);
        }
        if let Some(object) = object {
            request = request
                .header("content-type", &object.content_type)
                .body(object.body.clone());
        }
        let answer = request
            .header("authorization", authorization)
            .send()
            .await?;
        let status = answer.status();
        if !status.is_success() {
            ensure!(false, "Garage says {status}: {}", answer.text().await?);
        }
        Ok(answer)
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}
