//! The layer itself: the way a request goes.
//!
//! ```text
//! header ─ credential ─▶ digest ─ look-up ─┬ served ──▶ OrgContext ─▶ inner service (the instance that was made ready)
//!                                          ├ refused ─▶ Rejection
//!                                          └ ask ─────▶ wait ─▶ OrgContext ─▶ a clone, made ready after the answer
//! ```
//!
//! # Where it stands
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
//!     // The guard is the innermost: it needs what the layer found.
//!     .route("/reports", get(list).route_layer(require_scope("read:reports")))
//!     // `route_layer` guards the routes above this line, and leaves 404 and the fallback open; `layer` covers those too.
//!     .route_layer(ApiKeyLayer::new(verifier))
//!     // `ServiceBuilder` goes from the outside in.
//!     .layer(
//!         ServiceBuilder::new()
//!             .layer(SetSensitiveRequestHeadersLayer::new(once(AUTHORIZATION)))
//!             .layer(TraceLayer::new_for_http())
//!             // Outside the layer: a preflight carries no key, and no method is exempt from presenting one.
//!             .layer(CorsLayer::permissive()),
//!     );
//! ```
//!
//! Two things to know of axum's own order:
//!
//! * A route added *after* `route_layer` is not behind it. Handlers that take an [`OrgContext`](crate::OrgContext), and
//!   guards, then answer 500 and say so in the log; a handler that takes neither is open.
//! * A method added after a guard is not behind the guard: in `get(a).route_layer(guard).post(b)` only `a` is guarded.
//!   Put the guard last, or ask in the handler with [`Scoped`](crate::Scoped), which cannot be forgotten.
//!
//! Of two layers in a row the inner decides, and removes what the outer put into the request.
//!
//! # Requests that wait
//!
//! A key is checked again right before the inner service is called if its request has waited: for its verification, for
//! [settings](crate::settings), or for the inner service to become ready. A key that was blocked meanwhile, has expired, or
//! was invalid by a later answer of the issuer gets 401; a result that is past its hard TTL, or that a newer one contradicts, gets
//! 503 with `Retry-After: 1`. An invalidation applies to later requests.
//!
//! This needs the readiness of the inner service to be visible to the layer. axum hides it: what is added by a separate
//! `.layer` or `.route_layer` further in becomes ready only after the call, so a request that waits there, for a permit of
//! `tower::limit::ConcurrencyLimitLayer` say, is not checked again. Put what waits outside of the layer, or add it together
//! with the layer, in one `ServiceBuilder`.

mod builder;
mod future;
mod layer;
mod service;
mod stripped;

pub use self::builder::ApiKeyLayerBuilder;
pub use self::future::ResponseFuture;
pub use self::layer::ApiKeyLayer;
pub use self::service::ApiKeyService;
