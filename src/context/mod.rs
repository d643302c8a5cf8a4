//! [`OrgContext`]: the authenticated organization of a request.
//!
//! Only the layer creates a context, from the issuer's answer, and each has an organization. A client cannot supply one: the
//! layer overwrites any earlier value in the request's extensions.
//!
//! With axum it is an extractor. A plain Tower service reads it from the request's extensions:
//!
//! ```
//! use tower_orgkey::OrgContext;
//!
//! fn organization<B>(request: &http::Request<B>) -> Option<&str> {
//!     Some(request.extensions().get::<OrgContext>()?.org_code().as_str())
//! }
//! ```

pub mod observer;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use orgkey_lookup::cache::Standing;
use orgkey_lookup::{LookupResult, Value};

use crate::api_keys::{Cache, Entry};
use crate::clock::Tick;
use crate::context::observer::{OuterObservation, RequestObservation};
#[doc(inline)]
pub use crate::identifier::{InvalidIdentifier, KeyId, MAX_IDENTIFIER_LEN, OrgCode};
use crate::key::ApiKey;
use crate::rejection::{Rejection, RejectionKind};
use crate::scope::Scopes;
#[cfg(any(feature = "limit", feature = "region", feature = "settings"))]
use crate::telemetry;

/// The organization, key and scopes of an authenticated request.
///
/// Cheap to clone. Only the layer creates one; for unit tests, see [`test_util`](crate::test_util).
///
/// The extractor rejects a request with 500 if the route has no layer, and with 401 if the request has no key and
/// [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) let it pass. `Option<OrgContext>` is `None` for such a
/// request. Both reject a request with 401 if its credential is not a key and was
/// [passed on](crate::ApiKeyLayerBuilder::pass_other_credentials_to_inner_auth).
#[derive(Clone)]
pub struct OrgContext {
    /// Has an organization, as `new` checks.
    entry: Arc<Entry>,
    authenticated_at: Tick,
    /// What an outer layer attached to the request, so that guards need not search for it.
    observation: Option<RequestObservation>,
    /// With [`revalidation`](crate::ApiKeyLayerBuilder::revalidation).
    key: Option<Arc<ApiKey>>,
}

impl OrgContext {
    /// Creates the context of an entry. `None` if the key has no organization.
    #[inline]
    pub(crate) fn new(entry: Arc<Entry>, authenticated_at: Tick) -> Option<Self> {
        entry.value.org.is_some().then_some(Self {
            entry,
            authenticated_at,
            observation: None,
            key: None,
        })
    }

    /// Returns the organization that the key belongs to.
    pub fn org_code(&self) -> &OrgCode {
        let Some(org) = &self.entry.value.org else {
            unreachable!("`new` creates no context without an organization")
        };
        org
    }

    /// Returns the key's identifier, if the issuer provides one (Kinde does). For logs and audits.
    pub fn key_id(&self) -> Option<&KeyId> {
        self.entry.value.key_id.as_ref()
    }

    /// Returns the scopes of the key.
    pub fn scopes(&self) -> &Scopes {
        &self.entry.value.scopes
    }

    /// Returns the user that the key acts for. `None` without [`allow_user_keys`](crate::ApiKeyLayerBuilder::allow_user_keys).
    pub fn user_id(&self) -> Option<&str> {
        self.entry.value.user()
    }

    /// Returns the age of the verification result when the request was authenticated: the time since the call to the issuer was
    /// sent.
    pub fn age(&self) -> Duration {
        self.authenticated_at.since(self.entry.sent_at)
    }

    /// Returns whether the verification result was past its soft TTL when the request was authenticated: a refresh is in flight,
    /// or the issuer does not answer.
    pub fn is_stale(&self) -> bool {
        self.authenticated_at >= self.entry.fresh_until()
    }
}

impl OrgContext {
    /// Waits until the key of this request may no longer be used. For long-lived responses.
    ///
    /// Completes when the key is blocked or invalidated through the [`ApiKeyHandle`](crate::ApiKeyHandle), when the issuer says
    /// that it is invalid, when it expires, and when its result passes the hard TTL without a newer successful verification.
    /// A stream never verifies its key; only other requests with the same key refresh it. So if its key is not used otherwise, a
    /// stream ends at the hard TTL, 15 min by default; its client then connects again and is verified.
    /// [`until_invalid_revalidating`](Self::until_invalid_revalidating) verifies the key.
    ///
    /// The first poll completes if the key became invalid before it, whenever the future was created, or if the layer has
    /// forgotten the key, because it had no room. So there is no harm in a handler that works for a while first.
    ///
    /// The future does not depend on the lifetime of the request, the context or the layer. After the layer was dropped, it
    /// completes at the hard TTL or the expiry of the key. It never completes for a context of [`test_util`](crate::test_util).
    ///
    /// ```
    /// use tower_orgkey::OrgContext;
    ///
    /// async fn stream(org: OrgContext) {
    ///     let mut invalid = std::pin::pin!(org.until_invalid());
    ///     loop {
    ///         tokio::select! {
    ///             () = &mut invalid => break,
    ///             () = next_event() => { /* send it */ }
    ///         }
    ///     }
    /// }
    /// # async fn next_event() {}
    /// ```
    pub fn until_invalid(&self) -> impl Future<Output = ()> + Send + use<> {
        let entry = Arc::clone(&self.entry);
        entry.ended()
    }

    /// Returns whether the key may still be used, as far as the layer knows. Makes no call. For jobs and long-lived responses.
    ///
    /// `false` if the key was blocked or invalidated, has expired, was found invalid, or belongs to another organization or user
    /// now; if its result is past the hard TTL without a newer successful verification; and if the layer has forgotten the key,
    /// because it had no room. [`revalidate`](Self::revalidate) then asks the issuer.
    ///
    /// A key that was revoked at the issuer is valid here until a verification says otherwise. Always `true` for a context of
    /// [`test_util`](crate::test_util).
    pub fn is_still_valid(&self) -> bool {
        self.entry.is_still_valid()
    }

    /// Verifies the key of this request again, now, and returns a context with the new result. For jobs that outlast their
    /// request.
    ///
    /// The result is of a call that was sent after this method was called. It is cached, so requests profit from it. Concurrent
    /// callers share a call that has not been sent yet. The call is limited like those of a route with
    /// [`max_age(Duration::ZERO)`](crate::ApiKeyLayer::max_age): at most 25 per second for each organization, after 25 at once, and it
    /// fails early while the circuit breaker is open. The future waits for at most the
    /// [caller deadline](crate::ApiKeyLayerBuilder::caller_deadline), and needs a tokio runtime. It does not keep the layer
    /// alive.
    ///
    /// Scopes may have changed, so check those of the returned context. A context of [`test_util`](crate::test_util) returns a
    /// clone.
    ///
    /// # Errors
    ///
    /// * 401 `invalid-token` if the key is invalid, blocked or expired, or belongs to another organization or user now.
    /// * 503 if the verification failed, or the layer was dropped. The key may be valid: [`is_still_valid`](Self::is_still_valid)
    ///   says whether the earlier result still holds.
    /// * 500 without [`revalidation`](crate::ApiKeyLayerBuilder::revalidation). The log names the cause.
    ///
    /// ```
    /// use tower_orgkey::{OrgContext, Rejection};
    ///
    /// async fn export(org: OrgContext) -> Result<(), Rejection> {
    ///     let mut pages = 0;
    ///     while next_page(&org).await {
    ///         pages += 1;
    ///         if pages % 1_000 == 0 {
    ///             // Asks the issuer.
    ///             org.revalidate().await?;
    ///         } else if !org.is_still_valid() {
    ///             return Err(Rejection::invalid_token());
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// # async fn next_page(_: &OrgContext) -> bool { false }
    /// ```
    pub fn revalidate(&self) -> impl Future<Output = Result<Self, Rejection>> + Send + use<> {
        let context = self.clone();
        async move {
            if context.entry.is_detached() {
                return Ok(context);
            }
            let key = context.kept_key("OrgContext::revalidate")?;
            match Arc::clone(&context.entry).look_up_again(key).await {
                LookupResult::Serve(entry, now)
                    if entry.value.has_owner_of(&context.entry.value) =>
                {
                    Ok(Self {
                        entry,
                        authenticated_at: now,
                        ..context
                    })
                }
                LookupResult::Serve(..) | LookupResult::Invalid => Err(Rejection::invalid_token()),
                LookupResult::CannotTell(cannot_tell) => Err(Rejection::cannot_tell(cannot_tell)),
            }
        }
    }

    /// Like [`until_invalid`](Self::until_invalid), and verifies the key again when its result is older than `period`. For
    /// streams that may stay open for longer than the hard TTL.
    ///
    /// | event | completes |
    /// |---|---|
    /// | the key is revoked at the issuer, while verifications succeed | at most `period` and one verification later |
    /// | verifications fail | at the hard TTL, counted from the last successful one |
    /// | the key is blocked | at once |
    /// | the key is invalidated | unless a verification within the [caller deadline](crate::ApiKeyLayerBuilder::caller_deadline) says that it is valid |
    /// | the key expires, or belongs to another organization or user | at once when the layer learns it |
    /// | the layer is dropped | at the hard TTL or the expiry of the key |
    ///
    /// So a stream with a valid key stays open while verifications succeed. Each `period` is shortened at random by up to 15 %,
    /// so that the streams of a node do not call at the same time. Streams and requests with the same key share results and
    /// calls: a result of any of them counts. A verification that fails is repeated after a twelfth of `period`. There is at
    /// most one call per second for a key, whatever the period.
    ///
    /// A period of at least the soft TTL costs what a request per period costs. With a shorter one, the calls for results that
    /// are still fresh count as forced verifications: at most 25 per second for each organization, as for [`revalidate`](Self::revalidate).
    /// If an organization has more streams than that allows, their periods become longer.
    ///
    /// The future keeps the key in memory that is zeroized on drop. Without
    /// [`revalidation`](crate::ApiKeyLayerBuilder::revalidation) it completes at once, and the log names the cause. It never
    /// completes for a context of [`test_util`](crate::test_util).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_orgkey::{ApiKeyLayer, OrgContext};
    /// # use tower_orgkey::{Verification, verifier_fn};
    /// # let verifier = verifier_fn(|_| async { Ok(Verification::invalid()) });
    ///
    /// let auth = ApiKeyLayer::builder(verifier).revalidation(true).build()?;
    ///
    /// async fn socket(org: OrgContext) {
    ///     org.until_invalid_revalidating(Duration::from_secs(60)).await;
    ///     // Close the socket.
    /// }
    /// # Ok::<(), tower_orgkey::ConfigError>(())
    /// ```
    pub fn until_invalid_revalidating(
        &self,
        period: Duration,
    ) -> impl Future<Output = ()> + Send + use<> {
        let entry = Arc::clone(&self.entry);
        let key = if entry.is_detached() {
            None
        } else {
            self.kept_key("OrgContext::until_invalid_revalidating").ok()
        };
        async move {
            match key {
                Some(key) => entry.ended_with_lookups(key, period).await,
                None if entry.is_detached() => std::future::pending().await,
                None => {}
            }
        }
    }

    /// Returns the key for a verification. The error is 500, with an event in the log, if the layer does not keep it.
    fn kept_key(&self, method: &'static str) -> Result<ApiKey, Rejection> {
        match &self.key {
            Some(key) => Ok(ApiKey::clone(key)),
            None => Err(Rejection::key_not_kept(method)),
        }
    }

    pub(crate) fn with_key(self, key: ApiKey) -> Self {
        Self {
            key: Some(Arc::new(key)),
            ..self
        }
    }

    /// Returns the context without a key and an observation.
    pub(crate) fn without_extras(&self) -> Self {
        Self {
            entry: Arc::clone(&self.entry),
            authenticated_at: self.authenticated_at,
            observation: None,
            key: None,
        }
    }

    /// Returns whether a layer with this cache created the context.
    pub(crate) fn belongs_to(&self, cache: &Cache) -> bool {
        self.entry.belongs_to(cache)
    }

    /// Checks again that the key may be used. Called after a request has waited, right before it continues.
    ///
    /// Rejects with 401 if the key was blocked, has expired, or was invalid by a later answer of the issuer, and with 503 if the
    /// result is past its hard TTL, or a newer one differs. An invalidation alone applies to later requests.
    #[cold]
    pub(crate) fn recheck(&self) -> Result<(), Rejection> {
        // The next request is verified if it has to be, so there is nothing to wait for.
        const RETRY_AFTER: Duration = Duration::from_secs(1);

        match self.entry.recheck() {
            Standing::Valid => Ok(()),
            Standing::Invalid => Err(Rejection::invalid_token()),
            Standing::Unknown => Err(Rejection::verifier_unavailable(RETRY_AFTER)),
        }
    }

    /// Identifies the key if the issuer provides no id.
    #[cfg(feature = "limit")]
    pub(crate) fn key_digest(&self) -> crate::key::KeyDigest {
        self.entry.key
    }

    /// Returns the context that the layer put into a request's extensions.
    ///
    /// The error is the rejection to respond with: 401 for a request that
    /// [`allow_anonymous`](crate::ApiKeyLayerBuilder::allow_anonymous) let through without a key, or that was passed on with
    /// [another credential](crate::ApiKeyLayerBuilder::pass_other_credentials_to_inner_auth), and 500, with an event in the
    /// log, if no [`ApiKeyLayer`](crate::ApiKeyLayer) is outside of the service.
    ///
    /// ```
    /// use http::Request;
    /// use tower_orgkey::{OrgContext, Rejection};
    ///
    /// fn organization<B>(request: &Request<B>) -> Result<&str, Rejection> {
    ///     Ok(OrgContext::of(request.extensions())?.org_code().as_str())
    /// }
    /// ```
    pub fn of(extensions: &Extensions) -> Result<&Self, Rejection> {
        Self::required_by(extensions, "a service")
    }

    /// Returns the observation that a layer outside [`ApiKeyLayer`](crate::ApiKeyLayer) attached to the request, if any.
    /// For guards outside this crate, see the [module `observer`](crate::observer).
    #[inline]
    pub fn observation(&self) -> Option<&RequestObservation> {
        self.observation.as_ref()
    }

    pub(crate) fn with_observation(self, observation: RequestObservation) -> Self {
        Self {
            observation: Some(observation),
            ..self
        }
    }

    /// [`of`](Self::of), with the component that needs the context in the log.
    #[inline]
    pub(crate) fn required_by<'a>(
        extensions: &'a Extensions,
        component: &'static str,
    ) -> Result<&'a Self, Rejection> {
        match extensions.get::<Self>() {
            Some(context) => Ok(context),
            None => Err(Self::missing(extensions, || {
                undecided(extensions, component)
            })),
        }
    }

    /// Like [`required_by`](Self::required_by), but returns `None` for a request without a key that the layer allowed.
    #[cfg_attr(
        not(feature = "axum"),
        expect(dead_code, reason = "for the extractors")
    )]
    pub(crate) fn optional<'a>(
        extensions: &'a Extensions,
        component: &'static str,
    ) -> Result<Option<&'a Self>, Rejection> {
        match Self::required_by(extensions, component) {
            Ok(context) => Ok(Some(context)),
            Err(rejection) if rejection.kind() == RejectionKind::CredentialMissing => Ok(None),
            Err(rejection) => Err(rejection),
        }
    }

    /// Like [`optional`](Self::optional), for a layer that must be inside `ApiKeyLayer`.
    #[cfg(any(feature = "limit", feature = "region", feature = "settings"))]
    #[inline]
    pub(crate) fn optional_in_layer<'a>(
        extensions: &'a Extensions,
        layer: &'static str,
    ) -> Result<Option<&'a Self>, Rejection> {
        if let Some(context) = extensions.get::<Self>() {
            return Ok(Some(context));
        }
        let rejection = Self::missing(extensions, || undecided_layer(extensions, layer));
        if rejection.kind() == RejectionKind::CredentialMissing {
            Ok(None)
        } else {
            Err(rejection)
        }
    }

    /// Returns why a request has no context. `undecided` is the rejection of a request that passed no layer.
    #[cold]
    fn missing(extensions: &Extensions, undecided: impl FnOnce() -> Rejection) -> Rejection {
        if extensions.get::<OtherCredential>().is_some() {
            // Also if an outer layer allowed the request without a key: another credential is not anonymous.
            Rejection::invalid_token()
        } else if extensions.get::<Anonymous>().is_some() {
            Rejection::missing_credential()
        } else {
            undecided()
        }
    }
}

impl_debug!(OrgContext, |context| {
    org_code: context.org_code(),
    key_id: context.key_id(),
    scopes: context.scopes(),
    user_id: context.user_id(),
    age: context.age()
});

/// In the extensions of a request without a key that the layer allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Anonymous;

/// In the extensions of a request with a credential that is not a key, which the layer passed to an inner authentication.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OtherCredential;

/// Returns whether an outer `ApiKeyLayer` has decided on a request.
pub(crate) fn has_decision(extensions: &Extensions) -> bool {
    extensions.get::<OrgContext>().is_some()
        || extensions.get::<Anonymous>().is_some()
        || extensions.get::<OtherCredential>().is_some()
}

/// Removes the decision of an outer `ApiKeyLayer` from a request. Returns whether there was one.
pub(crate) fn remove_decision(extensions: &mut Extensions) -> bool {
    let context = extensions.remove::<OrgContext>();
    let anonymous = extensions.remove::<Anonymous>();
    let other = extensions.remove::<OtherCredential>();
    context.is_some() || anonymous.is_some() || other.is_some()
}

/// The rejection of a request without a decision, with the component that needs one in the log.
#[cold]
pub(crate) fn undecided(extensions: &Extensions, component: &'static str) -> Rejection {
    if OuterObservation::has_removed_decision(extensions) {
        // That layer logs where it belongs.
        return Rejection::internal();
    }
    Rejection::layer_missing(component)
}

/// As [`undecided`], for a layer that must be inside `ApiKeyLayer`.
#[cfg(any(feature = "limit", feature = "region", feature = "settings"))]
#[cold]
pub(crate) fn undecided_layer(extensions: &Extensions, layer: &'static str) -> Rejection {
    if !OuterObservation::has_removed_decision(extensions) {
        telemetry::layer_outside(layer);
    }
    Rejection::internal()
}

#[cfg(feature = "axum")]
mod extract {
    use axum::extract::{FromRequestParts, OptionalFromRequestParts};
    use http::request::Parts;

    use super::OrgContext;
    use crate::rejection::Rejection;

    impl<S: Send + Sync> FromRequestParts<S> for OrgContext {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
            Self::required_by(&parts.extensions, "the extractor `OrgContext`").cloned()
        }
    }

    impl<S: Send + Sync> OptionalFromRequestParts<S> for OrgContext {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
            Self::optional(&parts.extensions, "the extractor `Option<OrgContext>`")
                .map(Option::<&Self>::cloned)
        }
    }
}
