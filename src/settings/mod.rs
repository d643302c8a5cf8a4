//! Customer-specific configuration: [`OrgSettings`], what your own store says of the organization whose call this is.
//!
//! Plans, limits, feature switches, branding: most requests of a multi-tenant API need something that its operator keeps per
//! organization. You say how it is loaded; the layer loads it once per organization, keeps it, and hands it to handlers,
//! with the same cache that the keys have: fresh and stale, one load at a time, deadlines, a breaker, fences.
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
//!     // Inside of `auth`, which says whose call it is; the last `route_layer` is the outermost.
//!     .route_layer(plans)
//!     .route_layer(auth);
//! ```
//!
//! # Where it stands
//!
//! From the outside in: [`ApiKeyLayer`](crate::ApiKeyLayer), **[`OrgSettingsLayer`]**, guards, handler. Without an
//! `ApiKeyLayer` outside of it, it answers 500 and says so in the log; so does [`OrgSettings`] where no layer of its type
//! stands in front, or where one stands outside of the `ApiKeyLayer` that decided. A request that
//! [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) let pass goes through and costs no load: `OrgSettings` is
//! then 401, `Option<OrgSettings<T>>` is `None`.
//!
//! Several layers, each of a type of its own, may stand on one route. Of two layers of one type the inner counts: give each
//! kind of settings a type.
//!
//! # How old settings may be
//!
//! As old as a key's facts, and by the same bounds, which the [builder](OrgSettingsLayerBuilder) sets: fresh for the soft TTL;
//! for as long again served while one load is under way; after that a request waits for the load. While the loader fails, what
//! is held is served to the hard TTL and not longer. To have a change seen at once, tell
//! [`OrgSettingsHandle::invalidate_org`]. [`ApiKeyHandle::invalidate_org`](crate::ApiKeyHandle::invalidate_org) and
//! [`invalidate_all`](crate::ApiKeyHandle::invalidate_all) of the layer's keys drop settings together with keys. Either way a
//! load that was under way is thrown away: its answer is neither kept nor served.
//!
//! # When a load fails
//!
//! Nothing is remembered against the organization. Settings that are held are served; else the request gets the
//! [default](OrgSettingsLayerBuilder::default_on_error) you declared, or 503
//! [`settings-unavailable`](crate::rejection#settings-unavailable) with `Retry-After`. A time-out and a panic of the loader are
//! failures like others.
//!
//! The loader's error says what is wrong, and only you can know: see [`SettingsError`]. Five failures in a row open a breaker,
//! after which nobody's settings are loaded for 5 s to 60 s, because a store that is down should be left alone. But one
//! organization whose own settings cannot be loaded says nothing of the store. So
//!
//! * [`SettingsError::broken`] counts for nothing: the store has answered;
//! * of all other failures, time-outs included, the five have to be of *five organizations*, and an organization's count once
//!   in 10 s among the calls of which half have to fail;
//! * an organization whose load was the one to try whether the store is back, and failed, lets others try first for 5 s.
//!
//! So what is wrong with one costs another nothing but its one place among the calls under way. It costs itself more: with the
//! breaker closed, each of its requests past twice the soft TTL waits for a load of its own to fail before it is given what is
//! held.
//!
//! # What it costs
//!
//! A hit: a digest of the organization's code, a look-up in a lock-free index, and a place in the request's extensions. At
//! most [`capacity`](OrgSettingsLayerBuilder::capacity) organizations are held; what is asked for least goes first. At most 48
//! loads of organizations of which nothing is held run at a time, 64 in all, and 256 wait; beyond that a request gets what is
//! held, the default, or 503. Without the layer nothing is spent.

mod builder;
mod future;
mod given;
mod handle;
mod layer;
mod loader;
mod service;
mod source;

pub use self::builder::OrgSettingsLayerBuilder;
pub use self::future::ResponseFuture;
pub use self::given::OrgSettings;
pub use self::handle::{OrgSettingsHandle, SettingsStats};
pub use self::layer::OrgSettingsLayer;
pub use self::loader::{SettingsError, SettingsErrorKind, SettingsFn, SettingsLoader, settings_fn};
pub use self::service::OrgSettingsService;
