//! Garage in several zones: a node in each, and what makes one store of them. `envoy/garage-geo.sh` does the same where there
//! is curl but none of this.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::garage::{BUCKET, KEY, REGION, ask, install_lifecycle, is_healthy};
use super::s3::Signer;
use super::settings::replace_text;
use super::{tools, wait};

/// The zones of every such store.
pub(crate) const ZONES: [&str; 3] = ["a", "b", "c"];

/// The bucket of the images that imgproxy makes others of.
const ORIGINALS: &str = "originals";

/// The keys of those who may read and write [`ORIGINALS`]; they guard nothing but the project's photos on loopback.
const READER: (&str, &str) = (
    "GK6166746572696d6167650002",
    "6166746572696d616765206465762072656164696e67206b6579206e6f746869",
);
const WRITER: (&str, &str) = (
    "GK6166746572696d6167650003",
    "6166746572696d61676520646576207772697465206b6579206e6f7468696e67",
);

const FORMS_WITHIN: Duration = Duration::from_secs(30);

/// What a node may fill, in bytes; nothing of ours comes near.
const CAPACITY: u64 = 10 << 30;

/// Where a zone's node listens, on loopback.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    /// S3.
    pub(crate) s3: u16,
    /// The other nodes.
    pub(crate) rpc: u16,
    /// The admin API.
    pub(crate) admin: u16,
}

impl Node {
    /// The reference configuration of a zone's node, with these ports.
    ///
    /// # Errors
    /// When the reference does not have them where it had.
    pub(crate) fn config(&self) -> Result<String> {
        let path = reference();
        let Self { s3, rpc, admin } = self;
        let mut text = std::fs::read_to_string(&path)?;
        for (old, new) in [
            (
                r#"rpc_bind_addr = "0.0.0.0:3901""#,
                format!(
                    "rpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\""
                ),
            ),
            (
                r#"api_bind_addr = "127.0.0.1:3900""#,
                format!("api_bind_addr = \"127.0.0.1:{s3}\""),
            ),
            (
                r#"api_bind_addr = "0.0.0.0:3903""#,
                format!("api_bind_addr = \"127.0.0.1:{admin}\""),
            ),
        ] {
            text = replace_text(&text, old, &new).with_context(|| path.display().to_string())?;
        }
        Ok(text)
    }

    /// Where it speaks S3.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.s3)
    }

    /// Does it run, whether or not it knows the others?
    pub(crate) async fn runs(&self) -> bool {
        ask(self.admin, "GetNodeInfo?node=self", None).await.is_ok()
    }

    /// How many nodes it is connected with, itself included.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn connected(&self) -> Result<u64> {
        let health = ask(self.admin, "GetClusterHealth", None).await?;
        health["storageNodesUp"].as_u64().context("a number")
    }

    /// What the others call it.
    async fn id(&self) -> Result<String> {
        let info = ask(self.admin, "GetNodeInfo?node=self", None).await?;
        let nodes = info["success"].as_object().context("the node itself")?;
        let id = nodes.keys().next().context("the node itself")?;
        Ok(id.clone())
    }
}

/// Makes one store of running nodes, one in each of [`ZONES`], with the reference set-up's bucket, key and lifecycle rules, and
/// waits until every node can use it. What is so already stays.
///
/// # Errors
/// When a node refuses, or does not find the others in time.
pub(crate) async fn form(nodes: &[Node]) -> Result<()> {
    let first = nodes.first().context("a node")?.admin;
    let (mut peers, mut roles) = (Vec::new(), Vec::new());
    for (node, zone) in nodes.iter().zip(ZONES) {
        let id = node.id().await?;
        peers.push(format!("{id}@127.0.0.1:{}", node.rpc));
        roles.push(json!({"id": id, "zone": zone, "capacity": CAPACITY, "tags": []}));
    }
    for node in nodes {
        connect(node.admin, &peers).await?;
    }
    let layout = ask(first, "GetClusterLayout", None).await?;
    if layout["version"] == 0 {
        ask(first, "UpdateClusterLayout", Some(json!({"roles": roles}))).await?;
        ask(first, "ApplyClusterLayout", Some(json!({"version": 1}))).await?;
    }
    for node in nodes {
        wait::until(
            "every zone's node to be healthy",
            FORMS_WITHIN,
            async || {
                is_healthy(node.admin).await
                    && node
                        .connected()
                        .await
                        .is_ok_and(|up| up == nodes.len() as u64)
            },
        )
        .await?;
    }
    let everything = json!({"read": true, "write": true, "owner": true});
    allow(first, BUCKET, KEY, everything).await?;
    install_lifecycle(first).await
}

/// Puts the project's photos into a bucket of their own, [`ORIGINALS`], for an imgproxy that is told of it by
/// [`imgproxy_variables`].
///
/// # Errors
/// When Garage refuses.
pub(crate) async fn put_originals(node: Node) -> Result<()> {
    allow(node.admin, ORIGINALS, READER, json!({"read": true})).await?;
    allow(node.admin, ORIGINALS, WRITER, json!({"write": true})).await?;
    let signer = Signer::new(&node.endpoint(), ORIGINALS, WRITER);
    for photo in std::fs::read_dir(tools::project().join("tests/photos"))? {
        let path = photo?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let url = signer.put(name.context("a name in UTF-8")?).await?;
        let put = reqwest::Client::new().put(url).body(std::fs::read(&path)?);
        put.send().await?.error_for_status()?;
    }
    Ok(())
}

/// What imgproxy is told in order to read [`ORIGINALS`].
pub(crate) fn imgproxy_variables(node: Node) -> [(&'static str, String); 6] {
    [
        ("IMGPROXY_USE_S3", "true".into()),
        ("IMGPROXY_S3_ENDPOINT", node.endpoint()),
        ("IMGPROXY_S3_REGION", REGION.into()),
        ("IMGPROXY_S3_ALLOWED_BUCKETS", ORIGINALS.into()),
        ("AWS_ACCESS_KEY_ID", READER.0.into()),
        ("AWS_SECRET_ACCESS_KEY", READER.1.into()),
    ]
}

/// The reference configuration of a zone's node.
pub(crate) fn reference() -> PathBuf {
    tools::project().join("envoy/garage-geo.toml")
}

async fn connect(admin_port: u16, peers: &[String]) -> Result<()> {
    let answer = ask(admin_port, "ConnectClusterNodes", Some(json!(peers))).await?;
    let nodes = answer.as_array().context("a list")?;
    let failed = nodes.iter().find(|node| node["success"] != true);
    ensure!(failed.is_none(), "a zone cannot be reached: {failed:?}");
    Ok(())
}

/// Makes a bucket and a key where they are missing, and lets the key use the bucket.
async fn allow(
    admin_port: u16,
    bucket: &str,
    (key, secret): (&str, &str),
    permissions: Value,
) -> Result<()> {
    let import = json!({"accessKeyId": key, "secretAccessKey": secret, "name": key});
    ask(admin_port, "ImportKey", Some(import)).await?;
    ask(
        admin_port,
        "CreateBucket",
        Some(json!({"globalAlias": bucket})),
    )
    .await?;
    let operation = format!("GetBucketInfo?globalAlias={bucket}");
    let id = ask(admin_port, &operation, None).await?["id"].clone();
    let allowed = json!({"bucketId": id, "accessKeyId": key, "permissions": permissions});
    ask(admin_port, "AllowBucketKey", Some(allowed)).await?;
    Ok(())
}
