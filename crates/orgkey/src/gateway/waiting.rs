//! Bounds how many checks wait for the issuer, so that the checks of known keys find a free connection.
//!
//! Over HTTP/1.1, a check holds its connection until it is decided. Lookups that wait are bounded by the layer, and requests that
//! join one are not: without this bound, one client could hold all connections with copies of requests with unknown keys.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;
use tower_orgkey::Rejection;

use super::once_per_second::OncePerSecond;
use super::rendered::rendered;

/// The places of checks that wait.
#[derive(Clone, Debug)]
pub(super) struct Waiting(Arc<Places>);

#[derive(Debug)]
struct Places {
    free: Arc<Semaphore>,
    logged: OncePerSecond,
}

impl Waiting {
    pub(super) fn at_most(places: usize) -> Self {
        Self(Arc::new(Places {
            free: Arc::new(Semaphore::new(places)),
            logged: OncePerSecond::default(),
        }))
    }

    fn take(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.0.free).try_acquire_owned().ok();
        if place.is_none() && self.0.logged.first() {
            tracing::warn!("too many checks wait for the issuer, others are rejected");
        }
        place
    }
}

/// Rejects a request that would have to wait without a place.
#[derive(Clone)]
pub(super) struct Bounded<S> {
    service: S,
    waiting: Waiting,
}

impl<S> Bounded<S> {
    pub(super) fn new(service: S, waiting: Waiting) -> Self {
        Self { service, waiting }
    }
}

impl<S> Service<Request<()>> for Bounded<S>
where
    S: Service<Request<()>, Response = Response<Full<Bytes>>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Decided<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        Decided {
            future: self.service.call(request),
            waiting: self.waiting.clone(),
            place: None,
        }
    }
}

pin_project_lite::pin_project! {
    pub(super) struct Decided<F> {
        #[pin]
        future: F,
        waiting: Waiting,
        place: Option<OwnedSemaphorePermit>,
    }
}

impl<F> Future for Decided<F>
where
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let decided = this.future.poll(context);
        if decided.is_pending() && this.place.is_none() {
            *this.place = this.waiting.take();
            if this.place.is_none() {
                let rejection = Rejection::verifier_unavailable(Duration::from_secs(1));
                return Poll::Ready(Ok(rendered(rejection).map(Full::new)));
            }
        }
        decided
    }
}
