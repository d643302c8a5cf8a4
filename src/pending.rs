//! A request that waits for an answer before it may go on. Every layer that waits does so here.
//!
//! A request waits twice: for its answer, and then for the inner service to become ready. Meanwhile its key may be blocked or
//! its verification result may run out, so the key is checked again right before the inner service is called. Nothing else in
//! this crate waits between the authentication of a request and the call of an inner service: a hit calls the instance that
//! is ready already, and limits reject instead of waiting.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::Request;
use tower_service::Service;

use crate::cache::{Cache, LookupRequest, LookupResult};
use crate::context::OrgContext;
use crate::rejection::Rejection;

/// Decides on a request once its question is settled.
pub(crate) trait Judge<B> {
    /// The decision. To let the request pass puts into it what that entails.
    fn judge(&self, request: &mut Request<B>, result: LookupResult) -> Result<(), Rejection>;
}

/// A request that waits, and a clone of the inner service for afterwards.
pub(crate) struct Pending<S, B, J> {
    inner: S,
    request: Option<Request<B>>,
    judge: J,
    step: Step,
}

enum Step {
    LookUp(Pin<Box<dyn Future<Output = LookupResult> + Send>>),
    MakeReady,
}

/// Why a pending request is not called.
pub(crate) enum Stop<E> {
    Refused(Rejection),
    Failed(E),
}

impl<S: Clone, B, J> Pending<S, B, J> {
    /// Lets the instance that was made ready go: it may hold a permit, which nobody may hold while waiting for an answer.
    pub(crate) fn new(
        made_ready: &mut S,
        request: Request<B>,
        cache: &Arc<Cache>,
        lookup: LookupRequest,
        judge: J,
    ) -> Self {
        let inner = made_ready.clone();
        drop(mem::replace(made_ready, inner.clone()));
        Self {
            inner,
            request: Some(request),
            judge,
            step: Step::LookUp(Box::pin(Arc::clone(cache).look_up(lookup))),
        }
    }
}

impl<S, B, J> Pending<S, B, J>
where
    S: Service<Request<B>>,
    J: Judge<B>,
{
    /// Waits for the answer, then makes the inner service ready, checks the key again and calls the service.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<S::Future, Stop<S::Error>>> {
        if let (Step::LookUp(look_up), Some(request)) = (&mut self.step, &mut self.request) {
            let result = ready!(look_up.as_mut().poll(cx));
            self.step = Step::MakeReady;
            self.judge.judge(request, result).map_err(Stop::Refused)?;
        }
        ready!(self.inner.poll_ready(cx)).map_err(Stop::Failed)?;
        let Some(request) = self.request.take() else {
            unreachable!("a pending request is called once")
        };
        if let Some(context) = request.extensions().get::<OrgContext>() {
            context.recheck().map_err(Stop::Refused)?;
        }
        Poll::Ready(Ok(self.inner.call(request)))
    }
}
