//! Connections to a Unix socket that are told only what they wait for.
//!
//! Whenever the other side of a Unix socket has read something, the kernel tells this side that it may write. Tokio's streams
//! are registered for that all the time, so that every message wakes a thread here for nothing, and the other side pays for
//! waking it. A [`Stream`] is registered for it only while a write has to wait.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixListener;
use tokio::net::unix::SocketAddr;
use tracing::warn;

/// What is read at once at most: as much is made ready each time, however little comes.
const READ_BYTES: usize = 16 * 1024;

/// Accepts connections as [`Stream`]s.
#[derive(Debug)]
pub(crate) struct Listener(pub(crate) UnixListener);

impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        loop {
            let (stream, address) = axum::serve::Listener::accept(&mut self.0).await;
            match stream.into_std().and_then(Stream::new) {
                Ok(stream) => return (stream, address),
                Err(error) => warn!(%error, "connection cannot be waited for"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: AsyncFd<UnixStream>,
    /// The same connection, while a write waits.
    full: Option<AsyncFd<UnixStream>>,
}

impl Stream {
    /// Of a connection that does not block.
    fn new(socket: UnixStream) -> io::Result<Self> {
        Ok(Self {
            socket: watch(socket, Interest::READABLE)?,
            full: None,
        })
    }

    /// Writes, and waits if there is no room.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let Some(full) = &self.full else {
                match write(self.socket.get_ref()) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        let again = self.socket.get_ref().try_clone()?;
                        self.full = Some(watch(again, Interest::WRITABLE)?);
                        continue;
                    }
                    done => return Poll::Ready(done),
                }
            };
            let mut ready = ready!(full.poll_write_ready(context))?;
            if let Ok(done) = ready.try_io(|socket| write(socket.get_ref())) {
                self.full = None;
                return Poll::Ready(done);
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "it is safe for what keeps its descriptor for as long as it is there, as this does"
)]
fn watch(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(socket, interest)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining().min(READ_BYTES);
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            let read = ready.try_io(|socket| {
                let mut socket = socket.get_ref();
                socket.read(buffer.initialize_unfilled_to(room))
            });
            if let Ok(read) = read {
                let read = read?;
                buffer.advance(read);
                // There is no more for now, and the kernel tells when there is.
                if 0 < read && read < room {
                    ready.clear_ready();
                }
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(context, |mut socket| socket.write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(context, |mut socket| socket.write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A connection of ours, and its other side.
    async fn connected() -> (Stream, tokio::net::UnixStream) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut listener = Listener(UnixListener::bind(&path).unwrap());
        let far = tokio::net::UnixStream::connect(&path).await.unwrap();
        let (near, _) = axum::serve::Listener::accept(&mut listener).await;
        (near, far)
    }

    #[tokio::test]
    async fn what_comes_in_parts_is_read_as_it_comes() {
        let (mut near, mut far) = connected().await;
        let mut buffer = [0; 8];
        for part in [b"abc", b"def"] {
            far.write_all(part).await.unwrap();
            assert_eq!(near.read(&mut buffer).await.unwrap(), 3);
            assert_eq!(&buffer[..3], part);
        }
        let early = futures_util::poll!(std::pin::pin!(near.read(&mut buffer)));
        assert!(early.is_pending());
        drop(far);
        assert_eq!(near.read(&mut buffer).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_write_that_has_to_wait_goes_on_and_nothing_waits_after_it() {
        let (mut near, mut far) = connected().await;
        let sent: Vec<u8> = (0..4 * 1024 * 1024).map(|index| index as u8).collect();
        {
            let mut writing = std::pin::pin!(near.write_all(&sent));
            assert!(futures_util::poll!(&mut writing).is_pending());
            let mut read = vec![0; sent.len()];
            let (written, _) = tokio::join!(writing, far.read_exact(&mut read));
            written.unwrap();
            assert!(read == sent);
        }
        assert!(near.full.is_none());
        near.shutdown().await.unwrap();
        assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_an_error() {
        let (mut near, far) = connected().await;
        drop(far);
        assert!(near.write_all(b"a").await.is_err());
    }
}
