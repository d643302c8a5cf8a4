//! The authentication layer.
//!
//! ```text
//! header ─ credential ─▶ digest ─ cache ─┬ valid ───▶ OrgContext ─▶ inner service (the instance that is ready)
//!                                        ├ invalid ─▶ Rejection
//!                                        └ unknown ─▶ verification ─▶ OrgContext ─▶ a clone, made ready afterwards
//! ```
//!
//! # Order of layers
//!
//! ```
//! use std::iter::once;
//!
//! use axum::{Router, routing::get};
//! use http::header::AUTHORIZATION;
//! use tower::ServiceBuilder;
//! use tower_http::cors::CorsLayer;
//! use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
//! use tower_http::trace::TraceLayer;
//! use tower_orgkey::{ApiKeyLayer, OrgContext, require_scope};
//! # use tower_orgkey::{Verification, verifier_fn};
//! # let verifier = verifier_fn(|_| async { Ok(Verification::invalid()) });
//!
//! async fn list(org: OrgContext) -> String {
//!     format!("reports of {}", org.org_code())
//! }
//!
//! let app: Router = Router::new()
//!     // Guards go innermost: they need the context from the layer. Settings and limits go between `ApiKeyLayer` and guards.
//!     .route("/reports", get(list).route_layer(require_scope("read:reports")))
//!     // `route_layer` applies to the routes above this line; `layer` also covers 404 and the fallback.
//!     .route_layer(ApiKeyLayer::new(verifier))
//!     // `ServiceBuilder` lists layers from the outside in.
//!     .layer(
//!         ServiceBuilder::new()
//!             .layer(SetSensitiveRequestHeadersLayer::new(once(AUTHORIZATION)))
//!             .layer(TraceLayer::new_for_http())
//!             // CORS goes outside: preflight requests carry no key, and `ApiKeyLayer` exempts no method.
//!             .layer(CorsLayer::permissive()),
//!     );
//! ```
//!
//! Two properties of axum matter here:
//!
//! * `route_layer` does not apply to routes added after it. On such a route, guards and handlers that take an
//!   [`OrgContext`](crate::OrgContext) respond with 500 and log the reason; other handlers are open to all requests.
//! * A guard does not apply to methods added after it: in `get(a).route_layer(guard).post(b)` only `a` is guarded.
//!   Add the guard last, or use the extractor [`Scoped`](crate::Scoped) in the handler.
//!
//! If one `ApiKeyLayer` is inside another, the inner one decides and replaces the context of the outer one.
//!
//! # JWTs beside keys
//!
//! Users and organizations may both send `Authorization: Bearer`. There are two ways to serve both, which
//! [`examples/jwt`](https://github.com/tower-orgkey/tower-orgkey/tree/main/examples/jwt) shows:
//!
//! * A [`Verifier`](crate::Verifier) that verifies JWTs too. Guards, limits and handlers then treat a JWT like a key. JWTs need
//!   [`max_key_len`](ApiKeyLayerBuilder::max_key_len), and [`allow_user_keys`](ApiKeyLayerBuilder::allow_user_keys) if the result
//!   has a user.
//! * [`only_prefix`](ApiKeyLayerBuilder::only_prefix) and
//!   [`pass_other_credentials_to_inner_auth`](ApiKeyLayerBuilder::pass_other_credentials_to_inner_auth). A layer or an extractor of
//!   yours inside `ApiKeyLayer` then verifies JWTs. Guards and extractors of this crate reject requests with a JWT.
//!
//! # Requests that wait
//!
//! If a request has waited, for its verification, for [settings](crate::settings) or for the inner service to become
//! ready, its key is checked again right before the inner service is called. The layer responds with 401 if the key was
//! blocked, has expired or has become invalid, and with 503 and `Retry-After: 1` if the result is past its hard TTL or
//! contradicted by a newer one. An invalidation applies to later requests only.
//!
//! This requires that the layer sees the readiness of the inner service. axum hides it: a service added by a separate
//! `.layer` or `.route_layer` becomes ready only after the call, so a request that waits there, for a permit of
//! `tower::limit::ConcurrencyLimitLayer` for example, is not checked again. Put layers that wait outside of
//! `ApiKeyLayer`, or add them together with it in one `ServiceBuilder`.

mod builder;
mod future;
mod guarded;
mod layer;
mod network;
mod per_layer;
mod service;
mod stacked;
mod telemetry;

pub use self::builder::ApiKeyLayerBuilder;
pub use self::future::ResponseFuture;
pub use self::layer::ApiKeyLayer;
pub use self::network::network_of;
pub use self::service::ApiKeyService;
