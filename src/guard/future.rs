use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Extensions, Response};
use pin_project_lite::pin_project;

use crate::context::observer::RequestObservation;
use crate::rejection::{Rejection, RejectionBody, unrendered};

pin_project! {
    /// The response future of a guard: the future of the inner service, or a rejection.
    pub struct GuardFuture<F> {
        #[pin]
        pub(super) state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    pub(super) enum State<F> {
        Allowed { #[pin] future: F },
        Rejected { rejection: Option<Rejection> },
    }
}

impl<F> GuardFuture<F> {
    // Two functions instead of one that takes a `Result`: the inner future is large, and each step would copy it.
    #[inline]
    pub(crate) fn inner(future: F) -> Self {
        Self {
            state: State::Allowed { future },
        }
    }

    #[inline]
    pub(crate) fn reject(rejection: Rejection) -> Self {
        Self {
            state: State::Rejected {
                rejection: Some(rejection),
            },
        }
    }

    /// Rejects a request, and records why in its observation.
    #[inline]
    pub(crate) fn rejected(extensions: &Extensions, rejection: Rejection) -> Self {
        Self::reject(RequestObservation::rejected(extensions, rejection))
    }
}

impl<F, B, E> Future for GuardFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: RejectionBody,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Allowed { future } => future.poll(cx),
            StateProj::Rejected { rejection } => {
                let rejection = rejection
                    .take()
                    .unwrap_or_else(|| unreachable!("polled after completion"));
                Poll::Ready(Ok(unrendered(rejection)))
            }
        }
    }
}

impl_debug!([F] GuardFuture<F>);
