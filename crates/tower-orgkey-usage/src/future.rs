use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use crate::call::Call;
use tower_orgkey::observer::ObservedFuture;

pin_project! {
    /// The response future of [`UsageService`](crate::UsageService).
    pub struct ResponseFuture<F> {
        #[pin]
        observed: ObservedFuture<F, Call>,
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) fn new(observed: ObservedFuture<F, Call>) -> Self {
        Self { observed }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().observed.poll(cx)
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
