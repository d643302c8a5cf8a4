//! Limits: how many requests an organization or a key may make, and how many at once.
//!
//! [`OrgRateLimitLayer`] and [`OrgConcurrencyLimitLayer`] stand *beneath* [`ApiKeyLayer`](crate::ApiKeyLayer), which
//! tells them whose a request is, and before the guards and the handler. How much each organization has, your function
//! says, from the request's [`OrgContext`](crate::OrgContext): plans differ. What is too much is refused with
//! [429](crate::rejection#rate-limited) and `Retry-After`, in the layer's face; one organization at its limit costs
//! another nothing.
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
//! // The last `.route_layer` is the outermost: `auth`, then the rate, then what a route has of its own.
//! let app: Router = Router::new()
//!     .route("/export", get(export).route_layer(exports).route_layer(require_scope("export")))
//!     .route_layer(rate)
//!     .route_layer(auth);
//! ```
//!
//! # What counts
//!
//! Every request that the layer let pass with an organization counts, whatever becomes of it further in. A key that is
//! malformed, refused, blocked or cannot be verified never gets here, so it uses nothing of anybody's. A guard *outside*
//! of the limit spares it what the guard refuses; inside, a request without the scope counts: here it does against the
//! rate, and not against the exports. A request that a limit refuses is not counted by that limit, nor by those inside of
//! it; so a limit per key stands best outside of the organization's own:
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
//! A request without a key, where [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) lets it pass, has no
//! organization whose quota it could use: it passes, uncounted. Limit strangers by address, outside of the layer. Without
//! the layer in front it is 500, and the log says so.
//!
//! Accounts are those of one process and its layer: *n* nodes behind a load balancer give an organization up to *n* times
//! its quota.
//!
//! # When a quota changes
//!
//! Your function's answer holds from the request on that it is given for: who bought a larger plan has its rate at once.
//! A new quota begins as far used up as the one before was, so half a plan used is half of the next one used; the burst
//! of the larger plan builds up at its rate. If the answer goes back and forth (by the scopes of an organization's keys,
//! say), each quota has an account of its own, which only time gives anything back to: such an organization gets what its
//! quotas allow together, and no change gives it a fresh burst. Of more than four quotas at a time one is forgotten, and
//! on its return owes no less than it did. `None` counts nothing and forgets nothing.
//!
//! # Memory
//!
//! A rate limit holds an account for each organization, or key, that has used of its quota and not got all of it back
//! yet; who has all of it needs none. So the [capacity](OrgRateLimitLayerBuilder::capacity), 100,000 accounts unless set,
//! bounds memory (to some 40 MB), and how many can be held to their quotas at a time. Beyond it the account that owes
//! least, of some that come in turn, is forgotten; its organization begins with a burst anew, and a warning is
//! [logged](crate::telemetry). One organization's keys can have a hundredth of the capacity (at least ten accounts). Its
//! further keys take over the accounts of its own, with what these owe: a flood of keys takes no more room than that, and
//! gains nothing.
//!
//! A concurrency limit holds an entry for who has requests under way, while they are; its table keeps the size of its
//! busiest moment.
//!
//! # What is under way
//!
//! A request is under way from the decision until its response's body has ended, failed or was dropped, and not only
//! until the response's head: an export that streams for minutes is what such a limit is there for. Its place is given
//! back as well if the request's future is dropped, or the handler fails or panics. After an upgrade (a WebSocket, say)
//! the response has ended, and what goes on is not counted.
//!
//! So the type of the response's body changes to [`PermitBody`]. A router of axum takes every body. Directly beneath an
//! `ApiKeyLayer` with a [rejection response](crate::RejectionResponse) for a body of your own, in one `ServiceBuilder`,
//! put tower-http's `MapResponseBodyLayer` in between.
//!
//! # What it costs
//!
//! A request with a quota costs a look at the clock, a look-up in a lock-free index and the lock of its own account;
//! nothing is allocated, unless the fields are asked for or the account is new. A place among those under way costs two
//! look-ups under a lock that a 32nd part of the organizations share. `Retry-After` of a used-up rate is the time until
//! the next request would pass; for a concurrency limit nobody can tell it, and it is 1 s.

mod account;
mod accounts;
mod concurrency;
mod ratelimit_fields;
mod quota;
mod rate;
mod subject;

pub use self::concurrency::{
    OrgConcurrencyLimit, OrgConcurrencyLimitFuture, OrgConcurrencyLimitLayer, PermitBody,
};
pub use self::quota::Quota;
pub use self::rate::{
    OrgRateLimit, OrgRateLimitFuture, OrgRateLimitLayer, OrgRateLimitLayerBuilder,
};
