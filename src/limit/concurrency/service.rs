use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::body::PermitBody;
use super::future::OrgConcurrencyLimitFuture;
use super::layer::OrgConcurrencyLimitLayer;
use crate::limit::subject::caller;
use crate::observer::RequestObservation;
use crate::rejection::{Rejection, RejectionBody};

/// The least value of `Retry-After`: it is unknown when a request in flight will end.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The service of [`OrgConcurrencyLimitLayer`]. See the [module documentation](crate::limit).
#[derive(Clone, Debug)]
#[must_use]
pub struct OrgConcurrencyLimit<S> {
    inner: S,
    limit: OrgConcurrencyLimitLayer,
}

impl<S> OrgConcurrencyLimit<S> {
    pub(super) fn new(inner: S, limit: OrgConcurrencyLimitLayer) -> Self {
        Self { inner, limit }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for OrgConcurrencyLimit<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body + RejectionBody,
{
    type Response = Response<PermitBody<ResBody>>;
    type Error = S::Error;
    type Future = OrgConcurrencyLimitFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let extensions = request.extensions();
        let permit = match caller(extensions, "a concurrency limit") {
            Ok(Some(context)) => self.limit.acquire(context),
            Ok(None) => Ok(None),
            Err(rejection) => {
                let rejection = RequestObservation::rejected(extensions, rejection);
                return OrgConcurrencyLimitFuture::reject(rejection);
            }
        };
        if let Ok(permit) = permit {
            return OrgConcurrencyLimitFuture::inner(self.inner.call(request), permit);
        }
        let rejection = Rejection::concurrency_limited(RETRY_AFTER);
        OrgConcurrencyLimitFuture::reject(RequestObservation::rejected(extensions, rejection))
    }
}
