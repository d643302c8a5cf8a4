//! The streams that wait for the end of their keys. A change of one key wakes the streams of that key only.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::store::KeyBuildHasher;
use super::sync::{Mutex, MutexGuard};
use crate::clock::Tick;
use crate::source::IndexKey;

type Watched<K> = HashMap<K, Signal, KeyBuildHasher>;

/// The watched keys. Empty while no stream is open.
pub(super) struct Watchers<K>(Mutex<Watched<K>>);

struct Signal {
    changed: Arc<Notify>,
    /// When the key was last found invalid. The result in the cache may be gone when a stream is polled again.
    rejected_at: Option<Tick>,
    watches: usize,
}

impl<K> Default for Watchers<K> {
    fn default() -> Self {
        Self(Mutex::new(Watched::default()))
    }
}

impl<K: IndexKey> Watchers<K> {
    /// Watches a key until the watch is dropped.
    pub(super) fn watch(&self, key: &K) -> Watch<'_, K> {
        let mut watched = self.lock();
        let signal = watched.entry(key.clone()).or_insert_with(|| Signal {
            changed: Arc::default(),
            rejected_at: None,
            watches: 0,
        });
        signal.watches += 1;
        Watch {
            watchers: self,
            key: key.clone(),
            changed: Arc::clone(&signal.changed),
        }
    }

    /// Wakes the watches of this key.
    pub(super) fn wake(&self, key: &K) {
        let changed = self
            .lock()
            .get(key)
            .map(|signal| Arc::clone(&signal.changed));
        // Not under the lock, because a waker is code of another crate.
        if let Some(changed) = changed {
            changed.notify_waiters();
        }
    }

    /// Wakes the watches of a key that was found invalid at this time.
    pub(super) fn reject(&self, key: &K, at: Tick) {
        if let Some(signal) = self.lock().get_mut(key) {
            signal.rejected_at = signal.rejected_at.max(Some(at));
        }
        self.wake(key);
    }

    /// Wakes all watches.
    pub(super) fn wake_all(&self) {
        let all: Vec<_> = self
            .lock()
            .values()
            .map(|signal| Arc::clone(&signal.changed))
            .collect();
        for changed in all {
            changed.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watched<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watch of a key.
pub(super) struct Watch<'a, K: IndexKey> {
    watchers: &'a Watchers<K>,
    key: K,
    changed: Arc<Notify>,
}

impl<K: IndexKey> Watch<'_, K> {
    /// Returns a future that completes at the next change after this call, whether or not it was polled before.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Whether the key was found invalid since this time, while it was watched.
    pub(super) fn is_rejected_since(&self, time: Tick) -> bool {
        let watched = self.watchers.lock();
        let signal = watched.get(&self.key);
        signal.is_some_and(|signal| signal.rejected_at >= Some(time))
    }
}

impl<K: IndexKey> Drop for Watch<'_, K> {
    fn drop(&mut self) {
        let mut watched = self.watchers.lock();
        if let Some(signal) = watched.get_mut(&self.key) {
            signal.watches -= 1;
            if signal.watches == 0 {
                watched.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::kit::test_key;

    #[test]
    fn a_change_wakes_the_watches_of_its_key() {
        let (one, two) = (test_key("one"), test_key("two"));
        let watchers = Watchers::default();
        let open = [&one, &one, &two].map(|key| watchers.watch(key));
        let woken = |wake: &dyn Fn()| {
            let changed = open.each_ref().map(Watch::changed);
            wake();
            changed.map(|changed| changed.now_or_never().is_some())
        };
        assert_eq!(woken(&|| watchers.wake(&one)), [true, true, false]);
        assert_eq!(woken(&|| watchers.wake(&two)), [false, false, true]);
        let unwatched = test_key("three");
        assert_eq!(woken(&|| watchers.wake(&unwatched)), [false; 3]);
        assert_eq!(woken(&|| watchers.wake_all()), [true; 3]);
    }

    #[test]
    fn a_key_is_forgotten_with_its_last_watch() {
        let key = test_key("one");
        let watchers = Watchers::default();
        let (first, second) = (watchers.watch(&key), watchers.watch(&key));
        drop(first);
        let changed = second.changed();
        watchers.wake(&key);
        assert!(changed.now_or_never().is_some());
        drop(second);
        assert!(watchers.lock().is_empty());
    }
}
