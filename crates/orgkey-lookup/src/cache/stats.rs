//! Counters that every request increments, in stripes, so that cores do not contend for one cache line.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use crate::source::Found;
use crate::upstream::UpstreamState;

/// The number of stripes. More threads than this share stripes.
const STRIPES: usize = 16;

/// In each stripe, a counter for each [`Found`].
#[derive(Default)]
pub(super) struct Counters([CachePadded<[AtomicU64; 4]>; STRIPES]);

/// The counters of a cache since it was created, and its sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Cached valid keys.
    pub entries: usize,
    /// Cached invalid keys. An estimate that lags behind by moments.
    pub invalid_entries: u64,
    /// Requests served from a fresh result.
    pub hits: u64,
    /// Requests served from a stale result without waiting.
    pub stale_hits: u64,
    /// Requests that required a lookup.
    pub misses: u64,
    /// Requests rejected from the cache: invalid, blocked or expired keys.
    pub invalid_hits: u64,
    /// Requests that joined a lookup in flight.
    pub coalesced: u64,
    /// Valid keys that were evicted because the cache was full.
    pub evictions: u64,
    /// The state of the calls to the issuer. With several issuers, that of the first one.
    pub upstream: UpstreamState,
}

impl Counters {
    /// Counts a request. Returns how many such requests this stripe had counted before.
    #[inline]
    pub(crate) fn count(&self, found: Found) -> u64 {
        self.0[stripe()][found as usize].fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn of(&self, found: Found) -> u64 {
        let counters = self.0.iter().map(|stripe| &stripe[found as usize]);
        counters
            .map(|counter| counter.load(Ordering::Relaxed))
            .sum()
    }
}

/// Returns the stripe of this thread.
#[inline]
fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
        }
        mine.get()
    })
}
