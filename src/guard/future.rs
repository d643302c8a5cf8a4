use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use pin_project_lite::pin_project;

use crate::rejection::{Rejection, undressed};

pin_project! {
    /// The response future of a guard: the inner service's, or a refusal.
    pub struct GuardFuture<F> {
        #[pin]
        pub(super) state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    pub(super) enum State<F> {
        Passed { #[pin] future: F },
        Refused { rejection: Option<Rejection> },
    }
}

impl<F> GuardFuture<F> {
    // Two makers and no `Result` between them: the inner future is some hundred bytes, and every step copies them.
    #[inline]
    pub(super) fn pass(future: F) -> Self {
        Self {
            state: State::Passed { future },
        }
    }

    #[inline]
    pub(super) fn refuse(rejection: Rejection) -> Self {
        Self {
            state: State::Refused {
                rejection: Some(rejection),
            },
        }
    }
}

impl<F, B, E> Future for GuardFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: From<Bytes>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Passed { future } => future.poll(cx),
            StateProj::Refused { rejection } => {
                let rejection = rejection
                    .take()
                    .unwrap_or_else(|| unreachable!("polled after completion"));
                Poll::Ready(Ok(undressed(rejection)))
            }
        }
    }
}

impl<F> fmt::Debug for GuardFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardFuture").finish_non_exhaustive()
    }
}
