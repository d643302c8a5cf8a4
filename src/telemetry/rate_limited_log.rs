//! Rate-limited log events, for what any request can cause.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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

/// A rate-limited log for each cause. Causes are names that the program contains, so their number is bounded.
pub(crate) struct RateLimitedLogs(Mutex<Vec<(Cause, RateLimitedLog)>>);

/// A component, and the type that it is for, if any.
type Cause = (&'static str, &'static str);

impl RateLimitedLogs {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// As [`RateLimitedLog::admit`], for events of this cause.
    pub(crate) fn admit(&self, component: &'static str, of: &'static str) -> Option<u64> {
        let cause = (component, of);
        // A push is the only change.
        let mut logs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, log)) = logs.iter().find(|(other, _)| *other == cause) {
            return log.admit();
        }
        let log = RateLimitedLog::new();
        let admitted = log.admit();
        logs.push((cause, log));
        admitted
    }
}
