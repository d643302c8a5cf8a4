//! API keys as a use of the lookup cache: a verifier behind it, and entries by digest.

mod telemetry;
pub(crate) mod update;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use orgkey_lookup::{
    Answer, Answered, Failure, FailureKind, Fetched, Label, Position, Source, Value,
};

use self::telemetry::IssuerTelemetry;
use crate::fleet::{FleetLink, Subject, Update};
use crate::interner::Interner;
use crate::key::{ApiKey, DigestSecret, KeyDigest, KeyTail};
use crate::verify::{Attempt, DynVerifier, Facts, Issuer, VerifyError, VerifyErrorKind};

/// The cache of a layer and its clones.
pub(crate) type Cache = orgkey_lookup::Cache<ApiKeys>;
/// The cached verification result of a valid key. Whether it permits a request is decided on every request.
pub(crate) type Entry = orgkey_lookup::Entry<ApiKeys>;

/// Verification results of API keys.
pub(crate) struct ApiKeys {
    verifier: Arc<dyn DynVerifier>,
    issuers: Vec<Issuer>,
    secret: DigestSecret,
    interner: Interner,
    keeps_tails: AtomicBool,
    fleet: Option<Arc<dyn FleetLink>>,
}

impl ApiKeys {
    pub(crate) fn new(
        verifier: Arc<dyn DynVerifier>,
        secret: DigestSecret,
        fleet: Option<Arc<dyn FleetLink>>,
    ) -> Self {
        Self {
            fleet,
            issuers: verifier.issuers(),
            verifier,
            secret,
            interner: Interner::default(),
            keeps_tails: AtomicBool::new(false),
        }
    }

    /// Returns the link to the fleet, if the layer is in one.
    pub(crate) fn fleet(&self) -> Option<&Arc<dyn FleetLink>> {
        self.fleet.as_ref()
    }

    /// Returns the issuers of the verifier.
    pub(crate) fn issuers(&self) -> &[Issuer] {
        &self.issuers
    }

    #[inline]
    pub(crate) fn digest(&self, key: impl AsRef<[u8]>) -> KeyDigest {
        self.secret.digest(key)
    }

    /// Returns the end of a secret, or of what an issuer shows of one.
    #[cfg(feature = "kinde")]
    pub(crate) fn tail(&self, key: &str) -> Option<KeyTail> {
        self.secret.tail(key)
    }

    /// Lets new entries keep the ends of their secrets.
    #[cfg(feature = "kinde")]
    pub(crate) fn keep_tails(&self) {
        self.keeps_tails.store(true, Ordering::Relaxed);
    }
}

impl Source for ApiKeys {
    type Key = KeyDigest;
    type Query = ApiKey;
    /// The end of the secret, for reconciliation.
    type Mark = Option<KeyTail>;
    type Value = Facts;
    type Error = VerifyError;
    type Telemetry = IssuerTelemetry;

    fn upstreams(&self) -> Vec<Label> {
        self.issuers.iter().map(Issuer::label).collect()
    }

    fn upstream_of(&self, key: &ApiKey) -> Option<usize> {
        self.verifier.issuer_of(key)
    }

    fn mark(&self, key: &ApiKey) -> Option<KeyTail> {
        if self.keeps_tails.load(Ordering::Relaxed) {
            self.secret.tail(key.expose_secret())
        } else {
            None
        }
    }

    fn position(&self) -> Option<Position> {
        self.fleet.as_ref()?.position()
    }

    async fn fetch(&self, key: &ApiKey, is_known: bool) -> Option<Fetched<Facts>> {
        let fleet = self.fleet.as_ref()?;
        let mut fetched = fleet.fetch(key.expose_secret(), is_known).await?;
        self.interner.intern(&mut fetched.value);
        Some(fetched)
    }

    fn store(
        &self,
        key: &ApiKey,
        value: &Facts,
        age: Duration,
        began: Position,
    ) -> impl Future<Output = ()> + Send + use<> {
        let fleet = self.fleet.as_ref();
        let stored = fleet.map(|fleet| fleet.store(key.expose_secret(), value, age, began));
        async move {
            if let Some(stored) = stored {
                stored.await;
            }
        }
    }

    fn rejected(&self, key: &KeyDigest) {
        if let Some(fleet) = &self.fleet {
            fleet.publish(&Update::Invalidate(Subject::Key(*key)));
        }
    }

    async fn call(
        &self,
        key: &ApiKey,
        known: Option<&Facts>,
        deadline: Duration,
    ) -> Result<Answered<Facts>, VerifyError> {
        let attempt = Attempt::new(deadline);
        let attempt = match known {
            Some(facts) => attempt.known(facts.key_id.clone()),
            None => attempt,
        };
        let mut answered = self.verifier.verify_attempt(key, attempt).await?.0;
        if let Answer::Valid(facts) = &mut answered.answer {
            self.interner.intern(facts);
        }
        Ok(answered)
    }
}

impl_debug!(ApiKeys);

impl Value for Facts {
    fn key_id(&self) -> Option<&str> {
        self.key_id.as_ref().map(AsRef::as_ref)
    }

    fn organization(&self) -> Option<&str> {
        self.org.as_ref().map(AsRef::as_ref)
    }

    fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at.as_deref().copied()
    }

    fn clear_expiry(&mut self) {
        self.expires_at = None;
    }

    fn has_owner_of(&self, other: &Self) -> bool {
        self.org == other.org && self.user == other.user
    }

    fn is_equivalent_to(&self, other: &Self) -> bool {
        self.has_owner_of(other) && self.scopes == other.scopes
    }
}

impl Failure for VerifyError {
    fn kind(&self) -> FailureKind {
        match self.kind() {
            VerifyErrorKind::Unavailable => FailureKind::Unavailable,
            VerifyErrorKind::Throttled { retry_after } => FailureKind::Throttled { retry_after },
            VerifyErrorKind::InvalidResponse => FailureKind::InvalidResponse,
            VerifyErrorKind::Inconclusive => FailureKind::Inconclusive,
            VerifyErrorKind::Misconfigured => FailureKind::Misconfigured,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documentation states the memory per key. Allocators round up, so one more word may cost a hundred bytes.
    #[cfg(target_pointer_width = "64")]
    #[test]
    fn the_size_of_an_entry_is_unchanged() {
        assert_eq!((size_of::<Facts>(), size_of::<Entry>()), (64, 136));
    }
}
