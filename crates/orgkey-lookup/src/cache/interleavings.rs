//! Tests of the cache under a model checker, which chooses the order in which threads use its locks and atomics.
//!
//! ```sh
//! RUSTC_WORKSPACE_WRAPPER="$PWD/.ci/shuttle-rustc" cargo test -p orgkey-lookup --lib interleavings
//! ```
//!
//! The stores are the real ones. Each of their operations is one step, because the checker does not see their own locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use shuttle::sync::atomic::AtomicBool;
use shuttle::thread;

use super::blocks::BlockStatus;
use super::complete::{LookupTask, Outcome};
use super::dependents::Dependent;
use super::in_flight::{Completion, Lookup};
use super::look_up::{JoinedOrStarted, LookupRequest, LookupResult};
use super::recently_valid::RecentlyValid;
use super::store::Store;
use super::{CacheResult, Entry, Target};
use crate::clock::{Clock, Tick};
use crate::config::Config;
use crate::kit::{Facts, TestKey, TestSource, test_key};
use crate::source::{Answer, Answered, Invalid};

type Cache = super::Cache<TestSource>;

const NAME: &str = "key_1";
const KEY_ID: &str = "id_1";
const ORG: &str = "org_1";

/// Each fault that these tests look for is found within the first hundredth of them.
const SCHEDULES: usize = 10_000;

/// Runs the model under random schedules, and under schedules with few preemptions at random places.
fn check(model: impl Fn() + Clone + Send + Sync + 'static) {
    shuttle::check_random(model.clone(), SCHEDULES);
    shuttle::check_pct(model, SCHEDULES, 3);
}

fn cache() -> Arc<Cache> {
    let source = TestSource(|_| Ok(Answer::Invalid(Invalid::Definitive)));
    Cache::new(source, Config::default(), Clock::System)
}

fn key() -> TestKey {
    test_key(NAME)
}

fn request(oldest: Option<Tick>) -> LookupRequest<TestSource> {
    LookupRequest {
        query: NAME.to_owned(),
        key: key(),
        oldest,
        peer: None,
    }
}

fn begin(cache: &Arc<Cache>, oldest: Option<Tick>) -> Option<LookupTask<TestSource>> {
    match cache.join_or_start(&request(oldest)).unwrap() {
        JoinedOrStarted::Joined(_) | JoinedOrStarted::Cached(_) => None,
        JoinedOrStarted::Started(task, _) => Some(task),
    }
}

fn answered(answer: Answer<Facts>, sent_at: Tick) -> Outcome<Facts> {
    let credential = 0;
    Outcome::Answered(Answered { answer, credential }, sent_at)
}

fn valid(sent_at: Tick) -> Outcome<Facts> {
    answered(Answer::Valid(Facts::of(ORG, KEY_ID)), sent_at)
}

fn invalid(sent_at: Tick) -> Outcome<Facts> {
    answered(Answer::Invalid(Invalid::Definitive), sent_at)
}

fn is_served(cache: &Cache) -> bool {
    let now = cache.clock.now();
    match cache.get_fresh(&key(), None, now) {
        Ok(_) => true,
        Err(cached) => matches!(
            cache.classify(cached, &key(), None, now),
            CacheResult::Serve(_) | CacheResult::ServeAndRefresh(_)
        ),
    }
}

/// Returns whether a waiter of the lookup would be served its result.
fn serves(cache: &Cache, lookup: &Lookup<TestSource>) -> bool {
    match lookup.completion() {
        Some(Completion::Valid(entry)) => cache.blocks.status(&entry) == BlockStatus::Clear,
        _ => false,
    }
}

/// The issuer accepts the key until it is revoked there. A request after the revocation and the update must be served neither
/// from the cache nor from the lookup that it joins.
fn revoked_while_loading(update: fn(&Cache) -> u64, lift: Option<fn(&Cache)>) {
    revoked_in(
        || {
            let cache = cache();
            (Arc::clone(&cache), cache)
        },
        |_, _| (),
        update,
        lift,
    );
}

/// The same for a cache that is updated through another one, once `connect` was called before the load.
fn revoked_in(
    world: fn() -> (Arc<Cache>, Arc<Cache>),
    connect: fn(&Cache, &Arc<Cache>),
    update: fn(&Cache) -> u64,
    lift: Option<fn(&Cache)>,
) {
    check(move || {
        let (updated, cache) = world();
        let is_revoked = Arc::new(AtomicBool::new(false));
        let load = {
            let cache = Arc::clone(&cache);
            let updated = Arc::clone(&updated);
            let is_revoked = Arc::clone(&is_revoked);
            thread::spawn(move || {
                connect(&updated, &cache);
                let Some(task) = begin(&cache, None) else {
                    return;
                };
                let sent_at = cache.clock.now();
                task.lookup.sent(sent_at);
                let outcome = if is_revoked.load(Ordering::Acquire) {
                    invalid(sent_at)
                } else {
                    valid(sent_at)
                };
                cache.complete(&task.lookup, &task.key, outcome);
            })
        };
        is_revoked.store(true, Ordering::Release);
        update(&updated);
        assert!(!is_served(&cache), "served from the cache");
        let joined = match cache.join_or_start(&request(None)).unwrap() {
            JoinedOrStarted::Joined(lookup) => Some(lookup),
            JoinedOrStarted::Started(task, _) => {
                let lookup = Arc::clone(&task.lookup);
                cache.complete(&lookup, &task.key, invalid(cache.clock.now()));
                Some(lookup)
            }
            JoinedOrStarted::Cached(result) => {
                assert!(matches!(result, LookupResult::Invalid), "served meanwhile");
                None
            }
        };
        load.join().unwrap();
        let is_served_by_lookup = joined.is_some_and(|lookup| serves(&cache, &lookup));
        assert!(!is_served_by_lookup, "served from a lookup");
        assert!(!is_served(&cache), "served from the cache, later");
        if let Some(lift) = lift {
            lift(&updated);
            assert!(!is_served(&cache), "served after the block");
        }
    });
}

#[test]
fn a_key_invalidated_in_flight_is_not_served() {
    revoked_while_loading(|cache| cache.invalidate(Target::Key(&key())), None);
}

#[test]
fn a_key_id_invalidated_in_flight_is_not_served() {
    revoked_while_loading(|cache| cache.invalidate(Target::KeyId(KEY_ID)), None);
}

#[test]
fn an_org_invalidated_in_flight_is_not_served() {
    revoked_while_loading(|cache| cache.invalidate(Target::Organization(ORG)), None);
}

#[test]
fn all_invalidated_in_flight_is_not_served() {
    revoked_while_loading(Cache::invalidate_all, None);
}

#[test]
fn a_key_blocked_in_flight_is_not_served_later() {
    revoked_while_loading(
        |cache| cache.block(Target::Key(&key())).unwrap(),
        Some(|cache| assert!(cache.unblock(Target::Key(&key())))),
    );
}

#[test]
fn an_org_blocked_in_flight_is_not_served_later() {
    revoked_while_loading(
        |cache| cache.block(Target::Organization(ORG)).unwrap(),
        Some(|cache| assert!(cache.unblock(Target::Organization(ORG)))),
    );
}

/// A dependent cache, whose keys are the names of organizations.
impl Dependent for Cache {
    fn invalidate_organization(&self, organization: &str) {
        self.invalidate(Target::Key(&test_key(organization)));
    }

    fn invalidate_all(&self) {
        Cache::invalidate_all(self);
    }
}

fn two_caches() -> (Arc<Cache>, Arc<Cache>) {
    (cache(), cache())
}

#[test]
fn a_dependent_invalidated_in_flight_is_not_served() {
    revoked_in(
        || {
            let (cache, dependent) = two_caches();
            cache.add_dependent(&dependent);
            (cache, dependent)
        },
        |_, _| (),
        |cache| cache.invalidate(Target::Organization(NAME)),
        None,
    );
}

#[test]
fn a_new_dependent_misses_no_org_invalidation() {
    revoked_in(
        two_caches,
        |cache, dependent| cache.add_dependent(dependent),
        |cache| cache.invalidate(Target::Organization(NAME)),
        None,
    );
}

#[test]
fn a_new_dependent_misses_no_invalidate_all() {
    revoked_in(
        two_caches,
        |cache, dependent| cache.add_dependent(dependent),
        Cache::invalidate_all,
        None,
    );
}

/// An update of an entry that other threads read: none of them may mark it clear by what it read before.
#[test]
fn a_read_during_an_update_marks_nothing_clear() {
    check(|| {
        let cache = cache();
        let task = begin(&cache, None).unwrap();
        cache.complete(&task.lookup, &task.key, valid(cache.clock.now()));
        let reader = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || {
                is_served(&cache);
                is_served(&cache)
            })
        };
        // Another version, so that the read has to compare with the tables.
        cache.invalidate(Target::KeyId("id_2"));
        cache.invalidate(Target::KeyId(KEY_ID));
        assert!(!is_served(&cache));
        reader.join().unwrap();
        assert!(!is_served(&cache));
    });
}

#[test]
fn one_key_has_one_lookup() {
    check(|| {
        let cache = cache();
        let begun = Arc::new(AtomicUsize::new(0));
        let start = {
            let cache = Arc::clone(&cache);
            let begun = Arc::clone(&begun);
            move || {
                // Kept to the end, because a task that is dropped completes its lookup.
                let task = begin(&cache, None);
                begun.fetch_add(usize::from(task.is_some()), Ordering::Relaxed);
                task
            }
        };
        let others: Vec<_> = (0..2).map(|_| thread::spawn(start.clone())).collect();
        let mine = start();
        let theirs: Vec<_> = others
            .into_iter()
            .map(|other| other.join().unwrap())
            .collect();
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        drop((mine, theirs));
    });
}

/// Two lookups of one key are in flight, because the second request requires a later call. The first call finds the key
/// valid, and the second one invalid.
#[test]
fn older_valid_answer_does_not_replace_invalid() {
    check(|| {
        let cache = cache();
        let sent_at = cache.clock.now();
        let elder = begin(&cache, None).unwrap();
        elder.lookup.sent(sent_at);
        let later = Tick(sent_at.0 + 1);
        let younger = begin(&cache, Some(later)).unwrap();
        let completion = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.complete(&younger.lookup, &younger.key, invalid(later)))
        };
        cache.complete(&elder.lookup, &elder.key, valid(sent_at));
        completion.join().unwrap();
        assert!(!is_served(&cache));
    });
}

fn entry(cache: &Cache, secret: &str, facts: Facts) -> Arc<Entry<TestSource>> {
    let now = cache.clock.now();
    Arc::new(Entry::new(
        facts,
        test_key(secret),
        (),
        Tick(now.0 - 1),
        cache.blocks.version(),
        cache.config.lifetimes,
        now,
        None,
    ))
}

/// Two threads remove what they read, a third one inserts a later entry, and a fourth one makes the store evict.
#[test]
fn fault_84_no_later_entry_is_stranded() {
    check(|| {
        let cache = cache();
        let recently_valid = Arc::new(RecentlyValid::new(10));
        let store = Arc::new(Store::new(1, Duration::from_secs(900), recently_valid));
        let [old, new] = [(); 2].map(|()| entry(&cache, NAME, Facts::default()));
        let other = entry(&cache, "other", Facts::default());
        let key = old.key;
        store.insert(old);
        let remove = || {
            let store = Arc::clone(&store);
            thread::spawn(move || store.get(&key).is_some_and(|cached| store.remove(&cached)))
        };
        let evict = {
            let store = Arc::clone(&store);
            thread::spawn(move || {
                store.insert(other);
                store.stranded();
            })
        };
        let removals = [remove(), remove()];
        store.insert(new);
        for removal in removals {
            removal.join().unwrap();
        }
        evict.join().unwrap();
        assert_eq!(store.stranded(), 0);
        assert!(store.len() <= 1);
    });
}

/// Inserts an entry that has expired.
fn insert_expired(cache: &Cache) {
    let facts = Facts::expiring(SystemTime::UNIX_EPOCH);
    cache.store.insert(entry(cache, NAME, facts));
}

/// Readers find that an entry has expired, while a lookup replaces it.
#[test]
fn fault_84_expiry_during_reads_strands_nothing() {
    check(|| {
        let cache = cache();
        let task = begin(&cache, None).unwrap();
        insert_expired(&cache);
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let cache = Arc::clone(&cache);
                thread::spawn(move || is_served(&cache))
            })
            .collect();
        cache.complete(&task.lookup, &task.key, valid(cache.clock.now()));
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(cache.store.stranded(), 0);
        // The later entry is served, although readers found the old one expired.
        assert!(is_served(&cache));
        assert!(!cache.is_invalid(&key(), cache.clock.now()));
    });
}

/// Two readers find that an entry has expired. The key is cached as invalid for as long as after one.
#[test]
fn fault_84_an_expired_key_is_inserted_once() {
    check(|| {
        let cache = cache();
        insert_expired(&cache);
        let reader = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || is_served(&cache))
        };
        assert!(!is_served(&cache));
        assert!(!reader.join().unwrap());
        let now = cache.clock.now();
        assert!(cache.is_invalid(&key(), now));
        let later = now.after(Duration::from_secs(6));
        assert!(!cache.is_invalid(&key(), later), "inserted twice");
    });
}
