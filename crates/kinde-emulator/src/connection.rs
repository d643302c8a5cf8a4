//! The connection under a call, which a fault may cut, and the bodies that end badly.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Cuts a connection from within a call that it carries.
#[derive(Clone, Debug, Default)]
pub(super) struct Cutter(Arc<AtomicBool>);

impl Cutter {
    /// From now on the connection can neither read nor write, and ends with a reset.
    pub(super) fn cut(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_cut(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A TCP connection that a [`Cutter`] can cut.
#[derive(Debug)]
pub(super) struct Line {
    stream: TcpStream,
    cutter: Cutter,
}

impl Line {
    pub(super) fn new(stream: TcpStream) -> (Self, Cutter) {
        let cutter = Cutter::default();
        let line = Self {
            stream,
            cutter: cutter.clone(),
        };
        (line, cutter)
    }

    fn check(&self) -> io::Result<()> {
        if self.cutter.is_cut() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.cutter.is_cut() {
            reset_on_drop(&self.stream);
        }
    }
}

/// Makes the end of the connection a reset: what was not sent is dropped, and the peer is told at once.
pub(super) fn reset_on_drop(stream: &TcpStream) {
    // Deprecated for lingers that would block; a zero one does not, and the oldest tokio we take has no other name for it.
    #[allow(deprecated)]
    // If it fails the connection ends without a reset, which is all that can be done.
    let _ = stream.set_linger(Some(Duration::ZERO));
}

impl AsyncRead for Line {
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

impl AsyncWrite for Line {
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

/// The body of a response: whole, or in the way that a fault wants it.
pub(super) struct Body {
    rest: Bytes,
    manner: Manner,
}

enum Manner {
    Whole,
    /// Half of it, then the end of the connection: by a reset if there is a cutter.
    Cut {
        sent: Sent,
        cutter: Option<Cutter>,
    },
    Trickle {
        apart: Duration,
        pause: Option<Pin<Box<Sleep>>>,
    },
}

#[derive(Clone, Copy)]
enum Sent {
    Nothing,
    /// Handed over, and not yet known to have left.
    Half,
    /// Flushed.
    Gone,
}

impl Body {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self {
            rest: bytes.into(),
            manner: Manner::Whole,
        }
    }

    pub(super) fn cut(bytes: impl Into<Bytes>, cutter: Option<Cutter>) -> Self {
        Self {
            rest: bytes.into(),
            manner: Manner::Cut {
                sent: Sent::Nothing,
                cutter,
            },
        }
    }

    pub(super) fn trickle(bytes: impl Into<Bytes>, apart: Duration) -> Self {
        Self {
            rest: bytes.into(),
            manner: Manner::Trickle { apart, pause: None },
        }
    }
}

/// A body that was cut off on purpose.
#[derive(Debug, thiserror::Error)]
#[error("cut off on purpose")]
pub(super) struct CutOff;

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        let this = self.get_mut();
        match &mut this.manner {
            Manner::Whole => {
                let bytes = std::mem::take(&mut this.rest);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Manner::Cut { sent, cutter } => match sent {
                Sent::Nothing => {
                    *sent = Sent::Half;
                    let half = this.rest.split_to(this.rest.len() / 2);
                    Poll::Ready(Some(Ok(Frame::data(half))))
                }
                Sent::Half => {
                    // The connection flushes what it has when its body has nothing to give.
                    *sent = Sent::Gone;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Sent::Gone => {
                    if let Some(cutter) = cutter {
                        cutter.cut();
                    }
                    Poll::Ready(Some(Err(CutOff)))
                }
            },
            Manner::Trickle { apart, pause } => {
                if let Some(waiting) = pause {
                    ready!(waiting.as_mut().poll(cx));
                }
                if this.rest.is_empty() {
                    return Poll::Ready(None);
                }
                *pause = Some(Box::pin(sleep(*apart)));
                Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(1)))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.manner {
            Manner::Whole | Manner::Trickle { .. } => SizeHint::with_exact(self.rest.len() as u64),
            // The header promises the whole.
            Manner::Cut { .. } => SizeHint::default(),
        }
    }
}
