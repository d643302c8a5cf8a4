use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::CONTENT_LENGTH;
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

use crate::aggregator::Aggregator;
use crate::counts::{Ended, How};
use crate::future::ResponseFuture;
use crate::routes::RouteId;
use tower_orgkey::RequestHead;
use tower_orgkey::observer::{
    EarlyEnd, ObservedFuture, Observer, OuterObservation, ResponseObserver,
};

/// The service of [`UsageLayer`](crate::UsageLayer). See the [crate documentation](crate).
#[derive(Clone)]
#[must_use]
pub struct UsageService<S> {
    inner: S,
    aggregator: Arc<Aggregator>,
}

impl<S> UsageService<S> {
    pub(crate) fn new(inner: S, aggregator: Arc<Aggregator>) -> Self {
        Self { inner, aggregator }
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
            route: self.aggregator.route(RequestHead::of(&request)),
            request_bytes: declared_size(&request),
            observation: OuterObservation::attach(request.extensions_mut(), "UsageLayer"),
            began: Instant::now(),
            aggregator: Arc::clone(&self.aggregator),
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

/// A request in flight.
pub(crate) struct Call {
    aggregator: Arc<Aggregator>,
    observation: OuterObservation,
    began: Instant,
    route: RouteId,
    request_bytes: u64,
}

impl Call {
    #[inline]
    fn count(&self, how: How, response_bytes: u64) {
        let ended = Ended {
            took: self.began.elapsed(),
            how,
            request_bytes: self.request_bytes,
            response_bytes,
        };
        self.aggregator.count(&self.observation, self.route, ended);
    }
}

impl Observer for Call {
    #[cold]
    fn ended_early(self, end: EarlyEnd) {
        self.count(How::EndedEarly(end), 0);
    }
}

impl<B: Body> ResponseObserver<B> for Call {
    type Body = B;

    #[inline]
    fn responded(self, response: Response<B>) -> Response<B> {
        let response = self.observation.check(response);
        let rejection = self.observation.rejection_of(&response);
        let size = response.body().size_hint().exact().unwrap_or(0);
        self.count(
            How::Answered(rejection.map(|rejection| rejection.kind())),
            size,
        );
        response
    }
}

impl<S: fmt::Debug> fmt::Debug for UsageService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageService")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
