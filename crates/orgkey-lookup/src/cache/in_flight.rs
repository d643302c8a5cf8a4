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
use super::store::KeyBuildHasher;
use super::sync::{Mutex, MutexGuard};
use crate::clock::Tick;
use crate::source::{IndexKey, Source};
use crate::upstream::CannotTell;

const SHARDS: usize = 64;

/// The outcome of a lookup.
pub(super) enum Completion<S: Source> {
    Valid(Arc<Entry<S>>),
    Invalid,
    CannotTell(CannotTell),
    /// The key was invalidated meanwhile. Waiters start another lookup.
    Cancelled,
}

/// A lookup in flight.
pub(super) struct Lookup<S: Source> {
    /// The version of the blocks and invalidations when it began.
    pub(crate) began: u64,
    /// The index of the upstream that it calls.
    pub(super) upstream: usize,
    /// What its entry keeps of the query.
    pub(super) mark: S::Mark,
    /// When its last call was sent. Zero before the first one.
    sent_at: AtomicU64,
    completion: watch::Sender<Option<Completion<S>>>,
}

impl<S: Source> Lookup<S> {
    fn new(began: u64, upstream: usize, mark: S::Mark) -> Self {
        Self {
            began,
            upstream,
            mark,
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
    pub(crate) fn complete(&self, completion: Completion<S>) {
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
    pub(crate) fn completion(&self) -> Option<Completion<S>> {
        self.completion.borrow().clone()
    }

    /// Waits for the outcome.
    pub(crate) async fn completed(&self) -> Completion<S> {
        let mut completion = self.completion.subscribe();
        match completion.wait_for(Option::is_some).await {
            Ok(completion) => completion.clone().unwrap_or(Completion::Cancelled),
            // Unreachable: `self` owns the sender.
            Err(_) => Completion::Cancelled,
        }
    }
}

/// The lookups in flight.
pub(super) struct InFlight<S: Source> {
    shards: Box<[Mutex<Shard<S>>]>,
}

/// The lookups of the keys of one shard. Requests join only the last lookup of a key.
pub(super) struct Shard<S: Source>(HashMap<S::Key, Vec<Arc<Lookup<S>>>, KeyBuildHasher>);

impl<S: Source> Clone for Completion<S> {
    fn clone(&self) -> Self {
        match self {
            Self::Valid(entry) => Self::Valid(Arc::clone(entry)),
            Self::Invalid => Self::Invalid,
            Self::CannotTell(cannot_tell) => Self::CannotTell(*cannot_tell),
            Self::Cancelled => Self::Cancelled,
        }
    }
}

impl<S: Source> Default for InFlight<S> {
    fn default() -> Self {
        let shard = || Mutex::new(Shard(HashMap::default()));
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
        }
    }
}

impl<S: Source> InFlight<S> {
    pub(crate) fn shard(&self, key: &S::Key) -> MutexGuard<'_, Shard<S>> {
        #[allow(clippy::cast_possible_truncation)] // Reduced to the number of shards first.
        let at = (key.bits() % SHARDS as u64) as usize;
        self.shards[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks each shard in turn.
    pub(crate) fn shards(&self) -> impl Iterator<Item = MutexGuard<'_, Shard<S>>> {
        self.shards
            .iter()
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Source> Shard<S> {
    /// Returns the in-flight lookup for the key, if its answer will be from a call sent after `oldest`.
    pub(crate) fn joinable(&self, key: &S::Key, oldest: Option<Tick>) -> Option<Arc<Lookup<S>>> {
        let lookup = self.0.get(key)?.last()?;
        let is_joinable =
            !lookup.is_complete() && oldest.is_none_or(|oldest| lookup.is_sent_after(oldest));
        is_joinable.then(|| Arc::clone(lookup))
    }

    pub(crate) fn start(
        &mut self,
        key: &S::Key,
        began: u64,
        upstream: usize,
        mark: S::Mark,
    ) -> Arc<Lookup<S>> {
        let lookup = Arc::new(Lookup::new(began, upstream, mark));
        self.0
            .entry(key.clone())
            .or_default()
            .push(Arc::clone(&lookup));
        lookup
    }

    pub(crate) fn remove(&mut self, key: &S::Key, lookup: &Arc<Lookup<S>>) {
        if let Some(lookups) = self.0.get_mut(key) {
            lookups.retain(|other| !Arc::ptr_eq(other, lookup));
            if lookups.is_empty() {
                self.0.remove(key);
            }
        }
    }

    /// Cancels the lookups of the key.
    pub(crate) fn cancel(&mut self, key: &S::Key) {
        for lookup in self.0.remove(key).into_iter().flatten() {
            lookup.complete(Completion::Cancelled);
        }
    }

    /// Cancels the lookups of the key, except those whose call was sent after this time. One that has sent none yet is
    /// cancelled, because it may have read the clock before.
    pub(crate) fn cancel_sent_until(&mut self, key: &S::Key, latest: Tick) {
        let Some(lookups) = self.0.get_mut(key) else {
            return;
        };
        lookups.retain(|lookup| {
            let is_newer = lookup.sent_at.load(Ordering::Acquire) > latest.0;
            if !is_newer {
                lookup.complete(Completion::Cancelled);
            }
            is_newer
        });
        if lookups.is_empty() {
            self.0.remove(key);
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
    use crate::cache::{Cache, LookupResult};
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::kit::{Facts, TestError, TestSource, request, test_key};
    use crate::source::{Answer, FailureKind, Invalid};

    #[test]
    fn removing_one_lookup_leaves_the_others() {
        let key = &test_key("12345678");
        let mut shard = Shard::<TestSource>(HashMap::default());
        let first = shard.start(key, 1, 0, ());
        let second = shard.start(key, 1, 0, ());
        shard.remove(key, &first);
        let joined = shard.joinable(key, None).unwrap();
        assert!(Arc::ptr_eq(&joined, &second));
        shard.remove(key, &first);
        assert_eq!(shard.0.len(), 1);
        shard.remove(key, &second);
        assert!(shard.0.is_empty());
    }

    #[tokio::test]
    async fn completed_lookups_leave_nothing_behind() {
        let source = TestSource(|name| match name {
            "valid" => Ok(Answer::Valid(Facts::default())),
            "invalid" => Ok(Answer::Invalid(Invalid::Definitive)),
            _ => Err(TestError(FailureKind::Misconfigured)),
        });
        let cache = Cache::new(source, Config::default(), Clock::System);
        for name in ["valid", "invalid", "unknown"] {
            let result = Arc::clone(&cache).look_up(request(name)).await;
            match name {
                "valid" => assert!(matches!(result, LookupResult::Serve(..)), "{result:?}"),
                "invalid" => assert!(matches!(result, LookupResult::Invalid), "{result:?}"),
                _ => assert!(matches!(result, LookupResult::CannotTell(_)), "{result:?}"),
            }
            let in_flight: usize = cache.in_flight.shards().map(|shard| shard.0.len()).sum();
            assert_eq!(in_flight, 0, "{result:?}");
        }
    }
}
