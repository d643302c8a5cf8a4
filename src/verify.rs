//! The interface to an issuer: [`Verifier`], [`Verification`] and [`VerifyError`].
//!
//! Two outcomes must never be confused. "The key is invalid" is an `Ok`: [`Verification::invalid`]. "Cannot tell" is an
//! `Err`: a [`VerifyError`]. The layer answers the first with 401 and caches it for seconds. It answers the second with 503,
//! or with an earlier result that may still be served, and never caches it as invalid.
//!
//! The kind of an error decides which other verifications it affects:
//!
//! | error | about | effect |
//! |---|---|---|
//! | [`unavailable`](VerifyError::unavailable) | the issuer | counts towards the circuit breaker |
//! | [`throttled`](VerifyError::throttled) | the issuer | pauses calls to this issuer |
//! | [`invalid_response`](VerifyError::invalid_response) | this key | only this key is delayed, unless ten keys in a row have invalid responses |
//! | [`inconclusive`](VerifyError::inconclusive), [`misconfigured`](VerifyError::misconfigured) | neither | none beyond this verification |
//!
//! A verifier for an issuer of your own takes ten lines:
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
//!         // Look the key up by its hash.
//!         let row = self.find(key.expose_secret()).await.map_err(VerifyError::unavailable)?;
//!         let Some((org, scopes)) = row else { return Ok(Verification::invalid()) };
//!         // An unusable row is about this key, not about the database.
//!         let org = OrgCode::new(org).map_err(VerifyError::invalid_response)?;
//!         Ok(Verification::of_organization(org).with_scopes(Scopes::from_names(scopes)))
//!     }
//! }
//!
//! let layer = ApiKeyLayer::new(Database());
//! ```
//!
//! [`PrefixVerifier`] chooses among several issuers by the prefix of the key.

mod boxed;
mod prefix;

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use orgkey_lookup::{Answer, Answered, Invalid, Label};

pub use self::boxed::BoxVerifier;
pub(crate) use self::boxed::DynVerifier;
pub(crate) use self::prefix::is_name;
pub use self::prefix::{Organizations, PrefixVerifier, PrefixVerifierBuilder};
use crate::identifier::{KeyId, OrgCode};
use crate::key::ApiKey;
use crate::scope::Scopes;

/// Verifies keys with an issuer.
///
/// The layer runs at most one verification per key at a time, on a separate task, and drops the future when a deadline
/// passes, so the future must be cancel-safe at every `await`. A panic fails the verification, and does not
/// count towards the circuit breaker.
///
/// See the [module documentation](crate::verify) for an example.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not verify keys",
    label = "not a `Verifier`",
    note = "implement `Verifier`, or pass a function `Fn(ApiKey) -> impl Future<Output = Result<Verification, VerifyError>> + Send` to `verifier_fn`",
    note = "a builder is not a verifier: call its `build` first"
)]
pub trait Verifier: Send + Sync + 'static {
    /// Verifies a key that the layer does not know.
    fn verify(
        &self,
        key: &ApiKey,
    ) -> impl Future<Output = Result<Verification, VerifyError>> + Send;

    /// Verifies a known key: one with an earlier result that is still cached.
    ///
    /// Calls [`verify`](Self::verify) unless overridden. An issuer with an "invalid" that sometimes means something else (its own
    /// outage, or a rejected service token) overrides this method and asks for stronger evidence, because an invalid
    /// answer here rejects a customer that was accepted a minute ago.
    fn reverify(
        &self,
        key: &ApiKey,
    ) -> impl Future<Output = Result<Verification, VerifyError>> + Send {
        self.verify(key)
    }

    /// Makes one attempt at a verification. The layer calls this method, and no other.
    ///
    /// The provided method calls [`verify`](Self::verify) or [`reverify`](Self::reverify) and fails with
    /// [`VerifyError::unavailable`] when that takes longer than [`Attempt::deadline`]. A verifier that makes several calls
    /// per verification overrides this method and applies the deadline to each call, so that a slow second call is not
    /// mistaken for a failing issuer. [`lookup_deadline`](crate::ApiKeyLayerBuilder::lookup_deadline) bounds the whole in
    /// any case.
    fn verify_attempt(
        &self,
        key: &ApiKey,
        attempt: Attempt,
    ) -> impl Future<Output = Result<Verification, VerifyError>> + Send {
        async move {
            let verified = async {
                if attempt.is_known() {
                    self.reverify(key).await
                } else {
                    self.verify(key).await
                }
            };
            within(attempt.deadline(), verified).await
        }
    }

    /// Returns the issuers behind this verifier, at least one. One without a name unless overridden.
    ///
    /// The layer calls this method when it is built. Each issuer has its own circuit breaker, throttle, retry budget and limits
    /// of calls, and its name is the label `issuer` in events and metrics.
    ///
    /// A verifier that wraps another one delegates this method and [`issuer_of`](Self::issuer_of), or else the issuers share
    /// one circuit breaker, and an answer of one confirms unconfirmed invalid answers of another.
    fn issuers(&self) -> Vec<Issuer> {
        vec![Issuer::new("")]
    }

    /// Returns what distinguishes this verifier from others in a [fleet](crate::ApiKeyLayerBuilder::fleet). Empty unless
    /// overridden: such a verifier cannot join one.
    ///
    /// Nodes share results if their verifiers have the same identity. So it names everything that decides which keys are valid and
    /// to which organization they belong: the issuer, its environment, the audience. It contains no secret. A verifier that wraps
    /// another one delegates this method.
    fn identity(&self) -> String {
        String::new()
    }

    /// Returns the index in [`issuers`](Self::issuers) of the issuer that verifies this key. Always the same for equal keys.
    ///
    /// `None` means that no issuer does. The layer rejects such a key as invalid, without a call, and counts it against no
    /// budget.
    fn issuer_of(&self, key: &ApiKey) -> Option<usize> {
        let _ = key;
        Some(0)
    }

    /// Returns the verifier as a type without parameters, for instance to choose one at run time.
    ///
    /// ```
    /// use tower_orgkey::verify::{BoxVerifier, Verifier};
    /// use tower_orgkey::{ApiKeyLayer, OrgCode, Verification, verifier_fn};
    ///
    /// fn verifier(is_demo: bool) -> BoxVerifier {
    ///     if is_demo {
    ///         let org = OrgCode::from_static("org_demo");
    ///         verifier_fn(move |_| {
    ///             let valid = Verification::of_organization(org.clone());
    ///             async { Ok(valid) }
    ///         })
    ///         .boxed()
    ///     } else {
    ///         verifier_fn(|_| async { Ok(Verification::invalid()) }).boxed()
    ///     }
    /// }
    ///
    /// let auth = ApiKeyLayer::new(verifier(true));
    /// ```
    fn boxed(self) -> BoxVerifier
    where
        Self: Sized,
    {
        BoxVerifier::new(self)
    }
}

/// An issuer behind a [`Verifier`], for [`Verifier::issuers`].
#[derive(Clone, Debug)]
pub struct Issuer {
    name: Label,
    has_namespace: bool,
}

impl Issuer {
    /// Creates an issuer with this name, for events, metrics and [`ApiKeyHandle::issuers`](crate::ApiKeyHandle::issuers).
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            has_namespace: false,
        }
    }

    /// States that all organization codes of this issuer begin with its name and a colon.
    pub fn with_namespace(mut self) -> Self {
        self.has_namespace = true;
        self
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether all organization codes of this issuer begin with its name and a colon.
    pub fn has_namespace(&self) -> bool {
        self.has_namespace
    }

    pub(crate) fn label(&self) -> Label {
        Label::clone(&self.name)
    }
}

/// The circumstances of one attempt at a verification, for [`Verifier::verify_attempt`].
#[derive(Clone, Debug)]
pub struct Attempt {
    is_known: bool,
    key_id: Option<KeyId>,
    deadline: Duration,
}

impl Attempt {
    /// An attempt for an unknown key, with this deadline for each call to the issuer.
    pub fn new(deadline: Duration) -> Self {
        Self {
            is_known: false,
            key_id: None,
            deadline,
        }
    }

    /// Makes it an attempt for a known key. `key_id` is the key's identifier, if the issuer provides one.
    pub fn known(self, key_id: Option<KeyId>) -> Self {
        Self {
            is_known: true,
            key_id,
            ..self
        }
    }

    /// Returns whether an earlier result of the key is still cached.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// Returns the identifier of a known key at the issuer.
    pub fn key_id(&self) -> Option<&KeyId> {
        self.key_id.as_ref()
    }

    /// Returns how long each call to the issuer may take:
    /// [`attempt_deadline`](crate::ApiKeyLayerBuilder::attempt_deadline).
    pub fn deadline(&self) -> Duration {
        self.deadline
    }
}

/// Makes one call within its deadline.
pub(crate) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, VerifyError>>,
) -> Result<T, VerifyError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(result) => result,
        Err(elapsed) => Err(VerifyError::unavailable(elapsed)),
    }
}

impl<V: Verifier> Verifier for Arc<V> {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        V::verify(self, key).await
    }

    async fn reverify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        V::reverify(self, key).await
    }

    async fn verify_attempt(
        &self,
        key: &ApiKey,
        attempt: Attempt,
    ) -> Result<Verification, VerifyError> {
        V::verify_attempt(self, key, attempt).await
    }

    fn issuers(&self) -> Vec<Issuer> {
        V::issuers(self)
    }

    fn identity(&self) -> String {
        V::identity(self)
    }

    fn issuer_of(&self, key: &ApiKey) -> Option<usize> {
        V::issuer_of(self, key)
    }
}

/// Returns a [`Verifier`] that calls a function. For tests and small issuers.
///
/// ```
/// use tower_orgkey::{ApiKeyLayer, OrgCode, Verification, verifier_fn};
///
/// let verifier = verifier_fn(|key| async move {
///     Ok(match key.expose_secret() {
///         "k_test_0123456789" => Verification::of_organization(OrgCode::from_static("org_1")),
///         _ => Verification::invalid(),
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

/// The [`Verifier`] returned by [`verifier_fn`].
#[derive(Clone)]
pub struct VerifierFn<F>(F);

impl_debug!([F] VerifierFn<F>);

impl<F, Fut> Verifier for VerifierFn<F>
where
    F: Fn(ApiKey) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Verification, VerifyError>> + Send,
{
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.0(key.clone()).await
    }
}

/// The issuer's answer about a key.
///
/// ```
/// use tower_orgkey::{KeyId, OrgCode, Scopes, Verification};
///
/// let valid = Verification::of_organization(OrgCode::new("org_123")?)
///     .with_key_id(KeyId::new("api_key_0001")?)
///     .with_scopes(Scopes::from_names(["read:reports"]));
/// let invalid = Verification::invalid();
/// assert!(valid.is_valid() && !invalid.is_valid());
/// # Ok::<(), tower_orgkey::InvalidIdentifier>(())
/// ```
#[derive(Clone)]
pub struct Verification(pub(crate) Answered<Facts>);

impl fmt::Debug for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verification")
            .field("answer", &self.0.answer)
            .field("credential", &self.0.credential)
            .finish()
    }
}

/// The verification result of a valid key, as the issuer sent it.
// Public for `tower-orgkey-fleet` only.
#[doc(hidden)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The organization.
    pub org: Option<OrgCode>,
    /// The user that the key acts for. A thin pointer, because few keys have one.
    pub user: Option<Box<Box<str>>>,
    /// The identifier of the key at the issuer.
    pub key_id: Option<KeyId>,
    /// The scopes.
    pub scopes: Scopes,
    /// When the key expires. Boxed, because few issuers send it.
    pub expires_at: Option<Box<SystemTime>>,
}

impl Facts {
    /// Returns the user that the key acts for.
    #[inline]
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref().map(AsRef::as_ref)
    }
}

impl Verification {
    fn new(answer: Answer<Facts>) -> Self {
        Self(Answered {
            answer,
            credential: 0,
        })
    }

    #[cfg_attr(not(feature = "kinde"), allow(dead_code))]
    pub(crate) fn valid(facts: Facts) -> Self {
        Self::new(Answer::Valid(facts))
    }

    #[cfg_attr(not(feature = "kinde"), allow(dead_code))]
    pub(crate) fn invalid_as(invalid: Invalid) -> Self {
        Self::new(Answer::Invalid(invalid))
    }

    /// The key is valid and belongs to this organization.
    pub fn of_organization(org: OrgCode) -> Self {
        Self::new(Answer::Valid(Facts {
            org: Some(org),
            ..Facts::default()
        }))
    }

    /// The key is valid and belongs to no organization: an environment's or a user's key. The layer responds with 403
    /// `organization-required`.
    pub fn without_organization() -> Self {
        Self::new(Answer::Valid(Facts::default()))
    }

    /// The key is invalid: unknown, revoked, rotated or inactive. The caller does not learn which.
    pub fn invalid() -> Self {
        Self::new(Answer::Invalid(Invalid::Definitive))
    }

    /// The key is probably invalid: the issuer gives the same answer to requests that it does not understand.
    ///
    /// Rejects a key that the layer does not know. A known key is kept until the issuer answers a call sent after this
    /// answer, about any key and under the same [credential](Self::with_credential).
    pub fn invalid_unconfirmed() -> Self {
        Self::new(Answer::Invalid(Invalid::Unconfirmed))
    }

    /// Sets the generation of the credential that the verifier presented, such as a counter of its access tokens. 0 unless
    /// set.
    ///
    /// An unconfirmed answer is confirmed only under the generation it was given under, so a renewed credential does not
    /// invalidate keys that the issuer rejected because of the old one.
    pub fn with_credential(mut self, generation: u64) -> Self {
        self.0.credential = generation;
        self
    }

    /// Sets the key's identifier at the issuer, which a rotation does not change. No effect on an invalid key.
    pub fn with_key_id(self, key_id: KeyId) -> Self {
        self.map(|facts| facts.key_id = Some(key_id))
    }

    /// Sets the scopes of the key; none unless set. No effect on an invalid key.
    pub fn with_scopes(self, scopes: Scopes) -> Self {
        self.map(|facts| facts.scopes = scopes)
    }

    /// Sets the user that the key acts for. The layer then rejects the key as `organization-required`, even with an
    /// organization, unless [`allow_user_keys`](crate::ApiKeyLayerBuilder::allow_user_keys) is set. No effect on an invalid
    /// key.
    pub fn with_user_id(self, user_id: impl Into<Box<str>>) -> Self {
        self.map(|facts| facts.user = Some(Box::new(user_id.into())))
    }

    /// Sets when the key expires. From then on the layer rejects it, whatever is cached. The wall clock is read once, when the
    /// answer arrives. No effect on an invalid key.
    pub fn with_expires_at(self, at: SystemTime) -> Self {
        self.map(|facts| facts.expires_at = Some(Box::new(at)))
    }

    /// Returns whether the key is valid.
    pub fn is_valid(&self) -> bool {
        self.0.answer.is_valid()
    }

    /// Returns when the key expires, if the issuer said so.
    pub fn expires_at(&self) -> Option<SystemTime> {
        match &self.0.answer {
            Answer::Valid(facts) => facts.expires_at.as_deref().copied(),
            Answer::Invalid(_) => None,
        }
    }

    fn map(mut self, change: impl FnOnce(&mut Facts)) -> Self {
        if let Answer::Valid(facts) = &mut self.0.answer {
            change(facts);
        }
        self
    }
}

/// The verifier cannot tell whether the key is valid.
///
/// `Display` and the source are logged, so neither may contain the key.
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

/// Why a verifier cannot tell whether a key is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyErrorKind {
    /// The issuer is unreachable, too slow, or responds with a server error. Counts towards the circuit breaker.
    #[error("the issuer is unavailable")]
    Unavailable,
    /// The issuer asks for fewer calls. Pauses calls to this issuer; does not count towards the circuit breaker.
    #[error("the issuer asks for fewer calls")]
    Throttled {
        /// How long the issuer asks to wait.
        retry_after: Option<Duration>,
    },
    /// The issuer's response about this key is invalid. Delays further verifications of this key. Counts towards the
    /// circuit breaker only when the responses for ten keys in a row are invalid.
    #[error("the issuer's response about this key is invalid")]
    InvalidResponse,
    /// The issuer is answering, but a further call that was needed for a verdict failed.
    #[error("the evidence is inconclusive")]
    Inconclusive,
    /// The issuer rejects the verifier's own credentials. An operator must fix the configuration.
    #[error("the issuer rejects this service's own credentials")]
    Misconfigured,
}

impl VerifyError {
    /// The issuer is unreachable, too slow, or responds with a server error.
    pub fn unavailable(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(VerifyErrorKind::Unavailable, source)
    }

    /// The issuer asks for fewer calls, for this long if it said so.
    pub fn throttled(retry_after: Option<Duration>) -> Self {
        Self {
            kind: VerifyErrorKind::Throttled { retry_after },
            source: None,
        }
    }

    /// The issuer's response about this key is invalid.
    pub fn invalid_response(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(VerifyErrorKind::InvalidResponse, source)
    }

    /// The issuer is answering, but a further call that was needed for a verdict failed.
    pub fn inconclusive(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(VerifyErrorKind::Inconclusive, source)
    }

    /// The issuer rejects the verifier's own credentials.
    pub fn misconfigured(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(VerifyErrorKind::Misconfigured, source)
    }

    fn new(kind: VerifyErrorKind, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self {
            kind,
            source: Some(Arc::from(source.into())),
        }
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> VerifyErrorKind {
        self.kind
    }

    /// Returns how long the issuer asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.kind {
            VerifyErrorKind::Throttled { retry_after } => retry_after,
            _ => None,
        }
    }
}
