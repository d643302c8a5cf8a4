//! The streams that wait for the end of their keys. A change of one key wakes the streams of that key only.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::store::DigestBuildHasher;
use super::sync::{Mutex, MutexGuard};
use crate::key::KeyDigest;

type Watched = HashMap<KeyDigest, Signal, DigestBuildHasher>;

/// The watched keys. Empty while no stream is open.
pub(super) struct Watchers(Mutex<Watched>);

struct Signal {
    changed: Arc<Notify>,
    watches: usize,
}

impl Default for Watchers {
    fn default() -> Self {
        Self(Mutex::new(Watched::default()))
    }
}

impl Watchers {
    /// Watches a key until the watch is dropped.
    pub(super) fn watch(&self, digest: KeyDigest) -> Watch<'_> {
        let mut watched = self.lock();
        let signal = watched.entry(digest).or_insert_with(|| Signal {
            changed: Arc::default(),
            watches: 0,
        });
        signal.watches += 1;
        Watch {
            watchers: self,
            digest,
            changed: Arc::clone(&signal.changed),
        }
    }

    /// Wakes the watches of this key.
    pub(super) fn wake(&self, digest: KeyDigest) {
        let changed = self
            .lock()
            .get(&digest)
            .map(|signal| Arc::clone(&signal.changed));
        // Not under the lock, because a waker is code of another crate.
        if let Some(changed) = changed {
            changed.notify_waiters();
        }
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

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchers").finish_non_exhaustive()
    }
}

/// A watch of a key.
pub(super) struct Watch<'a> {
    watchers: &'a Watchers,
    digest: KeyDigest,
    changed: Arc<Notify>,
}

impl Watch<'_> {
    /// Returns a future that completes at the next change after this call, whether or not it was polled before.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut watched = self.watchers.lock();
        if let Some(signal) = watched.get_mut(&self.digest) {
            signal.watches -= 1;
            if signal.watches == 0 {
                watched.remove(&self.digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::key::DigestSecret;

    #[test]
    fn a_change_wakes_the_watches_of_its_key() {
        let secret = DigestSecret::draw().unwrap();
        let (one, two) = (secret.digest("one"), secret.digest("two"));
        let watchers = Watchers::default();
        let open = [one, one, two].map(|digest| watchers.watch(digest));
        let woken = |wake: &dyn Fn()| {
            let changed = open.each_ref().map(Watch::changed);
            wake();
            changed.map(|changed| changed.now_or_never().is_some())
        };
        assert_eq!(woken(&|| watchers.wake(one)), [true, true, false]);
        assert_eq!(woken(&|| watchers.wake(two)), [false, false, true]);
        let unwatched = secret.digest("three");
        assert_eq!(woken(&|| watchers.wake(unwatched)), [false; 3]);
        assert_eq!(woken(&|| watchers.wake_all()), [true; 3]);
    }

    #[test]
    fn a_key_is_forgotten_with_its_last_watch() {
        let digest = DigestSecret::draw().unwrap().digest("one");
        let watchers = Watchers::default();
        let (first, second) = (watchers.watch(digest), watchers.watch(digest));
        drop(first);
        let changed = second.changed();
        watchers.wake(digest);
        assert!(changed.now_or_never().is_some());
        drop(second);
        assert!(watchers.lock().is_empty());
    }
}
