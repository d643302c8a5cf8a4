//! OpenAPI documents that say what a route requires, because the guard and its documentation are written once. For
//! [utoipa](https://docs.rs/utoipa) with axum.
//!
//! ```
//! use tower_orgkey::scope::ScopePolicy;
//! use tower_orgkey::{ApiKeyLayer, OrgContext};
//! use tower_orgkey_openapi::{Guarded, OrgKeyScheme};
//! use utoipa::{Modify, OpenApi};
//! use utoipa_axum::{router::OpenApiRouter, routes};
//! # use tower_orgkey::{Verification, verifier_fn};
//!
//! /// Lists the reports.
//! #[utoipa::path(get, path = "/reports", responses((status = 200, body = [String])))]
//! async fn list(org: OrgContext) -> axum::Json<Vec<String>> {
//!     axum::Json(vec![format!("report of {}", org.org_code())])
//! }
//!
//! fn api(auth: ApiKeyLayer) -> (axum::Router, utoipa::openapi::OpenApi) {
//!     let (router, mut api) = OpenApiRouter::new()
//!         // The guard, `security`, and the responses 400, 401, 403, 429 and 503.
//!         .routes(routes!(list).guarded(ScopePolicy::new([["read:reports"]])))
//!         .split_for_parts();
//!     OrgKeyScheme::bearer().modify(&mut api);
//!     (router.route_layer(auth), api)
//! }
//! # let (_, api) = api(ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) })));
//! # assert!(api.to_json().unwrap().contains(r#""security":[{"org_key":["read:reports"]}]"#));
//! ```
//!
//! [`Guarded`] has a method for each way to require a key. Scopes are in the requirement of the scheme `org_key`, which
//! OpenAPI permits for all schemes since 3.1, and in the description of the operation, because many viewers do not show them.
//!
#![cfg_attr(
    feature = "test-util",
    doc = "A test compares the document with what the routes require: see [`assert_documented`]."
)]
#![cfg_attr(
    not(feature = "test-util"),
    doc = "With the feature `test-util`, a test compares the document with what the routes require."
)]
//!
//! # Scopes by operation
//!
//! Kinde imports an OpenAPI document and derives one scope per operation, such as `get:users_userid` for
//! `GET /users/{userId}`. [`Guarded::operation_scope`] requires that scope, so no name is written by hand.
//! [`operation_scopes`] finds operations that Kinde would give the same name.
//!
//! # Features
//!
//! | feature | default | enables |
//! |---|---|---|
//! | `test-util` | no | `undocumented` and `assert_documented` |
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "test-util")]
mod check;
mod guarded;
mod operation_scope;
mod operations;
mod scheme;

#[cfg(feature = "test-util")]
pub use self::check::{assert_documented, undocumented};
pub use self::guarded::Guarded;
pub use self::operation_scope::{OperationScopeError, operation_scope, operation_scopes};
pub use self::scheme::{OrgKeyScheme, SCHEME};

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
