use std::task::{Context, Poll};

use http::{Extensions, Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::future::GuardFuture;
use crate::context::OrgContext;
use crate::context::observer::{RequestObservation, Requirement};
use crate::rejection::{Rejection, RejectionBody};
use crate::scope::{ScopePolicy, Scopes, permits, wanted};

/// A scope policy of a guard or of a type.
pub(crate) trait Policy: Copy {
    fn permits(self, held: &Scopes) -> bool;

    /// Returns the scopes that a rejection names.
    fn wanted(self, held: &Scopes) -> String;

    fn requirement(self, is_met: bool) -> Requirement;
}

impl Policy for &ScopePolicy {
    #[inline]
    fn permits(self, held: &Scopes) -> bool {
        permits(self.alternatives(), held)
    }

    fn wanted(self, held: &Scopes) -> String {
        wanted(self.alternatives(), held)
    }

    fn requirement(self, is_met: bool) -> Requirement {
        Requirement::scopes(self.clone(), is_met)
    }
}

/// Returns the context if its key satisfies the policy. The guard and [`Scoped`](super::Scoped) decide by this function.
#[inline]
pub(crate) fn permitted(extensions: &Extensions, policy: impl Policy) -> Option<&OrgContext> {
    match extensions.get::<OrgContext>() {
        Some(context) if policy.permits(context.scopes()) => {
            if let Some(observation) = context.observation() {
                record_met(observation, policy);
            }
            Some(context)
        }
        _ => None,
    }
}

/// Kept out of line, so that requests without an observer do not pay for it.
#[cold]
#[inline(never)]
fn record_met(observation: &RequestObservation, policy: impl Policy) {
    observation.record_requirement(policy.requirement(true));
}

/// Returns the rejection of a request that is not permitted. Looks the context up again, so that the path of permitted
/// requests stays small.
#[cold]
pub(crate) fn rejection(
    extensions: &Extensions,
    policy: impl Policy,
    component: &'static str,
) -> Rejection {
    if let Some(observation) = RequestObservation::of(extensions) {
        observation.record_requirement(policy.requirement(false));
    }
    match OrgContext::required_by(extensions, component) {
        Ok(context) => Rejection::scopes_missing(policy.wanted(context.scopes())),
        Err(rejection) => rejection,
    }
}

/// Requires that the key has this scope.
///
/// # Panics
///
/// If the name is not a `scope-token` of RFC 6749.
#[track_caller]
pub fn require_scope(scope: &str) -> RequireScopeLayer {
    RequireScopeLayer::new(ScopePolicy::new([[scope]]))
}

/// Requires that the key has all of these scopes.
///
/// # Panics
///
/// If there are none, or a name is not a `scope-token` of RFC 6749.
#[track_caller]
pub fn require_all_scopes<'a>(scopes: impl IntoIterator<Item = &'a str>) -> RequireScopeLayer {
    RequireScopeLayer::new(ScopePolicy::new([scopes]))
}

/// Requires that the key has one of these scopes. An empty list rejects every request.
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
/// See the [module documentation](crate::guard). Also created by [`require_scope`] and its siblings.
#[derive(Clone, Debug)]
#[must_use]
pub struct RequireScopeLayer {
    policy: ScopePolicy,
}

impl RequireScopeLayer {
    /// Creates the layer for a policy.
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

/// The service of [`RequireScopeLayer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RequireScope<S> {
    inner: S,
    policy: ScopePolicy,
}

#[cold]
#[inline(never)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "with a reference, or without the whole future, the compiler copies both for each permitted request"
)]
fn rejected<B, F>(request: Request<B>, policy: &ScopePolicy) -> GuardFuture<F> {
    let extensions = request.extensions();
    let rejection = rejection(extensions, policy, "a scope guard");
    GuardFuture::reject(RequestObservation::rejected(extensions, rejection))
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RequireScope<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: RejectionBody,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = GuardFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let policy = &self.policy;
        if permitted(request.extensions(), policy).is_none() {
            return rejected(request, policy);
        }
        GuardFuture::inner(self.inner.call(request))
    }
}
