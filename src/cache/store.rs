//! Where the good keys are: moka bounds, ages and evicts; a lock-free index before it answers the reads.
//!
//! moka's own reads all write to one log, which is a line of memory that every core then fights for. So reads go to a
//! papaya map, and one read in [`SAMPLE`] is reported to moka, whose policy needs to know what is hot. Entries go into
//! the index first and then into moka; what moka lets go leaves the index by its eviction listener, entry by entry, so
//! that the successor of an evicted entry stays.
//!
//! Only an issuer's yes is ever written here, and a miss is never reported to the policy: a flood of junk neither takes
//! room nor makes what is hot look cold.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::notification::RemovalCause;
use moka::ops::compute::Op;
use moka::sync::Cache as Moka;
use papaya::HashMap as Index;

use super::entry::Entry;
use super::former::Former;
use super::sync::Step;
use crate::clock::Tick;
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

    #[allow(clippy::cast_possible_truncation)] // The low half is meant.
    fn write_u128(&mut self, digest: u128) {
        self.0 = digest as u64;
    }
}

pub(crate) type DigestBuildHasher = BuildHasherDefault<DigestHasher>;

pub(crate) struct Store {
    index: Arc<Index<KeyDigest, Arc<Entry>, DigestBuildHasher>>,
    policy: Moka<KeyDigest, Arc<Entry>, DigestBuildHasher>,
    evictions: Arc<AtomicU64>,
    step: Step,
}

impl Store {
    /// Holds up to `capacity` entries, none for longer than `keep`. What leaves by age or for want of room is noted
    /// among the former keys.
    pub(crate) fn new(capacity: u64, keep: Duration, former: Arc<Former>) -> Self {
        let index = Arc::new(Index::with_hasher(DigestBuildHasher::default()));
        let evictions = Arc::new(AtomicU64::new(0));
        let listener = {
            let index = Arc::clone(&index);
            let evictions = Arc::clone(&evictions);
            move |digest: Arc<KeyDigest>, entry: Arc<Entry>, cause: RemovalCause| {
                remove_from(&index, *digest, &entry);
                if cause == RemovalCause::Size {
                    evictions.fetch_add(1, Ordering::Relaxed);
                }
                if cause.was_evicted() {
                    former.note(*digest, entry.sent_at);
                }
            }
        };
        Self {
            index,
            evictions,
            step: Step::new(),
            policy: Moka::builder()
                .max_capacity(capacity)
                // moka's clock is not ours, so this is housekeeping: the deadlines that count stand in the entries.
                .time_to_live(keep)
                .eviction_listener(listener)
                .build_with_hasher(DigestBuildHasher::default()),
        }
    }

    #[inline]
    pub(crate) fn get(&self, digest: KeyDigest, now: Tick) -> Option<Arc<Entry>> {
        self.step.take();
        let entry = self.index.pin().get(&digest).cloned()?;
        // The clock is as good as a die, and costs no shared memory. Multiplied by the golden ratio, since some clocks count
        // in whole microseconds.
        if (now.0 ^ digest.low()).wrapping_mul(0x9E37_79B9_7F4A_7C15) < u64::MAX / SAMPLE {
            self.policy.get(&digest);
        }
        Some(entry)
    }

    pub(crate) fn insert(&self, entry: Arc<Entry>) {
        self.step.take();
        self.index.pin().insert(entry.digest, Arc::clone(&entry));
        self.policy.insert(entry.digest, entry);
    }

    /// Removes this very entry; a successor under the same digest stays.
    pub(crate) fn remove(&self, entry: &Arc<Entry>) {
        self.step.take();
        if remove_from(&self.index, entry.digest, entry) {
            self.policy.entry(entry.digest).and_compute_with(|held| {
                match held {
                    Some(held) if Arc::ptr_eq(held.value(), entry) => Op::Remove,
                    // Succeeded or evicted meanwhile.
                    _ => Op::Nop,
                }
            });
        }
    }

    /// What is held at this moment.
    #[cfg(feature = "kinde")]
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.index.pin().values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// How many entries made room for others.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }
}

fn remove_from(
    index: &Index<KeyDigest, Arc<Entry>, DigestBuildHasher>,
    digest: KeyDigest,
    entry: &Arc<Entry>,
) -> bool {
    matches!(
        index
            .pin()
            .remove_if(&digest, |_, held| Arc::ptr_eq(held, entry)),
        Ok(Some(_))
    )
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("entries", &self.len())
            .finish_non_exhaustive()
    }
}
