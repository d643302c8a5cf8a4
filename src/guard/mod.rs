//! Guards: what a route asks of a key that is good.
//!
//! A guard stands *beneath* [`ApiKeyLayer`](crate::ApiKeyLayer), which tells it whose call it is; without the layer it
//! answers 500 and says so in the log. It decides on every request anew, from the facts of that request's context, and
//! its refusals wear the layer's face. Several guards on one route all have to agree.
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
//! **A method added after a guard is not behind it**: in `get(a).route_layer(guard).post(b)` only `a` is guarded, since
//! that is how axum's `MethodRouter::route_layer` works. [`Scoped`] puts the same decision, with the same
//! refusal to the byte, into the type of a handler, where the order of calls cannot undo it:
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
mod scoped;

pub use self::future::GuardFuture;
pub use self::org::{ClaimedOrg, FromHead, RequireOrg, RequireOrgLayer, require_org_with};
#[cfg(feature = "axum")]
pub use self::org::{PathParameter, require_org};
pub use self::scope::{
    RequireScope, RequireScopeLayer, require_all_scopes, require_any_scope, require_scope,
};
pub use self::scoped::ScopeSet;
#[cfg(feature = "axum")]
pub use self::scoped::Scoped;
