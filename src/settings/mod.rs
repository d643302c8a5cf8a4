//! Settings per organization: [`OrgSettingsLayer`] loads them, and handlers take them as [`OrgSettings`].
//!
//! Most requests of a multi-tenant API need data that its operator stores per organization: plans, limits, feature switches,
//! branding. You provide a loader. The layer caches what it returns, with the same cache as the keys: fresh and stale results,
//! one load per organization at a time, deadlines, a circuit breaker, invalidations.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_orgkey::settings::{OrgSettings, OrgSettingsLayer, SettingsError, settings_fn};
//! use tower_orgkey::{ApiKeyLayer, OrgCode};
//! # use tower_orgkey::{Verification, verifier_fn};
//! # #[derive(Clone)] struct Database;
//! # struct Row { seats: u32 }
//! # impl Database { async fn plan_of(&self, _: &OrgCode) -> Result<Row, std::io::Error> { Ok(Row { seats: 3 }) } }
//! # let (database, verifier) = (Database, verifier_fn(|_| async { Ok(Verification::invalid()) }));
//!
//! struct Plan {
//!     seats: u32,
//! }
//!
//! async fn seats(plan: OrgSettings<Plan>) -> String {
//!     format!("{} seats", plan.seats)
//! }
//!
//! let auth = ApiKeyLayer::new(verifier);
//! let plans = OrgSettingsLayer::new(
//!     &auth.handle(),
//!     settings_fn(move |org: OrgCode| {
//!         let database = database.clone();
//!         async move {
//!             let row = database.plan_of(&org).await.map_err(SettingsError::unavailable)?;
//!             Ok::<_, SettingsError>(Plan { seats: row.seats })
//!         }
//!     }),
//! );
//! let app: Router = Router::new()
//!     .route("/seats", get(seats))
//!     // Inside of `auth`, which authenticates the organization. The last `route_layer` is the outermost.
//!     .route_layer(plans)
//!     .route_layer(auth);
//! ```
//!
//! # Order of layers
//!
//! From the outside in: [`ApiKeyLayer`](crate::ApiKeyLayer), [`OrgSettingsLayer`], limits, guards, handler. Limits can
//! [read the settings](crate::limit#limits-from-settings). Without an `ApiKeyLayer` outside of it, the layer responds with 500
//! and logs an error. So does the extractor [`OrgSettings`] without a layer of its
//! type between the route and its `ApiKeyLayer`. A request that
//! [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) accepts without a key causes no load: `OrgSettings` then
//! rejects with 401, and `Option<OrgSettings<T>>` is `None`.
//!
//! A route can have several layers, each for another type. Of two layers for the same type, the inner one wins.
//!
//! # Staleness
//!
//! Settings are cached within the bounds of the [builder](OrgSettingsLayerBuilder): fresh for the soft TTL, then served for as
//! long again while one load is in flight. After that a request waits for the load. While loads fail, cached settings are
//! served up to the hard TTL. To apply a change at once, call [`OrgSettingsHandle::invalidate_org`].
//! [`ApiKeyHandle::invalidate_org`](crate::ApiKeyHandle::invalidate_org) and
//! [`invalidate_all`](crate::ApiKeyHandle::invalidate_all) of the keys invalidate settings too. The result of a load that was
//! in flight is then discarded: it is neither cached nor served.
//!
//! # Failed loads
//!
//! A failure is not cached. The request gets the cached settings, or else the
//! [default](OrgSettingsLayerBuilder::default_on_error), or else 503
//! [`settings-unavailable`](crate::rejection#settings-unavailable) with `Retry-After`. A timeout of the loader is a failure like
//! others; a panic fails the load, and does not count towards the circuit breaker.
//!
//! [`SettingsError`] says what a failure is about. Failures of five organizations in a row open the circuit breaker: no
//! settings are loaded for 5 s to 60 s. The failures of one organization do not:
//!
//! * [`SettingsError::broken`] does not count: the store has answered.
//! * All other failures count, timeouts included, but only once per organization in 10 s.
//! * After the half-open load of an organization has failed, other organizations go first for 5 s.
//!
//! While the breaker is closed and the loads of an organization fail, each of its requests past twice the soft TTL waits for one
//! load, then gets the cached settings.
//!
//! # Costs
//!
//! A hit costs a hash of the organization's code, a lookup in a lock-free index, and an insertion into the request's
//! extensions. The settings of at most [`capacity`](OrgSettingsLayerBuilder::capacity) organizations are cached; the least
//! frequently used are evicted first. At most 64 loads are in flight, 48 of them for organizations without cached settings.
//! A load that would wait for longer than the caller deadline is rejected at once.

mod builder;
mod extract;
mod future;
mod handle;
mod layer;
mod loader;
mod service;
mod source;
mod telemetry;

pub use self::builder::OrgSettingsLayerBuilder;
pub use self::extract::OrgSettings;
pub use self::future::ResponseFuture;
pub use self::handle::{OrgSettingsHandle, SettingsStats};
pub use self::layer::OrgSettingsLayer;
pub use self::loader::{SettingsError, SettingsErrorKind, SettingsFn, SettingsLoader, settings_fn};
pub use self::service::OrgSettingsService;
