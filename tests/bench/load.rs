//! The load generator: keeps connections busy, checks every answer's status and length, notes how long each took.
//!
//! It is our own because no packaged one does all that these figures need: an unused signed URL for every miss, the length
//! of every answer checked, and the processes' CPU time read at the very moments at which the counting begins and ends. It
//! shares the machine with what it measures, so it does as little as it can: one thread, HTTP/1.1 on plain sockets, bodies
//! read into a buffer and forgotten. It understands answers with a `Content-Length` only.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::Duration;

use afterimage::clock::Stopwatch;
use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::urls::Images;

const BUFFER_BYTES: usize = 64 * 1024;
/// How long answers may take that are still missing when nothing more is asked.
const DRAINED_WITHIN: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Debug)]
pub(crate) enum Paths {
    /// These in turn, again and again.
    Known(Vec<String>, Cell<usize>),
    /// Each time one that nobody asked for before.
    Fresh(Images),
    /// Any of so many.
    AnyOf(Images, u64),
}

impl Paths {
    /// These in turn.
    pub(crate) fn known(paths: Vec<String>) -> Self {
        Self::Known(paths, Cell::new(0))
    }

    fn next(&self) -> String {
        match self {
            Self::Known(paths, next) => {
                let index = next.get();
                next.set((index + 1) % paths.len());
                paths[index].clone()
            }
            Self::Fresh(images) => images.fresh(),
            Self::AnyOf(images, count) => images.path(&format!("any-{}", fastrand::u64(..count))),
        }
    }
}

/// What every answer has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// Its status.
    pub(crate) status: u16,
    /// Bytes in its body; any number if `None`.
    pub(crate) length: Option<u64>,
}

impl Expected {
    /// An image of so many bytes.
    pub(crate) fn image(length: u64) -> Self {
        Self {
            status: 200,
            length: Some(length),
        }
    }
}

/// When to stop asking.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Until {
    /// After this time.
    pub(crate) time: Duration,
    /// Or after so many requests.
    pub(crate) requests: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// How long each right answer took, from the first byte of the request to the last of the answer; sorted.
    pub(crate) latencies: Vec<Duration>,
    /// Wrong answers, broken connections, and what did not come in time.
    pub(crate) errors: u64,
    /// The first of the errors.
    pub(crate) first_error: Option<String>,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
}

impl Answers {
    /// The latency that this share of the answers did not exceed, `None` without answers.
    pub(crate) fn percentile(&self, share: f64) -> Option<Duration> {
        let last = self.latencies.len().checked_sub(1)?;
        let index = (share * last as f64).round() as usize;
        self.latencies.get(index).copied()
    }

    /// Right answers in a second.
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// Counts an error.
    pub(crate) fn fail(&mut self, error: impl Into<String>) {
        self.errors += 1;
        if self.first_error.is_none() {
            self.first_error = Some(error.into());
        }
    }
}

/// Connections to one server, kept open between runs.
#[derive(Debug)]
pub(crate) struct Load {
    connections: Vec<Connection>,
    pause: Duration,
}

impl Load {
    /// Opens so many connections.
    ///
    /// # Errors
    /// When the server refuses one.
    pub(crate) async fn open(target: SocketAddr, connections: usize) -> Result<Self> {
        let mut opened = Vec::with_capacity(connections);
        for _ in 0..connections {
            let mut connection = Connection {
                target,
                stream: None,
                buffer: vec![0; BUFFER_BYTES],
                is_waiting: false,
            };
            connection.connected().await?;
            opened.push(connection);
        }
        Ok(Self {
            connections: opened,
            pause: Duration::ZERO,
        })
    }

    /// Waits for so long after every answer.
    pub(crate) fn pausing(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// Asks on every connection, one request after the other, until it is time to stop, and waits for the last answers.
    pub(crate) async fn run(&mut self, paths: &Paths, expected: Expected, until: Until) -> Answers {
        let answers = RefCell::new(Answers::default());
        let left = Cell::new(until.requests);
        let started = Stopwatch::start();
        let ended = Cell::new(Duration::ZERO);
        let pause = self.pause;
        let asking = self.connections.iter_mut().map(|connection| async {
            while started.elapsed() < until.time && left.get() > 0 {
                left.set(left.get() - 1);
                let asked = Stopwatch::start();
                let answer = connection.ask(&paths.next()).await;
                let took = asked.elapsed();
                ended.set(started.elapsed());
                match answer {
                    Ok((status, length))
                        if status == expected.status
                            && expected.length.is_none_or(|wanted| wanted == length) =>
                    {
                        answers.borrow_mut().latencies.push(took);
                    }
                    Ok((status, length)) => {
                        let error = format!("status {status}, {length} bytes");
                        answers.borrow_mut().fail(error);
                    }
                    Err(error) => {
                        answers.borrow_mut().fail(format!("{error:#}"));
                        // A server that is gone refuses at once, and would be asked without end.
                        if connection.connected().await.is_err() {
                            break;
                        }
                    }
                }
                pauses_for(pause).await;
            }
        });
        let drained = tokio::time::timeout(until.time + DRAINED_WITHIN, join_all(asking)).await;
        let mut answers = answers.into_inner();
        answers.took = ended.get();
        if drained.is_err() {
            answers.took = started.elapsed();
            for connection in &mut self.connections {
                if connection.is_waiting {
                    answers.fail(format!("no answer within {DRAINED_WITHIN:?} after the end"));
                    connection.abandon();
                }
            }
        }
        answers.latencies.sort_unstable();
        answers
    }
}

/// Waits, but gives nobody else the turn where there is nothing to wait for.
pub(crate) async fn pauses_for(pause: Duration) {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

/// One connection, opened again when it was closed.
#[derive(Debug)]
struct Connection {
    target: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    is_waiting: bool,
}

impl Connection {
    async fn connected(&mut self) -> Result<()> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.target).await?;
            stream.set_nodelay(true)?;
            self.stream = Some(stream);
        }
        Ok(())
    }

    fn abandon(&mut self) {
        self.stream = None;
        self.is_waiting = false;
    }

    /// Status and length of the answer. After an error the connection is closed.
    async fn ask(&mut self, path: &str) -> Result<(u16, u64)> {
        self.connected().await?;
        self.is_waiting = true;
        let answer = self.exchange(path).await;
        self.is_waiting = false;
        match answer {
            Ok(head) => {
                if head.closes {
                    self.stream = None;
                }
                Ok((head.status, head.length))
            }
            Err(error) => {
                self.stream = None;
                Err(error)
            }
        }
    }

    async fn exchange(&mut self, path: &str) -> Result<Head> {
        let stream = self.stream.as_mut().context("connected before")?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: bench\r\nAccept: image/avif,image/webp,*/*\r\n\r\n",
            self.target
        );
        stream.write_all(request.as_bytes()).await?;
        let mut filled = 0;
        let head = loop {
            ensure!(
                filled < self.buffer.len(),
                "the head of an answer is too long"
            );
            let read = stream.read(&mut self.buffer[filled..]).await?;
            ensure!(read > 0, "closed before the head of an answer");
            filled += read;
            if let Some(head) = Head::parse(&self.buffer[..filled])? {
                break head;
            }
        };
        let mut received = (filled - head.size) as u64;
        while received < head.length {
            let read = stream.read(&mut self.buffer).await?;
            ensure!(read > 0, "cut after {received} of {} bytes", head.length);
            received += read as u64;
        }
        ensure!(received == head.length, "bytes after the end of an answer");
        Ok(head)
    }
}

struct Head {
    /// Bytes of the head itself.
    size: usize,
    status: u16,
    /// Bytes of the body.
    length: u64,
    closes: bool,
}

impl Head {
    /// `None` while it is not whole.
    fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(size) = response.parse(bytes)? else {
            return Ok(None);
        };
        let value = |name: &str| {
            let mut fields = response.headers.iter();
            let field = fields.find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(field.value).ok()
        };
        let Some(length) = value("content-length") else {
            bail!("an answer without Content-Length");
        };
        Ok(Some(Self {
            size,
            status: response.code.context("a whole head has a status")?,
            length: length.parse()?,
            closes: value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
        }))
    }
}
