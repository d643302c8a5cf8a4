use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;

use super::event::{AuditedRequest, Body, BodyEnd};
use super::trail::AuditTrail;

pin_project! {
    /// The body of a response that an [`AuditLayer`](super::AuditLayer) has seen: the inner one, frame by frame.
    ///
    /// Nothing is buffered. When it ends or is dropped, the request's event is complete.
    pub struct AuditBody<B> {
        #[pin]
        body: B,
        telling: Option<Telling>,
    }

    impl<B> PinnedDrop for AuditBody<B> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(telling) = this.project().telling.take() {
                telling.dropped();
            }
        }
    }
}

/// An event that wants nothing but the end of the body.
struct Telling {
    record: Box<AuditedRequest>,
    trail: AuditTrail,
    bytes: u64,
    /// How many bytes the body has, where that is known beforehand.
    announced: Option<u64>,
}

impl Telling {
    fn ended(mut self, end: BodyEnd) {
        self.record.body = Some(Body {
            end,
            after: self.record.arrived.elapsed(),
            bytes: self.bytes,
        });
        self.trail.accept(self.record);
    }

    fn dropped(self) {
        // A server that has sent what was announced asks for no more.
        let is_sent = self.announced == Some(self.bytes);
        self.ended(if is_sent {
            BodyEnd::Ended
        } else {
            BodyEnd::Dropped
        });
    }
}

impl<B> AuditBody<B> {
    /// A body whose event is told already, or that is none.
    pub(super) fn untold(body: B) -> Self {
        Self {
            body,
            telling: None,
        }
    }

    pub(super) fn told(
        body: B,
        record: Box<AuditedRequest>,
        trail: AuditTrail,
        announced: Option<u64>,
    ) -> Self {
        Self {
            body,
            telling: Some(Telling {
                record,
                trail,
                bytes: 0,
                announced,
            }),
        }
    }
}

impl<B: http_body::Body> http_body::Body for AuditBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        let end = match &frame {
            None => Some(BodyEnd::Ended),
            Some(Err(_)) => Some(BodyEnd::Failed),
            Some(Ok(frame)) => {
                if let Some(telling) = this.telling.as_mut() {
                    let bytes = frame.data_ref().map_or(0, Buf::remaining);
                    telling.bytes = telling.bytes.saturating_add(bytes as u64);
                }
                // A server does not ask a body again that says it is over.
                this.body.is_end_stream().then_some(BodyEnd::Ended)
            }
        };
        if let Some(end) = end
            && let Some(telling) = this.telling.take()
        {
            telling.ended(end);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// So that layers further out can answer for themselves.
impl<B: Default> Default for AuditBody<B> {
    fn default() -> Self {
        Self::untold(B::default())
    }
}

/// So that guards and layers further out can refuse.
impl<B: From<Bytes>> From<Bytes> for AuditBody<B> {
    fn from(bytes: Bytes) -> Self {
        Self::untold(bytes.into())
    }
}

impl<B> fmt::Debug for AuditBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditBody").finish_non_exhaustive()
    }
}
