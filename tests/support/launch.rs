//! What to run: a program with its arguments, environment and directory, before it is a process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A process to be started, any number of times.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// For messages and log files.
    pub(crate) name: &'static str,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    without: &'static str,
    dir: PathBuf,
}

impl Launch {
    /// `program`, to be started in `dir`. The environment is ours, less every variable that begins with `without`: what a
    /// developer happens to have set must not change what a test sees.
    pub(crate) fn new(
        name: &'static str,
        program: impl Into<PathBuf>,
        dir: &Path,
        without: &'static str,
    ) -> Self {
        Self {
            name,
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            without,
            dir: dir.into(),
        }
    }

    /// The same under another name.
    pub(crate) fn called(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Adds arguments.
    pub(crate) fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable; the last one of a name counts.
    pub(crate) fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The command, begun by `starter` (`setsid`, or `setpriv` with its arguments), which replaces itself by the program,
    /// so that the process id is the program's.
    pub(crate) fn command(&self, starter: &[&str]) -> Command {
        let mut words = starter
            .iter()
            .map(AsRef::as_ref)
            .chain(std::iter::once(self.program.as_os_str()));
        let first = words.next().expect("the program is always there");
        let mut command = Command::new(first);
        command
            .args(words)
            .args(&self.args)
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with(self.without) {
                command.env_remove(name);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Everything that makes this launch what it is, as text: two launches with the same one run the same.
    pub(crate) fn identity(&self) -> String {
        let program = self.program.metadata().ok().map(|file| {
            let modified = file.modified().ok();
            (file.len(), modified)
        });
        format!("{self:?} {program:?}")
    }
}
