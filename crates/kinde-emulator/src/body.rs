//! Response bodies, some of which end early or arrive slowly.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::connection::ResetHandle;

/// The body of a response.
pub(crate) struct Body {
    rest: Bytes,
    delivery: Delivery,
}

enum Delivery {
    Whole,
    /// Half of the body, then the end of the connection, by a reset if there is a handle.
    Truncated {
        progress: Progress,
        reset: Option<ResetHandle>,
    },
    /// One byte at a time.
    Slow {
        interval: Duration,
        pause: Option<Pin<Box<Sleep>>>,
    },
}

#[derive(Clone, Copy)]
enum Progress {
    NotSent,
    /// Passed to hyper, but possibly not flushed.
    HalfSent,
    HalfFlushed,
}

impl Body {
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self {
            rest: bytes.into(),
            delivery: Delivery::Whole,
        }
    }

    pub(crate) fn truncated(bytes: impl Into<Bytes>, reset: Option<ResetHandle>) -> Self {
        Self {
            rest: bytes.into(),
            delivery: Delivery::Truncated {
                progress: Progress::NotSent,
                reset,
            },
        }
    }

    pub(crate) fn slow(bytes: impl Into<Bytes>, interval: Duration) -> Self {
        Self {
            rest: bytes.into(),
            delivery: Delivery::Slow {
                interval,
                pause: None,
            },
        }
    }
}

/// Makes hyper close the connection in the middle of a body.
#[derive(Debug, thiserror::Error)]
#[error("body truncated by an injected fault")]
pub(crate) struct Truncated;

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Truncated;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Truncated>>> {
        let this = self.get_mut();
        match &mut this.delivery {
            Delivery::Whole => {
                let bytes = std::mem::take(&mut this.rest);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Delivery::Truncated { progress, reset } => match progress {
                Progress::NotSent => {
                    *progress = Progress::HalfSent;
                    let half = this.rest.split_to(this.rest.len() / 2);
                    Poll::Ready(Some(Ok(Frame::data(half))))
                }
                Progress::HalfSent => {
                    // hyper flushes its buffer when the body is pending.
                    *progress = Progress::HalfFlushed;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Progress::HalfFlushed => {
                    if let Some(handle) = reset {
                        handle.reset();
                    }
                    Poll::Ready(Some(Err(Truncated)))
                }
            },
            Delivery::Slow { interval, pause } => {
                if let Some(pause) = pause {
                    ready!(pause.as_mut().poll(cx));
                }
                if this.rest.is_empty() {
                    return Poll::Ready(None);
                }
                *pause = Some(Box::pin(sleep(*interval)));
                Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(1)))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.delivery {
            Delivery::Whole | Delivery::Slow { .. } => SizeHint::with_exact(self.rest.len() as u64),
            // `Content-Length` names the whole body.
            Delivery::Truncated { .. } => SizeHint::default(),
        }
    }
}
