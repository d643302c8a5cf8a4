//! Rate and concurrency limits per organization or per key.
//!
//! Put [`OrgRateLimitLayer`] and [`OrgConcurrencyLimitLayer`] inside [`ApiKeyLayer`](crate::ApiKeyLayer), which authenticates
//! the request, inside the settings that they read, and outside the guards and the handler. A function that you pass returns
//! the limit of each request from its [`OrgContext`](crate::OrgContext), so limits can depend on the plan. A request above the
//! limit is rejected with [429](crate::rejection#rate-limited) and `Retry-After`, in the response format of the `ApiKeyLayer`.
//! The requests of one organization do not count against the limit of another.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_orgkey::{
//!     ApiKeyLayer, OrgConcurrencyLimitLayer, OrgContext, OrgRateLimitLayer, Quota, require_scope,
//! };
//! # use tower_orgkey::{Verification, verifier_fn};
//! # let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
//! # fn is_business(org: &OrgContext) -> bool { org.org_code() == "org_1" }
//! # async fn export() {}
//!
//! let rate = OrgRateLimitLayer::new(|org: &OrgContext| {
//!     Some(if is_business(org) { Quota::per_second(100) } else { Quota::per_minute(60) })
//! });
//! let exports = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(2));
//!
//! // The last `.route_layer` is the outermost: `auth`, then `rate`, then the layers of a route.
//! let app: Router = Router::new()
//!     .route("/export", get(export).route_layer(exports).route_layer(require_scope("export")))
//!     .route_layer(rate)
//!     .route_layer(auth);
//! ```
//!
//! # Which requests count
//!
//! Every request that reaches the limit with an organization counts, whatever its response. A key that is malformed, invalid,
//! blocked or cannot be verified is rejected before, and uses no quota. Requests that a guard *outside* the limit rejects do
//! not count; those that a guard inside the limit rejects do. In the example, a request to `/export` without the scope counts
//! against the rate, but not against the exports. A request that a limit rejects does not count against it, nor against limits
//! inside it, so put a limit per key outside the limit of the organization:
//!
//! ```
//! # use axum::{Router, routing::get};
//! # use tower_orgkey::{ApiKeyLayer, OrgContext, OrgRateLimitLayer, Quota, Verification, verifier_fn};
//! # let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
//! let app: Router = Router::new()
//!     .route("/reports", get(async |_: OrgContext| "reports"))
//!     .route_layer(OrgRateLimitLayer::new(|_: &OrgContext| Some(Quota::per_minute(600))))
//!     .route_layer(OrgRateLimitLayer::per_key(|_: &OrgContext| Some(Quota::per_minute(60))))
//!     .route_layer(auth);
//! ```
//!
//! A request without a key, which [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) permits, passes and is not
//! counted. Limit such requests by address, outside `ApiKeyLayer`. Without an `ApiKeyLayer` around it, a limit responds with
//! 500 and logs an error.
//!
//! # Limits from settings
//!
//! If the plans of your organizations are in a database, load them with an [`OrgSettingsLayer`](crate::OrgSettingsLayer)
//! (feature `settings`) outside of the limits, and read them with [`OrgRateLimitLayer::from_settings`] and
//! [`OrgConcurrencyLimitLayer::from_settings`]. The first request of an organization waits for its settings, so it already
//! gets the right quota. If the settings cannot be loaded, the request is rejected with 503 before the limit, or gets the
//! quota of the [default](crate::settings::OrgSettingsLayerBuilder::default_on_error) settings.
//!
//! ```
//! # #[cfg(feature = "settings")] {
//! use axum::{Router, routing::get};
//! use tower_orgkey::settings::{OrgSettingsLayer, SettingsError, settings_fn};
//! use tower_orgkey::{ApiKeyLayer, OrgCode, OrgContext, OrgRateLimitLayer, Quota};
//! # use tower_orgkey::{Verification, verifier_fn};
//! # async fn load(_: OrgCode) -> Result<Plan, SettingsError> { Ok(Plan { requests_per_minute: 60 }) }
//!
//! struct Plan {
//!     requests_per_minute: u32,
//! }
//!
//! let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
//! let plans = OrgSettingsLayer::new(&auth.handle(), settings_fn(load));
//! let rate = OrgRateLimitLayer::from_settings(|_: &OrgContext, plan: &Plan| {
//!     Some(Quota::per_minute(plan.requests_per_minute))
//! });
//!
//! // From the outside in: `auth`, `plans`, `rate`.
//! let app: Router = Router::new()
//!     .route("/reports", get(async |_: OrgContext| "reports"))
//!     .route_layer(rate)
//!     .route_layer(plans)
//!     .route_layer(auth);
//! # }
//! ```
//!
//! # Scope of a limit
//!
//! Limits are per process and layer: *n* nodes behind a load balancer give an organization up to *n* times its quota.
//!
//! # When a quota changes
//!
//! The quota that your function returns applies from that request on, so a plan change takes effect at once. A plan change
//! keeps the used percentage: with half of the old quota used, half of the new one is used. The burst of a larger quota
//! refills at its rate.
//!
//! If the function alternates between quotas (for example by the scopes of the keys of one organization), usage is counted
//! per quota, and only time refills each. A change never yields a fresh burst. At most four quotas with usage are tracked per
//! organization or key; a quota that was dropped starts with at least the usage it had. While the function returns `None`,
//! nothing is counted and existing usage is kept.
//!
//! # Memory
//!
//! A rate limit has an account for each organization or key that has not regained all of its quota. The
//! [capacity](OrgRateLimitLayerBuilder::capacity) bounds their number: 100,000 by default, which takes some 40 MB. Above it,
//! the layer examines a few accounts and evicts the one that refills first. The evicted organization starts with a full quota,
//! and a warning is [logged](crate::telemetry). The keys of one organization have at most a hundredth of the capacity, and at
//! least ten accounts. Beyond that, a new key takes over an account of its organization with its usage, so an organization
//! with many keys neither evicts the accounts of others nor gets more quota.
//!
//! A concurrency limit has an entry for each organization or key with requests in flight. Its table does not shrink.
//!
//! # When a request ends
//!
//! A concurrency limit counts a request as in flight until its response body ends, fails or is dropped, so it also limits
//! responses that stream for minutes. The permit is released as well when the response future is dropped and when the handler
//! fails or panics. After an upgrade (such as a WebSocket) the response has ended and the connection is not counted.
//!
//! The type of the response body therefore changes to [`PermitBody`]. A router of axum accepts every body type. If an
//! `ApiKeyLayer` with a [rejection response](crate::RejectionResponse) for your own body type is directly outside the limit in
//! one `ServiceBuilder`, put tower-http's `MapResponseBodyLayer` between them.
//!
//! # Cost
//!
//! A request with a quota costs one clock read, one lookup in a lock-free index and the lock of its account. It allocates
//! only for a new account or for the `RateLimit` fields. A concurrency limit costs two lookups under a lock that is shared by
//! one 32nd of the organizations. `Retry-After` of a rate limit is the time until the next request passes; for a concurrency
//! limit that time is unknown, and it is 1 s.

mod account;
mod accounts;
mod concurrency;
mod quota;
mod rate;
mod ratelimit_fields;
mod subject;

pub use self::concurrency::{
    OrgConcurrencyLimit, OrgConcurrencyLimitFuture, OrgConcurrencyLimitLayer, PermitBody,
};
pub use self::quota::Quota;
pub use self::rate::{
    OrgRateLimit, OrgRateLimitFuture, OrgRateLimitLayer, OrgRateLimitLayerBuilder,
};
