//! Log lines at a bounded rate, for what every request could cause.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Clock;

/// Lets one event a second through, and counts the others.
pub(super) struct Flood {
    second: AtomicU64,
    left_out: AtomicU64,
}

impl Flood {
    pub(super) const fn new() -> Self {
        Self {
            second: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// How many were left out before this one, if this one is to be told.
    pub(super) fn admit(&self) -> Option<u64> {
        // Seconds since boot, from one on, so that the first event finds another second in the cell.
        let now = Clock::System.now().0 / 1_000_000_000 + 1;
        let before = self.second.load(Ordering::Relaxed);
        let is_first = before != now
            && self
                .second
                .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_first {
            Some(self.left_out.swap(0, Ordering::Relaxed))
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}
