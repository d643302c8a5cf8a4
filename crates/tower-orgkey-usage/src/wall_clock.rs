//! The wall clock. It names minutes, and measures what outlives the process.

use std::time::{Duration, SystemTime};

#[derive(Clone, Debug, Default)]
pub(crate) enum WallClock {
    #[default]
    System,
    #[cfg(feature = "test-util")]
    Test(crate::test_util::TestWallClock),
}

impl WallClock {
    fn now(&self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            #[cfg(feature = "test-util")]
            Self::Test(clock) => clock.now(),
        }
    }

    pub(crate) fn since_epoch(&self) -> Duration {
        // A clock before 1970 is not set.
        let now = self.now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap_or_default()
    }

    /// Seconds since the Unix epoch.
    pub(crate) fn seconds(&self) -> u64 {
        self.since_epoch().as_secs()
    }

    /// The current minute since the Unix epoch.
    pub(crate) fn minute(&self) -> u64 {
        self.seconds() / 60
    }

    /// The time to the next minute.
    pub(crate) fn to_next_minute(&self) -> Duration {
        let into = self.since_epoch().as_nanos() % 60_000_000_000;
        let into = Duration::from_nanos(u64::try_from(into).unwrap_or_default());
        Duration::from_secs(60).saturating_sub(into)
    }
}
