use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::permits::Permit;

pin_project! {
    /// The response body of [`OrgConcurrencyLimit`](super::OrgConcurrencyLimit): the body of the inner service, with the
    /// permit of the request until the body ends, fails or is dropped.
    pub struct PermitBody<B> {
        #[pin]
        body: B,
        permit: Option<Permit>,
    }
}

impl<B: Body> PermitBody<B> {
    pub(super) fn new(body: B, permit: Option<Permit>) -> Self {
        // A body without frames might never be polled.
        let permit = permit.filter(|_| !body.is_end_stream());
        Self { body, permit }
    }
}

impl<B> PermitBody<B> {
    /// Returns the body of the inner service and releases the permit.
    pub fn into_inner(self) -> B {
        self.body
    }
}

impl<B: From<Bytes>> From<Bytes> for PermitBody<B> {
    /// The body of a rejection, which has no permit.
    fn from(bytes: Bytes) -> Self {
        Self {
            body: B::from(bytes),
            permit: None,
        }
    }
}

impl<B: Default> Default for PermitBody<B> {
    /// The body of a layer outside the limit that responds itself, which has no permit.
    fn default() -> Self {
        Self {
            body: B::default(),
            permit: None,
        }
    }
}

impl<B: Body> Body for PermitBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        // The body may be kept without being polled again after the last frame.
        if !matches!(frame, Some(Ok(_))) || this.body.is_end_stream() {
            *this.permit = None;
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

impl_debug!([B: std::fmt::Debug] PermitBody<B>, |body| { body: body.body });
