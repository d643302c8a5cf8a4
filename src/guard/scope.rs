use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Extensions, Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::future::GuardFuture;
use crate::context::OrgContext;
use crate::rejection::Rejection;
use crate::scope::{ScopePolicy, permits, wanted};

/// The one decision, for the guard and for [`Scoped`](super::Scoped).
#[inline]
pub(super) fn decide<'a, 'p, N: AsRef<str> + 'p>(
    extensions: &'a Extensions,
    alternatives: impl Iterator<Item = &'p [N]> + Clone,
    who_asks: &str,
) -> Result<&'a OrgContext, Rejection> {
    let context = OrgContext::of(extensions, who_asks)?;
    if permits(alternatives.clone(), context.scopes()) {
        Ok(context)
    } else {
        Err(refusal(alternatives, context))
    }
}

#[cold]
fn refusal<'p, N: AsRef<str> + 'p>(
    alternatives: impl Iterator<Item = &'p [N]>,
    context: &OrgContext,
) -> Rejection {
    Rejection::insufficient_scope(wanted(alternatives, context.scopes()))
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
        let decision = decide(
            request.extensions(),
            self.policy.alternatives(),
            "a scope guard",
        )
        .map(drop);
        match decision {
            Ok(()) => GuardFuture::pass(self.inner.call(request)),
            Err(rejection) => GuardFuture::refuse(rejection),
        }
    }
}
