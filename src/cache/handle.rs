//! What an operator does to a layer while it runs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::blocks::{BlockListFull, InvalidatedAt};
use super::{Cache, Found};
use crate::context::{KeyId, OrgCode};
use crate::key::ApiKey;
use crate::upstream::UpstreamState;

/// Blocks and invalidates keys, and tells how things stand. Cheap to clone; every clone acts on the same layer.
///
/// *Blocking* refuses with 401 until it is lifted or the process ends. *Invalidating* makes the layer ask the issuer again.
/// Both are in force for the first request that begins after the call has returned, on every thread, whether or not the key
/// is in the cache; a verification that was under way can bring nothing back, neither to the cache nor to those who wait for
/// it. They reach this process alone: tell each of several nodes.
///
/// To take a key away, delete it at the issuer *first*, then invalidate it here; invalidated the other way round, the issuer
/// may say yes once more.
///
/// | method | of | cost |
/// |---|---|---|
/// | [`block_key`](Self::block_key), [`invalidate_key`](Self::invalidate_key) | one secret | constant |
/// | [`block_key_id`](Self::block_key_id), [`invalidate_key_id`](Self::invalidate_key_id) | a key, whatever its present secret: the one for rotation | constant |
/// | [`block_org`](Self::block_org), [`invalidate_org`](Self::invalidate_org) | all keys of an organization; invalidated, also its [settings](crate::settings) | constant |
/// | [`invalidate_all`](Self::invalidate_all) | everything | constant |
///
/// # Feeding it
///
/// An issuer that takes a key away tells nobody, so how soon it takes effect here depends on who tells the handle. Each way,
/// with its bound on one node; "a verification" is one call to the issuer, at most the
/// [deadline of a flight](crate::ApiKeyLayerBuilder::flight_deadline).
///
/// | told by | a key that was taken away is last accepted |
/// |---|---|
/// | nobody, and the issuer answers | twice the soft TTL and a verification after that: 2 min by default |
/// | nobody, and the issuer does not answer | at the hard TTL, counted from the call that last said yes: 15 min by default |
/// | a route with [`max_age(d)`](crate::ApiKeyLayer::max_age) | `d` and a verification after that; 503 where the issuer does not answer |
/// | a method of this handle | before it returns |
/// | your own endpoint for revocation, as in `examples/revoke_endpoint.rs` | before that endpoint answers |
/// | the issuer's webhook, as in `examples/webhook` | when it is delivered; Kinde has one for a deleted organization, and none for a key |
/// | a poller, as `kinde::KeyPoller` | a period, the time of a walk and a verification after that: some 60 s by default, whatever the soft TTL |
///
/// A key that was invalidated is not served from memory: while the issuer does not answer it gets 503. So whatever speaks from
/// outside, a webhook or a list of keys, should only ever invalidate. Then the worst of a forged, repeated or mistaken word is
/// one more verification, and a customer is refused on the issuer's own answer alone. Block where the word is your own.
///
/// Streams that were opened with a key end as soon as its next request would be refused or asked about, if they wait for
/// [`OrgContext::until_invalid`](crate::OrgContext::until_invalid), as in `examples/streams.rs`. Each call of a method that
/// blocks, unblocks or invalidates makes all waiting streams look once; what the issuer says about a key, its own alone.
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
/// // A customer who must be kept out now, whatever the issuer says:
/// keys.block_org(&OrgCode::new("org_123")?)?;
/// assert!(keys.unblock_org(&OrgCode::new("org_123")?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ApiKeyHandle(pub(super) Arc<Cache>);

/// Counts since the layer was built, and how full it is.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Good keys held.
    pub entries: usize,
    /// Refused keys held; an estimate, that follows by some moments.
    pub refused_entries: u64,
    /// Requests served from fresh facts.
    pub hits: u64,
    /// Requests served from stale facts, at once.
    pub stale_hits: u64,
    /// Requests that had to ask.
    pub misses: u64,
    /// Requests refused from memory: refused before, blocked or expired.
    pub refusals: u64,
    /// Requests that asked, and found their question already on its way.
    pub coalesced: u64,
    /// Good keys that made room for others.
    pub evictions: u64,
    /// How things stand with the issuer.
    pub upstream: UpstreamState,
}

impl ApiKeyHandle {
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self(cache)
    }

    /// Refuses this secret from now on.
    pub fn block_key(&self, key: &ApiKey) -> Result<(), BlockListFull> {
        let digest = self.0.digest(key.expose_secret());
        self.0.blocks.block_key(digest, self.invalidated_now())?;
        self.0.forget(digest);
        Ok(())
    }

    /// Refuses every secret of this key from now on.
    pub fn block_key_id(&self, key_id: &KeyId) -> Result<(), BlockListFull> {
        self.0.blocks.block_id(key_id, self.invalidated_now())
    }

    /// Refuses every key of this organization from now on.
    pub fn block_org(&self, org: &OrgCode) -> Result<(), BlockListFull> {
        self.0.blocks.block_org(org, self.invalidated_now())
    }

    /// Lifts a block. `false` when there was none. The key is verified anew.
    pub fn unblock_key(&self, key: &ApiKey) -> bool {
        self.0
            .blocks
            .unblock_key(self.0.digest(key.expose_secret()))
    }

    /// Lifts a block. `false` when there was none. Nothing that was verified before the block comes back.
    pub fn unblock_key_id(&self, key_id: &KeyId) -> bool {
        self.0.blocks.unblock_id(key_id)
    }

    /// Lifts a block. `false` when there was none. Nothing that was verified before the block comes back.
    pub fn unblock_org(&self, org: &OrgCode) -> bool {
        self.0.blocks.unblock_org(org)
    }

    /// Asks the issuer again about this secret, be it held as good or as refused.
    pub fn invalidate_key(&self, key: &ApiKey) {
        let digest = self.0.digest(key.expose_secret());
        self.0.blocks.invalidate_key(digest, self.invalidated_now());
        self.0.forget(digest);
    }

    /// Asks the issuer again about every secret of this key: the one for rotation, since a key's id stays.
    pub fn invalidate_key_id(&self, key_id: &KeyId) {
        self.0.blocks.invalidate_id(key_id, self.invalidated_now());
    }

    /// Asks the issuer again about every key of this organization, and the loaders about its settings.
    pub fn invalidate_org(&self, org: &OrgCode) {
        self.0.blocks.invalidate_org(org, self.invalidated_now());
        #[cfg(feature = "settings")]
        self.0.dependents.invalidate_org(org);
    }

    /// Asks the issuer again about every key, refused ones included, and the loaders about all settings.
    pub fn invalidate_all(&self) {
        self.0.blocks.invalidate_all();
        #[cfg(feature = "settings")]
        self.0.dependents.invalidate_all();
        for mut shard in self.0.in_flight.shards() {
            shard.cancel_all();
        }
    }

    /// Counts, and how full the layer is.
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

    /// How things stand with the issuer: for a readiness probe.
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
    fn a_fence_holds_for_as_long_as_facts_may_live_that_were_on_their_way_when_it_was_put_up() {
        let layer = ApiKeyLayer::builder(verifier_fn(|_| async { Ok(Verification::invalid()) }))
            .hard_ttl(Duration::from_secs(600))
            .flight_deadline(Duration::from_secs(20))
            .build()
            .unwrap();
        let holds = layer.handle().invalidated_now().holds;
        assert_eq!(holds, Duration::from_secs(620));
    }
}
