//! Writes log lines to standard error, several at a time.
//!
//! A write for each request costs as much as the rest of its line. So lines are buffered for a
//! moment. A warning is written at once, after all lines before it.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long a line may be buffered.
const BUFFERED_FOR: Duration = Duration::from_millis(50);

/// A buffer with so many bytes is written at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// Buffers lines. Clones share the buffer.
#[derive(Debug, Clone, Default)]
pub(super) struct LogWriter {
    buffer: Arc<Buffer>,
}

#[derive(Debug, Default)]
struct Buffer {
    lines: Mutex<Vec<u8>>,
    /// Tells that the buffer has a first line.
    has_lines: Condvar,
}

/// Writes the lines that are left when it is dropped.
#[derive(Debug)]
#[must_use = "lines that are still kept are lost without it"]
pub struct Flush(LogWriter);

impl LogWriter {
    /// Starts the thread that writes the buffered lines.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(&self) -> io::Result<Flush> {
        let buffer = Arc::clone(&self.buffer);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                loop {
                    buffer.wait();
                    thread::sleep(BUFFERED_FOR);
                    buffer.write_out(&mut buffer.lock());
                }
            })?;
        Ok(Flush(self.clone()))
    }
}

impl Buffer {
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

    /// Writes the lines under the lock: other threads wait, so that lines stay in order and memory
    /// is bounded.
    fn write_out(&self, lines: &mut Vec<u8>) {
        // Nobody can be told that standard error is gone.
        let _ = io::stderr().write_all(lines);
        lines.clear();
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let buffer = &self.0.buffer;
        buffer.write_out(&mut buffer.lock());
    }
}

/// Takes one line.
#[derive(Debug)]
pub(super) struct Line<'a> {
    buffer: &'a Buffer,
    is_urgent: bool,
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            buffer: &self.buffer,
            is_urgent: true,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        Line {
            buffer: &self.buffer,
            is_urgent: *metadata.level() <= Level::WARN,
        }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = self.buffer.lock();
        let is_first = lines.is_empty();
        lines.extend_from_slice(bytes);
        if self.is_urgent || lines.len() >= BUFFER_BYTES {
            self.buffer.write_out(&mut lines);
        } else if is_first {
            self.buffer.has_lines.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
