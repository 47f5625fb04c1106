//! Afterimage with the reference configuration, its addresses and store replaced and a test's own settings laid over it.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::garage::{self, Garage};
use super::imgproxy::is_healthy;
use super::launch::Launch;
use super::metrics::Metrics;
use super::ports::Port;
use super::process::{Process, is_orderly};
use super::{settings, tools};

const STARTS_WITHIN: Duration = Duration::from_secs(30);
const STOPS_WITHIN: Duration = Duration::from_secs(30);

/// The environment variables through which the reference configuration takes its credentials.
pub(crate) const CREDENTIALS: [(&str, &str); 2] = [
    ("AFTERIMAGE_S3_ACCESS_KEY_ID", garage::ACCESS_KEY_ID),
    ("AFTERIMAGE_S3_SECRET_ACCESS_KEY", garage::SECRET_ACCESS_KEY),
];

/// Afterimage's configuration before it is written.
#[derive(Debug, Clone)]
pub(crate) struct Config(Value);

impl Config {
    /// `envoy/afterimage.yaml` as it is.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn reference() -> Result<Self> {
        let path = tools::project().join("envoy/afterimage.yaml");
        Ok(Self(settings::read(&path)?))
    }

    /// Another file than the reference.
    pub(crate) fn new(config: Value) -> Self {
        Self(config)
    }

    /// Keeps entries in that Garage.
    ///
    /// # Errors
    /// When the reference does not have the fields where it had.
    pub(crate) fn store_in(&mut self, garage: &Garage) -> Result<()> {
        let endpoint = garage.endpoint();
        settings::replace(&mut self.0, "/store/kind", "local", "s3")?;
        settings::replace(
            &mut self.0,
            "/store/s3/endpoint",
            "http://127.0.0.1:3900",
            endpoint,
        )
    }

    /// Takes these policies, and no other.
    ///
    /// # Errors
    /// When `yaml` is no YAML.
    pub(crate) fn only_policies(&mut self, yaml: &str) -> Result<()> {
        *settings::at(&mut self.0, "/policies")? = settings::parse(yaml)?;
        Ok(())
    }

    /// Lays these settings over what there is: maps are merged, the rest is replaced.
    ///
    /// # Errors
    /// When `yaml` is no YAML.
    pub(crate) fn overlay(&mut self, yaml: &str) -> Result<()> {
        settings::merge(&mut self.0, settings::parse(yaml)?);
        Ok(())
    }
}

/// A running Afterimage of a test. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Afterimage {
    /// The process, to be frozen, killed and started again.
    pub(crate) process: Process,
    admin: Port,
}

impl Afterimage {
    /// Starts this build of it in `dir`, where it listens on `run/ext_proc.sock`, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start; the message holds its last output.
    pub(crate) async fn start(
        binary: &Path,
        dir: &Path,
        mut config: Config,
        env: &[(String, String)],
    ) -> Result<Self> {
        let admin = Port::free()?;
        let listen = admin.address().to_string();
        settings::replace(&mut config.0, "/admin/listen", "127.0.0.1:9911", listen)?;
        let path = dir.join("afterimage.json");
        settings::write(&config.0, &path)?;
        let launch = env
            .iter()
            .fold(launch(binary, dir, &path), |launch, (name, value)| {
                launch.env(name, value)
            });
        let mut afterimage = Self {
            process: Process::start(launch, dir)?,
            admin,
        };
        afterimage.wait_until_ready().await?;
        Ok(afterimage)
    }

    /// Waits until it is ready, after it was started again.
    ///
    /// # Errors
    /// As [`Process::ready`].
    pub(crate) async fn wait_until_ready(&mut self) -> Result<()> {
        let ready = format!("{}/readyz", self.admin_url());
        self.process
            .ready("Afterimage to be ready", STARTS_WITHIN, async || {
                is_healthy(&ready).await
            })
            .await
    }

    /// Stops it gracefully.
    ///
    /// # Errors
    /// When it does not stop in time, or not with exit code 0.
    pub(crate) async fn stop(&mut self) -> Result<ExitStatus> {
        let status = self.process.stop(STOPS_WITHIN).await?;
        anyhow::ensure!(
            is_orderly(status),
            "Afterimage stopped with {status}\n{}",
            self.process.last_output()
        );
        Ok(status)
    }

    /// Kills it without warning and starts it again with the same configuration and store.
    ///
    /// # Errors
    /// When it does not start again.
    pub(crate) async fn crash_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.start_again()?;
        self.wait_until_ready().await
    }

    /// Replaces settings in the configuration file of a running instance, for what is reloaded.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn rewrite_config(&self, dir: &Path, yaml: &str) -> Result<()> {
        let path = dir.join("afterimage.json");
        let mut config = Config(settings::read(&path)?);
        config.overlay(yaml)?;
        // A reader must never meet half a file.
        let next = dir.join("afterimage.json.next");
        settings::write(&config.0, &next)?;
        std::fs::rename(next, path)?;
        Ok(())
    }

    /// Its metrics now.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn metrics(&self) -> Result<Metrics> {
        Metrics::scrape(&format!("{}/metrics", self.admin_url())).await
    }

    /// Where its admin interface is: `http://127.0.0.1:PORT`.
    pub(crate) fn admin_url(&self) -> String {
        format!("http://{}", self.admin.address())
    }
}

/// How Afterimage is started with this configuration file, from `dir`.
pub(crate) fn launch(binary: &Path, dir: &Path, config: &Path) -> Launch {
    let config = config.display().to_string();
    let launch = Launch::new("afterimage", binary, dir, "AFTERIMAGE_");
    CREDENTIALS
        .iter()
        .fold(launch, |launch, (name, value)| launch.env(*name, *value))
        .args(["serve", "--config", &config])
}

/// Settings as the environment gives them: those of `make up STORE=garage`.
pub(crate) fn s3_overrides(launch: Launch) -> Launch {
    launch.env("AFTERIMAGE_STORE__KIND", "s3")
}

/// The binary that Cargo built for this test, or the one beside this program's directory (an example, a benchmark).
///
/// # Errors
/// When there is none.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(built) = option_env!("CARGO_BIN_EXE_afterimage") {
        return Ok(built.into());
    }
    let ourselves = std::env::current_exe()?;
    ourselves
        .ancestors()
        .skip(1)
        .map(|directory| directory.join("afterimage"))
        .take(3)
        .find(|candidate| tools::is_executable(candidate))
        .context("there is no afterimage binary; run: make build")
}
