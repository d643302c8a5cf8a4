//! The lookup cache: verification results, in-flight lookups, blocks and invalidations.
//!
//! ```text
//! get ─┬ fresh ────────────────────────────────▶ served
//!      ├ stale ─ (one background refresh) ─────▶ served
//!      ├ invalid, blocked, expired ────────────▶ rejected
//!      ├ not in the grammar of keys ───────────▶ malformed
//!      └ overdue, unknown ─ look up ─┬ valid ──▶ served
//!                                    ├ invalid ─▶ rejected
//!                                    └ cannot tell ─▶ served if still cached, else 503
//! ```
//!
//! * [`store`] contains the valid keys, [`invalid_keys`] the invalid ones: two caches, so that invalid keys evict no valid one.
//!   [`recently_valid`] contains the digests of keys that were valid in the last day.
//! * [`blocks`] contains blocks and invalidations. They are checked when the cache is read, when a lookup completes, and when
//!   a waiter takes its result.
//! * [`in_flight`] coalesces lookups, [`look_up`] waits for them, and [`complete`] applies their results. [`unconfirmed`] notes
//!   invalid answers that may have been about something else than the key.
//! * [`recheck`] checks a result again after its request has waited, and while its stream is open. [`watchers`] wakes the
//!   streams.
//! * `dependents` are caches that are invalidated together with this one.
//! * `reconcile` compares the cached keys with the issuer's list.
//!
//! Only verification results are cached. Organization and scopes are checked on every request, by the layer and the guards.

mod blocks;
mod complete;
#[cfg(feature = "settings")]
mod dependents;
mod entry;
mod handle;
mod in_flight;
#[cfg(all(test, orgkey_shuttle))]
mod interleavings;
mod interner;
mod invalid_keys;
mod look_up;
mod recently_valid;
mod recheck;
#[cfg(feature = "kinde")]
mod reconcile;
mod stats;
mod store;
mod sync;
mod unconfirmed;
mod watchers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use self::blocks::BlockListFull;
use self::blocks::{BlockStatus, Blocks};
#[cfg(feature = "settings")]
use self::dependents::Dependents;
use self::entry::Freshness;
pub(crate) use self::entry::{Entry, Lifetimes};
pub use self::handle::{ApiKeyHandle, Stats};
use self::in_flight::InFlight;
use self::interner::Interner;
use self::invalid_keys::InvalidKeys;
pub(crate) use self::look_up::{LookupRequest, LookupResult};
use self::recently_valid::RecentlyValid;
use self::recheck::CacheRef;
pub(crate) use self::recheck::Standing;
#[cfg(feature = "kinde")]
pub(crate) use self::reconcile::CachedKey;
use self::stats::Counters;
pub(crate) use self::stats::Found;
use self::store::Store;
use self::unconfirmed::UnconfirmedAnswers;
use crate::clock::{Clock, Tick};
use crate::config::Settings;
use crate::key::{ApiKey, DigestSecret, KeyDigest, KeyTail, is_key};
use crate::telemetry;
use crate::upstream::Upstream;

/// The cache of a layer and its clones.
#[derive(Debug)]
pub(crate) struct Cache {
    /// For the entries.
    me: Arc<CacheRef>,
    pub(crate) clock: Clock,
    secret: DigestSecret,
    settings: Settings,
    store: Store,
    invalid_keys: InvalidKeys,
    recently_valid: Arc<RecentlyValid>,
    interner: Interner,
    blocks: Blocks,
    in_flight: InFlight,
    unconfirmed: UnconfirmedAnswers,
    upstream: Upstream,
    counters: Counters,
    coalesced: AtomicU64,
    keeps_tails: AtomicBool,
    #[cfg(feature = "settings")]
    dependents: Dependents,
}

/// What the cache contains for a key.
#[derive(Debug)]
pub(crate) enum CacheResult {
    /// A result to serve.
    Serve(Arc<Entry>),
    /// A result to serve. The caller begins a refresh.
    ServeAndRefresh(Arc<Entry>),
    /// The key is invalid, expired or blocked.
    Invalid,
    /// A lookup is required.
    LookUp,
    /// Nothing is cached, and the credential is not in the grammar of keys.
    Malformed,
}

impl Cache {
    pub(crate) fn new(
        settings: Settings,
        clock: Clock,
        secret: DigestSecret,
        upstream: Upstream,
    ) -> Arc<Self> {
        let recently_valid = Arc::new(RecentlyValid::new(settings.capacity));
        let blocks = Blocks::default();
        Arc::new_cyclic(|me| Self {
            me: Arc::new(CacheRef::new(me.clone(), clock.clone(), blocks.watchers())),
            clock,
            secret,
            store: Store::new(
                settings.capacity,
                settings.lifetimes.hard,
                Arc::clone(&recently_valid),
            ),
            invalid_keys: InvalidKeys::new((settings.capacity / 10).max(1)),
            recently_valid,
            interner: Interner::default(),
            blocks,
            in_flight: InFlight::default(),
            unconfirmed: UnconfirmedAnswers::default(),
            upstream,
            counters: Counters::default(),
            coalesced: AtomicU64::new(0),
            keeps_tails: AtomicBool::new(false),
            #[cfg(feature = "settings")]
            dependents: Dependents::default(),
            settings,
        })
    }

    /// Returns the end of the secret, if entries keep it for reconciliation.
    fn tail_to_keep(&self, key: &ApiKey) -> Option<KeyTail> {
        if self.keeps_tails.load(Ordering::Relaxed) {
            self.secret.tail(key.expose_secret())
        } else {
            None
        }
    }

    pub(crate) fn digest(&self, key: impl AsRef<[u8]>) -> KeyDigest {
        self.secret.digest(key)
    }

    /// Returns the cached entry of a key, if it is fresh and of a call sent after `oldest`.
    ///
    /// `Err` is whatever else is cached. The caller passes it to [`classify`](Self::classify), which is kept out of line so
    /// that the hit path stays small.
    #[inline]
    pub(crate) fn get_fresh(
        &self,
        digest: KeyDigest,
        oldest: Option<Tick>,
        now: Tick,
    ) -> Result<Arc<Entry>, Option<Arc<Entry>>> {
        match self.store.get(digest) {
            Some(entry) if self.is_fresh(&entry, oldest, now) => {
                let nth = self.counters.count(Found::Fresh);
                self.store.record_read(digest, nth);
                telemetry::looked_up(Found::Fresh);
                Ok(entry)
            }
            cached => Err(cached),
        }
    }

    /// Returns whether this is a hit. Three comparisons.
    #[inline]
    fn is_fresh(&self, entry: &Entry, oldest: Option<Tick>, now: Tick) -> bool {
        self.blocks.has_cleared(entry)
            && now < entry.fresh_until()
            && oldest.is_none_or(|oldest| entry.sent_at > oldest)
    }

    /// Returns what the cache contains for a key that is not a fresh hit.
    ///
    /// A key without an entry is checked against the grammar of keys first. A malformed one is not counted.
    #[inline(never)]
    pub(crate) fn classify(
        &self,
        cached: Option<Arc<Entry>>,
        key: &[u8],
        digest: KeyDigest,
        oldest: Option<Tick>,
        now: Tick,
    ) -> CacheResult {
        let (result, found) = match cached {
            Some(entry) => self.classify_entry(entry, oldest, now),
            None if !is_key(key) => return CacheResult::Malformed,
            None if self.is_invalid(digest, now) => (CacheResult::Invalid, Found::Invalid),
            None => (CacheResult::LookUp, Found::Miss),
        };
        let nth = self.counters.count(found);
        if matches!(found, Found::Fresh | Found::Stale) {
            self.store.record_read(digest, nth);
        }
        telemetry::looked_up(found);
        result
    }

    fn classify_entry(
        &self,
        entry: Arc<Entry>,
        oldest: Option<Tick>,
        now: Tick,
    ) -> (CacheResult, Found) {
        match self.blocks.status(&entry) {
            BlockStatus::Clear => {}
            BlockStatus::Blocked => return (CacheResult::Invalid, Found::Invalid),
            BlockStatus::Invalidated => {
                self.retire(&entry);
                return (CacheResult::LookUp, Found::Miss);
            }
        }
        match entry.freshness(now) {
            Freshness::Expired => {
                // Under the lock under which lookups complete, so that a new entry and the invalid key do not coexist. Only one
                // reader inserts the key, because a repeated answer lasts longer.
                let _shard = self.in_flight.shard(entry.digest);
                if self.store.remove(&entry) {
                    self.invalid_keys.insert(entry.digest, entry.began, now);
                }
                (CacheResult::Invalid, Found::Invalid)
            }
            Freshness::Gone => {
                self.retire(&entry);
                (CacheResult::LookUp, Found::Miss)
            }
            _ if oldest.is_some_and(|oldest| entry.sent_at <= oldest) => {
                (CacheResult::LookUp, Found::Miss)
            }
            Freshness::Fresh => (CacheResult::Serve(entry), Found::Fresh),
            Freshness::Stale if entry.is_doubted() => (CacheResult::LookUp, Found::Miss),
            Freshness::Stale
                if entry.claim_refresh(now, now.after(self.settings.flight_deadline)) =>
            {
                (CacheResult::ServeAndRefresh(entry), Found::Stale)
            }
            Freshness::Stale => (CacheResult::Serve(entry), Found::Stale),
            // A lookup failed a moment ago. Another one would make this request wait, and probably fail.
            Freshness::Overdue if entry.has_failed_lately(now) => {
                (CacheResult::Serve(entry), Found::Stale)
            }
            Freshness::Overdue => (CacheResult::LookUp, Found::Miss),
        }
    }

    /// Returns what a cache of settings contains for an organization.
    #[cfg(feature = "settings")]
    #[inline]
    pub(crate) fn get_settings(&self, digest: KeyDigest, now: Tick) -> CacheResult {
        let (result, found) = match self.store.get(digest) {
            Some(entry) => self.classify_entry(entry, None, now),
            None => (CacheResult::LookUp, Found::Miss),
        };
        let nth = self.counters.count(found);
        if matches!(found, Found::Fresh | Found::Stale) {
            self.store.record_read(digest, nth);
        }
        telemetry::settings::looked_up(found);
        result
    }

    /// Returns whether the key is cached as invalid, or blocked.
    fn is_invalid(&self, digest: KeyDigest, now: Tick) -> bool {
        self.invalid_keys
            .get(digest, now)
            .is_some_and(|key| !self.blocks.is_all_invalidated_since(key.began))
            || self.blocks.is_key_blocked(digest)
    }

    /// Removes an entry that may not be served any more, and notes its key as recently valid.
    fn retire(&self, entry: &Arc<Entry>) {
        // In this order, so that the key is known or recently valid at any time.
        self.recently_valid.note(entry.digest, entry.sent_at);
        self.store.remove(entry);
    }

    /// Returns whether the key was valid in the last day, and nothing of it may be served.
    fn is_recently_valid(&self, digest: KeyDigest, now: Tick) -> bool {
        // The entry may have been invalidated, or have reached the hard TTL, since it was read.
        if let Some(entry) = self.store.get(digest)
            && (self.blocks.status(&entry) == BlockStatus::Invalidated
                || entry.freshness(now) == Freshness::Gone)
        {
            self.retire(&entry);
        }
        self.recently_valid.contains(digest, now)
    }

    /// Returns the entry of the key, if it may be served when the verification fails.
    fn servable(&self, digest: KeyDigest, oldest: Option<Tick>, now: Tick) -> Option<Arc<Entry>> {
        let entry = self.store.get(digest)?;
        let may_serve = self.blocks.status(&entry) == BlockStatus::Clear
            && !matches!(entry.freshness(now), Freshness::Expired | Freshness::Gone)
            && oldest.is_none_or(|oldest| entry.sent_at > oldest);
        may_serve.then_some(entry)
    }

    /// Removes the key from the caches and cancels its lookups.
    fn forget(&self, digest: KeyDigest) {
        let mut shard = self.in_flight.shard(digest);
        shard.cancel(digest);
        if let Some(entry) = self.store.get(digest) {
            self.retire(&entry);
        }
        self.invalid_keys.remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::auth::ApiKeyLayer;
    use crate::context::OrgCode;
    use crate::test_util::TestClock;
    use crate::verify::{Facts, Verification, verifier_fn};

    const KEY: &[u8] = b"12345678";

    /// An empty cache, on a clock that is some hours from its origin.
    pub(super) fn cache() -> (Arc<Cache>, TestClock) {
        let clock = TestClock::new();
        clock.jump(Duration::from_secs(10_000));
        let layer = ApiKeyLayer::builder(verifier_fn(|_| async { Ok(Verification::invalid()) }))
            .test_clock(clock.clone())
            .build()
            .unwrap();
        (layer.handle().0, clock)
    }

    /// A cache, and an entry of it that was found clear.
    fn with_one_entry() -> (Arc<Cache>, Arc<Entry>) {
        let (cache, _) = cache();
        let sent = Tick::ZERO.after(Duration::from_secs(1_000));
        let entry = insert(&cache, Facts::default(), sent);
        assert_eq!(cache.blocks.status(&entry), BlockStatus::Clear);
        (cache, entry)
    }

    fn insert(cache: &Cache, facts: Facts, sent: Tick) -> Arc<Entry> {
        let entry = Arc::new(Entry::new(
            facts,
            cache.digest(KEY),
            sent,
            cache.blocks.version(),
            cache.settings.lifetimes,
            sent,
            Some(Arc::clone(&cache.me)),
        ));
        cache.store.insert(Arc::clone(&entry));
        entry
    }

    #[test]
    fn malformed_credentials_are_not_counted() {
        let (cache, _) = with_one_entry();
        let now = cache.clock.now();
        for malformed in [
            &b"12345678,"[..],
            b"1234 5678",
            b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8",
            b"========",
        ] {
            let digest = cache.digest(malformed);
            let cached = cache
                .get_fresh(digest, None, now)
                .expect_err("nothing is cached");
            let result = cache.classify(cached, malformed, digest, None, now);
            assert!(matches!(result, CacheResult::Malformed), "{result:?}");
        }
        assert_eq!((cache.store.len(), cache.invalid_keys.len()), (1, 0));
        let counted = [Found::Fresh, Found::Stale, Found::Invalid, Found::Miss];
        assert_eq!(counted.map(|found| cache.counters.of(found)), [0; 4]);
    }

    #[tokio::test]
    async fn a_stream_ends_when_its_key_changes_hands() {
        let of = |org| Facts {
            org: Some(OrgCode::from_static(org)),
            ..Facts::default()
        };
        let (cache, _) = with_one_entry();
        let now = cache.clock.now();
        let mine = insert(&cache, of("org_1"), now);
        insert(&cache, of("org_2"), now);
        mine.ended().now_or_never().expect("the stream ended");
    }

    #[test]
    fn hits_end_with_freshness_to_the_nanosecond() {
        let (cache, entry) = with_one_entry();
        let is_hit = |now| cache.get_fresh(entry.digest, None, now).is_ok();
        assert!(is_hit(entry.sent_at));
        assert!(is_hit(Tick(entry.fresh_until().0 - 1)));
        assert!(!is_hit(entry.fresh_until()));
        assert!(!is_hit(entry.hard_until()));
    }

    #[test]
    fn a_result_must_be_of_a_call_after_oldest() {
        let (cache, entry) = with_one_entry();
        let sent = entry.sent_at;
        let stale = entry.fresh_until();
        for (oldest, is_enough) in [
            (Tick(sent.0 - 1), true),
            (sent, false),
            (Tick(sent.0 + 1), false),
        ] {
            let oldest = Some(oldest);
            let result = cache.get_fresh(entry.digest, oldest, sent);
            assert_eq!(result.is_ok(), is_enough, "{oldest:?}");
            let cached = cache.servable(entry.digest, oldest, sent);
            assert_eq!(cached.is_some(), is_enough, "{oldest:?}");
            for now in [sent, stale] {
                let result =
                    cache.classify(Some(Arc::clone(&entry)), KEY, entry.digest, oldest, now);
                let is_served = matches!(
                    result,
                    CacheResult::Serve(_) | CacheResult::ServeAndRefresh(_)
                );
                assert_eq!(is_served, is_enough, "{oldest:?} at {now:?}");
            }
        }
    }

    #[test]
    fn keys_of_removed_entries_are_recently_valid() {
        type Age = fn(&Arc<Cache>, &Entry) -> Tick;
        let ends: [Age; 2] = [
            |_, entry| entry.hard_until(),
            |cache, entry| {
                ApiKeyHandle::new(Arc::clone(cache)).invalidate_all();
                entry.sent_at
            },
        ];
        for end in ends {
            let (cache, entry) = with_one_entry();
            let (digest, now) = (entry.digest, end(&cache, &entry));
            assert_eq!(cache.store.len(), 1);
            let cached = cache
                .get_fresh(digest, None, now)
                .expect_err("must not be served");
            let result = cache.classify(cached, KEY, digest, None, now);
            assert!(matches!(result, CacheResult::LookUp), "{result:?}");
            assert_eq!(cache.store.len(), 0);
            assert!(cache.recently_valid.contains(digest, now));
        }
    }

    #[test]
    fn an_update_of_others_costs_one_slow_hit() {
        let (cache, entry) = with_one_entry();
        let get = || cache.get_fresh(entry.digest, None, entry.sent_at);
        ApiKeyHandle::new(Arc::clone(&cache)).invalidate_org(&OrgCode::from_static("org_2"));
        let cached = get().expect_err("the tables were not read yet");
        let closer = cache.classify(cached, KEY, entry.digest, None, entry.sent_at);
        assert!(matches!(closer, CacheResult::Serve(_)), "{closer:?}");
        assert!(get().is_ok());
    }
}
