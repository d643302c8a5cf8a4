use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::future::OrgRateLimitFuture;
use super::layer::{OrgRateLimitLayer, Rejected};
use crate::guard::GuardFuture;
use crate::rejection::RejectionBody;

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
        match self.limit.decide(request.extensions()) {
            Ok(fields) => OrgRateLimitFuture {
                guarded: GuardFuture::inner(self.inner.call(request)),
                fields,
            },
            Err(Rejected { rejection, fields }) => OrgRateLimitFuture {
                guarded: GuardFuture::rejected(request.extensions(), rejection),
                fields,
            },
        }
    }
}
