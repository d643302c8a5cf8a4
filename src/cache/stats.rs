//! Counters that every request writes, without a line of memory that all cores write.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

/// Threads share a stripe only when there are more of them.
const STRIPES: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Counters([CachePadded<Stripe>; STRIPES]);

#[derive(Debug, Default)]
struct Stripe {
    hits: AtomicU64,
    stale_hits: AtomicU64,
    misses: AtomicU64,
    invalid: AtomicU64,
}

/// What a request found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Fresh,
    Stale,
    Invalid,
    Miss,
}

impl Counters {
    /// Counts, and tells how many this thread had found so before.
    #[inline]
    pub(crate) fn count(&self, found: Found) -> u64 {
        let stripe = &self.0[stripe()];
        let counter = match found {
            Found::Fresh => &stripe.hits,
            Found::Stale => &stripe.stale_hits,
            Found::Invalid => &stripe.invalid,
            Found::Miss => &stripe.misses,
        };
        counter.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn of(&self, found: Found) -> u64 {
        let read = |stripe: &CachePadded<Stripe>| {
            let counter = match found {
                Found::Fresh => &stripe.hits,
                Found::Stale => &stripe.stale_hits,
                Found::Invalid => &stripe.invalid,
                Found::Miss => &stripe.misses,
            };
            counter.load(Ordering::Relaxed)
        };
        self.0.iter().map(read).sum()
    }
}

/// The stripe of this thread.
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
