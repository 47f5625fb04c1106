//! A running child process whose output is kept in files, and which cannot outlive us.

use std::fs::{DirEntry, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::launch::Launch;
use super::wait;

/// The kernel kills the child when the thread that started it is gone, however that came about.
const DIES_WITH_US: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];

/// How long a thread may take to see that it is stopped.
const STANDS_WITHIN: Duration = Duration::from_secs(10);

/// How much of each output file an error shows.
const SHOWN_BYTES: usize = 4096;

/// A child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    launch: Launch,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts it; standard output goes to `logs/NAME.out`, standard error to `logs/NAME.err`, both appended to.
    ///
    /// # Errors
    /// When the program or the files cannot be opened.
    pub(crate) fn start(launch: Launch, logs: &Path) -> Result<Self> {
        let stdout = logs.join(format!("{}.out", launch.name));
        let stderr = logs.join(format!("{}.err", launch.name));
        let child = spawn(&launch, &stdout, &stderr)?;
        Ok(Self {
            launch,
            child,
            stdout,
            stderr,
        })
    }

    /// Starts the same again, after it was killed or stopped.
    ///
    /// # Errors
    /// When it still runs, or as [`Process::start`].
    pub(crate) fn start_again(&mut self) -> Result<()> {
        if self.exited()?.is_none() {
            bail!("{} still runs", self.launch.name);
        }
        self.child = spawn(&self.launch, &self.stdout, &self.stderr)?;
        Ok(())
    }

    /// Waits until `condition` holds.
    ///
    /// # Errors
    /// When the process ends or `deadline` passes first; the message ends with the process's last output.
    pub(crate) async fn ready(
        &mut self,
        what: &str,
        deadline: Duration,
        mut condition: impl AsyncFnMut() -> bool,
    ) -> Result<()> {
        let mut ended = None;
        let waited = wait::until(what, deadline, async || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some() || condition().await
        })
        .await;
        match ended {
            Some(status) => Err(anyhow!("it ended early: {status}")),
            None => waited,
        }
        .with_context(|| format!("{} did not start\n{}", self.launch.name, self.last_output()))
    }

    /// Asks it to stop (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// When it has not ended `within` the time; it runs on then.
    pub(crate) async fn stop(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let mut ended = None;
        wait::until("its end", within, async || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some()
        })
        .await
        .with_context(|| format!("{} does not stop\n{}", self.launch.name, self.last_output()))?;
        ended.context("until() returns when it has ended")
    }

    /// Kills it (SIGKILL) and reaps it; harmless when it has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it in its tracks (SIGSTOP), and waits until all of its threads stand: it keeps its sockets
    /// and answers nothing.
    ///
    /// # Errors
    /// When it has ended, or goes on.
    pub(crate) async fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let tasks = PathBuf::from(format!("/proc/{}/task", self.pid()));
        wait::until("all threads to stand", STANDS_WITHIN, async || {
            stand(&tasks)
        })
        .await
        .with_context(|| format!("{} cannot be frozen", self.launch.name))
    }

    /// Lets it go on after [`Process::freeze`].
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn thaw(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output so far.
    pub(crate) fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it wrote to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// The ends of both outputs, for a failing test's message.
    pub(crate) fn last_output(&self) -> String {
        let name = self.launch.name;
        let (stdout, stderr) = (self.stdout(), self.stderr());
        format!(
            "--- {name}, standard output\n{}\n--- {name}, standard error\n{}\n---",
            tail(&stdout),
            tail(&stderr)
        )
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let name = self.launch.name;
        if let Some(status) = self.exited()? {
            bail!("{name} has ended: {status}\n{}", self.last_output());
        }
        // Not reaped yet, so the id cannot have gone to another process.
        let pid = Pid::from_raw(i32::try_from(self.pid())?).context("a child's id is not zero")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {name}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("cannot kill {}: {error:#}", self.launch.name);
        }
    }
}

/// Was this an orderly end, by itself or by our SIGTERM?
pub(crate) fn is_orderly(status: ExitStatus) -> bool {
    status.success() || status.signal() == Some(Signal::TERM.as_raw())
}

fn spawn(launch: &Launch, stdout: &Path, stderr: &Path) -> Result<Child> {
    let mut command = launch.command(&DIES_WITH_US);
    command.stdout(append(stdout)?).stderr(append(stderr)?);
    let name = launch.name;
    start_from_lasting_thread(command).with_context(|| format!("cannot start {name}"))
}

/// "Kill the child with its parent" means the parent's thread. Tests have threads that end before the process does, and
/// a child may be shared between tests, so one thread that never ends starts all children.
fn start_from_lasting_thread(command: Command) -> Result<Child> {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static STARTER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                // Whoever ordered waits; only a panic on that side leaves nobody.
                drop(reply.send(command.spawn()));
            }
        });
        orders
    });
    let (reply, answer) = mpsc::channel();
    starter.send((command, reply))?;
    Ok(answer.recv()??)
}

/// Whether each thread in this folder of `/proc` is stopped (proc_pid_stat(5): the state comes after the
/// name, which ends with the last parenthesis).
fn stand(tasks: &Path) -> bool {
    let stands = |task: std::io::Result<DirEntry>| {
        let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
        stat.is_ok_and(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    };
    std::fs::read_dir(tasks).is_ok_and(|mut tasks| tasks.all(stands))
}

fn append(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

fn read(path: &Path) -> String {
    std::fs::read(path).map_or_else(
        |error| format!("(cannot read {}: {error})", path.display()),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}

/// The last [`SHOWN_BYTES`] of `text`.
pub(crate) fn tail(text: &str) -> &str {
    let text = text.trim_end();
    let from = text.len().saturating_sub(SHOWN_BYTES);
    &text[text.ceil_char_boundary(from)..]
}
