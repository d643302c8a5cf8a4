//! The clock of all deadlines: monotonic, and running while the machine sleeps.
//!
//! [`std::time::Instant`] stops during suspend on Linux and macOS, so an entry could outlive its bound by the length of a
//! suspend. This clock reads `CLOCK_BOOTTIME` (Linux, Android), Apple's `CLOCK_MONOTONIC`, which includes suspends, and
//! `Instant` elsewhere. A wall clock is not used for deadlines, because it can step.

use std::fmt;
use std::time::Duration;

/// Nanoseconds since the origin of the clock. 64 bits suffice for 584 years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Tick(pub(crate) u64);

impl Tick {
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(nanos(wait)))
    }

    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for Tick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

/// A duration in whole nanoseconds, capped at `u64::MAX`.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The source of the time.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    #[default]
    System,
    #[cfg(feature = "test-util")]
    Test(crate::test_util::TestClock),
}

impl Clock {
    #[inline]
    pub(crate) fn now(&self) -> Tick {
        match self {
            Self::System => system_now(),
            #[cfg(feature = "test-util")]
            Self::Test(clock) => Tick(nanos(clock.elapsed())),
        }
    }
}

#[cfg(unix)]
#[inline]
fn system_now() -> Tick {
    use rustix::time::{ClockId, clock_gettime};

    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: ClockId = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: ClockId = ClockId::Monotonic;

    let time = clock_gettime(CLOCK);
    // Neither field is negative, because the clock starts at boot.
    Tick(time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned())
}

#[cfg(not(unix))]
fn system_now() -> Tick {
    use std::sync::OnceLock;
    use std::time::Instant;

    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    Tick(nanos(ORIGIN.get_or_init(Instant::now).elapsed()))
}
