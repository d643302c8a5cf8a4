use std::borrow::Cow;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::future::GuardFuture;
use crate::context::OrgContext;
use crate::context::observer::Requirement;
use crate::identifier::OrgCode;
use crate::rejection::{Rejection, RejectionBody};
use crate::request_head::RequestHead;

/// Requires that the path parameter of this name is the organization of the key.
///
/// The parameter is decoded once and compared byte for byte. If nested routes have several parameters of the name, all must
/// be that organization. Nothing is looked up, so a rejection does not reveal whether the other organization exists.
///
/// If the route does not have the parameter, every request is rejected with 500, and the log names the parameter.
#[cfg(feature = "axum")]
pub fn require_org(parameter: impl Into<Cow<'static, str>>) -> RequireOrgLayer<PathParameter> {
    RequireOrgLayer::new(PathParameter(parameter.into()))
}

/// Requires that `claim` returns the organization of the key. `None` rejects the request.
///
/// For Tower services without axum, and for APIs that name the organization elsewhere than in the path.
///
/// ```
/// use std::borrow::Cow;
/// use tower_orgkey::{RequestHead, require_org_with};
///
/// let guard = require_org_with(|head: RequestHead<'_>| {
///     head.uri.path().strip_prefix("/orgs/")?.split('/').next().map(str::to_owned)
/// });
/// ```
pub fn require_org_with<F>(claim: F) -> RequireOrgLayer<FromHead<F>>
where
    F: Fn(RequestHead<'_>) -> Option<String> + Clone,
{
    RequireOrgLayer::new(FromHead(claim))
}

/// Where a request names an organization. Implemented by [`PathParameter`] and [`FromHead`].
pub trait ClaimedOrg: sealed::Sealed {
    /// Compares the organization that the request names with that of the key.
    #[doc(hidden)]
    fn agrees<B>(&self, request: Request<B>, org: &OrgCode) -> (Request<B>, Agreement);

    /// Returns the path parameter that names the organization, if it is a parameter.
    #[doc(hidden)]
    fn parameter(&self) -> Option<Cow<'static, str>> {
        None
    }
}

mod sealed {
    pub trait Sealed {}
}

/// Whether a request names the organization of the key.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    Same,
    Other,
    /// The route has no such parameter, which has been logged.
    Missing,
}

/// Reads the organization with the function of [`require_org_with`].
#[derive(Clone)]
pub struct FromHead<F>(F);

impl_debug!([F] FromHead<F>);

impl<F> sealed::Sealed for FromHead<F> {}

impl<F: Fn(RequestHead<'_>) -> Option<String>> ClaimedOrg for FromHead<F> {
    fn agrees<B>(&self, request: Request<B>, org: &OrgCode) -> (Request<B>, Agreement) {
        let claimed = (self.0)(RequestHead::of(&request));
        let agreement = if claimed.is_some_and(|claimed| claimed == org.as_str()) {
            Agreement::Same
        } else {
            Agreement::Other
        };
        (request, agreement)
    }
}

/// Reads the organization from the path parameter of [`require_org`].
#[cfg(feature = "axum")]
#[derive(Clone, Debug)]
pub struct PathParameter(Cow<'static, str>);

#[cfg(feature = "axum")]
mod path {
    use std::borrow::Cow;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use axum::extract::FromRequestParts;
    use axum::extract::RawPathParams;
    use axum::extract::rejection::RawPathParamsRejection;
    use http::Request;

    use super::{Agreement, ClaimedOrg, PathParameter, sealed};
    use crate::identifier::OrgCode;
    use crate::telemetry;

    impl sealed::Sealed for PathParameter {}

    impl ClaimedOrg for PathParameter {
        fn agrees<B>(&self, request: Request<B>, org: &OrgCode) -> (Request<B>, Agreement) {
            let (mut parts, body) = request.into_parts();
            let parameters = {
                let extracted = pin!(RawPathParams::from_request_parts(&mut parts, &()));
                // Reads the extensions, and is ready at once.
                match extracted.poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(parameters) => Some(parameters),
                    Poll::Pending => None,
                }
            };
            let agreement = match parameters {
                Some(Ok(parameters)) => {
                    let mut claimed = parameters
                        .iter()
                        .filter(|(name, _)| *name == self.0)
                        .map(|(_, value)| value)
                        .peekable();
                    if claimed.peek().is_none() {
                        Agreement::Missing
                    } else if claimed.all(|value| value == org.as_str()) {
                        Agreement::Same
                    } else {
                        Agreement::Other
                    }
                }
                Some(Err(RawPathParamsRejection::InvalidUtf8InPathParam(_))) => Agreement::Other,
                Some(Err(_)) | None => Agreement::Missing,
            };
            if agreement == Agreement::Missing {
                telemetry::parameter_missing(&self.0);
            }
            (Request::from_parts(parts, body), agreement)
        }

        fn parameter(&self) -> Option<Cow<'static, str>> {
            Some(self.0.clone())
        }
    }
}

/// The layer of the organization guard.
///
/// See the [module documentation](crate::guard). Created by [`require_org`](crate::require_org) or [`require_org_with`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RequireOrgLayer<C> {
    claim: C,
    hide: bool,
}

impl<C> RequireOrgLayer<C> {
    fn new(claim: C) -> Self {
        Self { claim, hide: false }
    }

    /// Responds with 404 instead of 403, for APIs that do not reveal which organizations exist.
    pub fn with_not_found(mut self) -> Self {
        self.hide = true;
        self
    }
}

impl<S, C: Clone> Layer<S> for RequireOrgLayer<C> {
    type Service = RequireOrg<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        RequireOrg {
            inner,
            guard: self.clone(),
        }
    }
}

/// The service of [`RequireOrgLayer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RequireOrg<S, C> {
    inner: S,
    guard: RequireOrgLayer<C>,
}

impl<S, C, ReqBody, ResBody> Service<Request<ReqBody>> for RequireOrg<S, C>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    C: ClaimedOrg,
    ResBody: RejectionBody,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = GuardFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let extensions = request.extensions();
        let context = match OrgContext::required_by(extensions, "an organization guard") {
            Ok(context) => context,
            Err(rejection) => {
                return GuardFuture::rejected(extensions, rejection);
            }
        };
        let org = context.org_code().clone();
        let observation = context.observation().cloned();
        let (request, agreement) = self.guard.claim.agrees(request, &org);
        if let Some(observation) = observation {
            let is_met = agreement == Agreement::Same;
            let parameter = self.guard.claim.parameter();
            observation.record_requirement(Requirement::organization(parameter, is_met));
        }
        let rejection = match agreement {
            Agreement::Same => return GuardFuture::inner(self.inner.call(request)),
            Agreement::Other if self.guard.hide => Rejection::not_found(),
            Agreement::Other => Rejection::organization_mismatch(),
            Agreement::Missing => Rejection::internal(),
        };
        GuardFuture::rejected(request.extensions(), rejection)
    }
}
