//! Checks the result that a request was authenticated with again: before a request that waited goes on, and while its stream
//! is open. A stream may also look its key up again.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use super::Cache;
use super::blocks::BlockStatus;
use super::entry::{Entry, Freshness, shorten};
use super::look_up::{Joined, LookupRequest, LookupResult};
use super::watchers::{Watch, Watchers};
use crate::clock::{Clock, Tick};
use crate::source::{Source, Value};
use crate::upstream::CannotTell;

/// Timers stop while the machine sleeps, and the clock does not, so the clock is read this often.
const CHECK_EVERY: Duration = Duration::from_secs(10);
/// The shortest time between two lookups of a stream.
const MIN_PERIOD: Duration = Duration::from_secs(1);

/// A weak reference to the cache of an entry, and what a stream needs after the cache was dropped.
pub(super) struct CacheRef<S: Source> {
    cache: Weak<Cache<S>>,
    clock: Clock,
    watchers: Arc<Watchers<S::Key>>,
}

/// Whether a result may still be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may be used.
    Valid,
    /// The key is blocked or expired, or the issuer has found it invalid since.
    Invalid,
    /// The result is past its hard TTL, or differs from a newer one.
    Unknown,
}

impl<S: Source> CacheRef<S> {
    pub(super) fn new(
        cache: Weak<Cache<S>>,
        clock: Clock,
        watchers: Arc<Watchers<S::Key>>,
    ) -> Self {
        Self {
            cache,
            clock,
            watchers,
        }
    }

    /// Returns a future that completes when something changes for the key after this call, or when a test's clock jumps.
    fn changed(&self, watch: &Watch<'_, S::Key>) -> impl Future<Output = ()> {
        let changed = watch.changed();
        let jumped = self.clock.jumped();
        async move {
            let mut changed = pin!(changed);
            let mut jumped = pin!(jumped);
            poll_fn(|cx| {
                let jumped = jumped.as_mut().as_pin_mut();
                if jumped.is_some_and(|jumped| jumped.poll(cx).is_ready()) {
                    return Poll::Ready(());
                }
                changed.as_mut().poll(cx)
            })
            .await;
        }
    }
}

impl<S: Source> Entry<S> {
    /// Checks again whether the result may be used. An entry that belongs to no cache is always valid.
    pub fn recheck(&self) -> Standing {
        let Some(at) = &self.cache else {
            return Standing::Valid;
        };
        let now = at.clock.now();
        match at.cache.upgrade() {
            Some(cache) => cache.recheck(self, now),
            None => self.standing(now),
        }
    }

    /// Returns whether the entry belongs to no cache.
    pub fn is_detached(&self) -> bool {
        self.cache.is_none()
    }

    /// Returns whether the entry belongs to this cache.
    pub fn belongs_to(&self, cache: &Cache<S>) -> bool {
        let at = self.cache.as_ref();
        at.is_some_and(|at| Arc::ptr_eq(at, &cache.me))
    }

    /// Returns whether the key may still be used, as far as is known without a lookup. `false` if the cache has forgotten the
    /// key. An entry that belongs to no cache is always valid.
    pub fn is_still_valid(self: &Arc<Self>) -> bool {
        let Some(at) = &self.cache else {
            return true;
        };
        let now = at.clock.now();
        match at.cache.upgrade() {
            Some(cache) => cache.is_still_valid(self, now),
            None => self.standing(now) == Standing::Valid,
        }
    }

    /// Looks the key up now: accepts only the answer to a call that is sent after this one.
    pub async fn look_up_again(self: Arc<Self>, query: S::Query) -> LookupResult<S> {
        let Some(at) = &self.cache else {
            let now = self.sent_at;
            return LookupResult::Serve(self, now);
        };
        let Some(cache) = at.cache.upgrade() else {
            return LookupResult::CannotTell(CannotTell::unavailable(MIN_PERIOD));
        };
        let oldest = Some(cache.clock.now());
        let request = LookupRequest::new(query, self.key.clone(), oldest);
        cache.look_up(request).await
    }

    /// Waits until the key may not be used any more. Never completes for an entry that belongs to no cache.
    ///
    /// The first poll also finds an invalid answer from before it, and completes if the cache has forgotten the key.
    pub async fn ended(mut self: Arc<Self>) {
        let Some(at) = self.cache.clone() else {
            return std::future::pending().await;
        };
        let watch = at.watchers.watch(&self.key);
        let cache = at.cache.upgrade();
        if cache.is_some_and(|cache| !cache.is_remembered(&self.key, at.clock.now())) {
            return;
        }
        loop {
            // Created before the state is read, so that it is notified of every change from here on.
            let changed = at.changed(&watch);
            let now = at.clock.now();
            let current = match at.cache.upgrade() {
                Some(cache) => cache.current(&self, now),
                None => (self.standing(now) == Standing::Valid).then_some(self),
            };
            match current {
                // The stream may not have been polled while the invalid answer was cached.
                Some(entry) if !watch.is_rejected_since(entry.sent_at) => self = entry,
                _ => return,
            }
            let wait = self.hard_until().since(now).min(CHECK_EVERY);
            // The state is read again after a notification or the timeout.
            drop(tokio::time::timeout(wait, changed).await);
        }
    }

    /// Like [`ended`](Self::ended), and looks the key up again when its result is older than `period`, shortened at random by
    /// up to 15 %.
    ///
    /// A lookup that fails is repeated after a twelfth of the period. An invalidated key is looked up at once; the future
    /// completes if that fails.
    pub async fn ended_with_lookups(mut self: Arc<Self>, query: S::Query, period: Duration) {
        let Some(at) = self.cache.clone() else {
            return std::future::pending().await;
        };
        let period = period.max(MIN_PERIOD);
        let retry = (period / 12).max(MIN_PERIOD);
        let watch = at.watchers.watch(&self.key);
        let now = at.clock.now();
        if let Some(cache) = at.cache.upgrade()
            && !cache.is_remembered(&self.key, now)
            && !cache.is_only_invalidated(&self, now)
        {
            return;
        }
        let mut due = self.sent_at.after(shorten(period));
        loop {
            let changed = at.changed(&watch);
            let now = at.clock.now();
            let mut wait = CHECK_EVERY;
            if let Some(cache) = at.cache.upgrade() {
                let request = |oldest| LookupRequest::new(query.clone(), self.key.clone(), oldest);
                let current = match cache.current(&self, now) {
                    Some(entry) if watch.is_rejected_since(entry.sent_at) => return,
                    Some(entry) => entry,
                    None if cache.is_only_invalidated(&self, now) => {
                        match Arc::clone(&cache).look_up(request(None)).await {
                            LookupResult::Serve(entry, _)
                                if entry.value.has_owner_of(&self.value) =>
                            {
                                entry
                            }
                            _ => return,
                        }
                    }
                    None => return,
                };
                if current.sent_at > self.sent_at {
                    due = current.sent_at.after(shorten(period));
                }
                if now >= due && current.has_failed_lately(now) {
                    // Another stream or a request has just failed.
                    due = now.after(retry);
                }
                if now >= due {
                    // Like a request: a stale result is refreshed, and a fresh one takes a turn of its organization.
                    let is_fresh = now < current.fresh_until();
                    let request = request(is_fresh.then_some(current.sent_at));
                    due = now.after(match cache.join(&request, true) {
                        Ok(Joined::Cached(LookupResult::Invalid)) => return,
                        Ok(_) => retry,
                        Err(cannot_tell) => cannot_tell.retry_after.max(retry),
                    });
                }
                self = current;
                wait = wait.min(due.since(now));
            } else if self.standing(now) != Standing::Valid {
                return;
            }
            let wait = wait.min(self.hard_until().since(now));
            drop(tokio::time::timeout(wait, changed).await);
        }
    }

    /// Returns the standing by the times of the entry alone.
    fn standing(&self, now: Tick) -> Standing {
        match self.freshness(now) {
            Freshness::Fresh | Freshness::Stale | Freshness::Overdue => Standing::Valid,
            Freshness::Expired => Standing::Invalid,
            Freshness::Gone => Standing::Unknown,
        }
    }
}

impl<S: Source> Cache<S> {
    fn recheck(&self, entry: &Entry<S>, now: Tick) -> Standing {
        let status = self.blocks.status(entry);
        if status == BlockStatus::Blocked {
            return Standing::Invalid;
        }
        match entry.standing(now) {
            Standing::Valid => {}
            ended => return ended,
        }
        if self.is_invalid(&entry.key, now) {
            return Standing::Invalid;
        }
        if status == BlockStatus::Invalidated {
            // An invalidation applies to later requests. This one was authenticated before it.
            return Standing::Valid;
        }
        match self.servable(&entry.key, None, now) {
            // The request was authenticated, and perhaps authorized, with the older result.
            Some(cached)
                if cached.sent_at >= entry.sent_at
                    && !cached.value.is_equivalent_to(&entry.value) =>
            {
                Standing::Unknown
            }
            Some(_) => Standing::Valid,
            // Evicted, or invalidated at this moment.
            None if self.recently_valid.contains(&entry.key, now)
                || self.blocks.status(entry) == BlockStatus::Invalidated =>
            {
                Standing::Valid
            }
            // The issuer has found the key invalid, and that answer is no longer cached.
            None => Standing::Unknown,
        }
    }

    /// Returns the entry that a stream continues with, if it may continue.
    fn current(&self, entry: &Arc<Entry<S>>, now: Tick) -> Option<Arc<Entry<S>>> {
        match self.servable(&entry.key, None, now) {
            // A refresh has replaced the entry.
            Some(cached) if cached.value.has_owner_of(&entry.value) => return Some(cached),
            // The key belongs to another organization or user now.
            Some(cached) if cached.sent_at >= entry.sent_at => return None,
            _ => {}
        }
        let may_continue = self.blocks.status(entry) == BlockStatus::Clear
            && entry.standing(now) == Standing::Valid
            && !self.is_invalid(&entry.key, now);
        may_continue.then(|| Arc::clone(entry))
    }

    /// Like [`current`](Self::current), for a caller that may have missed an invalid answer.
    fn is_still_valid(&self, entry: &Arc<Entry<S>>, now: Tick) -> bool {
        self.current(entry, now).is_some() && self.is_remembered(&entry.key, now)
    }

    /// Returns whether the key was valid by the last answer. An invalid answer is cached for seconds, and removes the key
    /// from both.
    fn is_remembered(&self, key: &S::Key, now: Tick) -> bool {
        self.servable(key, None, now).is_some() || self.recently_valid.contains(key, now)
    }

    /// Returns whether the key may not be used only because it was invalidated.
    fn is_only_invalidated(&self, entry: &Entry<S>, now: Tick) -> bool {
        self.blocks.status(entry) == BlockStatus::Invalidated
            && entry.standing(now) == Standing::Valid
            && !self.is_invalid(&entry.key, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::tests::{cache, insert};
    use crate::kit::Facts;

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_soon_after_a_suspend() {
        let (cache, clock) = cache();
        let entry = insert(&cache, Facts::default(), cache.clock.now());
        let stream = tokio::spawn(Arc::clone(&entry).ended());
        tokio::time::sleep(Duration::from_millis(1)).await;
        clock.jump_unnoticed(Duration::from_secs(3_600));
        let woke = tokio::time::Instant::now();
        stream.await.unwrap();
        let took = woke.elapsed();
        assert!(took <= Duration::from_secs(10), "{took:?}");
    }
}
