//! The door to an issuer: [`Verifier`], what it answers, and what it says when it cannot.
//!
//! Two answers must never be confused. "The key is bad" is an `Ok`: [`Verification::refused`]. "We cannot tell" is an
//! `Err`: a [`VerifyError`]. The layer turns the first into 401 and remembers it for seconds; the second becomes 503
//! (or an earlier yes, while that may still be served) and is never remembered against a key.
//!
//! An issuer of one's own takes ten lines:
//!
//! ```
//! use tower_orgkey::{ApiKey, ApiKeyLayer, OrgCode, Scopes, Verification, Verifier, VerifyError};
//!
//! struct Database(/* a pool */);
//! # impl Database {
//! #     async fn find(&self, _: &str) -> Result<Option<(String, Vec<String>)>, std::io::Error> { Ok(None) }
//! # }
//!
//! impl Verifier for Database {
//!     async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
//!         // Look a key up by a hash of it, as you stored it.
//!         let row = self.find(key.expose_secret()).await.map_err(VerifyError::unavailable)?;
//!         let Some((org, scopes)) = row else { return Ok(Verification::refused()) };
//!         let org = OrgCode::new(org).map_err(VerifyError::unavailable)?;
//!         Ok(Verification::of_organization(org).with_scopes(Scopes::from_names(scopes)))
//!     }
//! }
//!
//! let layer = ApiKeyLayer::new(Database());
//! ```

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::context::{KeyId, OrgCode};
use crate::key::ApiKey;
use crate::scope::Scopes;

/// Asks an issuer whether a key is good.
///
/// The layer calls it at most once at a time for a key, on a task of its own, under deadlines of its own, and drops
/// the future when one passes; the future must bear that at every `await`. A panic counts as "cannot tell".
///
/// See the [module's guide](crate::verify) for an example.
pub trait Verifier: Send + Sync + 'static {
    /// The issuer's answer about a key that is not known here.
    fn verify(
        &self,
        key: &ApiKey,
    ) -> impl Future<Output = Result<Verification, VerifyError>> + Send;

    /// The issuer's answer about a key that it accepted before and whose facts are still held.
    ///
    /// The same as [`verify`](Self::verify) unless said otherwise. An issuer whose refusals are sometimes about
    /// something else than the key (its own token, say) overrides it to ask for stronger evidence: what is refused
    /// here throws a customer out.
    fn verify_again(
        &self,
        key: &ApiKey,
    ) -> impl Future<Output = Result<Verification, VerifyError>> + Send {
        self.verify(key)
    }
}

impl<V: Verifier> Verifier for Arc<V> {
    fn verify(
        &self,
        key: &ApiKey,
    ) -> impl Future<Output = Result<Verification, VerifyError>> + Send {
        V::verify(self, key)
    }

    fn verify_again(
        &self,
        key: &ApiKey,
    ) -> impl Future<Output = Result<Verification, VerifyError>> + Send {
        V::verify_again(self, key)
    }
}

/// A [`Verifier`] from a function, for tests and small issuers.
///
/// ```
/// use tower_orgkey::{ApiKeyLayer, OrgCode, Verification, verifier_fn};
///
/// let verifier = verifier_fn(|key| async move {
///     Ok(match key.expose_secret() {
///         "k_test_0123456789" => Verification::of_organization(OrgCode::from_static("org_1")),
///         _ => Verification::refused(),
///     })
/// });
/// let layer = ApiKeyLayer::new(verifier);
/// ```
pub fn verifier_fn<F, Fut>(f: F) -> VerifierFn<F>
where
    F: Fn(ApiKey) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Verification, VerifyError>> + Send,
{
    VerifierFn(f)
}

/// The verifier that [`verifier_fn`] makes.
#[derive(Clone)]
pub struct VerifierFn<F>(F);

impl<F> fmt::Debug for VerifierFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VerifierFn").finish()
    }
}

impl<F, Fut> Verifier for VerifierFn<F>
where
    F: Fn(ApiKey) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Verification, VerifyError>> + Send,
{
    fn verify(
        &self,
        key: &ApiKey,
    ) -> impl Future<Output = Result<Verification, VerifyError>> + Send {
        self.0(key.clone())
    }
}

/// What the issuer said about a key.
///
/// ```
/// use tower_orgkey::{KeyId, OrgCode, Scopes, Verification};
///
/// let yes = Verification::of_organization(OrgCode::new("org_123")?)
///     .with_key_id(KeyId::new("api_key_0001")?)
///     .with_scopes(Scopes::from_names(["read:reports"]));
/// let no = Verification::refused();
/// assert!(yes.is_valid() && !no.is_valid());
/// # Ok::<(), tower_orgkey::InvalidIdentifier>(())
/// ```
#[derive(Clone, Debug)]
pub struct Verification(pub(crate) Answer);

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Valid(Facts),
    Refused(Refusal),
}

/// What is known of a good key: what the issuer said, and nothing that we concluded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) org: Option<OrgCode>,
    /// One thin pointer: hardly a key has it, and every key would carry the room for it.
    pub(crate) extra: Option<Box<Extra>>,
    pub(crate) key_id: Option<KeyId>,
    pub(crate) scopes: Scopes,
    /// Boxed: hardly an issuer tells it.
    pub(crate) expires_at: Option<Box<SystemTime>>,
}

/// What hardly any facts have besides.
#[derive(Clone, Debug)]
pub(crate) enum Extra {
    /// The user that the key acts for.
    User(Box<str>),
    /// What a loader brought, where the "key" is an organization's code and the cache that of its settings.
    #[cfg(feature = "settings")]
    Settings(Arc<dyn std::any::Any + Send + Sync>),
}

impl Facts {
    /// The user that the key acts for.
    #[inline]
    pub(crate) fn user(&self) -> Option<&str> {
        match self.extra.as_deref() {
            Some(Extra::User(user)) => Some(user),
            #[cfg(feature = "settings")]
            Some(Extra::Settings(_)) => None,
            None => None,
        }
    }
}

/// How sure a no is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is about this key and nothing else, and the issuer answered the question.
    Definitive,
    /// It is about this key, as evidence from elsewhere shows. It does not show that the endpoint answers questions, so it
    /// confirms no doubt about another key.
    // Verifiers of users' own have no such evidence to show.
    #[cfg_attr(not(feature = "kinde"), allow(dead_code))]
    Concluded,
    /// It may be about the request or the endpoint: enough against a key nobody knows, not against a known one.
    Unconfirmed,
}

impl Verification {
    /// The key is good and belongs to this organization.
    pub fn of_organization(org: OrgCode) -> Self {
        Self(Answer::Valid(Facts {
            org: Some(org),
            ..Facts::default()
        }))
    }

    /// The key is good at the issuer and belongs to no organization: an environment's, or a user's key. The layer
    /// answers 403 `organization-required`.
    pub fn without_organization() -> Self {
        Self(Answer::Valid(Facts::default()))
    }

    /// The issuer says no: unknown, revoked, rotated away or inactive. Why is of no interest to a caller.
    pub fn refused() -> Self {
        Self(Answer::Refused(Refusal::Definitive))
    }

    /// The issuer says no in a way that it also uses for requests it does not understand.
    ///
    /// Enough to refuse a key that is not known here. A known key is given up only when the issuer then answered
    /// another verification that began after this refusal.
    pub fn refused_unconfirmed() -> Self {
        Self(Answer::Refused(Refusal::Unconfirmed))
    }

    /// The key's identifier at the issuer, which stays the same over a rotation. No effect on a refusal.
    pub fn with_key_id(self, key_id: KeyId) -> Self {
        self.map(|facts| facts.key_id = Some(key_id))
    }

    /// The scopes that the key holds; none unless said. No effect on a refusal.
    pub fn with_scopes(self, scopes: Scopes) -> Self {
        self.map(|facts| facts.scopes = scopes)
    }

    /// The user that the key acts for, which makes it a user's key: refused as `organization-required`, even with an
    /// organization, unless [`allow_user_keys`](crate::ApiKeyLayerBuilder::allow_user_keys) is set. No effect on a
    /// refusal.
    pub fn with_user_id(self, user_id: impl Into<Box<str>>) -> Self {
        self.map(|facts| facts.extra = Some(Box::new(Extra::User(user_id.into()))))
    }

    /// A loader's answer about an organization.
    #[cfg(feature = "settings")]
    pub(crate) fn of_settings(
        org: OrgCode,
        settings: Arc<dyn std::any::Any + Send + Sync>,
    ) -> Self {
        Self(Answer::Valid(Facts {
            org: Some(org),
            extra: Some(Box::new(Extra::Settings(settings))),
            ..Facts::default()
        }))
    }

    /// When the key expires by the issuer's word. From that second on it is refused, whatever is cached. The wall
    /// clock is read once, when the answer arrives. No effect on a refusal.
    pub fn with_expires_at(self, at: SystemTime) -> Self {
        self.map(|facts| facts.expires_at = Some(Box::new(at)))
    }

    /// Whether the issuer said yes.
    pub fn is_valid(&self) -> bool {
        matches!(self.0, Answer::Valid(_))
    }

    /// When the key expires, if the issuer said so.
    pub fn expires_at(&self) -> Option<SystemTime> {
        match &self.0 {
            Answer::Valid(facts) => facts.expires_at.as_deref().copied(),
            Answer::Refused(_) => None,
        }
    }

    fn map(mut self, change: impl FnOnce(&mut Facts)) -> Self {
        if let Answer::Valid(facts) = &mut self.0 {
            change(facts);
        }
        self
    }
}

/// The verifier cannot tell whether the key is good. Never a refusal.
///
/// Its `Display` and its source go into the operator's log, so neither may hold the key.
///
/// ```
/// use std::time::Duration;
/// use tower_orgkey::VerifyError;
///
/// let error = VerifyError::throttled(Some(Duration::from_secs(30)));
/// assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[error("{kind}")]
pub struct VerifyError {
    kind: VerifyErrorKind,
    #[source]
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// Why a verifier cannot tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyErrorKind {
    /// The issuer is out of reach, answers with an error of its own, or says what makes no sense. Opens the breaker.
    #[error("the issuer gives no usable answer")]
    Unavailable,
    /// The issuer asks for fewer calls. Slows us down; does not open the breaker.
    #[error("the issuer asks for fewer calls")]
    Throttled {
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The issuer refuses *us*: a wrong secret, a token without the scope. Somebody must mend the configuration.
    #[error("the issuer refuses this service's own credentials")]
    Misconfigured,
}

impl VerifyError {
    /// The issuer is out of reach, answers with an error of its own, or says what makes no sense.
    pub fn unavailable(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(VerifyErrorKind::Unavailable, source)
    }

    /// The issuer asks for fewer calls, for so long if it said.
    pub fn throttled(retry_after: Option<Duration>) -> Self {
        Self {
            kind: VerifyErrorKind::Throttled { retry_after },
            source: None,
        }
    }

    /// The issuer refuses this service's own credentials.
    pub fn misconfigured(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(VerifyErrorKind::Misconfigured, source)
    }

    fn new(kind: VerifyErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            kind,
            source: Some(Arc::from(source.into())),
        }
    }

    /// Which kind it is.
    pub fn kind(&self) -> VerifyErrorKind {
        self.kind
    }

    /// How long the issuer asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.kind {
            VerifyErrorKind::Throttled { retry_after } => retry_after,
            _ => None,
        }
    }
}

/// What a verifier's future comes to, behind a pointer.
type VerifyFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Verification, VerifyError>> + Send + 'a>>;

/// [`Verifier`] made into an object, so that a layer carries no type parameter for it.
pub(crate) trait DynVerifier: Send + Sync + 'static {
    fn call<'a>(&'a self, key: &'a ApiKey, known: bool) -> VerifyFuture<'a>;
}

impl<V: Verifier> DynVerifier for V {
    fn call<'a>(&'a self, key: &'a ApiKey, known: bool) -> VerifyFuture<'a> {
        if known {
            Box::pin(self.verify_again(key))
        } else {
            Box::pin(self.verify(key))
        }
    }
}
