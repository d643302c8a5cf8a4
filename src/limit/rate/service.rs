use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use tower_service::Service;

use super::future::OrgRateLimitFuture;
use super::layer::OrgRateLimitLayer;
use crate::limit::account::Verdict;
use crate::limit::subject::caller;
use crate::observer::RequestObservation;
use crate::rejection::Rejection;

/// The service that [`OrgRateLimitLayer`] makes.
///
/// See the [module's guide](crate::limit).
#[derive(Clone, Debug)]
#[must_use]
pub struct OrgRateLimit<S> {
    inner: S,
    limit: OrgRateLimitLayer,
}

impl<S> OrgRateLimit<S> {
    pub(super) fn new(inner: S, limit: OrgRateLimitLayer) -> Self {
        Self { inner, limit }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for OrgRateLimit<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: From<Bytes>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = OrgRateLimitFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let extensions = request.extensions();
        let (verdict, fields) = match caller(extensions, "a rate limit") {
            Ok(Some(context)) => self.limit.judge(context),
            Ok(None) => (None, None),
            Err(rejection) => {
                let rejection = RequestObservation::rejected(extensions, rejection);
                return OrgRateLimitFuture::refuse(rejection, None);
            }
        };
        match verdict {
            Some(Verdict::Refuse { wait }) => {
                let rejection = Rejection::rate_limited(wait);
                let rejection = RequestObservation::rejected(extensions, rejection);
                OrgRateLimitFuture::refuse(rejection, fields)
            }
            Some(Verdict::Pass { .. }) | None => {
                OrgRateLimitFuture::pass(self.inner.call(request), fields)
            }
        }
    }
}
