use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;

use crate::limit::ratelimit_fields::RateLimitFields;
use crate::rejection::{Rejection, RejectionBody, unrendered};

pin_project! {
    /// The response future of [`OrgRateLimit`](super::OrgRateLimit): that of the inner service, or a rejection.
    pub struct OrgRateLimitFuture<F> {
        #[pin]
        pub(super) state: State<F>,
        // Boxed: few limits have fields, and each layer copies the future.
        pub(super) fields: Option<Box<RateLimitFields>>,
    }
}

pin_project! {
    #[project = StateProj]
    pub(super) enum State<F> {
        Inner { #[pin] future: F },
        Rejected { rejection: Option<Rejection> },
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
        let mut response = match this.state.project() {
            // The response is not moved.
            StateProj::Inner { future } if this.fields.is_none() => return future.poll(cx),
            StateProj::Inner { future } => ready!(future.poll(cx))?,
            StateProj::Rejected { rejection } => {
                let rejection = rejection
                    .take()
                    .unwrap_or_else(|| unreachable!("polled after completion"));
                unrendered(rejection)
            }
        };
        if let Some(fields) = this.fields {
            fields.write(response.headers_mut());
        }
        Poll::Ready(Ok(response))
    }
}

impl<F> fmt::Debug for OrgRateLimitFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgRateLimitFuture").finish_non_exhaustive()
    }
}
