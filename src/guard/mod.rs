//! Guards that require scopes or an organization on a route.
//!
//! A guard goes *inside* [`ApiKeyLayer`](crate::ApiKeyLayer), which provides the [`OrgContext`](crate::OrgContext) of the
//! request; without it the guard responds with 500 and logs where the layer belongs. A guard decides on every request, and
//! its rejections have the layer's format. If a route has several guards, all of them must allow the request.
//!
//! For one guard per route, [`ApiKeyLayer::require_scope`](crate::ApiKeyLayer::require_scope) and its siblings combine the
//! layer and the guard into one layer.
//!
//! ```
//! use axum::{Router, routing::{get, post}};
//! use tower_orgkey::{ApiKeyLayer, OrgContext, require_any_scope, require_org, require_scope};
//! # use tower_orgkey::{Verification, verifier_fn};
//! # let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
//!
//! async fn handler(_org: OrgContext) {}
//!
//! let app: Router = Router::new()
//!     .route("/reports", get(handler).route_layer(require_scope("read:reports")))
//!     .route(
//!         "/orgs/{org_code}/users",
//!         post(handler)
//!             .route_layer(require_any_scope(["write:users", "admin"]))
//!             .route_layer(require_org("org_code")),
//!     )
//!     .route_layer(auth);
//! ```
//!
//! **A method added after a guard is not guarded**: in `get(a).route_layer(guard).post(b)` only `a` is guarded, because
//! axum's `MethodRouter::route_layer` applies to the methods added before it. [`Scoped`] makes the same decision, with the
//! same rejection, in the type of a handler, so that the order of calls does not matter:
//!
//! ```
//! use tower_orgkey::{ScopeSet, Scoped};
//!
//! struct ReadReports;
//!
//! impl ScopeSet for ReadReports {
//!     const ALTERNATIVES: &'static [&'static [&'static str]] = &[&["read:reports"]];
//! }
//!
//! async fn list(org: Scoped<ReadReports>) -> String {
//!     format!("reports of {}", org.org_code())
//! }
//! ```

mod future;
mod org;
mod scope;
#[cfg(feature = "axum")]
mod scoped;

pub use self::future::GuardFuture;
pub use self::org::{ClaimedOrg, FromHead, RequireOrg, RequireOrgLayer, require_org_with};
#[cfg(feature = "axum")]
pub use self::org::{PathParameter, require_org};
pub use self::scope::{
    RequireScope, RequireScopeLayer, require_all_scopes, require_any_scope, require_scope,
};
#[cfg(feature = "grpc")]
pub(crate) use self::scope::{permitted, rejection};
#[cfg(feature = "axum")]
pub use self::scoped::Scoped;

/// A scope policy in a type, for [`Scoped`].
///
/// A key must have all scopes of one alternative, as in [`ScopePolicy`](crate::ScopePolicy). Without an alternative, every
/// request is rejected. With an empty alternative, or a name that is not a `scope-token` of RFC 6749, handlers that use the
/// type do not compile:
///
/// ```compile_fail
/// # use tower_orgkey::{ScopeSet, Scoped};
/// struct Bad;
/// impl ScopeSet for Bad {
///     const ALTERNATIVES: &'static [&'static [&'static str]] = &[&["two words"]];
/// }
/// async fn handler(_: Scoped<Bad>) {}
/// let app: axum::Router = axum::Router::new().route("/", axum::routing::get(handler));
/// ```
pub trait ScopeSet: Send + Sync + 'static {
    /// The alternatives.
    const ALTERNATIVES: &'static [&'static [&'static str]];
}
