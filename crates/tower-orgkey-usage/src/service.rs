use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::CONTENT_LENGTH;
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

use crate::aggregator::Aggregator;
use crate::call::{Call, Shared};
use crate::future::ResponseFuture;
use crate::routes::KnownRoute;
use tower_orgkey::RequestHead;
use tower_orgkey::observer::{ObservedFuture, OuterObservation};

/// The service of [`UsageLayer`](crate::UsageLayer). See the [crate documentation](crate).
#[derive(Clone)]
#[must_use]
pub struct UsageService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> UsageService<S> {
    pub(crate) fn new(inner: S, aggregator: Arc<Aggregator>) -> Self {
        let shared = Arc::new(Shared {
            aggregator,
            route: KnownRoute::default(),
        });
        Self { inner, shared }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for UsageService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ReqBody: Body,
    ResBody: Body,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let call = Call {
            route: self
                .shared
                .aggregator
                .route(RequestHead::of(&request), &self.shared.route),
            request_bytes: declared_size(&request),
            observation: OuterObservation::attach(request.extensions_mut(), "UsageLayer"),
            began: Instant::now(),
            shared: Arc::clone(&self.shared),
        };
        let inner = &mut self.inner;
        ResponseFuture::new(ObservedFuture::call(call, || inner.call(request)))
    }
}

/// The declared size of the body of a request.
fn declared_size<B: Body>(request: &Request<B>) -> u64 {
    let announced = || {
        let length = request.headers().get(CONTENT_LENGTH)?;
        length.to_str().ok()?.parse().ok()
    };
    let exact = request.body().size_hint().exact();
    exact.or_else(announced).unwrap_or(0)
}

impl<S: fmt::Debug> fmt::Debug for UsageService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageService")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
