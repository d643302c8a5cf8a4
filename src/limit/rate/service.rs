use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::future::OrgRateLimitFuture;
use super::layer::OrgRateLimitLayer;
use crate::context::observer::RequestObservation;
use crate::limit::account::Decision;
use crate::limit::subject::caller;
use crate::rejection::{Rejection, RejectionBody};

/// The service of [`OrgRateLimitLayer`]. See the [module documentation](crate::limit).
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
    ResBody: RejectionBody,
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
        let decided = match caller(extensions, "OrgRateLimitLayer") {
            Ok(Some(context)) => self.limit.decide(extensions, context),
            Ok(None) => Ok((None, None)),
            Err(rejection) => Err(rejection),
        };
        let (decision, fields) = match decided {
            Ok(decided) => decided,
            Err(rejection) => {
                let rejection = RequestObservation::rejected(extensions, rejection);
                return OrgRateLimitFuture::reject(rejection, None);
            }
        };
        match decision {
            Some(Decision::Reject { wait }) => {
                let rejection =
                    RequestObservation::rejected(extensions, Rejection::rate_limited(wait));
                OrgRateLimitFuture::reject(rejection, fields)
            }
            Some(Decision::Allow { .. }) | None => {
                OrgRateLimitFuture::inner(self.inner.call(request), fields)
            }
        }
    }
}
