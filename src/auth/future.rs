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
use super::telemetry::{self, Outcome};
use crate::api_keys::ApiKeys;
use crate::context::OrgContext;
use crate::context::observer::RequestObservation;
use crate::pending::{Decide, Pending, Stop};
use crate::rejection::{Rejection, RejectionResponse, ResponseFormat, complete, render};

pin_project! {
    /// The response future of [`ApiKeyService`](super::ApiKeyService).
    pub struct ResponseFuture<S, F, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        pub(super) state: State<S, ReqBody>,
        pub(super) format: ResponseFormat<F>,
        pub(super) passed: Passed,
    }
}

/// Why a request passes the layer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Passed {
    /// Its key is authenticated.
    Key,
    /// A layer outside has authenticated it too, and counts it.
    Nested,
    /// It has no key, and is allowed without one.
    Anonymous,
    /// Its credential is not a key, and is passed to an inner authentication.
    OtherCredential,
}

impl Passed {
    /// A request with a key, which an outer layer may have given a context.
    #[inline]
    pub(super) fn with(outer: Option<&OrgContext>) -> Self {
        match outer {
            None => Self::Key,
            Some(_) => Self::Nested,
        }
    }
}

pin_project! {
    #[project = StateProj]
    pub(super) enum State<S, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        Called { #[pin] future: S::Future },
        Rejected { rejection: Option<Rejection> },
        // Boxed, so that the future of a hit stays small.
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
            LookupResult::Serve(entry, now) => {
                self.authenticate(request, entry, now, false).map(|_| ())
            }
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
                        record_outcome(rejection, *this.passed);
                        if rejection.is_some() || this.format.vary().is_some() {
                            return polled.map_ok(|response| complete(this.format, response));
                        }
                    }
                    // The usual response is not changed, so it is not moved either.
                    return polled;
                }
                StateProj::Rejected { rejection } => {
                    let rejection = mem::take(rejection)
                        .unwrap_or_else(|| unreachable!("polled after completion"));
                    telemetry::responded(Outcome::Rejected(&rejection));
                    return Poll::Ready(Ok(render(this.format, rejection)));
                }
                StateProj::Waiting { pending } => {
                    let next = match ready!(pending.poll(cx)) {
                        Ok(future) => State::Called { future },
                        Err(Stop::Rejected(rejection)) => State::Rejected {
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

/// Counts the outcome of a request that passed. An inner layer has already counted a rejection that it rendered, and the
/// outermost one counts the others.
fn record_outcome(rejection: Option<&Rejection>, passed: Passed) {
    match rejection {
        Some(rejection) if rejection.is_rendered() => {}
        Some(rejection) => telemetry::responded(Outcome::Rejected(rejection)),
        None => telemetry::responded(match passed {
            Passed::Nested => return,
            Passed::Key => Outcome::Allowed,
            Passed::Anonymous => Outcome::Anonymous,
            Passed::OtherCredential => Outcome::OtherCredential,
        }),
    }
}

impl_debug!([S: Service<Request<ReqBody>>, F, ReqBody] ResponseFuture<S, F, ReqBody>);
