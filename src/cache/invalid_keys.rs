//! The negative cache: invalid keys. It is separate from the [`store`](super::store), so that invalid keys evict no valid one.
//!
//! As in the store, moka bounds the number of keys, and an index in front of it is read. Reads are not reported to moka, so
//! the oldest keys are evicted first, however often they are presented.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache as Moka;
use papaya::HashMap as Index;

use super::store::DigestBuildHasher;
use super::sync::Step;
use crate::clock::Tick;
use crate::key::KeyDigest;

/// How long a key is cached as invalid at first. Each repeated answer doubles it.
const FIRST: Duration = Duration::from_secs(5);
/// The longest time that a key is cached as invalid.
const LONGEST: Duration = Duration::from_secs(60);
/// After this time without a repeated answer, the next one counts as the first.
const FORGOTTEN: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug)]
pub(crate) struct InvalidKey {
    until: Tick,
    lasts: Duration,
    /// The version of the blocks and invalidations when the lookup began.
    pub(crate) began: u64,
}

pub(crate) struct InvalidKeys {
    index: Arc<Index<KeyDigest, Arc<InvalidKey>, DigestBuildHasher>>,
    policy: Moka<KeyDigest, Arc<InvalidKey>, DigestBuildHasher>,
    step: Step,
}

impl InvalidKeys {
    pub(crate) fn new(capacity: u64) -> Self {
        let index: Arc<Index<_, Arc<InvalidKey>, _>> =
            Arc::new(Index::with_hasher(DigestBuildHasher::default()));
        let listener = {
            let index = Arc::clone(&index);
            move |digest: Arc<KeyDigest>, key: Arc<InvalidKey>, _| {
                // A later answer about the same key stays.
                let is_this = |_: &KeyDigest, cached: &Arc<InvalidKey>| Arc::ptr_eq(cached, &key);
                let _ = index.pin().remove_if(&*digest, is_this);
            }
        };
        Self {
            index,
            policy: Moka::builder()
                .max_capacity(capacity)
                .time_to_live(LONGEST + FORGOTTEN)
                .eviction_policy(EvictionPolicy::lru())
                .eviction_listener(listener)
                .build_with_hasher(DigestBuildHasher::default()),
            step: Step::new(),
        }
    }

    /// Returns the key if it is cached as invalid.
    #[inline]
    pub(crate) fn get(&self, digest: KeyDigest, now: Tick) -> Option<InvalidKey> {
        self.step.take();
        self.entry(digest).filter(|key| now < key.until)
    }

    #[inline]
    fn entry(&self, digest: KeyDigest) -> Option<InvalidKey> {
        self.index.pin().get(&digest).map(|key| **key)
    }

    pub(crate) fn insert(&self, digest: KeyDigest, began: u64, now: Tick) {
        self.step.take();
        let before = self
            .entry(digest)
            .filter(|before| now < before.until.after(FORGOTTEN));
        let lasts = match before {
            Some(before) if before.began == began || now >= before.until => {
                (before.lasts * 2).min(LONGEST)
            }
            // Invalidated since: the key may have become valid, so this is not a repeated answer.
            Some(before) => before.lasts,
            None => FIRST,
        };
        let key = Arc::new(InvalidKey {
            until: now.after(lasts),
            lasts,
            began,
        });
        self.index.pin().insert(digest, Arc::clone(&key));
        self.policy.insert(digest, key);
    }

    pub(crate) fn remove(&self, digest: KeyDigest) {
        self.step.take();
        if self.index.pin().remove(&digest).is_some() {
            self.policy.invalidate(&digest);
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.index.len() as u64
    }
}

impl fmt::Debug for InvalidKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvalidKeys").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::DigestSecret;

    #[test]
    fn a_key_is_cached_for_5_s_doubling_to_60_s() {
        let invalid_keys = InvalidKeys::new(10);
        let digest = DigestSecret::draw().unwrap().digest("12345678");
        let mut now = Tick::ZERO;
        for seconds in [5, 10, 20, 40, 60, 60] {
            invalid_keys.insert(digest, 1, now);
            let end = now.after(Duration::from_secs(seconds));
            assert!(
                invalid_keys.get(digest, Tick(end.0 - 1)).is_some(),
                "{seconds}"
            );
            assert!(invalid_keys.get(digest, end).is_none(), "{seconds}");
            now = end;
        }
        invalid_keys.remove(digest);
        invalid_keys.insert(digest, 1, now);
        assert!(
            invalid_keys
                .get(digest, now.after(Duration::from_secs(5)))
                .is_none()
        );
    }

    #[test]
    fn keys_stay_within_the_capacity() {
        let invalid_keys = InvalidKeys::new(10);
        let secret = DigestSecret::draw().unwrap();
        let key = |n: u32| secret.digest(n.to_string());
        let cached = |invalid_keys: &InvalidKeys| {
            invalid_keys.policy.run_pending_tasks();
            (invalid_keys.len(), invalid_keys.policy.entry_count())
        };
        for n in 0..1_000 {
            invalid_keys.insert(key(n), 1, Tick::ZERO);
        }
        assert_eq!(cached(&invalid_keys), (10, 10));
        for n in 0..1_000 {
            invalid_keys.remove(key(n));
        }
        assert_eq!(cached(&invalid_keys), (0, 0));
        // A repeated answer replaces the first one.
        invalid_keys.insert(key(0), 1, Tick::ZERO);
        invalid_keys.insert(key(0), 2, Tick::ZERO);
        assert_eq!(cached(&invalid_keys), (1, 1));
        assert_eq!(invalid_keys.get(key(0), Tick::ZERO).unwrap().began, 2);
    }

    /// Inserts a key at these versions and times. Returns how long it is cached then.
    fn lasts(noted: &[(u64, Tick)]) -> Duration {
        let invalid_keys = InvalidKeys::new(10);
        let digest = DigestSecret::draw().unwrap().digest("12345678");
        for &(began, at) in noted {
            invalid_keys.insert(digest, began, at);
        }
        let &(_, at) = noted.last().unwrap();
        let key = invalid_keys.get(digest, at).unwrap();
        key.until.since(at)
    }

    #[test]
    fn a_key_is_forgotten_after_5_minutes() {
        let forgotten = Tick::ZERO.after(FIRST + Duration::from_secs(300));
        let first = (1, Tick::ZERO);
        assert_eq!(lasts(&[first, (1, Tick(forgotten.0 - 1))]), FIRST * 2);
        assert_eq!(lasts(&[first, (1, forgotten)]), FIRST);
    }

    #[test]
    fn an_answer_after_an_invalidation_is_no_repeat() {
        let first = (1, Tick::ZERO);
        let end = Tick::ZERO.after(FIRST);
        let before_its_end = Tick(end.0 - 1);
        assert_eq!(lasts(&[first, (2, before_its_end)]), FIRST);
        // Once the first time is over, or without an invalidation, it is one.
        assert_eq!(lasts(&[first, (2, end)]), FIRST * 2);
        assert_eq!(lasts(&[first, (1, before_its_end)]), FIRST * 2);
    }
}
