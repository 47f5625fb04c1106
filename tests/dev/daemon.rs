//! Processes that go on when we are gone, and that a later run finds again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use data_encoding::HEXLOWER;
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};

use super::support::imgproxy::is_healthy;
use super::support::launch::Launch;
use super::support::wait;

/// Begins the program in a session of its own, out of reach of our terminal.
const DETACHED: [&str; 1] = ["setsid"];
const STOPS_WITHIN: Duration = Duration::from_secs(15);
const DIES_WITHIN: Duration = Duration::from_secs(5);

/// A part of the stack as it is wanted.
#[derive(Debug)]
pub(crate) struct Component {
    /// How it is started.
    pub(crate) launch: Launch,
    /// Its configuration file.
    pub(crate) config: Option<PathBuf>,
    /// The loopback ports it takes.
    pub(crate) ports: Vec<u16>,
    /// How we see that it is healthy.
    pub(crate) health: Health,
    /// What the user is told about it.
    pub(crate) shown: String,
}

/// A URL that tells whether a component is healthy.
#[derive(Debug)]
pub(crate) enum Health {
    /// By answering 200.
    Ok(String),
    /// By answering.
    Answers(String),
}

impl Component {
    /// Its name, in files and messages.
    pub(crate) fn name(&self) -> &'static str {
        self.launch.name
    }

    /// Is it healthy now?
    pub(crate) async fn is_healthy(&self) -> bool {
        match &self.health {
            Health::Ok(url) => is_healthy(url).await,
            Health::Answers(url) => reqwest::get(url).await.is_ok(),
        }
    }

    /// Is it healthy, or becomes so within this time?
    pub(crate) async fn is_healthy_within(&self, time: Duration) -> bool {
        let healthy = wait::until("health", time, async || self.is_healthy().await);
        healthy.await.is_ok()
    }

    /// A digest of everything that makes it what it is.
    fn identity(&self) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(self.launch.identity());
        if let Some(config) = &self.config {
            let text = std::fs::read(config)
                .with_context(|| format!("cannot read {}", config.display()))?;
            hash.update(text);
        }
        Ok(HEXLOWER.encode(&hash.finalize()))
    }
}

/// A process that was started for a component, by us or by an earlier run.
#[derive(Debug)]
pub(crate) struct Daemon {
    pid: u32,
    /// When the kernel started it, in clock ticks since boot: tells it from a later process of the same id.
    started: u64,
    identity: String,
}

impl Daemon {
    /// Starts a component; its output goes to its log file, which begins anew.
    ///
    /// # Errors
    /// When the program or a file cannot be opened.
    pub(crate) fn start(run: &Path, component: &Component) -> Result<Self> {
        let name = component.name();
        let log = File::create(log(run, name))?;
        let child = component
            .launch
            .command(&DETACHED)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = child.id();
        let daemon = Self {
            pid,
            // It is not reaped, so even if it has ended the kernel still knows it.
            started: kernel_entry(pid)
                .with_context(|| format!("{name} is not in /proc"))?
                .started,
            identity: component.identity()?,
        };
        let text = format!("{pid} {} {}\n", daemon.started, daemon.identity);
        std::fs::write(pid_file(run, name), text)?;
        Ok(daemon)
    }

    /// The living process of that name; what is left of a dead one is removed.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub(crate) fn find(run: &Path, name: &str) -> Result<Option<Self>> {
        let path = pid_file(run, name);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let daemon = parse(&text).filter(Self::is_alive);
        if daemon.is_none() {
            std::fs::remove_file(&path)?;
        }
        Ok(daemon)
    }

    /// Ends the process of that name, with force if it does not go by itself. False when there is none.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub(crate) async fn stop(run: &Path, name: &str) -> Result<bool> {
        let Some(daemon) = Self::find(run, name)? else {
            return Ok(false);
        };
        daemon.signal(Signal::TERM)?;
        if daemon.is_gone_within(STOPS_WITHIN).await.is_err() {
            eprintln!("{name} does not stop within {STOPS_WITHIN:?}, killing it");
            daemon.signal(Signal::KILL)?;
            daemon
                .is_gone_within(DIES_WITHIN)
                .await
                .with_context(|| format!("cannot end {name}, process {}", daemon.pid))?;
        }
        std::fs::remove_file(pid_file(run, name))?;
        Ok(true)
    }

    /// Was it started with the program, settings and configuration that the component has now?
    pub(crate) fn runs(&self, component: &Component) -> bool {
        component
            .identity()
            .is_ok_and(|identity| identity == self.identity)
    }

    /// Does it still run?
    pub(crate) fn is_alive(&self) -> bool {
        kernel_entry(self.pid)
            .is_some_and(|entry| entry.started == self.started && !entry.has_ended)
    }

    async fn is_gone_within(&self, time: Duration) -> Result<()> {
        wait::until("its end", time, async || !self.is_alive()).await
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid)?).context("process id 0")?;
        match kill_process(pid, signal) {
            // It ended between our looking and our signal.
            Err(rustix::io::Errno::SRCH) => Ok(()),
            done => done.with_context(|| format!("cannot signal process {pid:?}")),
        }
    }
}

/// Where a component's output goes.
pub(crate) fn log(run: &Path, name: &str) -> PathBuf {
    run.join(format!("{name}.log"))
}

/// Keeps two runs from working on the same stack.
///
/// # Errors
/// When another one is at it.
pub(crate) fn lock(run: &Path) -> Result<File> {
    let file = File::create(run.join("dev.lock"))?;
    if file.try_lock().is_err() {
        bail!("another `make up` or `make down` is at work here");
    }
    Ok(file)
}

fn pid_file(run: &Path, name: &str) -> PathBuf {
    run.join(format!("{name}.pid"))
}

fn parse(text: &str) -> Option<Daemon> {
    let mut words = text.split_whitespace();
    Some(Daemon {
        pid: words.next()?.parse().ok()?,
        started: words.next()?.parse().ok()?,
        identity: words.next()?.into(),
    })
}

struct KernelEntry {
    started: u64,
    has_ended: bool,
}

/// What `/proc/PID/stat` says (proc_pid_stat(5)). The second field, the name, may hold anything, so count from its end:
/// the state is next, the start time 19 fields later.
fn kernel_entry(pid: u32) -> Option<KernelEntry> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some(KernelEntry {
        has_ended: matches!(fields.next()?, "Z" | "X"),
        started: fields.nth(18)?.parse().ok()?,
    })
}
