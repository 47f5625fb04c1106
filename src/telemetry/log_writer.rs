//! Log lines on their way to standard error.
//!
//! A write for each request costs as much as the rest of its line. So lines are gathered for a moment;
//! warnings go out at once, with all that was said before.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long a line may be kept.
const GATHERED_FOR: Duration = Duration::from_millis(50);

/// As soon as there is so much, it goes out.
const GATHERED_BYTES: usize = 64 * 1024;

/// Gathers lines. Clones share what is gathered.
#[derive(Debug, Clone, Default)]
pub(super) struct LogWriter {
    gathering: Arc<Gathering>,
}

#[derive(Debug, Default)]
struct Gathering {
    lines: Mutex<Vec<u8>>,
    /// There is a first line.
    has_lines: Condvar,
}

/// Writes out what is left when it is dropped.
#[derive(Debug)]
#[must_use = "lines that are still kept are lost without it"]
pub struct Flush(LogWriter);

impl LogWriter {
    /// Writes out, from now on, what is gathered.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(&self) -> io::Result<Flush> {
        let gathering = Arc::clone(&self.gathering);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                loop {
                    gathering.wait();
                    thread::sleep(GATHERED_FOR);
                    gathering.write_out(&mut gathering.lock());
                }
            })?;
        Ok(Flush(self.clone()))
    }
}

impl Gathering {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the first line.
    fn wait(&self) {
        let lines = self
            .has_lines
            .wait_while(self.lock(), |lines| lines.is_empty());
        drop(lines.unwrap_or_else(PoisonError::into_inner));
    }

    /// Others wait meanwhile, so that lines stay in order and memory is bounded.
    fn write_out(&self, lines: &mut Vec<u8>) {
        // There is nobody to be told that standard error is gone.
        let _ = io::stderr().write_all(lines);
        lines.clear();
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let gathering = &self.0.gathering;
        gathering.write_out(&mut gathering.lock());
    }
}

/// Takes one line.
#[derive(Debug)]
pub(super) struct Line<'a> {
    gathering: &'a Gathering,
    is_urgent: bool,
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            gathering: &self.gathering,
            is_urgent: true,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        Line {
            gathering: &self.gathering,
            is_urgent: *metadata.level() <= Level::WARN,
        }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = self.gathering.lock();
        let is_first = lines.is_empty();
        lines.extend_from_slice(bytes);
        if self.is_urgent || lines.len() >= GATHERED_BYTES {
            self.gathering.write_out(&mut lines);
        } else if is_first {
            self.gathering.has_lines.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
