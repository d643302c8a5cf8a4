//! Control of a running layer: blocks, invalidations, and statistics.

use std::sync::Arc;

use orgkey_lookup::cache::Stats;
use orgkey_lookup::{BlockListFull, UpstreamState};

use crate::api_keys::{Cache, update};
use crate::fleet::{Subject, Update};
use crate::identifier::{KeyId, OrgCode};
use crate::key::{ApiKey, KeyDigest};
use crate::spread::Spread;

/// A handle that blocks and invalidates keys and returns statistics. Cheap to clone. All clones control the same layer.
///
/// A *blocked* key is rejected with 401 until it is unblocked or, without a fleet, the process ends. An *invalidated* key is verified again.
/// Both apply to the first request that begins after the method has returned, on every thread, whether or not the key is
/// cached. The result of a verification in flight is discarded: it is neither cached nor returned to the requests that wait
/// for it. Both affect this process only, unless the layer is in a [fleet](crate::ApiKeyLayerBuilder::fleet): then they are sent
/// to the other nodes in the background. [`spread`](Self::spread) returns which nodes have applied them.
///
/// To revoke a key, delete it at the issuer *first*, then invalidate it here. In the other order, the issuer may accept it
/// once more.
///
/// | method | applies to | cost |
/// |---|---|---|
/// | [`block_key`](Self::block_key), [`invalidate_key`](Self::invalidate_key) | one secret | constant |
/// | [`block_key_id`](Self::block_key_id), [`invalidate_key_id`](Self::invalidate_key_id) | every secret of a key; use it after a rotation | constant |
/// | [`block_org`](Self::block_org), [`invalidate_org`](Self::invalidate_org) | all keys of an organization; invalidated, also its [settings](crate::settings) | constant |
/// | [`invalidate_all`](Self::invalidate_all) | everything | constant |
///
/// # Revocation
///
/// The issuer does not announce that it revoked a key, so the time until the layer rejects the key depends on what calls the
/// handle. The bounds are for one node. "A verification" is one call to the issuer, at most
/// [`lookup_deadline`](crate::ApiKeyLayerBuilder::lookup_deadline).
///
/// | source | a revoked key is accepted until |
/// |---|---|
/// | none, while verifications succeed | twice the soft TTL and one verification later: 2 min by default |
/// | none, while verifications fail | the hard TTL, from the last call that found it valid: 15 min by default |
/// | a route with [`max_age(d)`](crate::ApiKeyLayer::max_age) | `d` and one verification later; 503 while verifications fail |
/// | a stream with [`until_invalid_revalidating(p)`](crate::OrgContext::until_invalid_revalidating), while verifications succeed | `p` and one verification later |
/// | a method of this handle | the method returns |
/// | your revocation endpoint, as in `examples/revoke_endpoint.rs` | the endpoint responds |
/// | the issuer's webhook, as in `examples/webhook` | it is delivered; Kinde has one for a deleted organization, and none for a key |
/// | [`kinde::KeyReconciler`](crate::kinde::KeyReconciler) | a period, the time to read the list and one verification later: about 60 s by default, whatever the soft TTL |
///
/// An invalidated key is not served from the cache: it gets 503 while verifications fail. External sources, such as a webhook
/// or a list of keys, should only invalidate. Then a forged, repeated or mistaken event causes one more verification at most,
/// and a key is rejected only on the issuer's answer. Block only on your own decisions.
///
/// A stream that waits for [`OrgContext::until_invalid`](crate::OrgContext::until_invalid), as in `examples/streams.rs`, ends as
/// soon as the next request with its key would be rejected or verified. One that waits for
/// [`OrgContext::until_invalid_revalidating`](crate::OrgContext::until_invalid_revalidating) verifies an invalidated key and ends
/// if that does not succeed. Each call of a method that blocks, unblocks or
/// invalidates wakes all waiting streams once. An answer of the issuer wakes the streams of its key only.
///
/// # Example
///
/// ```
/// use tower_orgkey::{ApiKeyLayer, KeyId, OrgCode};
/// # use tower_orgkey::{Verification, verifier_fn};
/// # let verifier = verifier_fn(|_| async { Ok(Verification::invalid()) });
///
/// let auth = ApiKeyLayer::new(verifier);
/// let keys = auth.handle();
///
/// // After the key was rotated or deleted at the issuer:
/// keys.invalidate_key_id(&KeyId::new("api_key_0001")?);
/// // To reject an organization now, whatever the issuer says:
/// keys.block_org(&OrgCode::new("org_123")?)?;
/// assert!(keys.unblock_org(&OrgCode::new("org_123")?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ApiKeyHandle(pub(crate) Arc<Cache>);

impl ApiKeyHandle {
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self(cache)
    }

    fn digest(&self, key: &ApiKey) -> KeyDigest {
        self.0.source().digest(key.expose_secret())
    }

    fn subject(&self, key: &ApiKey) -> Subject {
        Subject::Key(self.digest(key))
    }

    fn update(&self, change: &Update) -> Result<(), BlockListFull> {
        update::apply(&self.0, change, |fleet| fleet.publish(change)).map(|_| ())
    }

    fn invalidate(&self, change: &Update) {
        // Only a block can fail.
        let _ = self.update(change);
    }

    fn unblock(&self, subject: Subject) -> bool {
        let fleet = self.0.source().fleet();
        let _locked = fleet.map(|fleet| fleet.lock_blocks());
        let was_blocked = self.0.unblock(update::target(&subject));
        if let Some(fleet) = fleet {
            fleet.publish(&Update::Unblock(subject));
        }
        was_blocked
    }

    /// Returns a handle that blocks and invalidates keys on all nodes of a fleet, and says which nodes have applied it.
    pub fn spread(&self) -> Spread {
        Spread::new(Arc::clone(&self.0))
    }

    /// Blocks this secret.
    pub fn block_key(&self, key: &ApiKey) -> Result<(), BlockListFull> {
        self.update(&Update::Block(self.subject(key)))
    }

    /// Blocks every secret of this key.
    pub fn block_key_id(&self, key_id: &KeyId) -> Result<(), BlockListFull> {
        self.update(&Update::Block(Subject::KeyId(key_id.clone())))
    }

    /// Blocks every key of this organization.
    pub fn block_org(&self, org: &OrgCode) -> Result<(), BlockListFull> {
        self.update(&Update::Block(Subject::Org(org.clone())))
    }

    /// Unblocks a secret. Returns `false` if it was not blocked. The key is verified again.
    pub fn unblock_key(&self, key: &ApiKey) -> bool {
        self.unblock(self.subject(key))
    }

    /// Unblocks a key. Returns `false` if it was not blocked. Its secrets are verified again.
    pub fn unblock_key_id(&self, key_id: &KeyId) -> bool {
        self.unblock(Subject::KeyId(key_id.clone()))
    }

    /// Unblocks an organization. Returns `false` if it was not blocked. Its keys are verified again.
    pub fn unblock_org(&self, org: &OrgCode) -> bool {
        self.unblock(Subject::Org(org.clone()))
    }

    /// Invalidates this secret, whether it is cached as valid or as invalid.
    pub fn invalidate_key(&self, key: &ApiKey) {
        self.invalidate(&Update::Invalidate(self.subject(key)));
    }

    /// Invalidates every secret of this key. Use it after a rotation, which does not change the identifier.
    pub fn invalidate_key_id(&self, key_id: &KeyId) {
        self.invalidate(&Update::Invalidate(Subject::KeyId(key_id.clone())));
    }

    /// Invalidates every key of this organization, and its settings.
    pub fn invalidate_org(&self, org: &OrgCode) {
        self.invalidate(&Update::Invalidate(Subject::Org(org.clone())));
    }

    /// Invalidates every key, invalid ones included, and all settings.
    pub fn invalidate_all(&self) {
        self.invalidate(&Update::InvalidateAll);
    }

    /// Returns the counters of the layer and the sizes of its caches.
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// Returns the state of the calls to the issuer, for a readiness probe. With several issuers, that of the first one.
    pub fn upstream(&self) -> UpstreamState {
        self.0.upstream(0)
    }

    /// Returns the name of each issuer and the state of the calls to it, in the order of
    /// [`Verifier::issuers`](crate::Verifier::issuers). A single issuer has an empty name.
    ///
    /// ```
    /// # use tower_orgkey::{ApiKeyHandle, BreakerState};
    /// fn unavailable(keys: &ApiKeyHandle) -> Vec<&str> {
    ///     let issuers = keys.issuers();
    ///     let is_open = |state| matches!(state, BreakerState::Open { .. });
    ///     issuers.filter(|(_, state)| is_open(state.breaker)).map(|(name, _)| name).collect()
    /// }
    /// ```
    pub fn issuers(&self) -> impl Iterator<Item = (&str, UpstreamState)> {
        self.0.upstreams().map(|(name, state)| (&**name, state))
    }
}

impl_debug!(ApiKeyHandle, |handle| { stats: handle.stats() });

/// A cached key of an organization.
#[cfg(feature = "kinde")]
#[derive(Clone, Debug)]
pub(crate) struct CachedKey(Arc<crate::api_keys::Entry>);

#[cfg(feature = "kinde")]
impl CachedKey {
    pub(crate) fn key_id(&self) -> Option<&KeyId> {
        self.0.value.key_id.as_ref()
    }

    /// Returns whether the secret differs from the listed one for certain: both ends are known, and differ.
    pub(crate) fn differs_from(&self, listed: Option<crate::key::KeyTail>) -> bool {
        matches!((self.0.mark, listed), (Some(cached), Some(listed)) if cached != listed)
    }
}

/// For reconciliation with an issuer's list of keys.
#[cfg(feature = "kinde")]
impl ApiKeyHandle {
    /// Lets new entries keep the ends of their secrets.
    pub(crate) fn keep_tails(&self) {
        self.0.source().keep_tails();
    }

    /// Returns the end of a secret as an issuer lists it, if it has the right length.
    pub(crate) fn listed_tail(&self, suffix: &str) -> Option<crate::key::KeyTail> {
        if suffix.len() == crate::key::KEY_TAIL_LEN {
            self.0.source().tail(suffix)
        } else {
            None
        }
    }

    /// Returns the cached keys of organizations, and the present time. Only keys with an identifier can be compared.
    pub(crate) fn cached_keys(&self) -> (Vec<CachedKey>, crate::clock::Tick) {
        let (entries, now) = self.0.cached(|facts| {
            facts.org.is_some() && facts.user().is_none() && facts.key_id.is_some()
        });
        (entries.into_iter().map(CachedKey).collect(), now)
    }

    /// Invalidates these keys, except those verified since. Returns their number.
    pub(crate) async fn invalidate_cached(
        &self,
        cached: &[CachedKey],
        since: crate::clock::Tick,
    ) -> usize {
        let keys: Vec<_> = cached.iter().map(|CachedKey(entry)| entry.key).collect();
        self.0.invalidate_cached(&keys, since).await
    }
}

#[cfg(all(test, feature = "kinde"))]
mod tests {
    use super::*;
    use crate::auth::ApiKeyLayer;
    use crate::scope::Scopes;
    use crate::verify::{Verification, verifier_fn};
    use orgkey_lookup::LookupRequest;

    #[tokio::test]
    async fn organization_keys_with_an_id_are_compared() {
        let layer = ApiKeyLayer::new(verifier_fn(|key| async move {
            let org = || Verification::of_organization(OrgCode::from_static("org_1"));
            let id = KeyId::from_static("id_1");
            Ok(match key.expose_secret() {
                "valid-key" => org().with_key_id(id).with_scopes(Scopes::default()),
                "of-a-user" => org().with_key_id(id).with_user_id("kp_1"),
                "without-org" => Verification::without_organization().with_key_id(id),
                _ => org(),
            })
        }));
        let handle = layer.handle();
        let secrets = ["valid-key", "of-a-user", "without-org", "without-id"];
        for secret in secrets {
            let query = ApiKey::parse(secret).unwrap();
            let request = LookupRequest {
                key: handle.digest(&query),
                query,
                oldest: None,
                peer: None,
            };
            Arc::clone(&handle.0).look_up(request).await;
        }
        let (cached, _) = handle.cached_keys();
        let keys: Vec<_> = cached.iter().map(|CachedKey(entry)| entry.key).collect();
        let expected = handle.digest(&ApiKey::parse("valid-key").unwrap());
        assert_eq!(
            (keys.as_slice(), handle.stats().entries),
            (&[expected][..], 4)
        );
    }
}
