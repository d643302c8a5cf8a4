use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::body::PermitBody;
use super::permits::Permit;
use crate::rejection::{Rejection, RejectionBody, unrendered};

pin_project! {
    /// The response future of [`OrgConcurrencyLimit`](super::OrgConcurrencyLimit): that of the inner service, or a
    /// rejection.
    ///
    /// Dropping it releases the permit of the request.
    pub struct OrgConcurrencyLimitFuture<F> {
        #[pin]
        state: State<F>,
        permit: Option<Permit>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Inner { #[pin] future: F },
        Rejected { rejection: Option<Rejection> },
    }
}

impl<F> OrgConcurrencyLimitFuture<F> {
    #[inline]
    pub(super) fn inner(future: F, permit: Option<Permit>) -> Self {
        Self {
            state: State::Inner { future },
            permit,
        }
    }

    #[inline]
    pub(super) fn reject(rejection: Rejection) -> Self {
        Self {
            state: State::Rejected {
                rejection: Some(rejection),
            },
            permit: None,
        }
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
        Poll::Ready(match this.state.project() {
            StateProj::Inner { future } => {
                let result = ready!(future.poll(cx));
                // The body takes the permit; after an error it is released here.
                let permit = this.permit.take();
                result.map(|response| response.map(|body| PermitBody::new(body, permit)))
            }
            StateProj::Rejected { rejection } => {
                let rejection = rejection
                    .take()
                    .unwrap_or_else(|| unreachable!("polled after completion"));
                Ok(unrendered(rejection))
            }
        })
    }
}

impl<F> fmt::Debug for OrgConcurrencyLimitFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgConcurrencyLimitFuture")
            .finish_non_exhaustive()
    }
}
