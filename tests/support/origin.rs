//! A scripted upstream in imgproxy's place, which also does what no decent server would: wrong lengths, bodies cut anywhere,
//! bodies that end with the connection.
//!
//! It writes HTTP/1.1 by hand, because every library prevents exactly these things.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::wait;

/// Where a script waits for the test.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<watch::Sender<Passage>>);

#[derive(Debug, Clone, Copy, Default)]
struct Passage {
    arrived: usize,
    open: bool,
}

impl Gate {
    /// A closed gate.
    pub(crate) fn closed() -> Self {
        Self(Arc::new(watch::Sender::default()))
    }

    /// Opens it, for those who wait and those who will come.
    pub(crate) fn open(&self) {
        self.0.send_modify(|passage| passage.open = true);
    }

    /// Waits until so many responses have arrived at it.
    ///
    /// # Errors
    /// When they have not within 30 s.
    pub(crate) async fn reached_by(&self, count: usize) -> Result<()> {
        let mut passage = self.0.subscribe();
        let arrived = passage.wait_for(|passage| passage.arrived >= count);
        tokio::time::timeout(PATIENCE, arrived)
            .await
            .with_context(|| format!("no {count} responses came to the gate"))?
            .context("we hold the sender")?;
        Ok(())
    }

    async fn pass(&self) {
        self.0.send_modify(|passage| passage.arrived += 1);
        let mut passage = self.0.subscribe();
        // The sender is in self.
        drop(passage.wait_for(|passage| passage.open).await);
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// `Content-Length`, the true one.
    Length,
    /// `Content-Length`, this one. When it is more than the body has, the connection closes after the body.
    WrongLength(usize),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// The same, with a trailer field at the end.
    Trailers,
    /// By closing the connection.
    Close,
}

/// How a body breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The connection is closed (FIN).
    Close,
    /// The connection is reset (RST).
    Reset,
}

/// A response to be given.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
    framing: Framing,
    cut: Option<(usize, Cut)>,
    before_head: Option<Gate>,
    gates: Vec<(usize, Gate)>,
}

impl Script {
    /// This status without header or body.
    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
            framing: Framing::Length,
            cut: None,
            before_head: None,
            gates: Vec::new(),
        }
    }

    /// 200 with this body, cacheable for an hour.
    pub(crate) fn ok(content_type: &str, body: impl Into<Bytes>) -> Self {
        Self::status(200)
            .header("content-type", content_type)
            .header("cache-control", "public, max-age=3600")
            .body(body)
    }

    /// A PNG, as far as its first bytes say, that goes on with the request as text: two requests get the same bytes only
    /// when the origin saw no difference.
    pub(crate) fn reflection(seen: &Seen) -> Self {
        Self::ok("image/png", Self::reflected(seen))
    }

    /// The body of a reflection.
    pub(crate) fn reflected(seen: &Seen) -> Bytes {
        [b"\x89PNG\r\n\x1a\n", seen.as_text().as_bytes()]
            .concat()
            .into()
    }

    /// Adds a field; the same name again sends it twice.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Takes away the fields of that name.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self
    }

    /// Sets the body.
    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets how its end is told.
    pub(crate) fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// Breaks off after so many bytes of the body.
    pub(crate) fn cut_after(mut self, bytes: usize, how: Cut) -> Self {
        self.cut = Some((bytes, how));
        self
    }

    /// Sends nothing before the gate is open.
    pub(crate) fn wait_before_head(mut self, gate: &Gate) -> Self {
        self.before_head = Some(gate.clone());
        self
    }

    /// Sends the head and so many bytes of the body, then waits for the gate. May be said several times, in rising order.
    pub(crate) fn wait_at(mut self, bytes: usize, gate: &Gate) -> Self {
        self.gates.push((bytes, gate.clone()));
        self
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        for (name, value) in &self.headers {
            write!(head, "{name}: {value}\r\n").expect("a String takes everything");
        }
        let framing = match self.framing {
            _ if matches!(self.status, 204 | 304) => String::new(),
            Framing::Length => format!("content-length: {}\r\n", self.body.len()),
            Framing::WrongLength(length) => format!("content-length: {length}\r\n"),
            Framing::Chunked => "transfer-encoding: chunked\r\n".into(),
            Framing::Trailers => "transfer-encoding: chunked\r\ntrailer: x-checksum\r\n".into(),
            Framing::Close => "connection: close\r\n".into(),
        };
        head + &framing + "\r\n"
    }

    /// The end of each piece of the body, and what happens there.
    fn stops(&self) -> Vec<(usize, Stop)> {
        let mut stops: Vec<_> = self
            .gates
            .iter()
            .map(|(at, gate)| (*at, Stop::Gate(gate.clone())))
            .collect();
        stops.push(match self.cut {
            Some((at, how)) => (at, Stop::Cut(how)),
            None => (self.body.len(), Stop::End),
        });
        stops
    }
}

#[derive(Debug)]
enum Stop {
    Gate(Gate),
    Cut(Cut),
    End,
}

/// A request that the origin got.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The method.
    pub(crate) method: String,
    /// The request target, as it was sent.
    pub(crate) path: String,
    /// The fields in their order, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// The body.
    pub(crate) body: Bytes,
}

impl Seen {
    /// The first value of a field.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find_map(|(n, value)| n.eq_ignore_ascii_case(name).then_some(value.as_str()))
    }

    /// All of it as text, fields sorted, without what is different on every request.
    pub(crate) fn as_text(&self) -> String {
        let mut fields = self.headers.clone();
        fields.retain(|(name, _)| name != "x-request-id");
        // The order of fields of different names means nothing (RFC 9110 section 5.3), and Envoy does not keep it.
        fields.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut text = format!("{} {}\n", self.method, self.path);
        for (name, value) in &fields {
            writeln!(text, "{name}: {value}").expect("a String takes everything");
        }
        text + &String::from_utf8_lossy(&self.body)
    }
}

type Answering = Arc<dyn Fn(&Seen) -> Script + Send + Sync>;

#[derive(Default)]
struct Book {
    scripts: HashMap<String, Answering>,
    otherwise: Option<Answering>,
    seen: Vec<Seen>,
}

/// The scripted upstream. What has no script is answered 404. Dropping it closes the port and all connections.
pub(crate) struct Origin {
    address: SocketAddr,
    book: Arc<Mutex<Book>>,
    serving: JoinHandle<()>,
}

impl Origin {
    /// Starts it on a free port.
    ///
    /// # Errors
    /// When it cannot listen.
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let book = Arc::<Mutex<Book>>::default();
        let serving = tokio::spawn(serve(listener, Arc::clone(&book)));
        Ok(Self {
            address,
            book,
            serving,
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers a path (query included, method whatever it is) with a script, from now on.
    pub(crate) fn respond(&self, path: &str, script: Script) {
        self.respond_with(path, move |_| script.clone());
    }

    /// Answers a path with what a function makes of the request.
    pub(crate) fn respond_with(
        &self,
        path: &str,
        answer: impl Fn(&Seen) -> Script + Send + Sync + 'static,
    ) {
        let answer = Arc::new(answer);
        self.book(|book| book.scripts.insert(path.into(), answer));
    }

    /// Answers every path that has no script of its own.
    pub(crate) fn otherwise(&self, answer: impl Fn(&Seen) -> Script + Send + Sync + 'static) {
        let answer = Arc::new(answer);
        self.book(|book| book.otherwise = Some(answer));
    }

    /// All requests so far, in the order in which they were complete.
    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.book(|book| book.seen.clone())
    }

    /// The requests so far for this path.
    pub(crate) fn requests_for(&self, path: &str) -> Vec<Seen> {
        let mut seen = self.requests();
        seen.retain(|request| request.path == path);
        seen
    }

    /// Waits until there were so many requests for this path.
    ///
    /// # Errors
    /// When there were not within 30 s.
    pub(crate) async fn requests_reach(&self, path: &str, count: usize) -> Result<()> {
        let what = format!("{count} requests for {path}");
        wait::until(&what, PATIENCE, async || {
            self.requests_for(path).len() >= count
        })
        .await
    }

    fn book<T>(&self, use_it: impl FnOnce(&mut Book) -> T) -> T {
        use_it(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, book: Arc<Mutex<Book>>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        // A connection that fails is the other side's affair, and often the point of the test.
        let book = Arc::clone(&book);
        connections.spawn(async move { drop(converse(stream, &book).await) });
    }
}

/// Answers the requests of one connection until either side closes it.
async fn converse(mut stream: TcpStream, book: &Mutex<Book>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await? {
        let script = {
            let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
            book.seen.push(request.clone());
            let answer = book.scripts.get(&request.path).or(book.otherwise.as_ref());
            answer.cloned()
        }
        .map_or_else(|| Script::status(404), |answer| answer(&request));
        if !write_response(&mut stream, &script, request.method == "HEAD").await? {
            break;
        }
    }
    Ok(())
}

/// Reads a request, whose first bytes may be in the buffer already; `None` at the end of the connection.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Option<Seen>> {
    let head_ends = loop {
        if let Some(at) = find(buffer, b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..head_ends]).into_owned();
    buffer.drain(..head_ends + 4);
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let mut request = Seen {
        method: first.next().unwrap_or_default().into(),
        path: first.next().unwrap_or_default().into(),
        headers: lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().into()))
            .collect(),
        body: Bytes::new(),
    };
    let body_ends = loop {
        let ends = match request.header("content-length") {
            Some(length) => Some(length.parse()?).filter(|length| buffer.len() >= *length),
            None if request.header("transfer-encoding").is_some() => {
                find(buffer, b"0\r\n\r\n").map(|at| at + 5)
            }
            None => Some(0),
        };
        if let Some(ends) = ends {
            break ends;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    request.body = buffer.drain(..body_ends).collect::<Vec<_>>().into();
    Ok(Some(request))
}

/// Writes a response; true when the connection can carry another one.
async fn write_response(stream: &mut TcpStream, script: &Script, is_head: bool) -> Result<bool> {
    if let Some(gate) = &script.before_head {
        gate.pass().await;
    }
    stream.write_all(script.head().as_bytes()).await?;
    if is_head || matches!(script.status, 204 | 304) {
        return Ok(true);
    }
    let mut sent = 0;
    for (at, stop) in script.stops() {
        let piece = script.body.get(sent..at).context("a stop past the body")?;
        write_piece(stream, script.framing, piece).await?;
        sent = at;
        match stop {
            Stop::Gate(gate) => gate.pass().await,
            Stop::Cut(Cut::Close) => return Ok(false),
            Stop::Cut(Cut::Reset) => {
                socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?;
                return Ok(false);
            }
            Stop::End => {}
        }
    }
    Ok(match script.framing {
        Framing::Length => true,
        Framing::WrongLength(length) => length == script.body.len(),
        Framing::Chunked => {
            stream.write_all(b"0\r\n\r\n").await?;
            true
        }
        Framing::Trailers => {
            stream.write_all(b"0\r\nx-checksum: 7\r\n\r\n").await?;
            true
        }
        Framing::Close => false,
    })
}

async fn write_piece(stream: &mut TcpStream, framing: Framing, piece: &[u8]) -> Result<()> {
    // An empty chunk would be the last one.
    let is_chunked = matches!(framing, Framing::Chunked | Framing::Trailers);
    if is_chunked && !piece.is_empty() {
        let size = format!("{:x}\r\n", piece.len());
        stream.write_all(size.as_bytes()).await?;
        stream.write_all(piece).await?;
        stream.write_all(b"\r\n").await?;
    } else {
        stream.write_all(piece).await?;
    }
    Ok(())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
