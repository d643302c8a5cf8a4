//! Reconciliation: compares the cached keys with an issuer's list of keys.
//!
//! A list is older than a verification that was sent while it was read, so only keys verified before are compared. And a list is
//! not the issuer's answer about a key, so a key that differs is invalidated: the next request verifies it again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::blocks::BlockStatus;
use super::entry::{Entry, Freshness};
use super::handle::ApiKeyHandle;
use crate::clock::Tick;
use crate::key::{KEY_TAIL_LEN, KeyTail};

/// Keys invalidated at a time. After each batch, every cached key is compared with the tables of invalidations once.
const BATCH: usize = 1_000;

/// A cached key of an organization.
#[derive(Clone, Debug)]
pub(crate) struct CachedKey(Arc<Entry>);

impl CachedKey {
    pub(crate) fn key_id(&self) -> Option<&crate::context::KeyId> {
        self.0.facts.key_id.as_ref()
    }

    /// Returns whether the secret differs from the listed one for certain: both ends are known, and differ.
    pub(crate) fn differs_from(&self, listed: Option<KeyTail>) -> bool {
        matches!((self.0.tail, listed), (Some(cached), Some(listed)) if cached != listed)
    }
}

impl ApiKeyHandle {
    /// Lets new entries keep the ends of their secrets.
    pub(crate) fn keep_tails(&self) {
        self.0.keeps_tails.store(true, Ordering::Relaxed);
    }

    /// Returns the end of a secret as an issuer lists it, if it has the right length.
    pub(crate) fn listed_tail(&self, suffix: &str) -> Option<KeyTail> {
        if suffix.len() == KEY_TAIL_LEN {
            self.0.secret.tail(suffix)
        } else {
            None
        }
    }

    /// Returns the cached keys of organizations, and the present time. Only keys with an identifier can be compared.
    pub(crate) fn cached_keys(&self) -> (Vec<CachedKey>, Tick) {
        let cache = &self.0;
        // Read first, so that a key verified while the store is read counts as verified later.
        let now = cache.clock.now();
        let mut entries = cache.store.all();
        entries.retain(|entry| {
            let facts = &entry.facts;
            let is_organizations =
                facts.org.is_some() && facts.user().is_none() && facts.key_id.is_some();
            is_organizations
                && entry.sent_at < now
                && !matches!(entry.freshness(now), Freshness::Expired | Freshness::Gone)
                && cache.blocks.status(entry) == BlockStatus::Clear
        });
        (entries.into_iter().map(CachedKey).collect(), now)
    }

    /// Invalidates these keys, except those verified since. Returns their number.
    pub(crate) async fn invalidate_cached(&self, cached: &[CachedKey], since: Tick) -> usize {
        let cache = &self.0;
        let mut invalidated = 0;
        for batch in cached.chunks(BATCH) {
            let digests: Vec<_> = batch
                .iter()
                .map(|CachedKey(entry)| entry.digest)
                .filter(|digest| {
                    let current = cache.store.get(*digest);
                    current.is_some_and(|current| current.sent_at < since)
                })
                .collect();
            // For results outside of the store: those of streams, waiters and in-flight lookups.
            cache
                .blocks
                .invalidate_keys(&digests, self.invalidated_now());
            for digest in &digests {
                cache.forget(*digest);
            }
            invalidated += digests.len();
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
    use crate::context::{KeyId, OrgCode};
    use crate::test_util::TestClock;
    use crate::verify::{Extra, Facts};

    const SOON: Duration = Duration::from_secs(1);

    fn handle() -> (ApiKeyHandle, TestClock) {
        let (cache, clock) = cache();
        (ApiKeyHandle::new(cache), clock)
    }

    /// The result for a key of an organization, with this name as its identifier.
    fn facts(name: &'static str) -> Facts {
        Facts {
            org: Some(OrgCode::from_static("org_1")),
            key_id: Some(KeyId::from_static(name)),
            ..Facts::default()
        }
    }

    /// Caches a result of this age.
    fn insert(handle: &ApiKeyHandle, secret: &str, facts: Facts, age: Duration) {
        let cache = &handle.0;
        let now = cache.clock.now();
        let sent_at = Tick(now.0 - crate::clock::nanos(age));
        cache.store.insert(Arc::new(Entry::new(
            facts,
            cache.digest(secret),
            sent_at,
            cache.blocks.version(),
            cache.settings.lifetimes,
            now,
            None,
        )));
    }

    fn names(cached: &[CachedKey]) -> Vec<&str> {
        let mut names: Vec<_> = cached
            .iter()
            .map(|cached| cached.key_id().unwrap().as_str())
            .collect();
        names.sort_unstable();
        names
    }

    #[tokio::test(start_paused = true)]
    async fn organization_keys_with_an_id_are_compared() {
        let (handle, _) = handle();
        insert(&handle, "valid-key-1", facts("id_1"), SOON);
        insert(&handle, "valid-key-2", facts("id_2"), SOON);
        let no_org = Facts {
            org: None,
            ..facts("no_org")
        };
        insert(&handle, "no-org-00", no_org, SOON);
        let of_a_user = Facts {
            extra: Some(Box::new(Extra::User("kp_1".into()))),
            ..facts("of_a_user")
        };
        insert(&handle, "of-a-user", of_a_user, SOON);
        let no_id = Facts {
            key_id: None,
            ..facts("no_id")
        };
        insert(&handle, "no-id-000", no_id, SOON);
        insert(
            &handle,
            "gone-0000",
            facts("gone"),
            Duration::from_secs(900),
        );
        let expired = Facts {
            expires_at: Some(Box::new(SystemTime::UNIX_EPOCH)),
            ..facts("expired")
        };
        insert(&handle, "expired-0", expired, SOON);
        insert(&handle, "blocked-0", facts("blocked"), SOON);
        handle.block_key_id(&KeyId::from_static("blocked")).unwrap();
        insert(&handle, "invalidated", facts("invalidated"), SOON);
        handle.invalidate_key_id(&KeyId::from_static("invalidated"));
        let (cached, now) = handle.cached_keys();
        assert_eq!(names(&cached), ["id_1", "id_2"]);
        assert_eq!(now, handle.0.clock.now());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_verified_since_are_not_invalidated() {
        let (handle, clock) = handle();
        insert(
            &handle,
            "older-key",
            facts("older"),
            Duration::from_nanos(1),
        );
        insert(&handle, "equal-key", facts("equal"), Duration::ZERO);
        let (cached, since) = handle.cached_keys();
        assert_eq!(names(&cached), ["older"]);

        clock.jump(Duration::from_nanos(1));
        insert(&handle, "later-key", facts("later"), Duration::ZERO);
        clock.jump(SOON);
        let (cached, _) = handle.cached_keys();
        assert_eq!(names(&cached), ["equal", "later", "older"]);
        assert_eq!(handle.invalidate_cached(&cached, since).await, 1);
        assert_eq!(names(&handle.cached_keys().0), ["equal", "later"]);
    }

    #[tokio::test(start_paused = true)]
    async fn invalidated_keys_of_all_batches_are_counted() {
        let (handle, _) = handle();
        let keys = 2 * BATCH + 1;
        for n in 0..keys {
            insert(&handle, &format!("key-{n:06}"), facts("id"), SOON);
        }
        let (cached, since) = handle.cached_keys();
        assert_eq!(cached.len(), keys);
        assert_eq!(handle.invalidate_cached(&cached, since).await, keys);
        assert_eq!(handle.stats().entries, 0);
        assert_eq!(handle.invalidate_cached(&cached, since).await, 0);
    }
}
