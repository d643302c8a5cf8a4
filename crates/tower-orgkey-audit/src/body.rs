use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::event::{AuditedRequest, Body, BodyEnd};
use crate::layer::AuditLayer;

pin_project! {
    /// The body of a response of [`AuditService`](crate::AuditService): the inner body, frame by frame.
    ///
    /// Nothing is buffered. When the body ends or is dropped, the event of its request is complete.
    pub struct AuditBody<B> {
        #[pin]
        body: B,
        record: Option<Record>,
    }

    impl<B> PinnedDrop for AuditBody<B> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(record) = this.project().record.take() {
                record.dropped();
            }
        }
    }
}

/// An event that is complete but for the end of the body.
struct Record {
    request: Box<AuditedRequest>,
    layer: AuditLayer,
    bytes: u64,
    announced: Option<u64>,
}

impl Record {
    fn ended(mut self, end: BodyEnd) {
        self.request.body = Some(Body {
            end,
            after: self.request.arrived.elapsed(),
            bytes: self.bytes,
        });
        self.layer.options.trail.accept(self.request);
    }

    fn dropped(self) {
        // A server that has sent the announced length does not poll the body again.
        let is_complete = self.announced == Some(self.bytes);
        self.ended(if is_complete {
            BodyEnd::Ended
        } else {
            BodyEnd::Dropped
        });
    }
}

impl<B> AuditBody<B> {
    /// A body without an event, or whose event was accepted already.
    pub(crate) fn unrecorded(body: B) -> Self {
        Self { body, record: None }
    }

    /// A body whose end completes the event. `announced` is its length, if it is known.
    pub(crate) fn recorded(
        body: B,
        request: Box<AuditedRequest>,
        layer: AuditLayer,
        announced: Option<u64>,
    ) -> Self {
        Self {
            body,
            record: Some(Record {
                request,
                layer,
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
                if let Some(record) = this.record.as_mut() {
                    let bytes = frame.data_ref().map_or(0, Buf::remaining);
                    record.bytes = record.bytes.saturating_add(bytes as u64);
                }
                // A server does not poll a body again that says it has ended.
                this.body.is_end_stream().then_some(BodyEnd::Ended)
            }
        };
        if let Some(end) = end
            && let Some(record) = this.record.take()
        {
            record.ended(end);
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

/// For outer layers that respond themselves.
impl<B: Default> Default for AuditBody<B> {
    fn default() -> Self {
        Self::unrecorded(B::default())
    }
}

/// For outer guards and layers that reject requests.
impl<B: From<Bytes>> From<Bytes> for AuditBody<B> {
    fn from(bytes: Bytes) -> Self {
        Self::unrecorded(bytes.into())
    }
}

impl<B> fmt::Debug for AuditBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditBody").finish_non_exhaustive()
    }
}
