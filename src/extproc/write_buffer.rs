//! Joins what a connection writes in one turn into one write.
//!
//! HTTP/2 writes every frame of a body by itself, and each write wakes Envoy. This module buffers
//! the frames until the connection has nothing more to write for now.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The size of the buffer. A full buffer is sent in the middle of a turn; an image of the usual
/// size fits.
const BUFFER_BYTES: usize = 64 * 1024;

/// A stream whose writes are buffered until [`WriteBuffer::send`]. Clones are the same stream.
#[derive(Debug)]
pub(super) struct WriteBuffer<S>(Arc<Mutex<Inner<S>>>);

#[derive(Debug)]
struct Inner<S> {
    stream: S,
    /// Has its full capacity from the beginning.
    buffer: Vec<u8>,
    /// How many bytes of the buffer are sent.
    sent: usize,
}

impl<S> Clone for WriteBuffer<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> WriteBuffer<S> {
    pub(super) fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            stream,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            sent: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> WriteBuffer<S> {
    /// Sends the buffer. Whoever polls the connection calls this after every turn.
    ///
    /// # Errors
    /// Those of the stream; the buffered bytes are lost then.
    pub(super) fn send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().send(context)
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.buffer.len() {
            let stream = Pin::new(&mut self.stream);
            match ready!(stream.poll_write(context, &self.buffer[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        self.buffer.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Takes the bytes that fit into the buffer, and returns how many those are.
    fn take(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let before = self.buffer.len();
        for slice in slices {
            let room = BUFFER_BYTES - self.buffer.len();
            let taken = &slice[..slice.len().min(room)];
            self.buffer.extend_from_slice(taken);
        }
        self.buffer.len() - before
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteBuffer<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteBuffer<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        if inner.buffer.len() == BUFFER_BYTES {
            ready!(inner.send(context))?;
        }
        Poll::Ready(Ok(inner.take(slices)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing, because it is called after every frame.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        ready!(inner.send(context))?;
        Pin::new(&mut inner.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn writes_go_out_together_and_in_order() {
        let (near, mut far) = duplex(1024);
        let mut stream = WriteBuffer::new(near);
        stream.write_all(b"a").await.unwrap();
        stream.flush().await.unwrap();
        let slices = [IoSlice::new(b"b"), IoSlice::new(b"c")];
        assert_eq!(stream.write_vectored(&slices).await.unwrap(), 2);
        let mut buffer = [0; 8];
        let early = futures_util::poll!(std::pin::pin!(far.read(&mut buffer)));
        assert!(early.is_pending());
        poll_fn(|context| stream.send(context)).await.unwrap();
        assert_eq!(far.read(&mut buffer).await.unwrap(), 3);
        assert_eq!(&buffer[..3], b"abc");
    }

    #[tokio::test]
    async fn what_is_gathered_is_bounded_and_a_slow_reader_is_waited_for() {
        let (near, mut far) = duplex(1000);
        let mut stream = WriteBuffer::new(near);
        let sent: Vec<u8> = (0..3 * BUFFER_BYTES).map(|index| index as u8).collect();
        let writing = tokio::spawn({
            let sent = sent.clone();
            async move {
                for frame in sent.chunks(10_000) {
                    stream.write_all(frame).await.unwrap();
                    assert_eq!(stream.lock().buffer.capacity(), BUFFER_BYTES);
                }
                stream.shutdown().await.unwrap();
            }
        });
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        writing.await.unwrap();
        assert!(read == sent);
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_an_error() {
        let (near, far) = duplex(1000);
        let mut stream = WriteBuffer::new(near);
        drop(far);
        stream.write_all(b"a").await.unwrap();
        assert!(poll_fn(|context| stream.send(context)).await.is_err());
    }
}
