//! Rate-limited log events, for what any request can cause.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Clock;

/// Admits one event per second and counts the others.
pub(crate) struct RateLimitedLog {
    second: AtomicU64,
    suppressed: AtomicU64,
}

impl RateLimitedLog {
    pub(crate) const fn new() -> Self {
        Self {
            second: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Returns the number of events suppressed since the last one, if an event may be emitted now.
    pub(crate) fn admit(&self) -> Option<u64> {
        // Seconds since boot plus one, so that the first event differs from the initial value.
        let now = Clock::System.now().0 / 1_000_000_000 + 1;
        let before = self.second.load(Ordering::Relaxed);
        let is_first = before != now
            && self
                .second
                .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_first {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}
