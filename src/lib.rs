#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
// The guides speak of everything there is; where some of it is switched off, their links to it lead nowhere.
#![cfg_attr(
    not(all(
        feature = "axum",
        feature = "kinde",
        feature = "limit",
        feature = "settings",
        feature = "test-util"
    )),
    allow(rustdoc::broken_intra_doc_links)
)]

pub mod auth;
mod cache;
mod clock;
mod config;
pub mod context;
mod conversions;
mod credential;
#[cfg(feature = "__fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod guard;
mod key;
#[cfg(feature = "kinde")]
#[cfg_attr(docsrs, doc(cfg(feature = "kinde")))]
pub mod kinde;
#[cfg(feature = "limit")]
#[cfg_attr(docsrs, doc(cfg(feature = "limit")))]
pub mod limit;
pub mod observer;
mod pending;
pub mod rejection;
mod request_head;
pub mod scope;
#[cfg(feature = "settings")]
#[cfg_attr(docsrs, doc(cfg(feature = "settings")))]
pub mod settings;
pub mod telemetry;
#[cfg(feature = "test-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod test_util;
mod upstream;
pub mod verify;

pub use self::auth::{ApiKeyLayer, ApiKeyLayerBuilder, ApiKeyService};
pub use self::cache::{ApiKeyHandle, BlockListFull, Stats};
pub use self::config::ConfigError;
pub use self::context::{InvalidIdentifier, KeyId, OrgCode, OrgContext};
pub use self::guard::{
    RequireOrgLayer, RequireScopeLayer, ScopeSet, require_all_scopes, require_any_scope,
    require_org_with, require_scope,
};
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub use self::guard::{Scoped, require_org};
pub use self::key::{ApiKey, InvalidApiKey, MAX_KEY_LEN, MIN_KEY_LEN};
#[cfg(feature = "limit")]
#[cfg_attr(docsrs, doc(cfg(feature = "limit")))]
pub use self::limit::{
    OrgConcurrencyLimitLayer, OrgRateLimitLayer, OrgRateLimitLayerBuilder, Quota,
};
pub use self::observer::{ObserverLayer, RequestObservation};
pub use self::rejection::{DefaultRejectionResponse, Rejection, RejectionKind, RejectionResponse};
pub use self::request_head::RequestHead;
pub use self::scope::{
    InvalidScope, InvalidScopePolicy, InvalidScopes, Scope, ScopePolicy, Scopes,
};
#[cfg(feature = "settings")]
#[cfg_attr(docsrs, doc(cfg(feature = "settings")))]
pub use self::settings::{
    OrgSettings, OrgSettingsHandle, OrgSettingsLayer, SettingsError, SettingsLoader, settings_fn,
};
pub use self::upstream::{BreakerState, UpstreamState};
pub use self::verify::{
    Attempt, Verification, Verifier, VerifierFn, VerifyError, VerifyErrorKind, verifier_fn,
};
