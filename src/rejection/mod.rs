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
//! ## custom
//!
//! A rejection of the application itself, made by [`Rejection::custom`], which has its own status, code and detail.
//!
//! [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457
//! [RFC 6750 §3]: https://www.rfc-editor.org/rfc/rfc6750#section-3

mod response;
mod style;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use orgkey_lookup::CannotTell;

pub use self::response::{DefaultRejectionResponse, RejectionResponse};
pub(crate) use self::response::{Face, dress, render, undressed};
pub(crate) use self::style::Style;
use crate::scope::is_scope;
use crate::telemetry;

/// A refused request: what for, and what its caller may be told.
///
/// See the [module's guide](crate::rejection) for every case.
#[derive(Clone)]
pub struct Rejection {
    kind: RejectionKind,
    retry_after: Option<Duration>,
    /// Wears the face of the layer that refused; a layer further out leaves it alone.
    dressed: bool,
    /// What only few rejections have. Behind a pointer: the futures of guards hold a rejection.
    details: Option<Arc<Details>>,
}

#[derive(Debug)]
enum Details {
    /// Of [`RejectionKind::InsufficientScope`].
    Scope(Box<str>),
    /// Of [`RejectionKind::Custom`].
    Custom(Custom),
}

#[derive(Debug)]
struct Custom {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
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
    /// A rejection of the application, made by [`Rejection::custom`].
    Custom,
}

impl RejectionKind {
    /// Every kind, in the order of the [guide](crate::rejection).
    pub const ALL: &'static [Self] = &Self::KINDS;

    pub(crate) const KINDS: [Self; 14] = [
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
        Self::Custom,
    ];

    /// Returns the stable name of the kind, which is also its heading in the [guide](crate::rejection).
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
            Self::Custom => "custom",
        }
    }
}

impl Rejection {
    fn new(kind: RejectionKind) -> Self {
        Self {
            kind,
            retry_after: None,
            dressed: false,
            details: None,
        }
    }

    fn with_wait(kind: RejectionKind, retry_after: Duration) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(kind)
        }
    }

    /// The request has no key. 401.
    pub fn missing_credential() -> Self {
        Self::new(RejectionKind::CredentialMissing)
    }

    /// The credential is repeated or malformed. 400.
    pub fn malformed_credential() -> Self {
        Self::new(RejectionKind::CredentialMalformed)
    }

    /// The key is invalid. 401.
    pub fn invalid_token() -> Self {
        Self::new(RejectionKind::InvalidToken)
    }

    /// The key is valid and has no organization. 403.
    pub fn organization_required() -> Self {
        Self::new(RejectionKind::OrganizationRequired)
    }

    /// The key is valid and lacks some of these scopes. 403.
    ///
    /// The challenge and the body name the scopes, so that the caller can get a key that holds them. A name outside RFC
    /// 6749's `scope-token` is left out.
    ///
    /// For a handler that decides by resource:
    ///
    /// ```
    /// use tower_orgkey::{OrgContext, Rejection};
    ///
    /// async fn publish(org: OrgContext) -> Result<&'static str, Rejection> {
    ///     if !org.scopes().contains("publish:reports") {
    ///         return Err(Rejection::insufficient_scope(["publish:reports"]));
    ///     }
    ///     Ok("published")
    /// }
    /// ```
    pub fn insufficient_scope<N: AsRef<str>>(required: impl IntoIterator<Item = N>) -> Self {
        let mut names = String::new();
        for name in required {
            if is_scope(name.as_ref().as_bytes()) {
                if !names.is_empty() {
                    names.push(' ');
                }
                names.push_str(name.as_ref());
            }
        }
        Self::scopes_missing(names)
    }

    /// [`insufficient_scope`](Self::insufficient_scope) for names that are scope-tokens, separated by spaces.
    pub(crate) fn scopes_missing(wanted: String) -> Self {
        Self {
            // A policy without alternatives rejects every key, so there is no scope to name.
            details: (!wanted.is_empty()).then(|| Arc::new(Details::Scope(wanted.into()))),
            ..Self::new(RejectionKind::InsufficientScope)
        }
    }

    /// The request names another organization than the key's own. 403.
    pub fn organization_mismatch() -> Self {
        Self::new(RejectionKind::OrganizationMismatch)
    }

    /// The same, for an API that does not say which resources exist. 404.
    pub fn not_found() -> Self {
        Self::new(RejectionKind::NotFound)
    }

    /// The key cannot be verified now. 503.
    pub fn verifier_unavailable(retry_after: Duration) -> Self {
        Self::with_wait(RejectionKind::VerifierUnavailable, retry_after)
    }

    /// The key cannot be verified because the issuer rejects this service's own credentials. 503.
    pub fn verifier_misconfigured(retry_after: Duration) -> Self {
        Self::with_wait(RejectionKind::VerifierMisconfigured, retry_after)
    }

    /// The organization or the key has used up its rate. 429.
    pub fn rate_limited(retry_after: Duration) -> Self {
        Self::with_wait(RejectionKind::RateLimited, retry_after)
    }

    /// The organization or the key has too many requests in flight. 429.
    pub fn concurrency_limited(retry_after: Duration) -> Self {
        Self::with_wait(RejectionKind::ConcurrencyLimited, retry_after)
    }

    /// The organization's settings cannot be loaded now. 503.
    pub fn settings_unavailable(retry_after: Duration) -> Self {
        Self::with_wait(RejectionKind::SettingsUnavailable, retry_after)
    }

    /// The application is composed wrongly. 500. Log the cause: the response does not name it.
    pub fn internal() -> Self {
        Self::new(RejectionKind::Internal)
    }

    /// A rejection of the application, in the format of the layer.
    ///
    /// `code` is a stable name for programs, of lower-case letters, digits and hyphens by convention; `detail` says to
    /// people what the caller can do. The `type` of the problem document is `about:blank`, its `title` the reason phrase
    /// of the status.
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_orgkey::Rejection;
    ///
    /// let rejection = Rejection::custom(
    ///     StatusCode::CONFLICT,
    ///     "no-seat-left",
    ///     "All seats of the plan are taken. Remove a user, or choose a larger plan.",
    /// );
    /// assert_eq!(rejection.code(), "no-seat-left");
    /// ```
    pub fn custom(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            details: Some(Arc::new(Details::Custom(Custom {
                status,
                code,
                detail: detail.into(),
            }))),
            ..Self::new(RejectionKind::Custom)
        }
    }

    /// Adds `Retry-After` to the response, in whole seconds, rounded up.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// A guard or extractor finds no trace of the layer. The log says loudly what the caller is not told.
    pub(crate) fn layer_missing(who_asks: &str) -> Self {
        telemetry::layer_missing(who_asks);
        Self::internal()
    }

    /// The layer does not keep the key that this method needs.
    pub(crate) fn key_not_kept(method: &'static str) -> Self {
        telemetry::key_not_kept(method);
        Self::internal()
    }

    /// The verification failed.
    pub(crate) fn cannot_tell(cannot_tell: CannotTell) -> Self {
        if cannot_tell.is_misconfigured {
            Self::verifier_misconfigured(cannot_tell.retry_after)
        } else {
            Self::verifier_unavailable(cannot_tell.retry_after)
        }
    }

    fn as_custom(&self) -> Option<&Custom> {
        match self.details.as_deref() {
            Some(Details::Custom(custom)) => Some(custom),
            _ => None,
        }
    }

    /// Whether a layer has put its face on, and told of the refusal.
    pub(crate) fn is_dressed(&self) -> bool {
        self.dressed
    }

    /// Returns what the request was rejected for.
    pub fn kind(&self) -> RejectionKind {
        self.kind
    }

    /// Returns the status of the default response.
    pub fn status(&self) -> StatusCode {
        if let Some(custom) = self.as_custom() {
            return custom.status;
        }
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
            RejectionKind::Internal | RejectionKind::Custom => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the stable name of the case: its heading in the [guide](crate::rejection), or the code of a
    /// [custom](Self::custom) rejection.
    pub fn code(&self) -> &'static str {
        match self.as_custom() {
            Some(custom) => custom.code,
            None => self.kind.code(),
        }
    }

    /// Returns a short summary, the same for every occurrence of the case.
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
            RejectionKind::Custom => self.status().canonical_reason().unwrap_or("Rejected"),
        }
    }

    /// Returns what the caller can do about it.
    pub fn detail(&self) -> &str {
        if let Some(custom) = self.as_custom() {
            return &custom.detail;
        }
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
            RejectionKind::Internal | RejectionKind::Custom => {
                "The operator of this service has to act."
            }
        }
    }

    /// Returns the scopes that the operation requires, separated by spaces: only for
    /// [`RejectionKind::InsufficientScope`].
    pub fn required_scope(&self) -> Option<&str> {
        match self.details.as_deref() {
            Some(Details::Scope(scope)) => Some(scope),
            _ => None,
        }
    }

    /// Returns when to try again. Whole seconds, rounded up, go into `Retry-After`.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejection")
            .field("kind", &self.kind)
            .field("details", &self.details)
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
