//! A wall clock that a test sets.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// A wall clock for [`UsageLayerBuilder::test_wall_clock`](crate::UsageLayerBuilder::test_wall_clock): it only moves when
/// it is set, forward or back.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tower_orgkey_usage::test_util::TestWallClock;
///
/// let clock = TestWallClock::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
/// clock.set(clock.now() + Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
pub struct TestWallClock(Arc<Mutex<SystemTime>>);

impl TestWallClock {
    /// Creates a clock that shows this time.
    pub fn new(time: SystemTime) -> Self {
        Self(Arc::new(Mutex::new(time)))
    }

    /// Sets the time.
    pub fn set(&self, time: SystemTime) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = time;
    }

    /// Returns the time.
    pub fn now(&self) -> SystemTime {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
