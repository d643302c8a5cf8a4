//! Recently valid keys: the keys that were valid in the last 24 hours and are no longer cached.
//!
//! They are looked up before unknown keys, until the issuer has said twice in a row that they are invalid. They are kept in two
//! generations of a map: when the younger one is full, the elder one is dropped.

use std::collections::HashMap;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::store::KeyBuildHasher;
use crate::clock::Tick;
use crate::source::IndexKey;

/// How long a key is remembered as recently valid.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

type Generation<K> = HashMap<K, Tick, KeyBuildHasher>;

pub(super) struct RecentlyValid<K> {
    generations: Mutex<Generations<K>>,
    per_generation: usize,
}

struct Generations<K> {
    younger: Generation<K>,
    elder: Generation<K>,
}

impl<K: IndexKey> RecentlyValid<K> {
    /// Remembers at most `capacity` keys.
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            generations: Mutex::new(Generations {
                younger: Generation::default(),
                elder: Generation::default(),
            }),
            per_generation: usize::try_from(capacity).unwrap_or(usize::MAX).div_ceil(2),
        }
    }

    /// Notes that the key was valid by a call sent at this time.
    pub(crate) fn note(&self, key: &K, valid_at: Tick) {
        let mut generations = self.lock();
        if generations.younger.len() >= self.per_generation {
            generations.elder = mem::take(&mut generations.younger);
        }
        generations.younger.insert(key.clone(), valid_at);
    }

    pub(crate) fn contains(&self, key: &K, now: Tick) -> bool {
        let generations = self.lock();
        let valid_at = generations
            .younger
            .get(key)
            .or_else(|| generations.elder.get(key));
        valid_at.is_some_and(|&at| now.since(at) <= REMEMBERED)
    }

    /// Forgets the key: it is cached again, or invalid.
    pub(crate) fn forget(&self, key: &K) {
        let mut generations = self.lock();
        generations.younger.remove(key);
        generations.elder.remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, Generations<K>> {
        self.generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::test_key;

    #[test]
    fn a_key_is_remembered_for_a_day() {
        let key = |n: u32| test_key(n.to_string());
        let recently_valid = RecentlyValid::new(10);
        let at = Tick::ZERO.after(Duration::from_secs(1));
        recently_valid.note(&key(0), at);
        let a_day = Duration::from_secs(86_400);
        assert!(recently_valid.contains(&key(0), at.after(a_day)));
        assert!(!recently_valid.contains(&key(0), at.after(a_day + Duration::from_nanos(1))));
        for n in 1..=20 {
            recently_valid.note(&key(n), at);
        }
        let known = (0..=20)
            .filter(|&n| recently_valid.contains(&key(n), at))
            .count();
        assert!((5..=10).contains(&known), "{known}");
        assert!(recently_valid.contains(&key(20), at) && !recently_valid.contains(&key(0), at));
        // Some of these are in the elder generation.
        for n in 16..=20 {
            assert!(recently_valid.contains(&key(n), at), "{n}");
            recently_valid.forget(&key(n));
            assert!(!recently_valid.contains(&key(n), at), "{n}");
        }
    }
}
