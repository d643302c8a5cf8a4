//! Control of a running layer: blocks, invalidations, and statistics.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::blocks::{BlockListFull, InvalidatedAt};
use super::{Cache, Found};
use crate::context::{KeyId, OrgCode};
use crate::key::ApiKey;
use crate::upstream::UpstreamState;

/// A handle that blocks and invalidates keys and returns statistics. Cheap to clone. All clones control the same layer.
///
/// A *blocked* key is rejected with 401 until it is unblocked or the process ends. An *invalidated* key is verified again.
/// Both apply to the first request that begins after the method has returned, on every thread, whether or not the key is
/// cached. The result of a verification in flight is discarded: it is neither cached nor returned to the requests that wait
/// for it. Both affect this process only. Call the method on each node.
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
/// [`flight_deadline`](crate::ApiKeyLayerBuilder::flight_deadline).
///
/// | source | a revoked key is accepted until |
/// |---|---|
/// | none, while verifications succeed | twice the soft TTL and one verification later: 2 min by default |
/// | none, while verifications fail | the hard TTL, from the last call that found it valid: 15 min by default |
/// | a route with [`max_age(d)`](crate::ApiKeyLayer::max_age) | `d` and one verification later; 503 while verifications fail |
/// | a method of this handle | the method returns |
/// | your revocation endpoint, as in `examples/revoke_endpoint.rs` | the endpoint responds |
/// | the issuer's webhook, as in `examples/webhook` | it is delivered; Kinde has one for a deleted organization, and none for a key |
/// | a poller, such as `kinde::KeyPoller` | a period, the time to read the list and one verification later: about 60 s by default, whatever the soft TTL |
///
/// An invalidated key is not served from the cache: it gets 503 while verifications fail. External sources, such as a webhook
/// or a list of keys, should only invalidate. Then a forged, repeated or mistaken event causes one more verification at most,
/// and a key is rejected only on the issuer's answer. Block only on your own decisions.
///
/// A stream that waits for [`OrgContext::until_invalid`](crate::OrgContext::until_invalid), as in `examples/streams.rs`, ends as
/// soon as the next request with its key would be rejected or verified. Each call of a method that blocks, unblocks or
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
pub struct ApiKeyHandle(pub(super) Arc<Cache>);

/// Counters since the layer was built, and the sizes of its caches.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Cached valid keys.
    pub entries: usize,
    /// Cached invalid keys. An estimate that lags behind by moments.
    pub refused_entries: u64,
    /// Requests served from a fresh result.
    pub hits: u64,
    /// Requests served from a stale result without waiting.
    pub stale_hits: u64,
    /// Requests that required a lookup.
    pub misses: u64,
    /// Requests rejected from the cache: invalid, blocked or expired keys.
    pub refusals: u64,
    /// Requests that joined a lookup in flight.
    pub coalesced: u64,
    /// Valid keys that were evicted for want of room.
    pub evictions: u64,
    /// The state of the calls to the issuer.
    pub upstream: UpstreamState,
}

impl ApiKeyHandle {
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self(cache)
    }

    /// Blocks this secret.
    pub fn block_key(&self, key: &ApiKey) -> Result<(), BlockListFull> {
        let digest = self.0.digest(key.expose_secret());
        self.0.blocks.block_key(digest, self.invalidated_now())?;
        self.0.forget(digest);
        Ok(())
    }

    /// Blocks every secret of this key.
    pub fn block_key_id(&self, key_id: &KeyId) -> Result<(), BlockListFull> {
        self.0.blocks.block_id(key_id, self.invalidated_now())
    }

    /// Blocks every key of this organization.
    pub fn block_org(&self, org: &OrgCode) -> Result<(), BlockListFull> {
        self.0.blocks.block_org(org, self.invalidated_now())
    }

    /// Unblocks a secret. Returns `false` if it was not blocked. The key is verified again.
    pub fn unblock_key(&self, key: &ApiKey) -> bool {
        self.0
            .blocks
            .unblock_key(self.0.digest(key.expose_secret()))
    }

    /// Unblocks a key. Returns `false` if it was not blocked. Its secrets are verified again.
    pub fn unblock_key_id(&self, key_id: &KeyId) -> bool {
        self.0.blocks.unblock_id(key_id)
    }

    /// Unblocks an organization. Returns `false` if it was not blocked. Its keys are verified again.
    pub fn unblock_org(&self, org: &OrgCode) -> bool {
        self.0.blocks.unblock_org(org)
    }

    /// Invalidates this secret, whether it is cached as valid or as invalid.
    pub fn invalidate_key(&self, key: &ApiKey) {
        let digest = self.0.digest(key.expose_secret());
        self.0.blocks.invalidate_key(digest, self.invalidated_now());
        self.0.forget(digest);
    }

    /// Invalidates every secret of this key. Use it after a rotation, which does not change the identifier.
    pub fn invalidate_key_id(&self, key_id: &KeyId) {
        self.0.blocks.invalidate_id(key_id, self.invalidated_now());
    }

    /// Invalidates every key of this organization, and its settings.
    pub fn invalidate_org(&self, org: &OrgCode) {
        self.0.blocks.invalidate_org(org, self.invalidated_now());
        #[cfg(feature = "settings")]
        self.0.dependents.invalidate_org(org);
    }

    /// Invalidates every key, invalid ones included, and all settings.
    pub fn invalidate_all(&self) {
        self.0.blocks.invalidate_all();
        #[cfg(feature = "settings")]
        self.0.dependents.invalidate_all();
        for mut shard in self.0.in_flight.shards() {
            shard.cancel_all();
        }
    }

    /// Returns the counters of the layer and the sizes of its caches.
    pub fn stats(&self) -> Stats {
        let cache = &self.0;
        Stats {
            entries: cache.store.len(),
            refused_entries: cache.invalid_keys.len(),
            hits: cache.counters.of(Found::Fresh),
            stale_hits: cache.counters.of(Found::Stale),
            misses: cache.counters.of(Found::Miss),
            refusals: cache.counters.of(Found::Invalid),
            coalesced: cache.coalesced.load(Ordering::Relaxed),
            evictions: cache.store.evictions(),
            upstream: cache.upstream.state(),
        }
    }

    /// Returns the state of the calls to the issuer, for a readiness probe.
    pub fn upstream(&self) -> UpstreamState {
        self.0.upstream.state()
    }

    pub(super) fn invalidated_now(&self) -> InvalidatedAt {
        InvalidatedAt {
            now: self.0.clock.now(),
            holds: self.0.settings.lifetimes.hard + self.0.settings.flight_deadline,
        }
    }
}

impl fmt::Debug for ApiKeyHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeyHandle")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::auth::ApiKeyLayer;
    use crate::verify::{Verification, verifier_fn};

    #[test]
    fn invalidations_outlive_results_in_flight() {
        let layer = ApiKeyLayer::builder(verifier_fn(|_| async { Ok(Verification::invalid()) }))
            .hard_ttl(Duration::from_secs(600))
            .flight_deadline(Duration::from_secs(20))
            .build()
            .unwrap();
        let holds = layer.handle().invalidated_now().holds;
        assert_eq!(holds, Duration::from_secs(620));
    }
}
