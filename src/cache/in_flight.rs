//! In-flight lookups: at most one verification per key at a time, on a separate task.
//!
//! A request joins the in-flight lookup for its key, or starts one. A lookup goes on when the requests that wait for it are
//! dropped. Invalidating a key cancels its lookups: their waiters start another lookup, and the result of the old call is
//! discarded.
//!
//! The lookups of a key change under the lock of the key's shard, and a lookup writes its result to the store under the same
//! lock. So each completion happens before an invalidation or after it, never in between.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use tokio::sync::watch;

use super::entry::Entry;
use super::store::DigestBuildHasher;
use super::sync::{Mutex, MutexGuard};
use crate::clock::Tick;
use crate::key::{KeyDigest, KeyTail};
use crate::upstream::CannotTell;

const SHARDS: usize = 64;

/// The outcome of a lookup.
#[derive(Clone, Debug)]
pub(crate) enum Completion {
    Valid(Arc<Entry>),
    Invalid,
    CannotTell(CannotTell),
    /// The key was invalidated meanwhile. Waiters start another lookup.
    Cancelled,
}

/// A lookup in flight.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// The version of the blocks and invalidations when it began.
    pub(crate) began: u64,
    /// The end of the secret that its entry keeps for reconciliation.
    pub(crate) tail: Option<KeyTail>,
    /// When its last call was sent. Zero before the first one.
    sent_at: AtomicU64,
    completion: watch::Sender<Option<Completion>>,
}

impl Lookup {
    fn new(began: u64, tail: Option<KeyTail>) -> Self {
        Self {
            began,
            tail,
            sent_at: AtomicU64::new(0),
            completion: watch::Sender::new(None),
        }
    }

    pub(crate) fn sent(&self, at: Tick) {
        self.sent_at.store(at.0.max(1), Ordering::Release);
    }

    /// Returns whether its answer is from a call sent after this time.
    fn is_sent_after(&self, oldest: Tick) -> bool {
        match self.sent_at.load(Ordering::Acquire) {
            0 => true,
            sent => sent > oldest.0,
        }
    }

    /// Sets the outcome, unless there is one.
    pub(crate) fn complete(&self, completion: Completion) {
        self.completion.send_if_modified(|slot| {
            let is_first = slot.is_none();
            if is_first {
                *slot = Some(completion);
            }
            is_first
        });
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.completion.borrow().is_some()
    }

    #[cfg(all(test, orgkey_shuttle))]
    pub(crate) fn completion(&self) -> Option<Completion> {
        self.completion.borrow().clone()
    }

    /// Waits for the outcome.
    pub(crate) async fn completed(&self) -> Completion {
        let mut completion = self.completion.subscribe();
        match completion.wait_for(Option::is_some).await {
            Ok(completion) => completion.clone().unwrap_or(Completion::Cancelled),
            // Unreachable: `self` owns the sender.
            Err(_) => Completion::Cancelled,
        }
    }
}

/// The lookups in flight.
#[derive(Debug)]
pub(crate) struct InFlight {
    shards: Box<[Mutex<Shard>]>,
}

/// The lookups of the keys of one shard. Requests join only the last lookup of a key.
#[derive(Debug, Default)]
pub(crate) struct Shard(HashMap<KeyDigest, Vec<Arc<Lookup>>, DigestBuildHasher>);

impl Default for InFlight {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::default())).collect(),
        }
    }
}

impl InFlight {
    pub(crate) fn shard(&self, digest: KeyDigest) -> MutexGuard<'_, Shard> {
        #[allow(clippy::cast_possible_truncation)] // Reduced to the number of shards first.
        let at = (digest.low() % SHARDS as u64) as usize;
        self.shards[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks each shard in turn.
    pub(crate) fn shards(&self) -> impl Iterator<Item = MutexGuard<'_, Shard>> {
        self.shards
            .iter()
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shard {
    /// Returns the in-flight lookup for the key, if its answer will be from a call sent after `oldest`.
    pub(crate) fn joinable(&self, digest: KeyDigest, oldest: Option<Tick>) -> Option<Arc<Lookup>> {
        let lookup = self.0.get(&digest)?.last()?;
        let is_joinable =
            !lookup.is_complete() && oldest.is_none_or(|oldest| lookup.is_sent_after(oldest));
        is_joinable.then(|| Arc::clone(lookup))
    }

    pub(crate) fn start(
        &mut self,
        digest: KeyDigest,
        began: u64,
        tail: Option<KeyTail>,
    ) -> Arc<Lookup> {
        let lookup = Arc::new(Lookup::new(began, tail));
        self.0.entry(digest).or_default().push(Arc::clone(&lookup));
        lookup
    }

    pub(crate) fn remove(&mut self, digest: KeyDigest, lookup: &Arc<Lookup>) {
        if let Some(lookups) = self.0.get_mut(&digest) {
            lookups.retain(|other| !Arc::ptr_eq(other, lookup));
            if lookups.is_empty() {
                self.0.remove(&digest);
            }
        }
    }

    /// Cancels the lookups of the key.
    pub(crate) fn cancel(&mut self, digest: KeyDigest) {
        for lookup in self.0.remove(&digest).into_iter().flatten() {
            lookup.complete(Completion::Cancelled);
        }
    }

    /// Cancels all lookups.
    pub(crate) fn cancel_all(&mut self) {
        for lookup in self.0.drain().flat_map(|(_, lookups)| lookups) {
            lookup.complete(Completion::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ApiKeyLayer;
    use crate::cache::{LookupRequest, LookupResult};
    use crate::context::OrgCode;
    use crate::key::{ApiKey, DigestSecret};
    use crate::verify::{Verification, VerifyError, verifier_fn};

    #[test]
    fn removing_one_lookup_leaves_the_others() {
        let digest = DigestSecret::draw().unwrap().digest("12345678");
        let mut shard = Shard::default();
        let first = shard.start(digest, 1, None);
        let second = shard.start(digest, 1, None);
        shard.remove(digest, &first);
        let joined = shard.joinable(digest, None).unwrap();
        assert!(Arc::ptr_eq(&joined, &second));
        shard.remove(digest, &first);
        assert_eq!(shard.0.len(), 1);
        shard.remove(digest, &second);
        assert!(shard.0.is_empty());
    }

    #[tokio::test]
    async fn completed_lookups_leave_nothing_behind() {
        const VALID: &str = "valid-key";
        const INVALID: &str = "invalid-0";
        const UNKNOWN: &str = "unknown-0";

        let layer = ApiKeyLayer::new(verifier_fn(|key| async move {
            match key.expose_secret() {
                VALID => Ok(Verification::of_organization(OrgCode::from_static("org_1"))),
                INVALID => Ok(Verification::invalid()),
                _ => Err(VerifyError::misconfigured("wrong secret")),
            }
        }));
        let cache = layer.handle().0;
        for secret in [VALID, INVALID, UNKNOWN] {
            let request = LookupRequest {
                key: ApiKey::parse(secret).unwrap(),
                digest: cache.digest(secret),
                oldest: None,
                peer: None,
            };
            let result = Arc::clone(&cache).look_up(request).await;
            match secret {
                VALID => assert!(matches!(result, LookupResult::Serve(..)), "{result:?}"),
                INVALID => assert!(matches!(result, LookupResult::Invalid), "{result:?}"),
                _ => assert!(matches!(result, LookupResult::CannotTell(_)), "{result:?}"),
            }
            let in_flight: usize = cache.in_flight.shards().map(|shard| shard.0.len()).sum();
            assert_eq!(in_flight, 0, "{result:?}");
        }
    }
}
