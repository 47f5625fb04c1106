//! Makes HTTP/1.1 clients: hyper over TCP, TLS or a Unix socket, with a pool of connections.
//!
//! Garage never sets `TCP_NODELAY`, so the second segment of an answer waits for this side's
//! delayed ACK: 40 ms for every object that is not inlined. `TCP_QUICKACK` sends ACKs at once. The
//! kernel may reset it at any time, so it is set again after each read.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http_body::Body;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector as TcpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpStream, UnixStream};
use tower_service::Service;

use crate::endpoint::Endpoint;

/// Idle connections that are kept; more are closed when they become idle. It is well above what a
/// burst of hits needs, and far below what a server lets one client hold.
const IDLE_CONNECTIONS: usize = 64;
/// Idle connections are closed after this time, before servers and firewalls do it silently (after
/// 60 s or more).
const IDLE_TIME: Duration = Duration::from_secs(30);

/// A client for one endpoint; clones share its connections. `B` is the body of its requests.
pub(crate) type Client<B> = HyperClient<HttpsConnector<Dial>, B>;

/// Makes the client for one endpoint, with its pool of connections. Each must be made within
/// `connect`.
///
/// # Errors
/// For `https`, when the system's root certificates cannot be read.
pub(crate) fn client<B>(endpoint: &Endpoint, connect: Duration) -> io::Result<Client<B>>
where
    B: Body + Send,
    B::Data: Send,
{
    let dial = match endpoint {
        Endpoint::Unix(path) => Dial::Unix {
            path: path.clone(),
            timeout: connect,
        },
        Endpoint::Tcp(_) => {
            let mut connector = TcpConnector::new();
            connector.enforce_http(false);
            connector.set_nodelay(true);
            connector.set_connect_timeout(Some(connect));
            connector.set_keepalive(Some(IDLE_TIME));
            Dial::Tcp(connector)
        }
    };
    let is_secure = matches!(endpoint, Endpoint::Tcp(uri) if uri.scheme_str() == Some("https"));
    Ok(HyperClient::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIME)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .build(
            HttpsConnectorBuilder::new()
                .with_tls_config(tls(is_secure)?)
                .https_or_http()
                .enable_http1()
                .wrap_connector(dial),
        ))
}

/// Configures TLS to trust the system's root certificates, or nobody if TLS is not used.
fn tls(is_secure: bool) -> io::Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = if is_secure {
        builder.with_native_roots()?
    } else {
        builder.with_root_certificates(rustls::RootCertStore::empty())
    };
    Ok(builder.with_no_client_auth())
}

/// Whether an error or one of its causes is a deadline that passed.
pub(crate) fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
    })
}

type Connecting<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

/// Opens connections.
#[derive(Debug, Clone)]
pub(crate) enum Dial {
    /// Connects to the host of the request.
    Tcp(TcpConnector),
    /// Connects to one socket, whatever the request says.
    Unix {
        /// Its path.
        path: PathBuf,
        /// How long connecting may take.
        timeout: Duration,
    },
}

impl Service<Uri> for Dial {
    type Response = Stream;
    type Error = io::Error;
    type Future = Connecting<Stream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(connector) => connector.poll_ready(cx).map_err(io::Error::other),
            Self::Unix { .. } => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match self {
            Self::Tcp(connector) => {
                let connecting = connector.call(uri);
                Box::pin(async move {
                    let stream = connecting.await.map_err(|error| {
                        let kind = if is_timeout(&error) {
                            io::ErrorKind::TimedOut
                        } else {
                            io::ErrorKind::Other
                        };
                        io::Error::new(kind, error)
                    })?;
                    acknowledge_at_once(&stream);
                    Ok(Stream::Tcp(stream))
                })
            }
            Self::Unix { path, timeout } => {
                let (path, timeout) = (path.clone(), *timeout);
                Box::pin(async move {
                    let stream = tokio::time::timeout(timeout, UnixStream::connect(path)).await??;
                    Ok(Stream::Unix(TokioIo::new(stream)))
                })
            }
        }
    }
}

/// A connection. Over TCP it acknowledges what it receives without delay.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Over TCP.
    Tcp(TokioIo<TcpStream>),
    /// Over a Unix socket.
    Unix(TokioIo<UnixStream>),
}

fn acknowledge_at_once(stream: &TokioIo<TcpStream>) {
    // If this fails, answers are slow but whole.
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream.inner()).set_tcp_quickack(true);
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Self::Tcp(stream) => stream.connected(),
            Self::Unix(_) => Connected::new(),
        }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => {
                let read = Pin::new(&mut *stream).poll_read(cx, buffer);
                if read.is_ready() {
                    acknowledge_at_once(stream);
                }
                read
            }
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }
}
