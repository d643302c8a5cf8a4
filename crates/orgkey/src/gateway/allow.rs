//! The inner service of the layer.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either};
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service};
use tower_orgkey::guard::RequireScopeLayer;
use tower_orgkey::{OrgContext, Rejection};

use super::config::RouteConfig;
use super::identity::Identities;
use super::recent::Recent;
use super::rendered::rendered;
use super::terms::Terms;

type Decided = Result<Response<Full<Bytes>>, Infallible>;

/// Allows requests of a route. Makes the identity, so that the audit trail records a failure to do so.
#[derive(Clone)]
pub(super) struct Allow(Arc<Inner>);

struct Inner {
    identities: Arc<Identities>,
    recent: Arc<Recent>,
    /// Who the assertion is for, if the route has its own.
    audience: Option<Arc<str>>,
}

impl Allow {
    pub(super) fn new(
        identities: &Arc<Identities>,
        recent: &Arc<Recent>,
        route: &RouteConfig,
    ) -> Self {
        Self(Arc::new(Inner {
            identities: Arc::clone(identities),
            recent: Arc::clone(recent),
            audience: route.audience.as_deref().map(Into::into),
        }))
    }

    fn allow(&self, request: &Request<Terms>) -> Response<Full<Bytes>> {
        let Inner {
            identities,
            recent,
            audience,
        } = &*self.0;
        let context = request.extensions().get::<OrgContext>();
        let headers = context.and_then(|context| {
            let headers = identities.of(context, audience.as_ref())?;
            recent.record("allowed", Some(context.org_code()));
            Some(headers)
        });
        match headers {
            None => rendered(Rejection::internal()).map(Full::new),
            Some(headers) => {
                let mut response = Response::new(Full::default());
                *response.headers_mut() = headers;
                response
            }
        }
    }
}

impl Service<Request<Terms>> for Allow {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Either<Ready<Decided>, BoxFuture<'static, Decided>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// Checks the scopes that the proxy demands.
    fn call(&mut self, mut request: Request<Terms>) -> Self::Future {
        match request.body_mut().scopes.take() {
            None => Either::Left(ready(Ok(self.allow(&request)))),
            Some(policy) => {
                let mut guarded = RequireScopeLayer::new(policy).layer(self.clone());
                Either::Right(Box::pin(guarded.call(request)))
            }
        }
    }
}
