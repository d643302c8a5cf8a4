//! The clock of all deadlines: monotonic, and running while the machine sleeps.
//!
//! [`std::time::Instant`] stops during suspend on Linux and macOS, so an entry could outlive its bound by the length of a
//! suspend. This clock reads `CLOCK_BOOTTIME` (Linux, Android), Apple's `CLOCK_MONOTONIC`, which includes suspends, and
//! `Instant` elsewhere. A wall clock is not used for deadlines, because it can step.

use std::fmt;
use std::time::Duration;

use tokio::sync::futures::Notified;

/// Nanoseconds since the origin of the clock. 64 bits suffice for 584 years.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(pub u64);

impl Tick {
    /// The origin of the clock.
    pub const ZERO: Self = Self(0);

    /// Returns the time this long after this one.
    #[inline]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(nanos(wait)))
    }

    /// Returns the time since an earlier one, or zero if that one is later.
    #[inline]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for Tick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

/// A duration in whole nanoseconds, capped at `u64::MAX`.
#[inline]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The source of the time.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The system's clock.
    #[default]
    System,
    /// A clock that a test controls.
    #[cfg(any(test, feature = "test-util"))]
    Test(TestClock),
}

impl Clock {
    /// Returns the present time.
    #[inline]
    pub fn now(&self) -> Tick {
        match self {
            Self::System => system_now(),
            #[cfg(any(test, feature = "test-util"))]
            Self::Test(clock) => Tick(nanos(clock.elapsed())),
        }
    }
}

impl Clock {
    /// Returns a future that completes when a test's clock jumps. `None` for the system's clock, which does not announce that
    /// the machine was suspended.
    pub(crate) fn jumped(&self) -> Option<Notified<'_>> {
        match self {
            Self::System => None,
            #[cfg(any(test, feature = "test-util"))]
            Self::Test(clock) => Some(clock.jumps.notified()),
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

/// A clock that follows tokio's, which a test may pause, and that jumps like the clock of a machine that was suspended.
#[cfg(any(test, feature = "test-util"))]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
#[derive(Clone, Debug)]
pub struct TestClock {
    origin: tokio::time::Instant,
    jumped: std::sync::Arc<std::sync::atomic::AtomicU64>,
    jumps: std::sync::Arc<tokio::sync::Notify>,
}

#[cfg(any(test, feature = "test-util"))]
impl TestClock {
    /// Creates a clock that starts now.
    pub fn new() -> Self {
        Self {
            origin: tokio::time::Instant::now(),
            jumped: std::sync::Arc::default(),
            jumps: std::sync::Arc::default(),
        }
    }

    /// Moves this clock forward, and wakes what waits for a time that may have passed.
    pub fn jump(&self, by: Duration) {
        self.jump_unnoticed(by);
        self.jumps.notify_waiters();
    }

    /// Moves this clock forward like a suspend of the machine, which wakes nothing.
    pub(crate) fn jump_unnoticed(&self, by: Duration) {
        self.jumped
            .fetch_add(nanos(by), std::sync::atomic::Ordering::SeqCst);
    }

    /// Returns the time since the clock started.
    pub fn elapsed(&self) -> Duration {
        let jumped = self.jumped.load(std::sync::atomic::Ordering::SeqCst);
        self.origin.elapsed() + Duration::from_nanos(jumped)
    }
}

#[cfg(any(test, feature = "test-util"))]
impl Default for TestClock {
    fn default() -> Self {
        Self::new()
    }
}
