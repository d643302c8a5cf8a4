//! Control of a running cache: blocks, invalidations, and statistics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Cache;
use super::blocks::{BlockListFull, InvalidatedAt, Target};
use super::dependents::Dependent;
use super::stats::Stats;
use crate::source::{Found, Source};

/// Blocks and invalidations apply to the first request that begins after the method has returned, whether or not the key is
/// cached. The result of a lookup in flight is discarded.
impl<S: Source> Cache<S> {
    /// Blocks. Returns the version of the update, as all methods that invalidate do.
    pub fn block(&self, target: Target<'_, &S::Key>) -> Result<u64, BlockListFull> {
        let version = self.blocks.block(target, self.invalidated_now())?;
        if let Target::Key(key) = target {
            self.forget(key);
        }
        Ok(version)
    }

    /// Unblocks. Returns `false` if the target was not blocked.
    pub fn unblock(&self, target: Target<'_, &S::Key>) -> bool {
        self.blocks.unblock(target)
    }

    /// Invalidates a key, whether it is cached as valid or as invalid, or all keys with an identifier, or all keys of an
    /// organization and what dependent caches contain for it.
    pub fn invalidate(&self, target: Target<'_, &S::Key>) -> u64 {
        let version = self.invalidate_results(target);
        match target {
            Target::Key(key) => self.forget(key),
            Target::KeyId(_) => {}
            Target::Organization(org) => self.dependents.invalidate_organization(org),
        }
        version
    }

    /// Invalidates the valid results only, and leaves a key cached as invalid if it is.
    pub fn invalidate_results(&self, target: Target<'_, &S::Key>) -> u64 {
        self.blocks.invalidate([target], self.invalidated_now())
    }

    /// Invalidates everything, invalid keys and dependent caches included.
    pub fn invalidate_all(&self) -> u64 {
        let version = self.blocks.invalidate_all(self.clock.now());
        self.dependents.invalidate_all();
        for mut shard in self.in_flight.shards() {
            shard.cancel_all();
        }
        version
    }

    /// Returns the present version of the blocks and invalidations.
    pub fn version(&self) -> u64 {
        self.blocks.version()
    }

    /// Makes all results due for a refresh, because updates may be missing. Requests are served meanwhile, and each key is
    /// verified again by its next request after a time of up to [`REFRESH_ALL`](super::REFRESH_ALL), which differs by key.
    pub fn refresh_all(&self) {
        self.blocks.refresh_all(self.clock.now());
    }

    /// Divides the rate of calls to the upstreams by the number of nodes that share it, at least 1.
    pub fn share_calls(&self, nodes: u32) {
        for at in &self.upstreams {
            at.upstream.share_calls(nodes);
        }
    }

    /// Adds a cache that is invalidated together with this one, until it is dropped. Must be called before it looks up anything.
    pub fn add_dependent(&self, dependent: &Arc<impl Dependent>) {
        let dependent = Arc::downgrade(dependent);
        self.dependents.add(dependent);
    }

    /// Returns the counters of the cache and its size.
    pub fn stats(&self) -> Stats {
        Stats {
            entries: self.store.len(),
            invalid_entries: self.invalid_keys.len(),
            hits: self.counters.of(Found::Fresh),
            stale_hits: self.counters.of(Found::Stale),
            misses: self.counters.of(Found::Miss),
            invalid_hits: self.counters.of(Found::Invalid),
            coalesced: self.coalesced.load(Ordering::Relaxed),
            evictions: self.store.evictions(),
            upstream: self.upstream(0),
        }
    }

    pub(super) fn invalidated_now(&self) -> InvalidatedAt {
        InvalidatedAt {
            now: self.clock.now(),
            holds: self.config.lifetimes.hard + self.config.lookup_deadline,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::config::{Config, Lifetimes};
    use crate::kit::TestSource;
    use crate::source::{Answer, Invalid};

    #[test]
    fn invalidations_outlive_results_in_flight() {
        let config = Config {
            lifetimes: Lifetimes {
                soft: Duration::from_secs(60),
                hard: Duration::from_secs(600),
            },
            lookup_deadline: Duration::from_secs(20),
            ..Config::default()
        };
        let source = TestSource(|_| Ok(Answer::Invalid(Invalid::Definitive)));
        let cache = Cache::new(source, config, Clock::System);
        let holds = cache.invalidated_now().holds;
        assert_eq!(holds, Duration::from_secs(620));
    }
}
