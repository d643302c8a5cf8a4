//! The store of valid keys: moka bounds, expires and evicts entries, and a lock-free index in front of it is read.
//!
//! Each read of a moka cache writes to one log, and cores contend for it. So reads go to a papaya map, and one read in
//! [`SAMPLE`] is reported to moka, because its policy needs to know which keys are used often. Entries are inserted into the
//! index first and then into moka. The eviction listener removes what moka evicts from the index.
//!
//! # moka knows every entry of the index
//!
//! An entry that moka does not know is never evicted. Two operations remove a key from moka, and each of them reads the index
//! *afterwards*:
//!
//! * An eviction removes what the index contains for the key, in the listener.
//! * [`Store::remove`] removes the key from the index and then from moka, and inserts it into moka again if the index contains
//!   a later entry by then.
//!
//! [`Store::insert`] writes to the index before it writes to moka. So if a key is removed from moka after an insertion, whoever
//! removed it finds the entry in the index. To read the index first and then remove the key from moka is not enough: a later
//! entry that is inserted in between is removed from moka and stays in the index.
//!
//! The reverse can happen: an eviction that removes a later entry from the index before moka knows the entry leaves a key in
//! moka that the index does not contain. The key takes one place until it is evicted or inserted again.
//!
//! Only valid results are stored, and misses are not reported to the policy, so invalid keys neither take room nor affect
//! which entries are evicted.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::notification::RemovalCause;
use moka::sync::Cache as Moka;
use papaya::HashMap as Index;

use super::entry::Entry;
use super::recently_valid::RecentlyValid;
use super::sync::Step;
use crate::source::{IndexKey, Source};

/// One read in this many is reported to the eviction policy.
const SAMPLE: u64 = 64;

/// The hash of a key is its bits, which are uniformly distributed.
#[derive(Clone, Copy, Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, bits: u64) {
        self.0 = bits;
    }
}

pub(crate) type KeyBuildHasher = BuildHasherDefault<KeyHasher>;

/// Entries by the bits of their keys. The whole key is compared after a look-up. Two keys with the same bits replace each
/// other, which costs a lookup.
type Entries<S> = Index<u64, Arc<Entry<S>>, KeyBuildHasher>;

pub(super) struct Store<S: Source> {
    index: Arc<Entries<S>>,
    /// The keys of the index.
    policy: Moka<u64, (), KeyBuildHasher>,
    evictions: Arc<AtomicU64>,
    step: Step,
}

impl<S: Source> Store<S> {
    /// Creates a store of up to `capacity` entries, which are removed when they are idle for `keep`. Keys that are expired or
    /// evicted are noted as recently valid.
    pub(crate) fn new(
        capacity: u64,
        keep: Duration,
        recently_valid: Arc<RecentlyValid<S::Key>>,
    ) -> Self {
        let index = Arc::new(Entries::<S>::with_hasher(KeyBuildHasher::default()));
        let evictions = Arc::new(AtomicU64::new(0));
        let listener = {
            let index = Arc::clone(&index);
            let evictions = Arc::clone(&evictions);
            move |bits: Arc<u64>, (), cause: RemovalCause| {
                // Entries that the store replaces or removes leave the index there. (moka also counts a key as evicted if it was
                // idle for too long when it is replaced: its entry is removed, which costs a verification.)
                if !cause.was_evicted() {
                    return;
                }
                if cause == RemovalCause::Size {
                    evictions.fetch_add(1, Ordering::Relaxed);
                }
                // An entry that was inserted meanwhile is removed as well, and its key verified again.
                if let Some(entry) = index.pin().remove(&*bits) {
                    recently_valid.note(&entry.key, entry.sent_at);
                }
            }
        };
        Self {
            index,
            evictions,
            step: Step::new(),
            policy: Moka::builder()
                .max_capacity(capacity)
                // Only frees memory: the deadlines are in the entries, because moka's clock does not count suspended time.
                // An idle time needs one list less than a lifetime. Each valid result is a new insertion, so an entry past
                // its deadline is idle as well, or removed by the next request.
                .time_to_idle(keep)
                .eviction_listener(listener)
                .build_with_hasher(KeyBuildHasher::default()),
        }
    }

    #[inline]
    pub(crate) fn get(&self, key: &S::Key) -> Option<Arc<Entry<S>>> {
        self.step.take();
        let index = self.index.pin();
        let entry = index.get(&key.bits())?;
        (entry.key == *key).then(|| Arc::clone(entry))
    }

    /// Reports the nth read of this thread to the policy, if it is in the sample.
    #[inline]
    pub(crate) fn record_read(&self, bits: u64, nth: u64) {
        // Multiplied by the golden ratio, so that keys read in turn are all sampled.
        if nth.wrapping_mul(0x9E37_79B9_7F4A_7C15) < u64::MAX / SAMPLE {
            self.record_sampled_read(bits);
        }
    }

    #[cold]
    fn record_sampled_read(&self, bits: u64) {
        self.policy.get(&bits);
    }

    /// Inserts an entry, into the index first, so that an eviction finds it there.
    pub(crate) fn insert(&self, entry: Arc<Entry<S>>) {
        self.step.take();
        let bits = entry.key.bits();
        self.index.pin().insert(bits, entry);
        self.step.take();
        self.policy.insert(bits, ());
    }

    /// Removes this entry. A later entry of the same key stays. Returns whether the entry was in the store.
    pub(crate) fn remove(&self, entry: &Arc<Entry<S>>) -> bool {
        self.step.take();
        let bits = entry.key.bits();
        let is_this = |_: &u64, cached: &Arc<Entry<S>>| Arc::ptr_eq(cached, entry);
        let was_cached = matches!(self.index.pin().remove_if(&bits, is_this), Ok(Some(_)));
        if was_cached {
            self.step.take();
            self.policy.invalidate(&bits);
            self.step.take();
            // A later entry was inserted in between.
            if self.index.pin().contains_key(&bits) {
                self.step.take();
                self.policy.insert(bits, ());
            }
        }
        was_cached
    }

    /// Returns all entries.
    pub(crate) fn all(&self) -> Vec<Arc<Entry<S>>> {
        self.index.pin().values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Returns how many entries of the index are unknown to the policy.
    #[cfg(test)]
    pub(crate) fn stranded(&self) -> usize {
        self.policy.run_pending_tasks();
        let index = self.index.pin();
        let unknown = index.keys().filter(|&bits| !self.policy.contains_key(bits));
        unknown.count()
    }

    /// Returns how many entries were evicted because the cache was full.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::clock::Tick;
    use crate::config::Lifetimes;
    use crate::kit::{Facts, TestKey, TestSource, test_key};

    const HOUR: Duration = Duration::from_secs(3_600);

    fn store(capacity: u64) -> (Store<TestSource>, Arc<RecentlyValid<TestKey>>) {
        let recently_valid = Arc::new(RecentlyValid::new(10_000));
        (
            Store::new(capacity, HOUR, Arc::clone(&recently_valid)),
            recently_valid,
        )
    }

    fn entries(n: usize) -> Vec<Arc<Entry<TestSource>>> {
        let entry = |n: usize| entry(test_key(n.to_string()));
        (0..n).map(entry).collect()
    }

    fn entry(key: TestKey) -> Arc<Entry<TestSource>> {
        let lifetimes = Lifetimes {
            soft: HOUR,
            hard: 2 * HOUR,
        };
        let (facts, now) = (Facts::default(), Tick(1));
        Arc::new(Entry::new(facts, key, (), now, 1, lifetimes, now, None))
    }

    #[test]
    fn removed_entries_take_no_room() {
        let (store, recently_valid) = store(100);
        let entries = entries(100);
        for entry in &entries {
            store.insert(Arc::clone(entry));
        }
        store.policy.run_pending_tasks();
        assert_eq!((store.len(), store.policy.entry_count()), (100, 100));
        for entry in &entries {
            store.remove(entry);
        }
        store.policy.run_pending_tasks();
        assert_eq!((store.len(), store.policy.entry_count()), (0, 0));
        assert_eq!(store.evictions(), 0);
        // Callers that remove an entry note its key themselves.
        assert!(
            !entries
                .iter()
                .any(|entry| recently_valid.contains(&entry.key, Tick(1)))
        );
    }

    #[test]
    fn removing_an_entry_keeps_a_later_one() {
        let (store, _) = store(100);
        let old = entries(1).remove(0);
        let new = entry(old.key);
        store.insert(Arc::clone(&old));
        store.insert(Arc::clone(&new));
        store.remove(&old);
        let cached = store.get(&old.key).unwrap();
        assert!(Arc::ptr_eq(&cached, &new));
        store.policy.run_pending_tasks();
        assert_eq!((store.len(), store.policy.entry_count()), (1, 1));
    }

    #[test]
    fn evicted_keys_are_counted_and_recently_valid() {
        let (store, recently_valid) = store(100);
        let entries = entries(1_000);
        for entry in &entries {
            store.insert(Arc::clone(entry));
            store.policy.run_pending_tasks();
        }
        assert_eq!((store.len(), store.evictions()), (100, 900));
        for entry in &entries {
            let is_held = store.get(&entry.key).is_some();
            assert_eq!(recently_valid.contains(&entry.key, Tick(1)), !is_held);
        }
    }

    /// One thread removes what it reads, as readers of an expired entry do, while another one inserts later entries.
    #[test]
    fn fault_84_removal_strands_no_later_entry() {
        const KEYS: usize = 300;

        let (store, _) = store(2 * KEYS as u64);
        let keys: Vec<_> = entries(KEYS).iter().map(|entry| entry.key).collect();
        let (at, removed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while let Some(&key) = keys.get(at.load(Ordering::Acquire)) {
                    match store.get(&key) {
                        Some(entry) if store.remove(&entry) => {
                            removed.fetch_add(1, Ordering::Release);
                        }
                        _ => std::thread::yield_now(),
                    }
                }
            });
            for (n, &key) in keys.iter().enumerate() {
                // Both threads are at this key when the inserts end.
                while removed.load(Ordering::Acquire) < 3 * (n + 1) {
                    store.insert(entry(key));
                }
                store.insert(entry(key));
                at.store(n + 1, Ordering::Release);
            }
        });
        assert!(removed.into_inner() >= 3 * KEYS);
        assert!(store.len() > 0, "no entry was left");
        assert_eq!(store.stranded(), 0);
    }

    /// The same while the policy evicts, and reads are reported to it.
    #[test]
    fn fault_84_eviction_strands_no_entry() {
        const CAPACITY: u64 = 20;

        let (store, _) = store(CAPACITY);
        let keys: Vec<_> = entries(40).iter().map(|entry| entry.key).collect();
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for n in 0..50_000 {
                        let key = keys[fastrand::usize(..keys.len())];
                        match (store.get(&key), fastrand::u8(..4)) {
                            (Some(cached), 0) => {
                                store.remove(&cached);
                            }
                            (Some(_), 1 | 2) => store.record_read(key.bits(), n),
                            _ => store.insert(entry(key)),
                        }
                    }
                });
            }
        });
        assert!(store.evictions() > 1_000, "{}", store.evictions());
        assert_eq!(store.stranded(), 0);
        assert!((1..=20).contains(&store.len()), "{}", store.len());
    }
}
