//! The imgproxy that is there: the one that `IMGPROXY` names, else one on `PATH`, else the project's stand-in.

use std::fmt;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::launch::Launch;
use super::ports::Port;
use super::process::Process;
use super::tools;

const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// Which imgproxy runs.
#[derive(Debug, Clone)]
pub(crate) enum Program {
    /// `IMGPROXY` names it.
    Named(PathBuf),
    /// Found on `PATH`.
    OnPath(PathBuf),
    /// `tests/imgproxy/server.py`.
    StandIn {
        /// The Python that has its libraries.
        python: PathBuf,
    },
}

impl Program {
    /// Finds it.
    ///
    /// # Errors
    /// When `IMGPROXY` names no executable file, or there is no imgproxy and the stand-in is not installed.
    pub(crate) fn find() -> Result<Self> {
        if let Some(named) = std::env::var_os("IMGPROXY").filter(|named| !named.is_empty()) {
            let path = PathBuf::from(named);
            ensure!(
                tools::is_executable(&path),
                "IMGPROXY={} is not an executable file",
                path.display()
            );
            return Ok(Self::Named(path));
        }
        if let Some(path) = tools::on_path("imgproxy") {
            return Ok(Self::OnPath(path));
        }
        let python = tools::path("imgproxy")?;
        Ok(Self::StandIn { python })
    }

    /// Is it imgproxy itself, not the stand-in?
    pub(crate) fn is_real(&self) -> bool {
        !matches!(self, Self::StandIn { .. })
    }

    /// How it is started, from `dir`, to serve the project's photos as `local:///NAME`.
    pub(crate) fn launch(&self, dir: &Path, bind: SocketAddr) -> Launch {
        let without = "IMGPROXY";
        let launch = match self {
            Self::Named(path) | Self::OnPath(path) => Launch::new("imgproxy", path, dir, without),
            Self::StandIn { python } => {
                let server = tools::project().join("tests/imgproxy/server.py");
                Launch::new("imgproxy", python, dir, without)
                    .args(["-u".into(), server.display().to_string()])
            }
        };
        let photos = tools::project().join("tests/photos").display().to_string();
        launch
            .env("IMGPROXY_BIND", bind.to_string())
            .env("IMGPROXY_LOCAL_FILESYSTEM_ROOT", photos)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(path) => write!(f, "imgproxy: {} (IMGPROXY)", path.display()),
            Self::OnPath(path) => write!(f, "imgproxy: {} (PATH)", path.display()),
            Self::StandIn { .. } => write!(f, "imgproxy: the stand-in, tests/imgproxy"),
        }
    }
}

/// A running imgproxy of a test. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Imgproxy {
    /// The process, to be frozen, killed and started again.
    pub(crate) process: Process,
    /// Is it imgproxy itself, not the stand-in?
    pub(crate) is_real: bool,
    port: Port,
}

impl Imgproxy {
    /// Starts it with these further `IMGPROXY_*` variables and waits until it is healthy.
    ///
    /// # Errors
    /// When there is none or it does not start; the message holds its last output.
    pub(crate) async fn start(dir: &Path, env: &[(String, String)]) -> Result<Self> {
        let program = Program::find()?;
        say_once(&program);
        let port = Port::free()?;
        let launch = env.iter().fold(
            program.launch(dir, port.address()),
            |launch, (name, value)| launch.env(name, value),
        );
        let mut imgproxy = Self {
            process: Process::start(launch, dir)?,
            is_real: program.is_real(),
            port,
        };
        let prefix = env
            .iter()
            .find_map(|(name, value)| (name == "IMGPROXY_PATH_PREFIX").then_some(value.as_str()))
            .unwrap_or_default();
        let health = format!("{}{prefix}/health", imgproxy.base_url());
        imgproxy
            .process
            .ready("imgproxy's health", STARTS_WITHIN, async || {
                is_healthy(&health).await
            })
            .await?;
        Ok(imgproxy)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}", self.address())
    }
}

/// Does this URL answer 200?
pub(crate) async fn is_healthy(url: &str) -> bool {
    let answer = reqwest::get(url).await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

/// One line per test program, past the test runner's capture: which imgproxy a result speaks of matters when it passes, too.
fn say_once(program: &Program) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        drop(writeln!(std::io::stderr(), "{program}"));
    });
}
