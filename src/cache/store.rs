//! Where the good keys are: moka bounds, ages and evicts; a lock-free index before it answers the reads.
//!
//! moka's own reads all write to one log, which is a line of memory that every core then fights for. So reads go to a
//! papaya map, and one read in [`SAMPLE`] is reported to moka, whose policy needs to know what is hot. Entries go into
//! the index first and then into moka; what moka lets go leaves the index by its eviction listener.
//!
//! # Every entry in the index is known to moka
//!
//! An entry that moka does not know is never evicted. Two things take a key out of moka, and each one looks at the index
//! *afterwards*:
//!
//! * an eviction removes whatever the index holds under the key, in the listener;
//! * [`Store::remove`] takes the key out of moka after the index, and puts it back if the index holds a successor by then.
//!
//! [`Store::insert`] writes to the index before moka. So if a key leaves moka after an insert of it, whoever took it out
//! finds the entry in the index. Asking the index first and removing from moka then is not enough: a successor that is
//! inserted in between loses its place in moka and stays in the index.
//!
//! The reverse can happen: an eviction that removes a successor from the index before moka knows it leaves a key in moka
//! that the index does not hold. It takes one place until it is evicted or the key is inserted again.
//!
//! Only an issuer's yes is ever written here, and a miss is never reported to the policy: a flood of junk neither takes
//! room nor makes what is hot look cold.

use std::fmt;
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
use crate::key::KeyDigest;

/// One read in so many is reported to the eviction policy.
const SAMPLE: u64 = 64;

/// A digest is uniform already: its low half is its hash.
#[derive(Clone, Copy, Default)]
pub(crate) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, low_half: u64) {
        self.0 = low_half;
    }
}

pub(crate) type DigestBuildHasher = BuildHasherDefault<DigestHasher>;

/// Entries under the low halves of their digests: a half finds, and the whole decides. Two keys that share a half push each
/// other out, which costs a verification.
type Entries = Index<u64, Arc<Entry>, DigestBuildHasher>;

pub(crate) struct Store {
    index: Arc<Entries>,
    /// What is in the index, without a second hold on it.
    policy: Moka<u64, (), DigestBuildHasher>,
    evictions: Arc<AtomicU64>,
    step: Step,
}

impl Store {
    /// Holds up to `capacity` entries, none for longer than `keep`. What leaves by age or for want of room is noted
    /// among the former keys.
    pub(crate) fn new(capacity: u64, keep: Duration, recently_valid: Arc<RecentlyValid>) -> Self {
        let index = Arc::new(Entries::with_hasher(DigestBuildHasher::default()));
        let evictions = Arc::new(AtomicU64::new(0));
        let listener = {
            let index = Arc::clone(&index);
            let evictions = Arc::clone(&evictions);
            move |low: Arc<u64>, (), cause: RemovalCause| {
                // What is replaced or removed by us is dealt with where we do it. (A key that was idle for too long counts as
                // evicted even then: its entry in the index goes, which costs a verification.)
                if !cause.was_evicted() {
                    return;
                }
                if cause == RemovalCause::Size {
                    evictions.fetch_add(1, Ordering::Relaxed);
                }
                // A successor that came this very moment goes too, and is verified once more.
                if let Some(entry) = index.pin().remove(&*low) {
                    recently_valid.note(entry.digest, entry.sent_at);
                }
            }
        };
        Self {
            index,
            evictions,
            step: Step::new(),
            policy: Moka::builder()
                .max_capacity(capacity)
                // moka's clock is not ours, so this is housekeeping: the deadlines that count stand in the entries. Of idle
                // time rather than of lifetime, since that needs one list less. Every yes is a new insert, so what is past
                // its deadline is idle as well, or is let go by the next who asks for it.
                .time_to_idle(keep)
                .eviction_listener(listener)
                .build_with_hasher(DigestBuildHasher::default()),
        }
    }

    #[inline]
    pub(crate) fn get(&self, digest: KeyDigest) -> Option<Arc<Entry>> {
        self.step.take();
        let index = self.index.pin();
        let entry = index.get(&digest.low())?;
        (entry.digest == digest).then(|| Arc::clone(entry))
    }

    /// Tells the policy of the nth read of this thread, if it is one of those that are told.
    #[inline]
    pub(crate) fn record_read(&self, digest: KeyDigest, nth: u64) {
        // Spread by the golden ratio: keys that come in turn shall not meet the same turn each time.
        if nth.wrapping_mul(0x9E37_79B9_7F4A_7C15) < u64::MAX / SAMPLE {
            self.record_sampled_read(digest);
        }
    }

    #[cold]
    fn record_sampled_read(&self, digest: KeyDigest) {
        self.policy.get(&digest.low());
    }

    /// Into the index first: whatever the policy lets go from then on leaves the index as well.
    pub(crate) fn insert(&self, entry: Arc<Entry>) {
        self.step.take();
        let low = entry.digest.low();
        self.index.pin().insert(low, entry);
        self.step.take();
        self.policy.insert(low, ());
    }

    /// Removes this very entry; a successor under the same digest stays. Returns whether the entry was there.
    pub(crate) fn remove(&self, entry: &Arc<Entry>) -> bool {
        self.step.take();
        let low = entry.digest.low();
        let is_this = |_: &u64, cached: &Arc<Entry>| Arc::ptr_eq(cached, entry);
        let was_held = matches!(self.index.pin().remove_if(&low, is_this), Ok(Some(_)));
        if was_held {
            self.step.take();
            self.policy.invalidate(&low);
            self.step.take();
            // A successor that was inserted in between.
            if self.index.pin().contains_key(&low) {
                self.step.take();
                self.policy.insert(low, ());
            }
        }
        was_held
    }

    /// What is held at this moment.
    #[cfg(feature = "kinde")]
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.index.pin().values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// How many entries are in the index and unknown to the policy.
    #[cfg(test)]
    pub(crate) fn stranded(&self) -> usize {
        self.policy.run_pending_tasks();
        let index = self.index.pin();
        let unknown = index.keys().filter(|&low| !self.policy.contains_key(low));
        unknown.count()
    }

    /// How many entries made room for others.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("entries", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::cache::Lifetimes;
    use crate::clock::Tick;
    use crate::key::DigestSecret;
    use crate::verify::Facts;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn store(capacity: u64) -> (Store, Arc<RecentlyValid>) {
        let recently_valid = Arc::new(RecentlyValid::new(10_000));
        (
            Store::new(capacity, HOUR, Arc::clone(&recently_valid)),
            recently_valid,
        )
    }

    fn entries(n: usize) -> Vec<Arc<Entry>> {
        let secret = DigestSecret::draw().unwrap();
        let entry = |n: usize| entry(secret.digest(n.to_string()));
        (0..n).map(entry).collect()
    }

    fn entry(digest: KeyDigest) -> Arc<Entry> {
        let lifetimes = Lifetimes {
            soft: HOUR,
            hard: 2 * HOUR,
        };
        let (facts, now) = (Facts::default(), Tick(1));
        Arc::new(Entry::new(facts, digest, now, 1, lifetimes, now, None))
    }

    #[test]
    fn what_is_removed_takes_no_room_and_was_not_evicted() {
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
        // Whether its key was good is for those to say who remove it.
        assert!(
            !entries
                .iter()
                .any(|entry| recently_valid.contains(entry.digest, Tick(1)))
        );
    }

    #[test]
    fn a_successor_stays_when_its_predecessor_is_removed() {
        let (store, _) = store(100);
        let old = entries(1).remove(0);
        let new = entry(old.digest);
        store.insert(Arc::clone(&old));
        store.insert(Arc::clone(&new));
        store.remove(&old);
        let cached = store.get(old.digest).unwrap();
        assert!(Arc::ptr_eq(&cached, &new));
        store.policy.run_pending_tasks();
        assert_eq!((store.len(), store.policy.entry_count()), (1, 1));
    }

    #[test]
    fn what_makes_room_is_counted_and_its_key_remembered_as_good() {
        let (store, recently_valid) = store(100);
        let entries = entries(1_000);
        for entry in &entries {
            store.insert(Arc::clone(entry));
            store.policy.run_pending_tasks();
        }
        assert_eq!((store.len(), store.evictions()), (100, 900));
        for entry in &entries {
            let is_held = store.get(entry.digest).is_some();
            assert_eq!(recently_valid.contains(entry.digest, Tick(1)), !is_held);
        }
    }

    /// Row 84: one thread removes what it reads, as readers of an expired entry do, while another inserts successors.
    #[test]
    fn fault_84_no_successor_is_stranded_when_its_predecessor_is_removed() {
        const KEYS: usize = 300;

        let (store, _) = store(2 * KEYS as u64);
        let keys: Vec<_> = entries(KEYS).iter().map(|entry| entry.digest).collect();
        let (at, removed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while let Some(&key) = keys.get(at.load(Ordering::Acquire)) {
                    match store.get(key) {
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
        assert!(store.len() > 0, "no successor was left");
        assert_eq!(store.stranded(), 0);
    }

    /// Row 84: the same while the policy evicts, and readers tell it what they read.
    #[test]
    fn fault_84_nothing_is_stranded_while_keys_are_evicted() {
        const CAPACITY: u64 = 20;

        let (store, _) = store(CAPACITY);
        let keys: Vec<_> = entries(40).iter().map(|entry| entry.digest).collect();
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for n in 0..50_000 {
                        let key = keys[fastrand::usize(..keys.len())];
                        match (store.get(key), fastrand::u8(..4)) {
                            (Some(cached), 0) => {
                                store.remove(&cached);
                            }
                            (Some(_), 1 | 2) => store.record_read(key, n),
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
