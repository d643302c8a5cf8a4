//! Reconciliation: compares the cached keys with an issuer's list of keys.
//!
//! A list is older than a verification that was sent while it was read, so only keys verified before are compared. And a list is
//! not the issuer's answer about a key, so a key that differs is invalidated: the next request verifies it again.

use std::sync::Arc;

use super::Cache;
use super::blocks::{BlockStatus, Target};
use super::entry::{Entry, Freshness};
use crate::clock::Tick;
use crate::source::Source;

/// Keys invalidated at a time. After each batch, every cached key is compared with the tables of invalidations once.
const BATCH: usize = 1_000;

impl<S: Source> Cache<S> {
    /// Returns the cached entries that may be served and whose values are selected, and the present time.
    pub fn cached(&self, select: impl Fn(&S::Value) -> bool) -> (Vec<Arc<Entry<S>>>, Tick) {
        // Read first, so that a key verified while the store is read counts as verified later.
        let now = self.clock.now();
        let mut entries = self.store.all();
        entries.retain(|entry| {
            select(&entry.value)
                && entry.sent_at < now
                && !matches!(entry.freshness(now), Freshness::Expired | Freshness::Gone)
                && self.blocks.status(entry) == BlockStatus::Clear
        });
        (entries, now)
    }

    /// Invalidates these keys, except those verified since. Returns their number.
    pub async fn invalidate_cached(&self, keys: &[S::Key], since: Tick) -> usize {
        let mut invalidated = 0;
        for batch in keys.chunks(BATCH) {
            let is_older = |key: &&S::Key| {
                let cached = self.store.get(key);
                cached.is_some_and(|cached| cached.sent_at < since)
            };
            let keys: Vec<_> = batch.iter().filter(is_older).cloned().collect();
            // For results outside of the store: those of streams, waiters and in-flight lookups.
            let targets = keys.iter().map(Target::Key);
            self.blocks.invalidate(targets, self.invalidated_now());
            for key in &keys {
                self.forget(key);
            }
            invalidated += keys.len();
            tokio::task::yield_now().await;
        }
        invalidated
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::cache::tests::cache;
    use crate::clock::nanos;
    use crate::kit::{Facts, TestKey, TestSource, test_key};

    const SOON: Duration = Duration::from_secs(1);

    /// Caches a result of this age, whose key has its name as identifier.
    fn insert(cache: &Cache<TestSource>, name: &str, age: Duration) {
        insert_facts(cache, name, Facts::of("org_1", name), age);
    }

    fn insert_facts(cache: &Cache<TestSource>, name: &str, facts: Facts, age: Duration) {
        let now = cache.clock.now();
        cache.store.insert(Arc::new(Entry::new(
            facts,
            test_key(name),
            (),
            Tick(now.0 - nanos(age)),
            cache.blocks.version(),
            cache.config.lifetimes,
            now,
            None,
        )));
    }

    fn names(cached: &[Arc<Entry<TestSource>>]) -> Vec<&str> {
        let mut names: Vec<_> = cached
            .iter()
            .map(|entry| entry.value.key_id.as_deref().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    fn keys_of(cached: &[Arc<Entry<TestSource>>]) -> Vec<TestKey> {
        cached.iter().map(|entry| entry.key).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn selected_keys_that_may_be_served_are_returned() {
        let (cache, _) = cache();
        for name in ["id_1", "id_2", "other", "blocked", "invalidated"] {
            insert(&cache, name, SOON);
        }
        insert(&cache, "gone", Duration::from_secs(900));
        let expired = Facts {
            expires_at: Some(SystemTime::UNIX_EPOCH),
            ..Facts::of("org_1", "expired")
        };
        insert_facts(&cache, "expired", expired, SOON);
        cache.block(Target::KeyId("blocked")).unwrap();
        cache.invalidate(Target::KeyId("invalidated"));
        let (cached, now) = cache.cached(|facts| facts.key_id.as_deref() != Some("other"));
        assert_eq!(names(&cached), ["id_1", "id_2"]);
        assert_eq!(now, cache.clock.now());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_verified_since_are_not_invalidated() {
        let (cache, clock) = cache();
        insert(&cache, "older", Duration::from_nanos(1));
        insert(&cache, "equal", Duration::ZERO);
        let (cached, since) = cache.cached(|_| true);
        assert_eq!(names(&cached), ["older"]);

        clock.jump(Duration::from_nanos(1));
        insert(&cache, "later", Duration::ZERO);
        clock.jump(SOON);
        let (cached, _) = cache.cached(|_| true);
        assert_eq!(names(&cached), ["equal", "later", "older"]);
        assert_eq!(cache.invalidate_cached(&keys_of(&cached), since).await, 1);
        assert_eq!(names(&cache.cached(|_| true).0), ["equal", "later"]);
    }

    #[tokio::test(start_paused = true)]
    async fn invalidated_keys_of_all_batches_are_counted() {
        let (cache, _) = cache();
        let number = 2 * BATCH + 1;
        for n in 0..number {
            insert(&cache, &format!("key-{n:06}"), SOON);
        }
        let (cached, since) = cache.cached(|_| true);
        let keys = keys_of(&cached);
        assert_eq!(keys.len(), number);
        assert_eq!(cache.invalidate_cached(&keys, since).await, number);
        assert_eq!(cache.stats().entries, 0);
        assert_eq!(cache.invalidate_cached(&keys, since).await, 0);
    }
}
