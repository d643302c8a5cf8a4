//! Checks the result that a request was authenticated with again: before a request that waited goes on, and while its stream
//! is open.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Cache;
use super::blocks::BlockStatus;
use super::entry::{Entry, Freshness};
use super::watchers::Watchers;
use crate::clock::{Clock, Tick};

/// Timers stop while the machine sleeps, and the clock does not, so the clock is read this often.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// A weak reference to the cache of an entry, and what a stream needs after the cache was dropped.
#[derive(Debug)]
pub(crate) struct CacheRef {
    cache: Weak<Cache>,
    clock: Clock,
    watchers: Arc<Watchers>,
}

/// Whether a result may still be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Valid,
    /// The key is blocked or expired, or the issuer has found it invalid since.
    Invalid,
    /// The result is past its hard TTL, or differs from a newer one.
    Unknown,
}

impl CacheRef {
    pub(super) fn new(cache: Weak<Cache>, clock: Clock, watchers: Arc<Watchers>) -> Self {
        Self {
            cache,
            clock,
            watchers,
        }
    }
}

impl Entry {
    /// Checks again whether the result may be used. An entry that belongs to no cache is always valid.
    pub(crate) fn recheck(&self) -> Standing {
        let Some(at) = &self.cache else {
            return Standing::Valid;
        };
        let now = at.clock.now();
        match at.cache.upgrade() {
            Some(cache) => cache.recheck(self, now),
            None => self.standing(now),
        }
    }

    /// Waits until the key may not be used any more. Never completes for an entry that belongs to no cache.
    pub(crate) async fn ended(mut self: Arc<Self>) {
        let Some(at) = self.cache.clone() else {
            return std::future::pending().await;
        };
        let watch = at.watchers.watch(self.digest);
        loop {
            // Created before the state is read, so that it is notified of every change from here on.
            let changed = watch.changed();
            let now = at.clock.now();
            let current = match at.cache.upgrade() {
                Some(cache) => cache.current(self, now),
                None => (self.standing(now) == Standing::Valid).then_some(self),
            };
            match current {
                Some(entry) => self = entry,
                None => return,
            }
            let wait = self.hard_until().since(now).min(CHECK_EVERY);
            // The state is read again after a notification or the timeout.
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

impl Cache {
    fn recheck(&self, entry: &Entry, now: Tick) -> Standing {
        let status = self.blocks.status(entry);
        if status == BlockStatus::Blocked {
            return Standing::Invalid;
        }
        match entry.standing(now) {
            Standing::Valid => {}
            ended => return ended,
        }
        if self.is_invalid(entry.digest, now) {
            return Standing::Invalid;
        }
        if status == BlockStatus::Invalidated {
            // An invalidation applies to later requests. This one was authenticated before it.
            return Standing::Valid;
        }
        match self.servable(entry.digest, None, now) {
            // The request was authenticated, and perhaps authorized, with the older result.
            Some(cached) if cached.sent_at >= entry.sent_at && !cached.is_equivalent_to(entry) => {
                Standing::Unknown
            }
            Some(_) => Standing::Valid,
            // Evicted, or invalidated at this moment.
            None if self.recently_valid.contains(entry.digest, now)
                || self.blocks.status(entry) == BlockStatus::Invalidated =>
            {
                Standing::Valid
            }
            // The issuer has found the key invalid, and that answer is no longer cached.
            None => Standing::Unknown,
        }
    }

    /// Returns the entry that a stream continues with, if it may continue.
    fn current(&self, entry: Arc<Entry>, now: Tick) -> Option<Arc<Entry>> {
        match self.servable(entry.digest, None, now) {
            // A refresh has replaced the entry.
            Some(cached) if cached.has_owner_of(&entry) => return Some(cached),
            // The key belongs to another organization or user now.
            Some(cached) if cached.sent_at >= entry.sent_at => return None,
            _ => {}
        }
        let may_continue = self.blocks.status(&entry) == BlockStatus::Clear
            && entry.standing(now) == Standing::Valid
            && !self.is_invalid(entry.digest, now);
        may_continue.then_some(entry)
    }
}
