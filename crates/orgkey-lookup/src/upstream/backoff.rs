//! The backoff of keys with invalid responses. It delays each such key, and no other key.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Tick;
use crate::source::IndexKey;

const MIN_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(60);
/// The delay of a key that is not presented for this long after its wait starts over.
const RESET_AFTER: Duration = Duration::from_secs(60);
/// Keys beyond this many are not delayed.
const MAX_KEYS: usize = 10_000;

pub(super) struct KeyBackoff<K> {
    keys: Mutex<HashMap<K, Delay>>,
}

#[derive(Clone, Copy, Debug)]
struct Delay {
    wait: Duration,
    until: Tick,
}

impl<K> Default for KeyBackoff<K> {
    fn default() -> Self {
        Self {
            keys: Mutex::default(),
        }
    }
}

impl<K: IndexKey> KeyBackoff<K> {
    /// Returns how long the key has to wait.
    pub(super) fn check(&self, key: &K, now: Tick) -> Result<(), Duration> {
        match self.keys().get(key) {
            Some(delay) if now < delay.until => Err(delay.until.since(now)),
            _ => Ok(()),
        }
    }

    /// Delays the key: by 1 s, doubling to 60 s. Returns the delay.
    pub(super) fn delay(&self, key: &K, now: Tick) -> Duration {
        let mut keys = self.keys();
        let is_current = |delay: &Delay| now < delay.until.after(RESET_AFTER);
        if keys.len() >= MAX_KEYS && !keys.contains_key(key) {
            keys.retain(|_, delay| is_current(delay));
            if keys.len() >= MAX_KEYS {
                return MIN_DELAY;
            }
        }
        let before = keys.get(key).filter(|delay| is_current(delay));
        let wait = before.map_or(MIN_DELAY, |delay| (delay.wait * 2).min(MAX_DELAY));
        let until = now.after(wait);
        keys.insert(key.clone(), Delay { wait, until });
        wait
    }

    /// Forgets the key: the issuer answered.
    pub(super) fn forget(&self, key: &K) {
        self.keys().remove(key);
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<K, Delay>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kit::test_key;

    fn at(seconds: u64) -> Tick {
        Tick::ZERO.after(Duration::from_secs(seconds))
    }

    #[test]
    fn delays_double_and_end_with_an_answer() {
        let backoff = KeyBackoff::default();
        let (key, other) = (test_key("1"), test_key("2"));
        let mut now = at(0);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let wait = Duration::from_secs(seconds);
            assert_eq!(backoff.delay(&key, now), wait);
            assert_eq!(backoff.check(&key, now), Err(wait));
            assert_eq!(backoff.check(&other, now), Ok(()));
            now = now.after(wait);
            assert_eq!(backoff.check(&key, now), Ok(()));
        }
        assert_eq!(backoff.delay(&key, now.after(MAX_DELAY / 2)), MAX_DELAY);
        let forgotten = now.after(MAX_DELAY / 2 + MAX_DELAY + RESET_AFTER);
        assert_eq!(backoff.delay(&key, forgotten), MIN_DELAY);
        backoff.forget(&key);
        assert_eq!(backoff.check(&key, forgotten), Ok(()));
        assert_eq!(backoff.keys().len(), 0);
    }

    #[test]
    fn memory_is_bounded_and_old_keys_make_room() {
        let backoff = KeyBackoff::default();
        let key = |n: usize| test_key(n.to_string());
        for n in 0..MAX_KEYS + 10 {
            backoff.delay(&key(n), at(0));
        }
        assert_eq!(backoff.keys().len(), MAX_KEYS);
        assert_eq!(backoff.check(&key(MAX_KEYS), at(0)), Ok(()));
        backoff.delay(&key(MAX_KEYS), at(1 + RESET_AFTER.as_secs()));
        assert_eq!(backoff.keys().len(), 1);
    }
}
