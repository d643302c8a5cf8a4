use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::body::PermitBody;
use super::permits::Permit;
use crate::guard::GuardFuture;
use crate::rejection::RejectionBody;

pin_project! {
    /// The response future of [`OrgConcurrencyLimit`](super::OrgConcurrencyLimit): that of the inner service, or a
    /// rejection.
    ///
    /// Dropping it releases the permit of the request.
    pub struct OrgConcurrencyLimitFuture<F> {
        #[pin]
        pub(super) guarded: GuardFuture<F>,
        pub(super) permit: Option<Permit>,
    }
}

impl<F, B, E> Future for OrgConcurrencyLimitFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body + RejectionBody,
{
    type Output = Result<Response<PermitBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.guarded.poll(cx));
        // The body takes the permit; after an error it is released here.
        let permit = this.permit.take();
        Poll::Ready(result.map(|response| response.map(|body| PermitBody::new(body, permit))))
    }
}

impl_debug!([F] OrgConcurrencyLimitFuture<F>);
