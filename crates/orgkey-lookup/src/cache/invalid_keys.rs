//! The negative cache: invalid keys. It is separate from the [`store`](super::store), so that invalid keys evict no valid one.
//!
//! As in the store, moka bounds the number of keys, and an index in front of it is read. Reads are not reported to moka, so
//! the oldest keys are evicted first, however often they are presented.

use std::sync::Arc;
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache as Moka;
use papaya::HashMap as Index;

use super::store::KeyBuildHasher;
use super::sync::Step;
use crate::clock::Tick;
use crate::source::IndexKey;

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
    /// When the last call was sent that certainly found the key invalid.
    certain_at: Option<Tick>,
}

pub(super) struct InvalidKeys<K: IndexKey> {
    index: Arc<Index<K, Arc<InvalidKey>, KeyBuildHasher>>,
    policy: Moka<K, Arc<InvalidKey>, KeyBuildHasher>,
    step: Step,
}

impl<K: IndexKey> InvalidKeys<K> {
    /// Keeps at most `capacity` keys, each for `kept` at least: as long as results of calls from before may be fetched.
    pub(crate) fn new(capacity: u64, kept: Duration) -> Self {
        let index: Arc<Index<_, Arc<InvalidKey>, _>> =
            Arc::new(Index::with_hasher(KeyBuildHasher::default()));
        let listener = {
            let index = Arc::clone(&index);
            move |key: Arc<K>, invalid: Arc<InvalidKey>, _| {
                // A later answer about the same key stays.
                let is_this = |_: &K, cached: &Arc<InvalidKey>| Arc::ptr_eq(cached, &invalid);
                let _ = index.pin().remove_if(&*key, is_this);
            }
        };
        Self {
            index,
            policy: Moka::builder()
                .max_capacity(capacity)
                .time_to_live(kept.max(LONGEST + FORGOTTEN))
                .eviction_policy(EvictionPolicy::lru())
                .eviction_listener(listener)
                .build_with_hasher(KeyBuildHasher::default()),
            step: Step::new(),
        }
    }

    /// Returns the key if it is cached as invalid.
    #[inline]
    pub(crate) fn get(&self, key: &K, now: Tick) -> Option<InvalidKey> {
        self.step.take();
        self.entry(key).filter(|key| now < key.until)
    }

    /// Returns whether a result of a call sent at this time may not be used: the key is cached as invalid, or was found invalid
    /// by a call that was not sent before.
    pub(crate) fn refuse(&self, key: &K, sent_at: Tick, now: Tick) -> bool {
        self.entry(key)
            .is_some_and(|key| now < key.until || key.certain_at >= Some(sent_at))
    }

    #[inline]
    fn entry(&self, key: &K) -> Option<InvalidKey> {
        self.index.pin().get(key).map(|key| **key)
    }

    /// Returns whether the answer is a repeated one. `certain_at` is when its call was sent, if it is certain.
    pub(crate) fn insert(&self, key: &K, began: u64, certain_at: Option<Tick>, now: Tick) -> bool {
        self.step.take();
        let before = self.entry(key);
        let certain_at = certain_at.max(before.and_then(|before| before.certain_at));
        let before = before.filter(|before| now < before.until.after(FORGOTTEN));
        // If it was invalidated since, the key may have become valid, so this is not a repeated answer.
        let is_repeated = before.is_some_and(|before| before.began == began || now >= before.until);
        let lasts = match before {
            Some(before) if is_repeated => (before.lasts * 2).min(LONGEST),
            Some(before) => before.lasts,
            None => FIRST,
        };
        let invalid = Arc::new(InvalidKey {
            until: now.after(lasts),
            lasts,
            began,
            certain_at,
        });
        self.index.pin().insert(key.clone(), Arc::clone(&invalid));
        self.policy.insert(key.clone(), invalid);
        is_repeated
    }

    pub(crate) fn remove(&self, key: &K) {
        self.step.take();
        if self.index.pin().remove(key).is_some() {
            self.policy.invalidate(key);
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.index.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::{TestKey, test_key};

    #[test]
    fn a_key_is_cached_for_5_s_doubling_to_60_s() {
        let invalid_keys = InvalidKeys::new(10, Duration::ZERO);
        let key = test_key("12345678");
        let mut now = Tick::ZERO;
        for seconds in [5, 10, 20, 40, 60, 60] {
            invalid_keys.insert(&key, 1, None, now);
            let end = now.after(Duration::from_secs(seconds));
            assert!(
                invalid_keys.get(&key, Tick(end.0 - 1)).is_some(),
                "{seconds}"
            );
            assert!(invalid_keys.get(&key, end).is_none(), "{seconds}");
            now = end;
        }
        invalid_keys.remove(&key);
        invalid_keys.insert(&key, 1, None, now);
        assert!(
            invalid_keys
                .get(&key, now.after(Duration::from_secs(5)))
                .is_none()
        );
    }

    #[test]
    fn keys_stay_within_the_capacity() {
        let invalid_keys = InvalidKeys::new(10, Duration::ZERO);
        let key = |n: u32| test_key(n.to_string());
        let cached = |invalid_keys: &InvalidKeys<TestKey>| {
            invalid_keys.policy.run_pending_tasks();
            (invalid_keys.len(), invalid_keys.policy.entry_count())
        };
        for n in 0..1_000 {
            invalid_keys.insert(&key(n), 1, None, Tick::ZERO);
        }
        assert_eq!(cached(&invalid_keys), (10, 10));
        for n in 0..1_000 {
            invalid_keys.remove(&key(n));
        }
        assert_eq!(cached(&invalid_keys), (0, 0));
        // A repeated answer replaces the first one.
        invalid_keys.insert(&key(0), 1, None, Tick::ZERO);
        invalid_keys.insert(&key(0), 2, None, Tick::ZERO);
        assert_eq!(cached(&invalid_keys), (1, 1));
        assert_eq!(invalid_keys.get(&key(0), Tick::ZERO).unwrap().began, 2);
    }

    /// Inserts a key at these versions and times. Returns how long it is cached then.
    fn lasts(noted: &[(u64, Tick)]) -> Duration {
        let invalid_keys = InvalidKeys::new(10, Duration::ZERO);
        let key = test_key("12345678");
        for &(began, at) in noted {
            invalid_keys.insert(&key, began, None, at);
        }
        let &(_, at) = noted.last().unwrap();
        let key = invalid_keys.get(&key, at).unwrap();
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

    #[test]
    fn older_results_are_refused_after_a_certain_answer() {
        let invalid_keys = InvalidKeys::new(10, Duration::ZERO);
        let (key, second) = (test_key("12345678"), Duration::from_secs(1));
        let [older, sent, newer] = [1, 2, 3].map(|n| Tick::ZERO.after(second * n));
        let refused = |now: Tick| [older, sent, newer].map(|at| invalid_keys.refuse(&key, at, now));
        let later = sent.after(Duration::from_secs(800));
        invalid_keys.insert(&key, 1, None, sent);
        assert_eq!(refused(sent), [true; 3], "cached as invalid");
        assert_eq!(refused(later), [false; 3], "not certain");
        invalid_keys.insert(&key, 1, Some(sent), sent);
        assert_eq!(refused(later), [true, true, false]);
        // An answer that is not certain takes nothing back, and neither does an older one.
        invalid_keys.insert(&key, 1, None, newer);
        invalid_keys.insert(&key, 1, Some(older), newer);
        assert_eq!(refused(later), [true, true, false]);
        invalid_keys.remove(&key);
        assert_eq!(refused(later), [false; 3], "found valid, or invalidated");
    }
}
