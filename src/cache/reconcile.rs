//! Compares what is held with what an issuer lists.
//!
//! A list is older than a verification that was sent while it was read, so it judges only what was held before. And it is
//! no issuer's answer about a key, so what it speaks against is invalidated: asked about once more, by whoever comes next.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::blocks::BlockStatus;
use super::entry::{Entry, Freshness};
use super::handle::ApiKeyHandle;
use crate::clock::Tick;
use crate::key::{KEY_TAIL_LEN, KeyTail};

/// So many at a time: each batch costs every cached key one consultation of the rules.
const BATCH: usize = 1_000;

/// A good key of an organization, as a list can judge it.
#[derive(Clone, Debug)]
pub(crate) struct CachedKey(Arc<Entry>);

impl CachedKey {
    pub(crate) fn key_id(&self) -> Option<&crate::context::KeyId> {
        self.0.facts.key_id.as_ref()
    }

    /// Whether the secret is shown to be another than the listed one. An entry that does not know its secret's end, and
    /// a list that does not show it, prove nothing.
    pub(crate) fn differs_from(&self, listed: Option<KeyTail>) -> bool {
        matches!((self.0.tail, listed), (Some(held), Some(listed)) if held != listed)
    }
}

impl ApiKeyHandle {
    /// From now on entries keep what their comparison needs.
    pub(crate) fn keep_tails(&self) {
        self.0.keeps_tails.store(true, Ordering::Relaxed);
    }

    /// The end of a secret as an issuer lists it, if it is one.
    pub(crate) fn listed_tail(&self, suffix: &str) -> Option<KeyTail> {
        if suffix.len() == KEY_TAIL_LEN {
            self.0.secret.tail(suffix)
        } else {
            None
        }
    }

    /// The keys of organizations that are held now, and which moment that is. Only those with an id can be compared.
    pub(crate) fn cached_keys(&self) -> (Vec<CachedKey>, Tick) {
        let cache = &self.0;
        // Read first: what is verified while the store is read counts as verified later.
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

    /// Invalidates what is held of these keys, except what was verified since. Returns how many that were.
    pub(crate) async fn invalidate_cached(&self, held: &[CachedKey], since: Tick) -> usize {
        let cache = &self.0;
        let mut invalidated = 0;
        for batch in held.chunks(BATCH) {
            let digests: Vec<_> = batch
                .iter()
                .map(|CachedKey(entry)| entry.digest)
                .filter(|digest| {
                    let current = cache.store.get(*digest);
                    current.is_some_and(|current| current.sent_at < since)
                })
                .collect();
            // The fence is for those who hold facts outside of the store: streams, waiters, flights.
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

    /// Facts about a key of an organization, with this name for an id.
    fn facts(name: &'static str) -> Facts {
        Facts {
            org: Some(OrgCode::from_static("org_1")),
            key_id: Some(KeyId::from_static(name)),
            ..Facts::default()
        }
    }

    /// Puts facts into the cache that were asked for so long ago.
    fn hold(handle: &ApiKeyHandle, secret: &str, facts: Facts, age: Duration) {
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

    fn names(held: &[CachedKey]) -> Vec<&str> {
        let mut names: Vec<_> = held
            .iter()
            .map(|held| held.key_id().unwrap().as_str())
            .collect();
        names.sort_unstable();
        names
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_judges_good_keys_of_organizations_that_have_an_id() {
        let (handle, _) = handle();
        hold(&handle, "good-key-1", facts("id_1"), SOON);
        hold(&handle, "good-key-2", facts("id_2"), SOON);
        let no_org = Facts {
            org: None,
            ..facts("no_org")
        };
        hold(&handle, "no-org-00", no_org, SOON);
        let of_a_user = Facts {
            extra: Some(Box::new(Extra::User("kp_1".into()))),
            ..facts("of_a_user")
        };
        hold(&handle, "of-a-user", of_a_user, SOON);
        let no_id = Facts {
            key_id: None,
            ..facts("no_id")
        };
        hold(&handle, "no-id-000", no_id, SOON);
        hold(
            &handle,
            "gone-0000",
            facts("gone"),
            Duration::from_secs(900),
        );
        let expired = Facts {
            expires_at: Some(Box::new(SystemTime::UNIX_EPOCH)),
            ..facts("expired")
        };
        hold(&handle, "expired-0", expired, SOON);
        hold(&handle, "blocked-0", facts("blocked"), SOON);
        handle.block_key_id(&KeyId::from_static("blocked")).unwrap();
        hold(&handle, "fenced-00", facts("fenced"), SOON);
        handle.invalidate_key_id(&KeyId::from_static("fenced"));
        let (held, now) = handle.cached_keys();
        assert_eq!(names(&held), ["id_1", "id_2"]);
        assert_eq!(now, handle.0.clock.now());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_verified_at_the_moment_of_reading_or_later_is_left_alone() {
        let (handle, clock) = handle();
        hold(
            &handle,
            "older-key",
            facts("older"),
            Duration::from_nanos(1),
        );
        hold(&handle, "equal-key", facts("equal"), Duration::ZERO);
        let (held, since) = handle.cached_keys();
        assert_eq!(names(&held), ["older"]);

        clock.jump(Duration::from_nanos(1));
        hold(&handle, "later-key", facts("later"), Duration::ZERO);
        clock.jump(SOON);
        let (held, _) = handle.cached_keys();
        assert_eq!(names(&held), ["equal", "later", "older"]);
        assert_eq!(handle.invalidate_cached(&held, since).await, 1);
        assert_eq!(names(&handle.cached_keys().0), ["equal", "later"]);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_are_invalidated_are_counted_over_all_batches() {
        let (handle, _) = handle();
        let keys = 2 * BATCH + 1;
        for n in 0..keys {
            hold(&handle, &format!("key-{n:06}"), facts("id"), SOON);
        }
        let (held, since) = handle.cached_keys();
        assert_eq!(held.len(), keys);
        assert_eq!(handle.invalidate_cached(&held, since).await, keys);
        assert_eq!(handle.stats().entries, 0);
        assert_eq!(handle.invalidate_cached(&held, since).await, 0);
    }
}
