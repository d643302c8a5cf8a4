//! A second look at a result that a request was authenticated with: before a request that waited goes on, and for as long
//! as its stream is open.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Cache;
use super::blocks::BlockStatus;
use super::entry::{Entry, Freshness};
use super::watchers::Watchers;
use crate::clock::{Clock, Tick};

/// Timers stop while the machine sleeps and our clock does not, so the clock is read this often.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What an entry knows of its cache: it does not keep the cache alive, and the times of an entry outlive it.
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
    /// The key is blocked or has expired, or the issuer has said since that it is invalid.
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
    /// Looks again whether the result may be used. An entry that belongs to no cache is always valid.
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

    /// Waits until the entry's key may not be served any more. Never ends for an entry that belongs to no cache.
    pub(crate) async fn ended(mut self: Arc<Self>) {
        let Some(at) = self.cache.clone() else {
            return std::future::pending().await;
        };
        let watch = at.watchers.watch(self.digest);
        loop {
            // Made before the look: it hears of every change from here on, polled or not.
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
            let wait = self.hard_until().since(now).min(LOOK_EVERY);
            // Woken or not, the loop looks again.
            drop(tokio::time::timeout(wait, changed).await);
        }
    }

    /// By the entry's own times alone.
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
            // An invalidation is for later requests: this one was authenticated before it, like those in their handlers.
            return Standing::Valid;
        }
        match self.servable(entry.digest, None, now) {
            // The request was authenticated, and perhaps authorized, on the older facts.
            Some(cached) if cached.sent_at >= entry.sent_at && !cached.says_the_same_as(entry) => {
                Standing::Unknown
            }
            Some(_) => Standing::Valid,
            // Evicted, or invalidated this very moment.
            None if self.recently_valid.contains(entry.digest, now)
                || self.blocks.status(entry) == BlockStatus::Invalidated =>
            {
                Standing::Valid
            }
            // The issuer has said that the key is invalid, and that answer is no longer cached.
            None => Standing::Unknown,
        }
    }

    /// The entry that a stream goes on with, if it may go on.
    fn current(&self, entry: Arc<Entry>, now: Tick) -> Option<Arc<Entry>> {
        match self.servable(entry.digest, None, now) {
            // A refresh has brought younger facts: it is their end that counts.
            Some(cached) if cached.has_owner_of(&entry) => return Some(cached),
            // The key is another's by now.
            Some(cached) if cached.sent_at >= entry.sent_at => return None,
            _ => {}
        }
        let may_go_on = self.blocks.status(&entry) == BlockStatus::Clear
            && entry.standing(now) == Standing::Valid
            && !self.is_invalid(entry.digest, now);
        may_go_on.then_some(entry)
    }
}
