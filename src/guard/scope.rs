use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Extensions, Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::future::GuardFuture;
use crate::context::OrgContext;
use crate::observer::{RequestObservation, Requirement};
use crate::rejection::Rejection;
use crate::scope::{ScopePolicy, permits, wanted};

/// The one decision, for the guard and for [`Scoped`](super::Scoped): the context of a key that is permitted.
#[inline(always)]
#[expect(
    clippy::inline_always,
    reason = "a call is a third of the price of the guard"
)]
pub(super) fn permitted<'a, 'p, N: AsRef<str> + 'p>(
    extensions: &'a Extensions,
    alternatives: impl Iterator<Item = &'p [N]>,
) -> Option<&'a OrgContext> {
    match extensions.get::<OrgContext>() {
        Some(context) if permits(alternatives, context.scopes()) => Some(context),
        _ => None,
    }
}

/// Decides again for a request that is observed or not permitted, records the requirement, and makes the rejection. Kept
/// out of line, so that other requests do not pay for it.
#[cold]
#[inline(never)]
pub(super) fn decide<'a, 'p, N: AsRef<str> + 'p>(
    extensions: &'a Extensions,
    alternatives: impl Iterator<Item = &'p [N]> + Clone,
    who_asks: &str,
    requirement: impl FnOnce(bool) -> Requirement,
) -> Result<&'a OrgContext, Rejection> {
    let context = OrgContext::required_by(extensions, who_asks);
    let is_met = match &context {
        Ok(context) => permits(alternatives.clone(), context.scopes()),
        Err(_) => false,
    };
    if let Some(observation) = RequestObservation::of(extensions) {
        observation.record_requirement(requirement(is_met));
    }
    let context = context?;
    if is_met {
        Ok(context)
    } else {
        let wanted = wanted(alternatives, context.scopes());
        Err(Rejection::scopes_missing(wanted))
    }
}

/// The key must hold this scope.
///
/// # Panics
///
/// When the name is outside RFC 6749's `scope-token`.
#[track_caller]
pub fn require_scope(scope: &str) -> RequireScopeLayer {
    RequireScopeLayer::new(ScopePolicy::new([[scope]]))
}

/// The key must hold all of these scopes.
///
/// # Panics
///
/// When there are none, or a name is outside RFC 6749's `scope-token`.
#[track_caller]
pub fn require_all_scopes<'a>(scopes: impl IntoIterator<Item = &'a str>) -> RequireScopeLayer {
    RequireScopeLayer::new(ScopePolicy::new([scopes]))
}

/// The key must hold one of these scopes. Of none it can hold one, so none denies.
///
/// # Panics
///
/// When a name is outside RFC 6749's `scope-token`.
#[track_caller]
pub fn require_any_scope<'a>(scopes: impl IntoIterator<Item = &'a str>) -> RequireScopeLayer {
    RequireScopeLayer::new(ScopePolicy::new(scopes.into_iter().map(|scope| [scope])))
}

/// The layer of the scope guard.
///
/// See the [module's guide](crate::guard), and [`require_scope`] for the short way to make one.
#[derive(Clone, Debug)]
#[must_use]
pub struct RequireScopeLayer {
    policy: ScopePolicy,
}

impl RequireScopeLayer {
    /// The guard of this policy.
    pub fn new(policy: ScopePolicy) -> Self {
        Self { policy }
    }
}

impl<S> Layer<S> for RequireScopeLayer {
    type Service = RequireScope<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RequireScope {
            inner,
            policy: self.policy.clone(),
        }
    }
}

/// The service that [`RequireScopeLayer`] makes.
#[derive(Clone, Debug)]
#[must_use]
pub struct RequireScope<S> {
    inner: S,
    policy: ScopePolicy,
}

impl<S> RequireScope<S> {
    #[cold]
    #[inline(never)]
    fn decide(&self, extensions: &Extensions) -> Result<(), Rejection> {
        let alternatives = self.policy.alternatives();
        let requirement = |is_met| Requirement::scopes(self.policy.clone(), is_met);
        decide(extensions, alternatives, "a scope guard", requirement).map(|_| ())
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RequireScope<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: From<Bytes>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = GuardFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let alternatives = self.policy.alternatives();
        // Decided before the call, and not in the arms of one `if`: the compiler then copies the inner future once less.
        let decision = match permitted(request.extensions(), alternatives.clone()) {
            Some(context) if context.observation().is_none() => Ok(()),
            _ => self.decide(request.extensions()),
        };
        match decision {
            Ok(()) => GuardFuture::pass(self.inner.call(request)),
            Err(rejection) => GuardFuture::refuse(rejection),
        }
    }
}
