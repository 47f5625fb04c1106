//! A Garage for tests of the store itself, without a stack around it.

use std::time::Duration;

use afterimage::endpoint::Endpoint;
use afterimage::secret::Secret;
use afterimage::store::{S3Config, S3Timeouts};
use tempfile::TempDir;

use crate::support::garage::{self, ACCESS_KEY_ID, BUCKET, REGION, SECRET_ACCESS_KEY, Transport};

pub(crate) struct Garage {
    node: garage::Garage,
    pub(crate) endpoint: Endpoint,
    // Last, so that the node is gone before its files are.
    _directory: TempDir,
}

impl Garage {
    pub(crate) async fn start(transport: Transport) -> Self {
        let directory = tempfile::Builder::new().prefix("ai-").tempdir().unwrap();
        let node = garage::Garage::start(directory.path(), transport)
            .await
            .unwrap_or_else(|error| panic!("{error:#}"));
        Self {
            endpoint: node.endpoint().parse().unwrap(),
            node,
            _directory: directory,
        }
    }

    /// A configuration that works, with a prefix of its own.
    pub(crate) fn config(&self, prefix: &str) -> S3Config {
        S3Config {
            endpoint: self.endpoint.clone(),
            region: REGION.to_owned(),
            buckets: vec![BUCKET.to_owned()],
            prefix: prefix.to_owned(),
            access_key_id: ACCESS_KEY_ID.to_owned(),
            secret_access_key: Secret::from(SECRET_ACCESS_KEY.to_owned()),
            timeouts: S3Timeouts {
                connect: Duration::from_secs(5),
                attempt: Duration::from_secs(30),
                write: Duration::from_secs(60),
                read: Duration::from_secs(30),
            },
        }
    }

    /// Makes another bucket, and gives its name.
    pub(crate) async fn second_bucket(&self) -> String {
        let name = "afterimage-2";
        self.node.add_bucket(name).await.unwrap();
        name.to_owned()
    }

    /// Objects in this bucket.
    pub(crate) async fn objects_in(&self, bucket: &str) -> u64 {
        let info = self.node.bucket_named(bucket).await.unwrap();
        info["objects"].as_u64().unwrap()
    }

    /// Objects and unfinished uploads in the bucket.
    pub(crate) async fn contents(&self) -> (u64, u64) {
        let info = self.node.bucket().await.unwrap();
        let count = |name: &str| {
            info[name]
                .as_u64()
                .unwrap_or_else(|| panic!("no {name} in {info}"))
        };
        (count("objects"), count("unfinishedMultipartUploads"))
    }
}
