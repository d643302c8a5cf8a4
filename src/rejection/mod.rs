//! Why a request was rejected, and the response for it.
//!
//! The default response for a [`Rejection`] is an [RFC 9457] problem document with `Cache-Control: no-store` and, for some
//! kinds, the challenge of [RFC 6750 §3]. The `type` of the document is the URL of a heading on this page, and its `code` is
//! that heading. The response contains no text of the issuer, and is the same for every key that the issuer finds invalid.
//!
//! The rejection is in the extensions of the response, for outer layers such as logs and metrics:
//!
//! ```
//! use tower_orgkey::Rejection;
//!
//! fn code_of<B>(response: &http::Response<B>) -> Option<&'static str> {
//!     Some(response.extensions().get::<Rejection>()?.code())
//! }
//! ```
//!
//! A [`RejectionResponse`] replaces the format of all rejections, including those of guards and extractors inside the layer.
//!
//! ## credential-missing
//!
//! **401.** The request has no key. Send it as `Authorization: Bearer <key>`, or in the header that the API documents.
//!
//! ## credential-malformed
//!
//! **400.** The header with the key is repeated, empty, or contains something that cannot be a key. A key has 8 to 512
//! characters, unless the API accepts longer ones: letters, digits and `-._~+/`, followed by `=` signs if any.
//!
//! ## invalid-token
//!
//! **401.** The key is unknown, revoked, rotated, expired, inactive or blocked, or the credential is not a key of this API.
//! Use another key.
//!
//! ## organization-required
//!
//! **403.** The key is valid, but belongs to a user or to an environment instead of an organization.
//!
//! ## insufficient-scope
//!
//! **403.** The key is valid, but lacks a scope that this operation requires. The challenge names the scopes.
//!
//! ## organization-mismatch
//!
//! **403.** The URL names another organization than the one that the key belongs to.
//!
//! ## not-found
//!
//! **404.** The response instead of `organization-mismatch` if the API does not reveal which organizations exist.
//!
//! ## wrong-region
//!
//! **421.** The organization of the key lives in another region. The members `region` and `base` name the region
//! and the address of the API there. Send the request to that address. The API may respond with 403 instead.
//!
//! ## region-unknown
//!
//! **503.** The region of the key's organization is not known at the moment. Try again after `Retry-After` seconds.
//!
//! ## verifier-unavailable
//!
//! **503.** The key cannot be verified at the moment, which says nothing about the key. Try again after `Retry-After` seconds.
//!
//! ## verifier-misconfigured
//!
//! **503.** The key cannot be verified because the issuer rejects the credentials of the API. The operator of the API finds
//! the reason in the log; trying again does not help before it is fixed.
//!
//! ## rate-limited
//!
//! **429.** The organization or its key has used up its rate limit. Try again after `Retry-After` seconds.
//!
//! ## concurrency-limited
//!
//! **429.** The organization or its key has as many requests in flight as its plan allows. Wait until one of them ends.
//!
//! ## settings-unavailable
//!
//! **503.** The key is valid, but the settings of the organization cannot be loaded at the moment. Try again after
//! `Retry-After` seconds.
//!
//! ## internal
//!
//! **500.** The layers of the API are composed wrongly: a guard outside of the layer, or one that names a path parameter that
//! the route does not have. The operator of the API finds the reason in the log.
//!
//! ## custom
//!
//! A rejection of the application, created by [`Rejection::custom`] with its status, code and detail.
//!
//! [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457
//! [RFC 6750 §3]: https://www.rfc-editor.org/rfc/rfc6750#section-3

mod challenge;
mod response;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use orgkey_lookup::CannotTell;

pub(crate) use self::challenge::Challenge;
pub use self::response::{
    DefaultRejectionResponse, EmptyRejectionResponse, RejectionBody, RejectionResponse,
};
pub(crate) use self::response::{ResponseFormat, complete, render, unrendered};
use crate::scope::is_scope;
use crate::telemetry;

/// The reason why a request is rejected, and what the response says about it.
///
/// See the [module documentation](crate::rejection) for all kinds.
#[derive(Clone)]
pub struct Rejection {
    kind: RejectionKind,
    retry_after: Option<Duration>,
    /// Rendered in the format of a layer, which outer layers keep.
    is_rendered: bool,
    /// For few kinds only. Behind a pointer, because the futures of guards contain a rejection.
    details: Option<Arc<Details>>,
}

#[derive(Debug)]
enum Details {
    /// Of [`RejectionKind::InsufficientScope`].
    Scope(Box<str>),
    /// Of [`RejectionKind::WrongRegion`].
    Region(Region),
    /// Of [`RejectionKind::Custom`].
    Custom(Custom),
}

#[derive(Debug)]
struct Region {
    name: Cow<'static, str>,
    base: Option<Cow<'static, str>>,
    status: StatusCode,
}

#[derive(Debug)]
struct Custom {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
}

/// The kind of a [`Rejection`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// No key, or a credential of another scheme. 401.
    CredentialMissing,
    /// A repeated or malformed credential. 400.
    CredentialMalformed,
    /// A key that is invalid at the issuer, expired or blocked, or a credential that is not a key. 401.
    InvalidToken,
    /// A valid key without an organization, or of a user. 403.
    OrganizationRequired,
    /// A valid key that lacks a scope. 403.
    InsufficientScope,
    /// The request names another organization. 403.
    OrganizationMismatch,
    /// The same, if the guard responds with 404 instead.
    NotFound,
    /// The organization lives in another region. 421, or 403.
    WrongRegion,
    /// The region of the organization is not known now. 503.
    RegionUnknown,
    /// The key cannot be verified now. 503.
    VerifierUnavailable,
    /// The same, because the issuer rejects the credentials of this service. 503.
    VerifierMisconfigured,
    /// The organization or the key has used up its rate. 429.
    RateLimited,
    /// The organization or the key has too many requests in flight. 429.
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

    pub(crate) const KINDS: [Self; 16] = [
        Self::CredentialMissing,
        Self::CredentialMalformed,
        Self::InvalidToken,
        Self::OrganizationRequired,
        Self::InsufficientScope,
        Self::OrganizationMismatch,
        Self::NotFound,
        Self::WrongRegion,
        Self::RegionUnknown,
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
            Self::WrongRegion => "wrong-region",
            Self::RegionUnknown => "region-unknown",
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
    pub(crate) fn new(kind: RejectionKind) -> Self {
        Self {
            kind,
            retry_after: None,
            is_rendered: false,
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

    /// The request names another organization than the one that the key belongs to. 403.
    pub fn organization_mismatch() -> Self {
        Self::new(RejectionKind::OrganizationMismatch)
    }

    /// The same, for an API that does not say which resources exist. 404.
    pub fn not_found() -> Self {
        Self::new(RejectionKind::NotFound)
    }

    /// The organization lives in another region: its name, and the address of the API there for clients. The default response
    /// has the status `status`: 421, or one that clients do not retry by themselves.
    ///
    /// [`RegionLayer`](crate::region::RegionLayer) makes it from its configuration. Pass no data of organizations: the response
    /// names both texts.
    pub fn wrong_region(
        region: impl Into<Cow<'static, str>>,
        base: Option<Cow<'static, str>>,
        status: StatusCode,
    ) -> Self {
        Self {
            details: Some(Arc::new(Details::Region(Region {
                name: region.into(),
                base,
                status,
            }))),
            ..Self::new(RejectionKind::WrongRegion)
        }
    }

    /// The region of the organization is not known now. 503.
    pub fn region_unknown(retry_after: Duration) -> Self {
        Self::with_wait(RejectionKind::RegionUnknown, retry_after)
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

    /// Logs that a guard or extractor is outside of the layer, and returns a rejection that does not say so.
    pub(crate) fn layer_missing(component: &'static str) -> Self {
        telemetry::layer_missing(component);
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

    fn as_region(&self) -> Option<&Region> {
        match self.details.as_deref() {
            Some(Details::Region(region)) => Some(region),
            _ => None,
        }
    }

    /// Returns whether a layer has rendered the rejection in its format, and counted it.
    pub(crate) fn is_rendered(&self) -> bool {
        self.is_rendered
    }

    /// Returns what the request was rejected for.
    pub fn kind(&self) -> RejectionKind {
        self.kind
    }

    /// Returns the status of the default response.
    pub fn status(&self) -> StatusCode {
        match self.details.as_deref() {
            Some(Details::Custom(custom)) => return custom.status,
            Some(Details::Region(region)) => return region.status,
            Some(Details::Scope(_)) | None => {}
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
            RejectionKind::WrongRegion => StatusCode::MISDIRECTED_REQUEST,
            RejectionKind::RegionUnknown
            | RejectionKind::VerifierUnavailable
            | RejectionKind::VerifierMisconfigured
            | RejectionKind::SettingsUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            RejectionKind::RateLimited | RejectionKind::ConcurrencyLimited => {
                StatusCode::TOO_MANY_REQUESTS
            }
            RejectionKind::Internal | RejectionKind::Custom => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the stable name of the kind: its heading in the [guide](crate::rejection), or the code of a
    /// [custom](Self::custom) rejection.
    pub fn code(&self) -> &'static str {
        match self.as_custom() {
            Some(custom) => custom.code,
            None => self.kind.code(),
        }
    }

    /// Returns a short summary, the same for every rejection of the kind.
    pub fn title(&self) -> &'static str {
        match self.kind {
            RejectionKind::CredentialMissing => "An API key is required",
            RejectionKind::CredentialMalformed => "The credential is malformed",
            RejectionKind::InvalidToken => "The API key is not valid",
            RejectionKind::OrganizationRequired => "The API key belongs to no organization",
            RejectionKind::InsufficientScope => "The API key lacks a scope",
            RejectionKind::OrganizationMismatch => "The API key belongs to another organization",
            RejectionKind::NotFound => "Not found",
            RejectionKind::WrongRegion => "The organization lives in another region",
            RejectionKind::RegionUnknown => {
                "The region of the organization is not known at the moment"
            }
            RejectionKind::VerifierUnavailable | RejectionKind::VerifierMisconfigured => {
                "The API key cannot be verified at the moment"
            }
            RejectionKind::RateLimited => "The organization's rate limit is used up",
            RejectionKind::ConcurrencyLimited => "The organization has too many requests in flight",
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
                "Send an API key of an organization with the request."
            }
            RejectionKind::CredentialMalformed => {
                "Send exactly one API key: letters, digits and -._~+/, followed by = signs if any, of the length that this API accepts."
            }
            RejectionKind::InvalidToken => {
                "The key is unknown, revoked, rotated, expired or inactive. Use another one."
            }
            RejectionKind::OrganizationRequired => {
                "The key is valid but belongs to a user or an environment. Use a key of an organization."
            }
            RejectionKind::InsufficientScope => {
                "The key lacks scopes that this operation requires. Use a key that has them."
            }
            RejectionKind::OrganizationMismatch => {
                "The URL names another organization than the one that the key belongs to."
            }
            RejectionKind::NotFound => "There is no resource at this URL.",
            RejectionKind::WrongRegion => {
                "Send the request to the API in the region of the organization."
            }
            RejectionKind::VerifierUnavailable => {
                "This says nothing about the key. Try again later."
            }
            RejectionKind::VerifierMisconfigured => {
                "This says nothing about the key. The operator of this service has to fix it."
            }
            RejectionKind::RateLimited => "Make fewer requests. Try again later.",
            RejectionKind::ConcurrencyLimited => {
                "Wait until one of the requests in flight ends, then try again."
            }
            RejectionKind::RegionUnknown => "Try again later.",
            RejectionKind::SettingsUnavailable => "The key is valid. Try again later.",
            RejectionKind::Internal | RejectionKind::Custom => {
                "The operator of this service has to fix it."
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

    /// Returns the region that the organization lives in: only for [`RejectionKind::WrongRegion`].
    pub fn region(&self) -> Option<&str> {
        Some(&self.as_region()?.name)
    }

    /// Returns the address of the API in the [region](Self::region) of the organization, if it is known.
    pub fn region_base(&self) -> Option<&str> {
        self.as_region()?.base.as_deref()
    }

    /// Returns when to try again. Whole seconds, rounded up, go into `Retry-After`.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl_debug!(Rejection, |rejection| {
    kind: rejection.kind,
    details: rejection.details,
    retry_after: rejection.retry_after
});

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

impl std::error::Error for Rejection {}
