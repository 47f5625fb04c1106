//! The HTTP client under the AWS SDK: hyper over TCP, TLS or a Unix socket.
//!
//! Garage never sets `TCP_NODELAY`, so the second segment of an answer waits for this side's
//! delayed ACK: 40 ms on every object that is not inlined. `TCP_QUICKACK` sends ACKs at once, but
//! the kernel takes it back whenever it likes, so it is set again after each read.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{
    Connect, Connected, Connection, HttpConnector as TcpConnector,
};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpStream, UnixStream};
use tower_service::Service;

use super::failure::causes;

/// Idle connections kept; more than that are closed as they come back. Well above what a burst of
/// hits needs, and far below what a server lets one client hold.
const IDLE_CONNECTIONS: usize = 64;
/// Idle connections are closed after this time, before servers and the firewalls on the way (60 s
/// and more) do it in silence.
const IDLE_TIME: Duration = Duration::from_secs(30);

/// Where an S3 service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `http://host:port` or `https://host:port`, without a path.
    Tcp(Uri),
    /// `unix:/path/to/socket`, HTTP without TLS.
    Unix(PathBuf),
}

/// What was given is no [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "S3 endpoint is not of the form http://HOST[:PORT], https://HOST[:PORT] or unix:/PATH/OF/SOCKET"
)]
pub struct InvalidEndpoint;

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return path
                .is_absolute()
                .then_some(Self::Unix(path))
                .ok_or(InvalidEndpoint);
        }
        let uri: Uri = text.parse().map_err(|_| InvalidEndpoint)?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        // Credentials in the URL would end in logs.
        let is_bare = uri.authority().is_some_and(|at| !at.as_str().contains('@'))
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none();
        (is_http && is_bare)
            .then_some(Self::Tcp(uri))
            .ok_or(InvalidEndpoint)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(uri) => f.write_str(uri.to_string().trim_end_matches('/')),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    /// What the SDK makes its URLs from, and signs as `host`.
    pub(super) fn url(&self) -> String {
        match self {
            Self::Tcp(_) => self.to_string(),
            Self::Unix(_) => "http://localhost".to_owned(),
        }
    }
}

/// The client for one endpoint, with its pool of connections.
///
/// # Errors
/// Those of reading the system's root certificates, for `https` alone.
pub(super) fn http_client(endpoint: &Endpoint, connect: Duration) -> io::Result<SharedHttpClient> {
    let connector = match endpoint {
        Endpoint::Unix(path) => pooled(UnixConnector {
            path: path.clone(),
            timeout: connect,
        }),
        Endpoint::Tcp(uri) if uri.scheme_str() == Some("https") => pooled(tls(tcp(connect))?),
        Endpoint::Tcp(_) => pooled(tcp(connect)),
    };
    Ok(SharedHttpClient::new(OneClient(connector)))
}

/// Gives every operation the same pool. Timeouts are kept by the connectors and by the SDK.
#[derive(Debug)]
struct OneClient(SharedHttpConnector);

impl HttpClient for OneClient {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        self.0.clone()
    }
}

struct Pool<C>(Client<C, SdkBody>);

fn pooled<C>(connector: C) -> SharedHttpConnector
where
    C: Connect + Clone + Send + Sync + 'static,
{
    SharedHttpConnector::new(Pool(
        Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(connector),
    ))
}

impl<C> fmt::Debug for Pool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

impl<C> HttpConnector for Pool<C>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => {
                return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())));
            }
        };
        let answer = self.0.request(request);
        HttpConnectorFuture::new(async move {
            let answer = answer.await.map_err(by_kind)?;
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

fn by_kind(error: ClientError) -> ConnectorError {
    let is_connect = error.is_connect();
    if is_connect && is_timeout(&error) {
        ConnectorError::timeout(error.into()).never_connected()
    } else if is_connect {
        ConnectorError::io(error.into()).never_connected()
    } else {
        ConnectorError::io(error.into())
    }
}

fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).any(|error| {
        error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
    })
}

fn tcp(timeout: Duration) -> QuickAckConnector {
    let mut connector = TcpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(timeout));
    connector.set_keepalive(Some(IDLE_TIME));
    QuickAckConnector(connector)
}

fn tls(connector: QuickAckConnector) -> io::Result<HttpsConnector<QuickAckConnector>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_native_roots()?
        .with_no_client_auth();
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only()
        .enable_http1()
        .wrap_connector(connector))
}

type Connecting<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

#[derive(Debug, Clone)]
struct QuickAckConnector(TcpConnector);

impl Service<Uri> for QuickAckConnector {
    type Response = QuickAckStream;
    type Error = io::Error;
    type Future = Connecting<QuickAckStream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(cx).map_err(io::Error::other)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async move {
            let stream = connecting.await.map_err(|error| {
                let kind = if is_timeout(&error) {
                    io::ErrorKind::TimedOut
                } else {
                    io::ErrorKind::Other
                };
                io::Error::new(kind, error)
            })?;
            let stream = QuickAckStream(stream);
            stream.arm();
            Ok(stream)
        })
    }
}

/// A TCP stream that acknowledges what it receives without delay.
#[derive(Debug)]
struct QuickAckStream(TokioIo<TcpStream>);

impl QuickAckStream {
    fn arm(&self) {
        // Without it answers are slow, but whole.
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(self.0.inner()).set_tcp_quickack(true);
    }
}

impl Read for QuickAckStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.0).poll_read(cx, buffer);
        if read.is_ready() {
            self.arm();
        }
        read
    }
}

impl Connection for QuickAckStream {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}

#[derive(Debug, Clone)]
struct UnixConnector {
    path: PathBuf,
    timeout: Duration,
}

impl Service<Uri> for UnixConnector {
    type Response = LocalStream;
    type Error = io::Error;
    type Future = Connecting<LocalStream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { path, timeout } = self.clone();
        Box::pin(async move {
            let stream = tokio::time::timeout(timeout, UnixStream::connect(path)).await??;
            Ok(LocalStream(TokioIo::new(stream)))
        })
    }
}

#[derive(Debug)]
struct LocalStream(TokioIo<UnixStream>);

impl Read for LocalStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Connection for LocalStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// Writing is the inner stream's in both cases.
macro_rules! write_through {
    ($stream:ty) => {
        impl Write for $stream {
            fn poll_write(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.0).poll_write(cx, bytes)
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_shutdown(cx)
            }

            fn is_write_vectored(&self) -> bool {
                self.0.is_write_vectored()
            }

            fn poll_write_vectored(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.0).poll_write_vectored(cx, slices)
            }
        }
    };
}

write_through!(QuickAckStream);
write_through!(LocalStream);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_print_as_they_were_written() {
        for text in [
            "http://garage:3900",
            "https://s3.example.org",
            "unix:/run/garage.sock",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_path_credentials_or_another_scheme_are_refused() {
        for text in [
            "garage:3900",
            "ftp://garage",
            "http://garage/bucket",
            "http://garage?x",
            "http://id:secret@garage",
            "unix:garage.sock",
            "",
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(InvalidEndpoint), "{text}");
        }
    }
}
