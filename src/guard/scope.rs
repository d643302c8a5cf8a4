use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Extensions, Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::future::GuardFuture;
use crate::context::OrgContext;
use crate::observer::{RequestObservation, Requirement};
use crate::rejection::Rejection;
use crate::scope::{ScopePolicy, Scopes, permits, wanted};

/// A scope policy of a guard or of a type.
pub(super) trait Policy: Copy {
    fn permits(self, held: &Scopes) -> bool;

    /// The scopes that a rejection names.
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

/// The one decision, for the guard and for [`Scoped`](super::Scoped): the context of a key that is permitted.
#[inline]
pub(super) fn permitted(extensions: &Extensions, policy: impl Policy) -> Option<&OrgContext> {
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

/// Why a request is not permitted. Looks the context up again, so that permitted requests do not pay for the answer.
#[cold]
pub(super) fn refusal(
    extensions: &Extensions,
    policy: impl Policy,
    who_asks: &'static str,
) -> Rejection {
    if let Some(observation) = RequestObservation::of(extensions) {
        observation.record_requirement(policy.requirement(false));
    }
    match OrgContext::required_by(extensions, who_asks) {
        Ok(context) => Rejection::scopes_missing(policy.wanted(context.scopes())),
        Err(rejection) => rejection,
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

#[cold]
fn guard_refusal(extensions: &Extensions, policy: &ScopePolicy) -> Rejection {
    let rejection = refusal(extensions, policy, "a scope guard");
    RequestObservation::rejected(extensions, rejection)
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
        let policy = &self.policy;
        // Decided before the call, and not in the arms of one `if`: the compiler then copies the inner future once less.
        let decision = match permitted(request.extensions(), policy) {
            Some(_) => Ok(()),
            None => Err(guard_refusal(request.extensions(), policy)),
        };
        match decision {
            Ok(()) => GuardFuture::pass(self.inner.call(request)),
            Err(rejection) => GuardFuture::refuse(rejection),
        }
    }
}
