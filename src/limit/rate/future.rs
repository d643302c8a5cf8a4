use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;

use crate::guard::GuardFuture;
use crate::limit::ratelimit_fields::RateLimitFields;
use crate::rejection::RejectionBody;

pin_project! {
    /// The response future of [`OrgRateLimit`](super::OrgRateLimit): that of the inner service, or a rejection.
    pub struct OrgRateLimitFuture<F> {
        #[pin]
        pub(super) guarded: GuardFuture<F>,
        // Boxed: few limits have fields, and each layer copies the future.
        pub(super) fields: Option<Box<RateLimitFields>>,
    }
}

impl<F, B, E> Future for OrgRateLimitFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: RejectionBody,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(fields) = this.fields else {
            // The response is not moved.
            return this.guarded.poll(cx);
        };
        let mut response = ready!(this.guarded.poll(cx))?;
        fields.write(response.headers_mut());
        Poll::Ready(Ok(response))
    }
}

impl_debug!([F] OrgRateLimitFuture<F>);
