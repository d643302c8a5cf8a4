use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::layer::Core;
use crate::guard::GuardFuture;
use crate::pending::{Pending, Stop};
use crate::rejection::RejectionBody;

pin_project! {
    /// The response future of [`OrgSettingsService`](super::OrgSettingsService).
    pub struct ResponseFuture<S, T, ReqBody>
    where
        S: Service<Request<ReqBody>>,
        T: Send,
        T: Sync,
        T: 'static,
    {
        #[pin]
        pub(super) state: State<S, T, ReqBody>,
    }
}

pin_project! {
    #[project = StateProj]
    pub(super) enum State<S, T, ReqBody>
    where
        S: Service<Request<ReqBody>>,
        T: Send,
        T: Sync,
        T: 'static,
    {
        Decided { #[pin] guarded: GuardFuture<S::Future> },
        // Boxed, so that the future of a hit stays small.
        Waiting { pending: Box<Pending<S, ReqBody, Arc<Core<T>>>> },
    }
}

impl<S, T, ReqBody, ResBody> Future for ResponseFuture<S, T, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    T: Send + Sync + 'static,
    ResBody: RejectionBody,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Decided { guarded } => return guarded.poll(cx),
                StateProj::Waiting { pending } => {
                    let guarded = match ready!(pending.poll(cx)) {
                        Ok(future) => GuardFuture::inner(future),
                        Err(Stop::Rejected(rejection)) => GuardFuture::reject(rejection),
                        Err(Stop::Failed(error)) => return Poll::Ready(Err(error)),
                    };
                    this.state.set(State::Decided { guarded });
                }
            }
        }
    }
}

impl_debug!(
    [S: Service<Request<ReqBody>>, T: Send + Sync + 'static, ReqBody] ResponseFuture<S, T, ReqBody>
);
