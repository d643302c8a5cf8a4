//! A request that waits for a lookup. All layers that wait use this module.
//!
//! A request waits twice: for the result of its lookup, and then for the inner service to become ready. Meanwhile its key may
//! be blocked or its verification result may run out, so the key is checked again right before the inner service is called.
//! Nothing else in this crate waits between the authentication of a request and the call of an inner service: a hit calls the
//! instance that is ready, and limits reject instead of waiting.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::Request;
use orgkey_lookup::{Cache, LookupRequest, LookupResult, Source};
use tower_service::Service;

use crate::context::OrgContext;
use crate::context::observer::RequestObservation;
use crate::rejection::Rejection;

/// Decides about a request when its lookup is complete.
pub(crate) trait Decide<B> {
    type Source: Source;

    /// Inserts the result into the request's extensions, or rejects the request.
    fn decide(
        &self,
        request: &mut Request<B>,
        result: LookupResult<Self::Source>,
    ) -> Result<(), Rejection>;
}

/// A waiting request, with a clone of the inner service to call afterwards.
pub(crate) struct Pending<S, B, J: Decide<B>> {
    inner: S,
    request: Option<Request<B>>,
    decide: J,
    step: Step<J::Source>,
}

enum Step<L: Source> {
    LookUp(Pin<Box<dyn Future<Output = LookupResult<L>> + Send>>),
    MakeReady,
}

/// Why the inner service is not called.
pub(crate) enum Stop<E> {
    Rejected(Rejection),
    Failed(E),
}

impl<S: Clone, B, J: Decide<B>> Pending<S, B, J> {
    /// Drops the instance that was made ready: a waiting request must not hold the permit that it may have.
    pub(crate) fn new(
        made_ready: &mut S,
        request: Request<B>,
        cache: &Arc<Cache<J::Source>>,
        lookup: LookupRequest<J::Source>,
        decide: J,
    ) -> Self {
        let inner = made_ready.clone();
        drop(mem::replace(made_ready, inner.clone()));
        Self {
            inner,
            request: Some(request),
            decide,
            step: Step::LookUp(Box::pin(Arc::clone(cache).look_up(lookup))),
        }
    }
}

impl<S, B, D> Pending<S, B, D>
where
    S: Service<Request<B>>,
    D: Decide<B>,
{
    /// Waits for the lookup, then makes the inner service ready, checks the key again and calls the service.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<S::Future, Stop<S::Error>>> {
        if let (Step::LookUp(look_up), Some(request)) = (&mut self.step, &mut self.request) {
            let result = ready!(look_up.as_mut().poll(cx));
            self.step = Step::MakeReady;
            self.decide
                .decide(request, result)
                .map_err(Stop::Rejected)?;
        }
        ready!(self.inner.poll_ready(cx)).map_err(Stop::Failed)?;
        let Some(request) = self.request.take() else {
            unreachable!("a pending request is called once")
        };
        if let Some(context) = request.extensions().get::<OrgContext>() {
            let rejected =
                |rejection| RequestObservation::rejected(request.extensions(), rejection);
            let rechecked = context.recheck().map_err(rejected);
            rechecked.map_err(Stop::Rejected)?;
        }
        Poll::Ready(Ok(self.inner.call(request)))
    }
}
