use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::body::PermitBody;
use super::future::OrgConcurrencyLimitFuture;
use super::layer::OrgConcurrencyLimitLayer;
use crate::context::OrgContext;
use crate::guard::GuardFuture;
use crate::rejection::RejectionBody;

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
        let permit = match OrgContext::optional_in_layer(extensions, "OrgConcurrencyLimitLayer") {
            Ok(Some(context)) => self.limit.acquire(extensions, context),
            Ok(None) => Ok(None),
            Err(rejection) => Err(rejection),
        };
        match permit {
            Ok(permit) => OrgConcurrencyLimitFuture {
                guarded: GuardFuture::inner(self.inner.call(request)),
                permit,
            },
            Err(rejection) => OrgConcurrencyLimitFuture {
                guarded: GuardFuture::rejected(extensions, rejection),
                permit: None,
            },
        }
    }
}
