use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use orgkey_lookup::LookupResult;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::layer::Core;
use crate::api_keys::ApiKeys;
use crate::observer::RequestObservation;
use crate::pending::{Decide, Pending, Stop};
use crate::rejection::{Face, Rejection, RejectionResponse, dress, render};
use crate::telemetry::{self, Outcome};

pin_project! {
    /// The response future of [`ApiKeyService`](super::ApiKeyService).
    pub struct ResponseFuture<S, F, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        pub(super) state: State<S, ReqBody>,
        pub(super) face: Face<F>,
        pub(super) is_anonymous: bool,
    }
}

pin_project! {
    #[project = StateProj]
    pub(super) enum State<S, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        Called { #[pin] future: S::Future },
        Refused { rejection: Option<Rejection> },
        // Boxed, so that the future of a hit stays small: a request that waits for the issuer can pay for a box.
        Waiting { pending: Box<Pending<S, ReqBody, Arc<Core>>> },
    }
}

impl<B> Decide<B> for Arc<Core> {
    type Source = ApiKeys;

    fn decide(
        &self,
        request: &mut Request<B>,
        result: LookupResult<ApiKeys>,
    ) -> Result<(), Rejection> {
        let decision = match result {
            LookupResult::Serve(entry, now) => self.admit(request, entry, now, false),
            LookupResult::CannotTell(cannot_tell) => Err(Rejection::cannot_tell(cannot_tell)),
            LookupResult::Invalid => Err(Rejection::invalid_token()),
        };
        decision.map_err(|rejection| RequestObservation::rejected(request.extensions(), rejection))
    }
}

impl<S, F, ReqBody, ResBody> Future for ResponseFuture<S, F, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    F: RejectionResponse<ResBody>,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Called { future } => {
                    let polled = future.poll(cx);
                    if let Poll::Ready(Ok(response)) = &polled {
                        let rejection = response.extensions().get::<Rejection>();
                        tell(rejection, *this.is_anonymous);
                        if rejection.is_some() || this.face.vary().is_some() {
                            return polled.map_ok(|response| dress(this.face, response));
                        }
                    }
                    // The usual response needs nothing, and is not even moved: it is written where the caller wants it.
                    return polled;
                }
                StateProj::Refused { rejection } => {
                    let rejection = mem::take(rejection)
                        .unwrap_or_else(|| unreachable!("polled after completion"));
                    telemetry::answered(Outcome::Refused(&rejection));
                    return Poll::Ready(Ok(render(this.face, rejection)));
                }
                StateProj::Waiting { pending } => {
                    let next = match ready!(pending.poll(cx)) {
                        Ok(future) => State::Called { future },
                        Err(Stop::Rejected(rejection)) => State::Refused {
                            rejection: Some(rejection),
                        },
                        Err(Stop::Failed(error)) => return Poll::Ready(Err(error)),
                    };
                    this.state.set(next);
                }
            }
        }
    }
}

/// Tells how a request ended that was let through. What a layer further in refused, that one has told already.
fn tell(rejection: Option<&Rejection>, is_anonymous: bool) {
    match rejection {
        Some(rejection) if rejection.is_dressed() => {}
        Some(rejection) => telemetry::answered(Outcome::Refused(rejection)),
        None if is_anonymous => telemetry::answered(Outcome::Anonymous),
        None => telemetry::answered(Outcome::Allowed),
    }
}

impl<S, F, ReqBody> fmt::Debug for ResponseFuture<S, F, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
