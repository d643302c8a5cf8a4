//! The layer together with a guard, as one layer.

#[cfg(feature = "axum")]
use std::borrow::Cow;

use tower_layer::Stack;

use super::layer::ApiKeyLayer;
#[cfg(feature = "axum")]
use crate::guard::{PathParameter, RequireOrgLayer, require_org};
use crate::guard::{RequireScopeLayer, require_all_scopes, require_any_scope, require_scope};
use crate::scope::ScopePolicy;

/// This layer with a guard directly inside it, as one layer. axum boxes the service of each `route_layer` call, so one call
/// with both costs less than two calls.
///
/// ```
/// use axum::{Router, routing::get};
/// # use tower_orgkey::{ApiKeyLayer, Verification, verifier_fn};
/// # async fn list() {}
/// # async fn users() {}
/// # let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
///
/// let app: Router = Router::new()
///     .route("/reports", get(list).route_layer(auth.require_scope("read:reports")))
///     .route("/orgs/{org_code}/users", get(users).route_layer(auth.require_org("org_code")));
/// ```
impl<F: Clone> ApiKeyLayer<F> {
    /// Requires a key with this scope. See [`require_scope`].
    ///
    /// # Panics
    ///
    /// If `scope` is not a scope.
    #[track_caller]
    pub fn require_scope(&self, scope: &str) -> Stack<RequireScopeLayer, Self> {
        Stack::new(require_scope(scope), self.clone())
    }

    /// Requires a key with all of these scopes. See [`require_all_scopes`].
    ///
    /// # Panics
    ///
    /// If one of them is not a scope, or there is none.
    #[track_caller]
    pub fn require_all_scopes<'a>(
        &self,
        scopes: impl IntoIterator<Item = &'a str>,
    ) -> Stack<RequireScopeLayer, Self> {
        Stack::new(require_all_scopes(scopes), self.clone())
    }

    /// Requires a key with one of these scopes. See [`require_any_scope`].
    ///
    /// # Panics
    ///
    /// If one of them is not a scope.
    #[track_caller]
    pub fn require_any_scope<'a>(
        &self,
        scopes: impl IntoIterator<Item = &'a str>,
    ) -> Stack<RequireScopeLayer, Self> {
        Stack::new(require_any_scope(scopes), self.clone())
    }

    /// Requires a key that this policy permits. See [`RequireScopeLayer::new`].
    pub fn require_policy(&self, policy: ScopePolicy) -> Stack<RequireScopeLayer, Self> {
        Stack::new(RequireScopeLayer::new(policy), self.clone())
    }

    /// Requires a key of the organization that this path parameter names. See [`require_org`].
    #[cfg(feature = "axum")]
    pub fn require_org(
        &self,
        parameter: impl Into<Cow<'static, str>>,
    ) -> Stack<RequireOrgLayer<PathParameter>, Self> {
        Stack::new(require_org(parameter), self.clone())
    }
}
