//! Requests to a Garage, signed beforehand: anybody can send them, and nobody's time for signing is measured.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_s3::presigning::PresigningConfig;

use super::garage::REGION;

const VALID_FOR: Duration = Duration::from_secs(3600);

/// The bucket at an endpoint, for signing only.
#[derive(Debug)]
pub(crate) struct Signer {
    client: Client,
    endpoint: String,
    bucket: String,
}

impl Signer {
    /// For the Garage at `endpoint`, `http://ADDRESS`, with a key's id and secret.
    pub(crate) fn new(endpoint: &str, bucket: &str, (id, secret): (&str, &str)) -> Self {
        let credentials = Credentials::new(id, secret, None, None, "tests");
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .credentials_provider(credentials)
            .endpoint_url(endpoint)
            .force_path_style(true)
            .build();
        Self {
            client: Client::from_conf(config),
            endpoint: endpoint.to_owned(),
            bucket: bucket.to_owned(),
        }
    }

    /// The path, with its query, of a GET of an object.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub(crate) async fn get(&self, name: &str) -> Result<String> {
        let request = self.client.get_object().bucket(&self.bucket).key(name);
        let signed = request
            .presigned(PresigningConfig::expires_in(VALID_FOR)?)
            .await?;
        let path = signed.uri().strip_prefix(&self.endpoint);
        Ok(path.context("a URL of the endpoint's")?.to_owned())
    }

    /// The URL of a PUT of an object.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub(crate) async fn put(&self, name: &str) -> Result<String> {
        let request = self.client.put_object().bucket(&self.bucket).key(name);
        let signed = request
            .presigned(PresigningConfig::expires_in(VALID_FOR)?)
            .await?;
        Ok(signed.uri().to_owned())
    }
}
