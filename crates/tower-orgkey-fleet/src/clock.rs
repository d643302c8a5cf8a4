//! The wall clock, by which nodes compare ages.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The largest difference of clocks that is allowed for.
pub(crate) const MAX_CLOCK_SKEW: Duration = Duration::from_secs(2);

/// Reads the wall clock.
#[derive(Clone)]
pub(crate) struct WallClock(pub(crate) Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl WallClock {
    /// Returns milliseconds after 1970.
    pub(crate) fn now(&self) -> u64 {
        let since = (self.0)().duration_since(UNIX_EPOCH).unwrap_or_default();
        millis(since)
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
