//! A TCP connection that a fault can reset while a call is served.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Resets a [`Connection`].
#[derive(Clone, Debug, Default)]
pub(crate) struct ResetHandle(Arc<AtomicBool>);

impl ResetHandle {
    /// Makes all further reads and writes fail. The connection sends a reset when it is dropped.
    pub(crate) fn reset(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_reset(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A TCP connection that a [`ResetHandle`] can reset.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    handle: ResetHandle,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> (Self, ResetHandle) {
        let handle = ResetHandle::default();
        let connection = Self {
            stream,
            handle: handle.clone(),
        };
        (connection, handle)
    }

    fn check(&self) -> io::Result<()> {
        if self.handle.is_reset() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.handle.is_reset() {
            reset_on_drop(&self.stream);
        }
    }
}

/// Makes dropping the stream reset the connection. Data that was not sent is discarded.
pub(crate) fn reset_on_drop(stream: &TcpStream) {
    // Deprecated for a linger time that blocks, which zero does not. `set_zero_linger` needs a newer tokio than our oldest.
    #[allow(deprecated)]
    // On error the connection is closed without a reset.
    let _ = stream.set_linger(Some(Duration::ZERO));
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check()?;
        Pin::new(&mut this.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check()?;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check()?;
        Pin::new(&mut this.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check()?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check()?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
