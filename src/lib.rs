//! A [Tower](https://docs.rs/tower) layer for APIs that accept *organization API keys*.
//!
//! [`ApiKeyLayer`] reads the bearer key of a request, verifies it with the issuer, and caches the result. [`OrgContext`] is
//! what it passes to the handler: the organization that the key belongs to, its scopes, and the key's id. Guards reject
//! requests that the key does not permit.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_orgkey::{ApiKeyLayer, ConfigError, OrgContext, kinde::KindeVerifier, require_org, require_scope};
//!
//! fn app(client_id: String, client_secret: String) -> Result<Router, ConfigError> {
//!     let kinde = KindeVerifier::builder("https://acme.kinde.com")
//!         .client_credentials(client_id, client_secret)
//!         .build()?;
//!     Ok(Router::new()
//!         .route("/reports", get(reports).route_layer(require_scope("read:reports")))
//!         .route("/orgs/{org_code}/users", get(users).route_layer(require_org("org_code")))
//!         .route_layer(ApiKeyLayer::new(kinde)))
//! }
//!
//! async fn reports(org: OrgContext) -> String {
//!     format!("reports of {}", org.org_code())
//! }
//!
//! async fn users(org: OrgContext) -> String {
//!     format!("users of {}", org.org_code())
//! }
//! ```
//!
//! # The layer
//!
//! * [`ApiKeyLayer`] and its [builder](ApiKeyLayer::builder) are documented in [`auth`], with the order of layers.
//! * [`ApiKeyHandle`] blocks and invalidates keys, key ids and organizations, and reads the state of the cache.
//! * A [`Verifier`] connects an issuer: [`KindeVerifier`](kinde::KindeVerifier) for Kinde, or your own, see [`verify`].
//!   [`PrefixVerifier`] chooses among several issuers.
//!
//! # In handlers
//!
//! * [`OrgContext`] is an extractor (feature `axum`) and an extension of the request. [`Scoped`] is the same, and also
//!   requires scopes.
//! * [`OrgContext::until_invalid`] ends a stream when its key becomes invalid. [`OrgContext::revalidate`] verifies the key of a
//!   long job again.
//! * [`OrgSettings`] holds your own data about the organization (feature `settings`).
//!
//! # Guards and limits
//!
//! * [`require_scope`], [`require_all_scopes`] and [`require_any_scope`] require scopes of the key.
//! * [`require_org`] and [`require_org_with`] require that the request names the organization of the key.
//! * [`ApiKeyLayer::require_scope`] and its siblings combine the layer and one guard into one layer.
//! * [`OrgRateLimitLayer`] and [`OrgConcurrencyLimitLayer`] limit organizations or keys (feature `limit`).
//! * [`RegionLayer`](region::RegionLayer) serves only the organizations at home in its region (feature `region`).
//!
//! # Outer layers
//!
//! [`ObserverLayer`] and [`RequestObservation`] show a layer of yours outside [`ApiKeyLayer`], such as `TraceLayer`, who called
//! and why a request was rejected; see [`observer`].
//!
//! # Responses, logs and metrics
//!
//! A rejected request gets a problem document, see [`rejection`]. [`telemetry`] lists the log messages and metrics, and
//! [`troubleshooting`] what to do about them.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `axum` | yes | extractors, [`Scoped`], [`require_org`] |
//! | `kinde` | yes | [`KindeVerifier`](kinde::KindeVerifier) |
//! | `rustls` | yes | TLS to the issuer by rustls |
//! | `native-tls` | | TLS to the issuer by the platform's library |
//! | `limit` | | [rate and concurrency limits](limit) |
//! | `region` | | [regions](region): only the organizations at home here are served |
//! | `settings` | | [settings of organizations](settings) |
//! | `metrics` | | metrics through the `metrics` facade |
//! | `assertion` | | [services behind `orgkey gateway`](assertion): its signed identities in place of keys |
//! | `grpc` | | [gRPC](grpc): statuses, scopes by method, streams |
//! | `serde` | | `Serialize` and `Deserialize` for organization codes, key ids and scopes |
//! | `test-util` | | [contexts and a clock for tests](test_util) |
#![cfg_attr(docsrs, feature(doc_cfg))]
// Without some features, links to their items are broken.
#![cfg_attr(
    not(all(
        feature = "assertion",
        feature = "axum",
        feature = "grpc",
        feature = "kinde",
        feature = "limit",
        feature = "region",
        feature = "settings",
        feature = "test-util"
    )),
    allow(rustdoc::broken_intra_doc_links)
)]

// First, because modules declared later use its macros.
#[macro_use]
mod debug;
#[macro_use]
pub mod telemetry;

mod api_keys;
#[cfg(feature = "assertion")]
pub mod assertion;
pub mod auth;
mod config;
pub mod context;
mod conversions;
mod credential;
pub mod fleet;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod guard;
mod handle;
mod identifier;
mod interner;
mod key;
#[cfg(feature = "kinde")]
pub mod kinde;
#[cfg(feature = "limit")]
pub mod limit;
mod pending;
#[cfg(feature = "region")]
pub mod region;
pub mod rejection;
mod request_head;
pub mod scope;
#[cfg(feature = "settings")]
pub mod settings;
mod spread;
#[cfg(feature = "test-util")]
pub mod test_util;
// An empty module: the page is part of the documentation.
#[cfg(doc)]
#[doc = include_str!("troubleshooting.md")]
pub mod troubleshooting {}
pub mod verify;

// The layer and what handlers get.
#[doc(inline)]
pub use self::auth::ApiKeyLayer;
#[doc(inline)]
pub use self::context::{KeyId, OrgCode, OrgContext};
#[doc(inline)]
pub use self::rejection::{Rejection, RejectionKind};
#[doc(inline)]
pub use self::scope::Scopes;

// For outer layers.
#[doc(inline)]
pub use self::context::observer::{self, ObserverLayer, RequestObservation};

// Guards.
#[doc(inline)]
pub use self::guard::{
    ScopeSet, require_all_scopes, require_any_scope, require_org_with, require_scope,
};
#[cfg(feature = "axum")]
#[doc(inline)]
pub use self::guard::{Scoped, require_org};

// Limits and settings.
#[cfg(feature = "limit")]
#[doc(inline)]
pub use self::limit::{OrgConcurrencyLimitLayer, OrgRateLimitLayer, Quota};
#[cfg(feature = "settings")]
#[doc(inline)]
pub use self::settings::{OrgSettings, OrgSettingsLayer, settings_fn};

// Verifiers.
#[doc(inline)]
pub use self::verify::{PrefixVerifier, Verification, Verifier, VerifyError, verifier_fn};

// Items of private modules.
pub use self::config::ConfigError;
#[doc(inline)]
pub use self::fleet::{NotSpread, Reach};
pub use self::handle::ApiKeyHandle;
pub use self::key::{ApiKey, DEFAULT_MAX_KEY_LEN, InvalidApiKey, MAX_KEY_LEN, MIN_KEY_LEN};
pub use self::request_head::RequestHead;
pub use self::spread::{Spread, Spreading};
#[doc(inline)]
pub use orgkey_lookup::cache::Stats;
pub(crate) use orgkey_lookup::clock;
#[doc(inline)]
pub use orgkey_lookup::{BlockListFull, BreakerState, UpstreamState};

// Builders, services, errors and other types of signatures. They are documented in their modules only, to keep the front
// page short.
#[doc(hidden)]
pub use self::auth::{ApiKeyLayerBuilder, ApiKeyService};
#[doc(hidden)]
pub use self::context::InvalidIdentifier;
#[doc(hidden)]
pub use self::guard::{RequireOrgLayer, RequireScopeLayer};
#[cfg(feature = "limit")]
#[doc(hidden)]
pub use self::limit::OrgRateLimitLayerBuilder;
#[doc(hidden)]
pub use self::rejection::{DefaultRejectionResponse, RejectionResponse};
#[doc(hidden)]
pub use self::scope::{InvalidScope, InvalidScopePolicy, InvalidScopes, Scope, ScopePolicy};
#[cfg(feature = "settings")]
#[doc(hidden)]
pub use self::settings::{OrgSettingsHandle, SettingsError, SettingsLoader};
#[doc(hidden)]
pub use self::verify::{Attempt, BoxVerifier, VerifierFn, VerifyErrorKind};

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
