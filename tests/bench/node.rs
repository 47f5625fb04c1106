//! The peer: a caching proxy in Node, Express and the AWS SDK, in `node-proxy/`.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::net::TcpStream;

use super::support::garage::{ACCESS_KEY_ID, BUCKET, REGION, SECRET_ACCESS_KEY};
use super::support::launch::Launch;
use super::support::ports::Port;
use super::support::process::Process;
use super::support::tools;
use super::usage::Part;

const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// A running proxy. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct NodeProxy {
    process: Process,
    port: Port,
}

impl NodeProxy {
    /// Starts it before `upstream`, with the S3 service at `endpoint`.
    ///
    /// # Errors
    /// When it is not installed or does not start; the message holds its last output.
    pub(crate) async fn start(dir: &Path, upstream: SocketAddr, endpoint: &str) -> Result<Self> {
        let proxy = tools::project().join("tests/bench/node-proxy");
        ensure!(
            proxy.join("node_modules").is_dir(),
            "the Node proxy's packages are missing; run: make bench"
        );
        let port = Port::free()?;
        let launch = Launch::new("node", tools::path("node")?, dir, "NODE_")
            .args([proxy.join("server.mjs").display().to_string()])
            .env("NODE_ENV", "production")
            .env("PORT", port.number().to_string())
            .env("ORIGIN", format!("http://{upstream}"))
            .env("S3_ENDPOINT", endpoint)
            .env("S3_BUCKET", BUCKET)
            .env("S3_REGION", REGION)
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY);
        let mut proxy = Self {
            process: Process::start(launch, dir)?,
            port,
        };
        proxy.wait_until_ready().await?;
        Ok(proxy)
    }

    /// Starts it again if it has ended, as whoever runs it would have to. An error of a body that it passes on ends it.
    /// True when it had ended.
    ///
    /// # Errors
    /// When it does not start again.
    pub(crate) async fn revive(&mut self) -> Result<bool> {
        let Some(status) = self.process.exited()? else {
            return Ok(false);
        };
        eprintln!(
            "the Node proxy ended: {status}\n{}",
            self.process.last_output()
        );
        self.process.start_again()?;
        self.wait_until_ready().await?;
        Ok(true)
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let address = self.address();
        self.process
            .ready("the Node proxy to listen", STARTS_WITHIN, async || {
                TcpStream::connect(address).await.is_ok()
            })
            .await
    }

    /// The process, as it is now.
    pub(crate) fn part(&self) -> Part {
        Part::new("node", self.process.pid())
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }
}
