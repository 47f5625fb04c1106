//! A Garage node with a bucket, a key and the lifecycle rules of the reference set-up. Several of them: `zones`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use reqwest::StatusCode;
use serde_json::Value;

use super::launch::Launch;
use super::ports::Port;
use super::process::Process;
use super::settings::replace_text;
use super::tools;
use super::zones::Node;

/// The region, bucket and credentials of every Garage we start; they guard nothing but test data on loopback.
pub(crate) const REGION: &str = "garage";
/// See [`REGION`].
pub(crate) const BUCKET: &str = "afterimage";
/// See [`REGION`].
pub(crate) const ACCESS_KEY_ID: &str = "GK6166746572696d6167650001";
/// See [`REGION`].
pub(crate) const SECRET_ACCESS_KEY: &str =
    "6166746572696d616765206465762073746f7265206b6579206e6f7468696e67";

/// Both, as those take them who sign.
pub(crate) const KEY: (&str, &str) = (ACCESS_KEY_ID, SECRET_ACCESS_KEY);

const RPC_SECRET: &str = "6166746572696d616765206465762072706320736563726574206e6f7468696e";
const ADMIN_TOKEN: &str = "afterimage-dev";
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// Where Garage speaks S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// `http://127.0.0.1:PORT`.
    Tcp,
    /// A Unix socket.
    Unix,
}

/// A running node of a test. Dropping it kills it; its data is the caller's directory.
#[derive(Debug)]
pub(crate) struct Garage {
    /// The process, to be frozen, killed and started again.
    pub(crate) process: Process,
    endpoint: String,
    s3: Port,
    rpc: Port,
    admin: Port,
}

impl Garage {
    /// Starts a node that keeps everything in `dir`, and waits until its bucket can be used.
    ///
    /// # Errors
    /// When Garage is not installed or does not start; the message holds its last output.
    pub(crate) async fn start(dir: &Path, transport: Transport) -> Result<Self> {
        let (s3, rpc, admin) = (Port::free()?, Port::free()?, Port::free()?);
        let socket = dir.join("s3.sock");
        let (bind, endpoint) = match transport {
            Transport::Tcp => (s3.address().to_string(), format!("http://{}", s3.address())),
            Transport::Unix => {
                ensure!(
                    socket.as_os_str().len() < 108,
                    "too long for a Unix socket: {}",
                    socket.display()
                );
                let socket = socket.display();
                (socket.to_string(), format!("unix:{socket}"))
            }
        };
        let config = dir.join("garage.toml");
        std::fs::write(&config, rendered(&bind, rpc.number(), admin.number())?)?;
        let mut garage = Self {
            process: Process::start(launch(dir, &config)?, dir)?,
            endpoint,
            s3,
            rpc,
            admin,
        };
        garage.wait_until_ready().await?;
        install_lifecycle(garage.admin.number()).await?;
        Ok(garage)
    }

    /// Starts a node in `dir` that is to be one of several, and waits until it can be told so.
    ///
    /// # Errors
    /// As [`Garage::start`].
    pub(crate) async fn start_in_zone(dir: &Path) -> Result<Self> {
        let (s3, rpc, admin) = (Port::free()?, Port::free()?, Port::free()?);
        let node = Node {
            s3: s3.number(),
            rpc: rpc.number(),
            admin: admin.number(),
        };
        let config = dir.join("garage.toml");
        std::fs::write(&config, node.config()?)?;
        let mut garage = Self {
            process: Process::start(launch_in_zone(dir, &config)?, dir)?,
            endpoint: node.endpoint(),
            s3,
            rpc,
            admin,
        };
        garage.wait_until_running().await?;
        Ok(garage)
    }

    /// Waits until it can be told about the other zones, after it was started again.
    ///
    /// # Errors
    /// As [`Process::ready`].
    pub(crate) async fn wait_until_running(&mut self) -> Result<()> {
        let node = self.node();
        self.process
            .ready("Garage to run", STARTS_WITHIN, async || node.runs().await)
            .await
    }

    /// Waits until it answers, after it was started again.
    ///
    /// # Errors
    /// As [`Process::ready`].
    pub(crate) async fn wait_until_ready(&mut self) -> Result<()> {
        let port = self.admin.number();
        self.process
            .ready("Garage's health", STARTS_WITHIN, async || {
                is_healthy(port).await
            })
            .await
    }

    /// Where it speaks S3: `http://127.0.0.1:PORT` or `unix:/path`.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What the admin API tells about the bucket: objects, bytes, lifecycle rules, unfinished uploads.
    ///
    /// # Errors
    /// When the admin API does not answer.
    pub(crate) async fn bucket(&self) -> Result<Value> {
        bucket(self.admin.number(), BUCKET).await
    }

    /// The same of another one.
    ///
    /// # Errors
    /// When the admin API does not answer, or there is no such bucket.
    pub(crate) async fn bucket_named(&self, name: &str) -> Result<Value> {
        bucket(self.admin.number(), name).await
    }

    /// Makes another bucket, for the same key.
    ///
    /// # Errors
    /// When the admin API refuses.
    pub(crate) async fn add_bucket(&self, name: &str) -> Result<()> {
        let port = self.admin.number();
        let bucket = serde_json::json!({ "globalAlias": name });
        let made = ask(port, "CreateBucket", Some(bucket)).await?;
        let allowed = serde_json::json!({
            "bucketId": made["id"],
            "accessKeyId": ACCESS_KEY_ID,
            "permissions": { "read": true, "write": true, "owner": true },
        });
        ask(port, "AllowBucketKey", Some(allowed)).await?;
        Ok(())
    }

    /// Where it listens.
    pub(crate) fn node(&self) -> Node {
        Node {
            s3: self.s3.number(),
            rpc: self.rpc.number(),
            admin: self.admin.number(),
        }
    }
}

/// How Garage is started with this configuration file, from `dir`, as the only node.
///
/// # Errors
/// When it is not installed.
pub(crate) fn launch(dir: &Path, config: &Path) -> Result<Launch> {
    Ok(launch_in_zone(dir, config)?
        .args(["--single-node", "--default-bucket"])
        .env("GARAGE_DEFAULT_BUCKET", BUCKET)
        .env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY_ID)
        .env("GARAGE_DEFAULT_SECRET_KEY", SECRET_ACCESS_KEY))
}

/// The same as one node of several.
///
/// # Errors
/// When it is not installed.
pub(crate) fn launch_in_zone(dir: &Path, config: &Path) -> Result<Launch> {
    let config = config.display().to_string();
    Ok(
        Launch::new("garage", tools::path("garage")?, dir, "GARAGE_")
            .args(["-c", &config, "server"])
            .env("GARAGE_RPC_SECRET", RPC_SECRET)
            .env("GARAGE_ADMIN_TOKEN", ADMIN_TOKEN)
            // At its default it logs every request.
            .env("RUST_LOG", "garage=warn,netapp=warn"),
    )
}

/// The reference configuration.
pub(crate) fn reference() -> PathBuf {
    tools::project().join("envoy/garage.toml")
}

/// Does the node with this admin port serve requests? Bucket and key exist before it answers.
pub(crate) async fn is_healthy(admin_port: u16) -> bool {
    let url = format!("http://127.0.0.1:{admin_port}/health");
    let answer = reqwest::get(url).await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

/// Gives the bucket its rules: what nobody refreshed for longer than any entry may be fresh expires, and so does what is
/// left of an upload that broke off.
///
/// # Errors
/// When the admin API refuses.
pub(crate) async fn install_lifecycle(admin_port: u16) -> Result<()> {
    let rules = std::fs::read_to_string(tools::project().join("envoy/garage-lifecycle.json"))?;
    let found = bucket(admin_port, BUCKET).await?;
    let id = found["id"].as_str().context("a bucket has an id")?;
    let operation = format!("UpdateBucket?id={id}");
    ask(admin_port, &operation, Some(serde_json::from_str(&rules)?)).await?;
    Ok(())
}

/// Does an operation of the admin API, with this body or without one. What exists already is left as it is: the answer is
/// null then.
///
/// # Errors
/// When Garage refuses.
pub(crate) async fn ask(admin_port: u16, operation: &str, body: Option<Value>) -> Result<Value> {
    let url = format!("http://127.0.0.1:{admin_port}/v2/{operation}");
    let client = reqwest::Client::new();
    let request = match body {
        Some(body) => client.post(url).body(body.to_string()),
        None => client.get(url),
    };
    let answer = request.bearer_auth(ADMIN_TOKEN).send().await?;
    let (status, text) = (answer.status(), answer.text().await?);
    if status == StatusCode::CONFLICT {
        return Ok(Value::Null);
    }
    ensure!(
        status.is_success(),
        "Garage refuses {operation}: {status} {text}"
    );
    Ok(serde_json::from_str(&text)?)
}

async fn bucket(admin_port: u16, name: &str) -> Result<Value> {
    let operation = format!("GetBucketInfo?globalAlias={name}");
    ask(admin_port, &operation, None).await
}

fn rendered(s3_bind: &str, rpc_port: u16, admin_port: u16) -> Result<String> {
    let path = reference();
    let mut text = std::fs::read_to_string(&path)?;
    let rpc = format!("127.0.0.1:{rpc_port}");
    let admin = format!("127.0.0.1:{admin_port}");
    for (old, new) in [
        (
            r#"rpc_bind_addr = "127.0.0.1:3901""#,
            format!("rpc_bind_addr = {rpc:?}"),
        ),
        (
            r#"rpc_public_addr = "127.0.0.1:3901""#,
            format!("rpc_public_addr = {rpc:?}"),
        ),
        (
            r#"api_bind_addr = "127.0.0.1:3900""#,
            format!("api_bind_addr = {s3_bind:?}"),
        ),
        (
            r#"api_bind_addr = "127.0.0.1:3903""#,
            format!("api_bind_addr = {admin:?}"),
        ),
        (
            r#"metadata_dir = "run/garage/meta""#,
            r#"metadata_dir = "meta""#.into(),
        ),
        (
            r#"data_dir = "run/garage/data""#,
            r#"data_dir = "data""#.into(),
        ),
    ] {
        text = replace_text(&text, old, &new).with_context(|| path.display().to_string())?;
    }
    Ok(text)
}
