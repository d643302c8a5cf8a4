//! Why a request was refused, and how that is told.
//!
//! Every refusal is a [`Rejection`]. Its default face is an [RFC 9457] problem document, with the challenge of
//! [RFC 6750 §3] where one is due and `Cache-Control: no-store` always. The `type` of the problem is the address of a
//! heading on this page; `code` is the last word of that address. Nothing the issuer said is repeated, and whatever a
//! key is refused for at the issuer, the caller sees the same bytes.
//!
//! The rejection also stands in the response's extensions, where outer layers (logs, metrics) find it:
//!
//! ```
//! use tower_orgkey::Rejection;
//!
//! fn refused_for<B>(response: &http::Response<B>) -> Option<&'static str> {
//!     Some(response.extensions().get::<Rejection>()?.code())
//! }
//! ```
//!
//! A body of your own, for all refusals including those of guards and extractors beneath the layer, is one function
//! away: see [`RejectionResponse`].
//!
//! ## credential-missing
//!
//! **401.** The request presents no key. Send it as `Authorization: Bearer <key>`, or in the header the API names.
//!
//! ## credential-malformed
//!
//! **400.** The header that carries the key is repeated, empty, or holds something that cannot be a key (8 to 512
//! characters of letters, digits and `-._~+/`, then `=` signs if any).
//!
//! ## invalid-token
//!
//! **401.** The key is not, or is no longer, good: unknown, revoked, rotated, expired, inactive or blocked. Get a new one.
//!
//! ## organization-required
//!
//! **403.** The key is good, but it belongs to a user or to an environment and not to an organization.
//!
//! ## insufficient-scope
//!
//! **403.** The key is good, but lacks a scope that this operation asks for. The challenge names the scopes.
//!
//! ## organization-mismatch
//!
//! **403.** The address names another organization than the key's own.
//!
//! ## not-found
//!
//! **404.** What `organization-mismatch` becomes where the API chose not to tell.
//!
//! ## verifier-unavailable
//!
//! **503.** Whether the key is good cannot be told at the moment. Nothing is said about the key; try again after
//! `Retry-After` seconds.
//!
//! ## verifier-misconfigured
//!
//! **503.** As `verifier-unavailable`, and waiting will not help: the API's own credentials at the issuer are refused. Its
//! operator finds the reason in the log.
//!
//! ## rate-limited
//!
//! **429.** The organization (or its key) has made as many requests as its plan allows for now. Try again after
//! `Retry-After` seconds.
//!
//! ## concurrency-limited
//!
//! **429.** The organization (or its key) has as many requests under way as its plan allows. Wait for one of them to end.
//!
//! ## settings-unavailable
//!
//! **503.** The key is good, but the organization's own settings cannot be loaded at the moment. Try again after
//! `Retry-After` seconds.
//!
//! ## internal
//!
//! **500.** The API is put together wrongly: a guard without the layer in front of it, or one that names a path parameter
//! the route does not have. Its operator finds the reason in the log.
//!
//! [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457
//! [RFC 6750 §3]: https://www.rfc-editor.org/rfc/rfc6750#section-3

mod response;
mod style;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

pub use self::response::{DefaultRejectionResponse, RejectionResponse};
pub(crate) use self::response::{Face, dress, render, undressed};
pub(crate) use self::style::Style;
use crate::telemetry;

/// A refused request: what for, and what its caller may be told.
///
/// See the [module's guide](crate::rejection) for every case.
#[derive(Clone)]
pub struct Rejection {
    kind: RejectionKind,
    scope: Option<Arc<str>>,
    retry_after: Option<Duration>,
    /// Wears the face of the layer that refused; a layer further out leaves it alone.
    dressed: bool,
}

/// What a request was refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// No key, or a credential of another scheme. 401.
    CredentialMissing,
    /// A repeated or malformed credential. 400.
    CredentialMalformed,
    /// The issuer refused the key, it expired, or it is blocked here. 401.
    InvalidToken,
    /// A good key without an organization, or a user's. 403.
    OrganizationRequired,
    /// A good key that lacks a scope. 403.
    InsufficientScope,
    /// The request names another organization. 403.
    OrganizationMismatch,
    /// The same, where the guard was told to hide it. 404.
    NotFound,
    /// Whether the key is good cannot be told now. 503.
    VerifierUnavailable,
    /// The same, because the issuer refuses this service's own credentials. 503.
    VerifierMisconfigured,
    /// The organization or the key has used up its rate. 429.
    RateLimited,
    /// The organization or the key has too many requests under way. 429.
    ConcurrencyLimited,
    /// The organization's settings cannot be loaded now. 503.
    SettingsUnavailable,
    /// A guard or an extractor without the layer, or without its path parameter. 500.
    Internal,
}

impl RejectionKind {
    /// Every kind, in the order of the guide.
    pub(crate) const ALL: [Self; 13] = [
        Self::CredentialMissing,
        Self::CredentialMalformed,
        Self::InvalidToken,
        Self::OrganizationRequired,
        Self::InsufficientScope,
        Self::OrganizationMismatch,
        Self::NotFound,
        Self::VerifierUnavailable,
        Self::VerifierMisconfigured,
        Self::RateLimited,
        Self::ConcurrencyLimited,
        Self::SettingsUnavailable,
        Self::Internal,
    ];

    /// The stable name of the kind, which is also its heading in the [guide](crate::rejection).
    pub fn code(self) -> &'static str {
        match self {
            Self::CredentialMissing => "credential-missing",
            Self::CredentialMalformed => "credential-malformed",
            Self::InvalidToken => "invalid-token",
            Self::OrganizationRequired => "organization-required",
            Self::InsufficientScope => "insufficient-scope",
            Self::OrganizationMismatch => "organization-mismatch",
            Self::NotFound => "not-found",
            Self::VerifierUnavailable => "verifier-unavailable",
            Self::VerifierMisconfigured => "verifier-misconfigured",
            Self::RateLimited => "rate-limited",
            Self::ConcurrencyLimited => "concurrency-limited",
            Self::SettingsUnavailable => "settings-unavailable",
            Self::Internal => "internal",
        }
    }
}

impl Rejection {
    fn new(kind: RejectionKind) -> Self {
        Self {
            kind,
            scope: None,
            retry_after: None,
            dressed: false,
        }
    }

    pub(crate) fn missing_credential() -> Self {
        Self::new(RejectionKind::CredentialMissing)
    }

    pub(crate) fn malformed_credential() -> Self {
        Self::new(RejectionKind::CredentialMalformed)
    }

    pub(crate) fn invalid_token() -> Self {
        Self::new(RejectionKind::InvalidToken)
    }

    pub(crate) fn organization_required() -> Self {
        Self::new(RejectionKind::OrganizationRequired)
    }

    pub(crate) fn insufficient_scope(wanted: String) -> Self {
        Self {
            // A policy without alternatives denies every key, so there is no scope to name.
            scope: (!wanted.is_empty()).then(|| wanted.into()),
            ..Self::new(RejectionKind::InsufficientScope)
        }
    }

    pub(crate) fn organization_mismatch(hidden: bool) -> Self {
        Self::new(if hidden {
            RejectionKind::NotFound
        } else {
            RejectionKind::OrganizationMismatch
        })
    }

    pub(crate) fn verifier_unavailable(retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(RejectionKind::VerifierUnavailable)
        }
    }

    pub(crate) fn verifier_misconfigured(retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(RejectionKind::VerifierMisconfigured)
        }
    }

    #[cfg(feature = "limit")]
    pub(crate) fn rate_limited(retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(RejectionKind::RateLimited)
        }
    }

    #[cfg(feature = "limit")]
    pub(crate) fn concurrency_limited(retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(RejectionKind::ConcurrencyLimited)
        }
    }

    #[cfg(feature = "settings")]
    pub(crate) fn settings_unavailable(retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(RejectionKind::SettingsUnavailable)
        }
    }

    /// A guard or extractor finds no trace of the layer. The log says loudly what the caller is not told.
    pub(crate) fn layer_missing(who_asks: &str) -> Self {
        telemetry::layer_missing(who_asks);
        Self::internal()
    }

    /// The program is put together wrongly; who finds that tells the log how.
    pub(crate) fn internal() -> Self {
        Self::new(RejectionKind::Internal)
    }

    /// Whether a layer has put its face on, and told of the refusal.
    pub(crate) fn is_dressed(&self) -> bool {
        self.dressed
    }

    /// What the request was refused for.
    pub fn kind(&self) -> RejectionKind {
        self.kind
    }

    /// The status of the default response.
    pub fn status(&self) -> StatusCode {
        match self.kind {
            RejectionKind::CredentialMissing | RejectionKind::InvalidToken => {
                StatusCode::UNAUTHORIZED
            }
            RejectionKind::CredentialMalformed => StatusCode::BAD_REQUEST,
            RejectionKind::OrganizationRequired
            | RejectionKind::InsufficientScope
            | RejectionKind::OrganizationMismatch => StatusCode::FORBIDDEN,
            RejectionKind::NotFound => StatusCode::NOT_FOUND,
            RejectionKind::VerifierUnavailable
            | RejectionKind::VerifierMisconfigured
            | RejectionKind::SettingsUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            RejectionKind::RateLimited | RejectionKind::ConcurrencyLimited => {
                StatusCode::TOO_MANY_REQUESTS
            }
            RejectionKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The stable name of the case, which is also its heading in the [guide](crate::rejection).
    pub fn code(&self) -> &'static str {
        self.kind.code()
    }

    /// A short summary, the same for every occurrence of the case.
    pub fn title(&self) -> &'static str {
        match self.kind {
            RejectionKind::CredentialMissing => "An API key is required",
            RejectionKind::CredentialMalformed => "The credential is malformed",
            RejectionKind::InvalidToken => "The API key is not valid",
            RejectionKind::OrganizationRequired => "The API key belongs to no organization",
            RejectionKind::InsufficientScope => "The API key lacks a scope",
            RejectionKind::OrganizationMismatch => "The API key belongs to another organization",
            RejectionKind::NotFound => "Not found",
            RejectionKind::VerifierUnavailable | RejectionKind::VerifierMisconfigured => {
                "The API key cannot be verified at the moment"
            }
            RejectionKind::RateLimited => "The organization's rate limit is used up",
            RejectionKind::ConcurrencyLimited => "The organization has too many requests under way",
            RejectionKind::SettingsUnavailable => {
                "The organization's settings cannot be loaded at the moment"
            }
            RejectionKind::Internal => "Internal server error",
        }
    }

    /// What the caller can do about it.
    pub fn detail(&self) -> &'static str {
        match self.kind {
            RejectionKind::CredentialMissing => {
                "Present an organization's API key with the request."
            }
            RejectionKind::CredentialMalformed => {
                "Present exactly one API key, of 8 to 512 characters out of letters, digits and -._~+/, followed by = signs if any."
            }
            RejectionKind::InvalidToken => {
                "The key is unknown, revoked, rotated, expired or inactive. Use another one."
            }
            RejectionKind::OrganizationRequired => {
                "The key is good but belongs to a user or an environment. Use the key of an organization."
            }
            RejectionKind::InsufficientScope => {
                "The key does not hold the scopes that this operation asks for. Use a key that holds them."
            }
            RejectionKind::OrganizationMismatch => {
                "The address names an organization that is not the key's own."
            }
            RejectionKind::NotFound => "There is nothing at this address.",
            RejectionKind::VerifierUnavailable => {
                "Nothing is wrong with the key as far as is known. Try again later."
            }
            RejectionKind::VerifierMisconfigured => {
                "Nothing is wrong with the key as far as is known. The operator of this service has to act."
            }
            RejectionKind::RateLimited => "Make fewer requests. Try again later.",
            RejectionKind::ConcurrencyLimited => {
                "Wait for one of the requests under way to end. Try again later."
            }
            RejectionKind::SettingsUnavailable => "Nothing is wrong with the key. Try again later.",
            RejectionKind::Internal => "The operator of this service has to act.",
        }
    }

    /// The scopes that the operation asks for, separated by spaces: only for [`RejectionKind::InsufficientScope`].
    pub fn required_scope(&self) -> Option<&str> {
        self.scope.as_deref()
    }

    /// When to try again: only for a 429 or a 503. Whole seconds, rounded up, go into `Retry-After`.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejection")
            .field("kind", &self.kind)
            .field("scope", &self.scope)
            .field("retry_after", &self.retry_after)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

impl std::error::Error for Rejection {}
