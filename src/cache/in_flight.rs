//! Single flight: one verification at a time for a key, on a task of its own.
//!
//! Whoever needs an answer boards the flight of its key or starts one; nobody's departure ends it. Invalidating a key
//! *grounds* its flights at once: their waiters start anew, and what the old call brings is thrown away.
//!
//! A key's flights change under the lock of its shard, and so does what their landing writes to the store: a landing
//! comes wholly before an invalidation or wholly after it.

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

/// How a flight ended.
#[derive(Clone, Debug)]
pub(crate) enum Completion {
    Valid(Arc<Entry>),
    Invalid,
    CannotTell(CannotTell),
    /// Invalidated on the way: who waited must ask again.
    Cancelled,
}

/// A verification under way.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// The version of the rules when it began.
    pub(crate) began: u64,
    /// What its entry is to keep of the secret's end.
    pub(crate) tail: Option<KeyTail>,
    /// When its call was sent; zero until then.
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

    /// Whether its answer will be from a call sent after this time.
    fn is_sent_after(&self, oldest: Tick) -> bool {
        match self.sent_at.load(Ordering::Acquire) {
            0 => true,
            sent => sent > oldest.0,
        }
    }

    /// The first ending counts.
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

    /// Waits for the end.
    pub(crate) async fn completed(&self) -> Completion {
        let mut completion = self.completion.subscribe();
        match completion.wait_for(Option::is_some).await {
            Ok(completion) => completion.clone().unwrap_or(Completion::Cancelled),
            // Never: `self` holds the sender.
            Err(_) => Completion::Cancelled,
        }
    }
}

/// The flights under way.
#[derive(Debug)]
pub(crate) struct InFlight {
    shards: Box<[Mutex<Shard>]>,
}

/// All flights of some keys. Only the last of a key takes passengers.
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

    /// Every shard in turn.
    pub(crate) fn shards(&self) -> impl Iterator<Item = MutexGuard<'_, Shard>> {
        self.shards
            .iter()
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shard {
    /// The flight whose answer would be new enough, if one is under way.
    pub(crate) fn joinable(&self, digest: KeyDigest, oldest: Option<Tick>) -> Option<Arc<Lookup>> {
        let lookup = self.0.get(&digest)?.last()?;
        let suits =
            !lookup.is_complete() && oldest.is_none_or(|oldest| lookup.is_sent_after(oldest));
        suits.then(|| Arc::clone(lookup))
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
        if let Some(in_flight) = self.0.get_mut(&digest) {
            in_flight.retain(|other| !Arc::ptr_eq(other, lookup));
            if in_flight.is_empty() {
                self.0.remove(&digest);
            }
        }
    }

    /// Ends the key's flights without an answer.
    pub(crate) fn cancel(&mut self, digest: KeyDigest) {
        for lookup in self.0.remove(&digest).into_iter().flatten() {
            lookup.complete(Completion::Cancelled);
        }
    }

    /// Ends all flights without an answer.
    pub(crate) fn cancel_all(&mut self) {
        for lookup in self.0.drain().flat_map(|(_, in_flight)| in_flight) {
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
    fn a_flight_that_is_over_leaves_its_place_and_those_of_others_stay() {
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
    async fn whatever_a_flight_brings_nothing_is_left_of_it() {
        const GOOD: &str = "good-key";
        const BAD: &str = "bad-key-0";
        const UNKNOWN: &str = "unknown-0";

        let layer = ApiKeyLayer::new(verifier_fn(|key| async move {
            match key.expose_secret() {
                GOOD => Ok(Verification::of_organization(OrgCode::from_static("org_1"))),
                BAD => Ok(Verification::invalid()),
                _ => Err(VerifyError::misconfigured("wrong secret")),
            }
        }));
        let cache = layer.handle().0;
        for secret in [GOOD, BAD, UNKNOWN] {
            let request = LookupRequest {
                key: ApiKey::parse(secret).unwrap(),
                digest: cache.digest(secret),
                oldest: None,
                peer: None,
            };
            let result = Arc::clone(&cache).look_up(request).await;
            match secret {
                GOOD => assert!(matches!(result, LookupResult::Serve(..)), "{result:?}"),
                BAD => assert!(matches!(result, LookupResult::Invalid), "{result:?}"),
                _ => assert!(matches!(result, LookupResult::CannotTell(_)), "{result:?}"),
            }
            let under_way: usize = cache.in_flight.shards().map(|shard| shard.0.len()).sum();
            assert_eq!(under_way, 0, "{result:?}");
        }
    }
}
