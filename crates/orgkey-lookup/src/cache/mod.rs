//! The lookup cache: verification results, in-flight lookups, blocks and invalidations.
//!
//! ```text
//! get ─┬ fresh ────────────────────────────────▶ served
//!      ├ stale ─ (one background refresh) ─────▶ served
//!      ├ invalid, blocked, expired ────────────▶ rejected
//!      └ overdue, unknown ─ look up ─┬ valid ──▶ served
//!                                    ├ invalid ─▶ rejected
//!                                    └ cannot tell ─▶ served if still cached, else 503
//! ```
//!
//! * `store` contains the valid keys, `invalid_keys` the invalid ones: two caches, so that invalid keys evict no valid one.
//!   `recently_valid` contains the keys that were valid in the last day.
//! * `blocks` contains blocks and invalidations. They are checked when the cache is read, when a lookup completes, and when
//!   a waiter takes its result.
//! * `in_flight` coalesces lookups, `look_up` waits for them, and `complete` applies their results. `unconfirmed` notes
//!   invalid answers that may have been about something else than the key.
//! * `recheck` checks a result again after its request has waited, and while its stream is open. `watchers` wakes the
//!   streams.
//! * `dependents` are caches that are invalidated together with this one.
//! * `reconcile` compares the cached keys with the issuer's list.
//!
//! Only verification results are cached. Organization and scopes are checked on every request, by the layer and the guards.

mod blocks;
mod complete;
mod control;
mod dependents;
mod entry;
mod in_flight;
#[cfg(all(test, orgkey_shuttle))]
mod interleavings;
mod invalid_keys;
mod look_up;
mod recently_valid;
mod recheck;
mod reconcile;
mod stats;
mod store;
mod sync;
mod unconfirmed;
mod watchers;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

pub use self::blocks::{BlockListFull, Target};
use self::blocks::{BlockStatus, Blocks};
pub use self::dependents::Dependent;
use self::dependents::Dependents;
pub use self::entry::Entry;
use self::entry::Freshness;
use self::in_flight::InFlight;
use self::invalid_keys::InvalidKeys;
pub use self::look_up::{LookupRequest, LookupResult};
use self::recently_valid::RecentlyValid;
use self::recheck::CacheRef;
pub use self::recheck::Standing;
use self::stats::Counters;
pub use self::stats::Stats;
use self::store::Store;
use self::unconfirmed::UnconfirmedAnswers;
use crate::clock::{Clock, Tick};
use crate::config::Config;
use crate::source::{Found, IndexKey, Label, Source, Telemetry};
use crate::upstream::{Upstream, UpstreamState};

/// After [`Cache::refresh_all`], all keys that are used are verified again within this time.
pub const REFRESH_ALL: Duration = Duration::from_millis(REFRESH_ALL_MILLIS);
const REFRESH_ALL_MILLIS: u64 = 10_000;

/// Results by key, and the lookups that return them.
pub struct Cache<S: Source> {
    /// For the entries.
    me: Arc<CacheRef<S>>,
    clock: Clock,
    source: S,
    config: Config,
    store: Store<S>,
    invalid_keys: InvalidKeys<S::Key>,
    recently_valid: Arc<RecentlyValid<S::Key>>,
    blocks: Blocks<S>,
    in_flight: InFlight<S>,
    /// At least one.
    upstreams: Box<[UpstreamOfCache<S>]>,
    counters: Counters,
    coalesced: AtomicU64,
    dependents: Dependents,
}

/// An upstream, and the invalid answers of it that are not confirmed.
struct UpstreamOfCache<S: Source> {
    upstream: Upstream<S>,
    unconfirmed: UnconfirmedAnswers<S>,
}

/// What the cache contains for a key.
#[derive(Debug)]
pub enum CacheResult<S: Source> {
    /// A result to serve.
    Serve(Arc<Entry<S>>),
    /// A result to serve. The caller calls [`Cache::refresh`].
    ServeAndRefresh(Arc<Entry<S>>),
    /// The key is invalid, expired or blocked.
    Invalid,
    /// A lookup is required.
    LookUp,
}

impl<S: Source> Cache<S> {
    /// Creates an empty cache. Needs no runtime.
    pub fn new(source: S, config: Config, clock: Clock) -> Arc<Self> {
        let recently_valid = Arc::new(RecentlyValid::new(config.capacity));
        let blocks = Blocks::default();
        let mut labels = source.upstreams();
        if labels.is_empty() {
            labels.push(Label::from(""));
        }
        let upstreams = labels.into_iter().map(|label| UpstreamOfCache {
            upstream: Upstream::new(label, clock.clone(), &config),
            unconfirmed: UnconfirmedAnswers::default(),
        });
        let upstreams = upstreams.collect();
        Arc::new_cyclic(|me| Self {
            me: Arc::new(CacheRef::new(me.clone(), clock.clone(), blocks.watchers())),
            clock,
            source,
            store: Store::new(
                config.capacity,
                config.lifetimes.hard,
                Arc::clone(&recently_valid),
            ),
            invalid_keys: InvalidKeys::new(
                (config.capacity / 10).max(1),
                config.lifetimes.hard + config.lookup_deadline,
            ),
            recently_valid,
            blocks,
            in_flight: InFlight::default(),
            upstreams,
            counters: Counters::default(),
            coalesced: AtomicU64::new(0),
            dependents: Dependents::default(),
            config,
        })
    }

    /// Returns the source of the cache.
    #[inline]
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Returns the clock of the cache.
    #[inline]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Returns the state of the calls to an upstream.
    pub fn upstream(&self, upstream: usize) -> UpstreamState {
        self.at(upstream).upstream.state()
    }

    /// Returns the label and the state of each upstream.
    pub fn upstreams(&self) -> impl Iterator<Item = (&Label, UpstreamState)> {
        self.upstreams
            .iter()
            .map(|at| (at.upstream.label(), at.upstream.state()))
    }

    fn at(&self, upstream: usize) -> &UpstreamOfCache<S> {
        &self.upstreams[upstream.min(self.upstreams.len() - 1)]
    }

    /// Returns the cached entry of a key, if it is fresh and of a call sent after `oldest`.
    ///
    /// `Err` is whatever else is cached. The caller passes it to [`classify`](Self::classify), which is kept out of line so
    /// that the hit path stays small.
    #[inline]
    pub fn get_fresh(
        &self,
        key: &S::Key,
        oldest: Option<Tick>,
        now: Tick,
    ) -> Result<Arc<Entry<S>>, Option<Arc<Entry<S>>>> {
        match self.store.get(key) {
            Some(entry) if self.is_fresh(&entry, oldest, now) => {
                let nth = self.counters.count(Found::Fresh);
                self.store.record_read(key.bits(), nth);
                S::Telemetry::looked_up(Found::Fresh);
                Ok(entry)
            }
            cached => Err(cached),
        }
    }

    /// Returns whether this is a hit. Three comparisons.
    #[inline]
    fn is_fresh(&self, entry: &Entry<S>, oldest: Option<Tick>, now: Tick) -> bool {
        self.blocks.has_cleared(entry)
            && now < entry.fresh_until()
            && oldest.is_none_or(|oldest| entry.sent_at > oldest)
    }

    /// Returns what the cache contains for a key that is not a fresh hit.
    #[inline(never)]
    pub fn classify(
        &self,
        cached: Option<Arc<Entry<S>>>,
        key: &S::Key,
        oldest: Option<Tick>,
        now: Tick,
    ) -> CacheResult<S> {
        let (result, found) = match cached {
            Some(entry) => self.classify_entry(entry, oldest, now),
            None if self.is_invalid(key, now) => (CacheResult::Invalid, Found::Invalid),
            None => (CacheResult::LookUp, Found::Miss),
        };
        let nth = self.counters.count(found);
        if matches!(found, Found::Fresh | Found::Stale) {
            self.store.record_read(key.bits(), nth);
        }
        S::Telemetry::looked_up(found);
        result
    }

    fn classify_entry(
        &self,
        entry: Arc<Entry<S>>,
        oldest: Option<Tick>,
        now: Tick,
    ) -> (CacheResult<S>, Found) {
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
                let _shard = self.in_flight.shard(&entry.key);
                if self.store.remove(&entry) {
                    let certain_at = Some(entry.sent_at);
                    self.invalid_keys
                        .insert(&entry.key, entry.began, certain_at, now);
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
            Freshness::Fresh
                if self.is_due(&entry, now)
                    && entry.claim_refresh(now, now.after(self.config.lookup_deadline)) =>
            {
                (CacheResult::ServeAndRefresh(entry), Found::Stale)
            }
            Freshness::Fresh => (CacheResult::Serve(entry), Found::Fresh),
            Freshness::Stale if entry.is_doubted() => (CacheResult::LookUp, Found::Miss),
            Freshness::Stale
                if entry.claim_refresh(now, now.after(self.config.lookup_deadline)) =>
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

    /// Returns whether a fresh entry is to be refreshed, because updates may be missing.
    fn is_due(&self, entry: &Entry<S>, now: Tick) -> bool {
        let spread = Duration::from_millis(entry.key.bits() % REFRESH_ALL_MILLIS);
        let due_at = self.blocks.due_at(entry);
        due_at.is_some_and(|at| now.since(at) >= spread)
    }

    /// Returns whether the key is cached as invalid, or blocked.
    fn is_invalid(&self, key: &S::Key, now: Tick) -> bool {
        self.invalid_keys
            .get(key, now)
            .is_some_and(|key| !self.blocks.is_all_invalidated_since(key.began))
            || self.blocks.is_key_blocked(key)
    }

    /// Removes an entry that may not be served any more, and notes its key as recently valid.
    fn retire(&self, entry: &Arc<Entry<S>>) {
        // In this order, so that the key is known or recently valid at any time.
        self.recently_valid.note(&entry.key, entry.sent_at);
        self.store.remove(entry);
    }

    /// Returns whether the key was valid in the last day, and nothing of it may be served.
    fn is_recently_valid(&self, key: &S::Key, now: Tick) -> bool {
        // The entry may have been invalidated, or have reached the hard TTL, since it was read.
        if let Some(entry) = self.store.get(key)
            && (self.blocks.status(&entry) == BlockStatus::Invalidated
                || entry.freshness(now) == Freshness::Gone)
        {
            self.retire(&entry);
        }
        self.recently_valid.contains(key, now)
    }

    /// Returns the entry of the key, if it may be served when the verification fails.
    fn servable(&self, key: &S::Key, oldest: Option<Tick>, now: Tick) -> Option<Arc<Entry<S>>> {
        let entry = self.store.get(key)?;
        let may_serve = self.blocks.status(&entry) == BlockStatus::Clear
            && !matches!(entry.freshness(now), Freshness::Expired | Freshness::Gone)
            && oldest.is_none_or(|oldest| entry.sent_at > oldest);
        may_serve.then_some(entry)
    }

    /// Removes the key from the caches and cancels its lookups.
    fn forget(&self, key: &S::Key) {
        let mut shard = self.in_flight.shard(key);
        shard.cancel(key);
        if let Some(entry) = self.store.get(key) {
            self.retire(&entry);
        }
        self.invalid_keys.remove(key);
    }
}

impl<S: Source> fmt::Debug for Cache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::clock::TestClock;
    use crate::kit::{Facts, TestSource, test_key};
    use crate::source::{Answer, Invalid};

    /// An empty cache, on a clock that is some hours from its origin.
    pub(super) fn cache() -> (Arc<Cache<TestSource>>, TestClock) {
        let clock = TestClock::new();
        clock.jump(Duration::from_secs(10_000));
        let source = TestSource(|_| Ok(Answer::Invalid(Invalid::Definitive)));
        let cache = Cache::new(source, Config::default(), Clock::Test(clock.clone()));
        (cache, clock)
    }

    /// A cache, and an entry of it that was found clear.
    fn with_one_entry() -> (Arc<Cache<TestSource>>, Arc<Entry<TestSource>>) {
        let (cache, _) = cache();
        let sent = Tick::ZERO.after(Duration::from_secs(1_000));
        let entry = insert(&cache, Facts::default(), sent);
        assert_eq!(cache.blocks.status(&entry), BlockStatus::Clear);
        (cache, entry)
    }

    pub(super) fn insert(
        cache: &Cache<TestSource>,
        facts: Facts,
        sent: Tick,
    ) -> Arc<Entry<TestSource>> {
        let entry = Arc::new(Entry::new(
            facts,
            test_key("key"),
            (),
            sent,
            cache.blocks.version(),
            cache.config.lifetimes,
            sent,
            Some(Arc::clone(&cache.me)),
        ));
        cache.store.insert(Arc::clone(&entry));
        entry
    }

    #[tokio::test]
    async fn a_stream_ends_when_its_key_changes_hands() {
        let (cache, _) = with_one_entry();
        let now = cache.clock.now();
        let mine = insert(&cache, Facts::of("org_1", "id"), now);
        insert(&cache, Facts::of("org_2", "id"), now);
        mine.ended().now_or_never().expect("the stream ended");
    }

    #[test]
    fn hits_end_with_freshness_to_the_nanosecond() {
        let (cache, entry) = with_one_entry();
        let is_hit = |now| cache.get_fresh(&entry.key, None, now).is_ok();
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
            let result = cache.get_fresh(&entry.key, oldest, sent);
            assert_eq!(result.is_ok(), is_enough, "{oldest:?}");
            let cached = cache.servable(&entry.key, oldest, sent);
            assert_eq!(cached.is_some(), is_enough, "{oldest:?}");
            for now in [sent, stale] {
                let result = cache.classify(Some(Arc::clone(&entry)), &entry.key, oldest, now);
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
        type Age = fn(&Arc<Cache<TestSource>>, &Entry<TestSource>) -> Tick;
        let ends: [Age; 2] = [
            |_, entry| entry.hard_until(),
            |cache, entry| {
                cache.invalidate_all();
                entry.sent_at
            },
        ];
        for end in ends {
            let (cache, entry) = with_one_entry();
            let (key, now) = (entry.key, end(&cache, &entry));
            assert_eq!(cache.store.len(), 1);
            let cached = cache
                .get_fresh(&key, None, now)
                .expect_err("must not be served");
            let result = cache.classify(cached, &key, None, now);
            assert!(matches!(result, CacheResult::LookUp), "{result:?}");
            assert_eq!(cache.store.len(), 0);
            assert!(cache.recently_valid.contains(&key, now));
        }
    }

    #[test]
    fn an_update_of_others_costs_one_slow_hit() {
        let (cache, entry) = with_one_entry();
        let get = || cache.get_fresh(&entry.key, None, entry.sent_at);
        cache.invalidate(Target::Organization("org_2"));
        let cached = get().expect_err("the tables were not read yet");
        let closer = cache.classify(cached, &entry.key, None, entry.sent_at);
        assert!(matches!(closer, CacheResult::Serve(_)), "{closer:?}");
        assert!(get().is_ok());
    }

    #[tokio::test]
    async fn refresh_all_serves_and_refreshes_within_10_s() {
        let (cache, entry) = with_one_entry();
        let get = |now| {
            let cached = cache.get_fresh(&entry.key, None, now).err().flatten();
            cache.classify(cached, &entry.key, None, now)
        };
        let began = cache.clock.now();
        // The entry is fresh for the whole test.
        let entry = insert(&cache, Facts::default(), began);
        cache.refresh_all();
        assert!(
            cache.get_fresh(&entry.key, None, began).is_err(),
            "a hit reads the tables"
        );
        let refreshes = (0..=REFRESH_ALL_MILLIS)
            .step_by(100)
            .map(|millis| get(began.after(Duration::from_millis(millis))))
            .filter(|result| match result {
                CacheResult::ServeAndRefresh(_) => true,
                CacheResult::Serve(_) => false,
                other => panic!("{other:?}"),
            });
        assert_eq!(refreshes.count(), 1);
        // What is looked up later is not due.
        insert(&cache, Facts::default(), began);
        assert!(matches!(get(began), CacheResult::Serve(_)));
        assert!(cache.get_fresh(&entry.key, None, began).is_ok());
    }
}
