use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// The clock of an emulator, which can be moved. Clones are the same clock.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// How far it is ahead of the machine's clock, in seconds.
    offset: Arc<AtomicI32>,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            offset: Arc::default(),
        }
    }

    pub(crate) fn offset(&self) -> i32 {
        self.offset.load(Ordering::Relaxed)
    }

    pub(crate) fn set_offset(&self, seconds: i32) {
        self.offset.store(seconds, Ordering::Relaxed);
    }

    /// Returns the date and time. No time before 1970, which HTTP dates cannot express.
    pub(crate) fn now(&self) -> SystemTime {
        let offset = self.offset();
        let distance = Duration::from_secs(offset.unsigned_abs().into());
        let now = SystemTime::now();
        let moved = if offset < 0 {
            now.checked_sub(distance)
        } else {
            now.checked_add(distance)
        };
        moved.unwrap_or(now).max(SystemTime::UNIX_EPOCH)
    }

    /// Returns the nanoseconds since the start, by a clock that follows tokio's paused time.
    pub(crate) fn uptime(&self) -> i128 {
        let elapsed = nanos(self.started.elapsed());
        elapsed + i128::from(self.offset()) * nanos(Duration::from_secs(1))
    }
}

/// Returns the nanoseconds of a duration: at most 2^64 seconds, far below the range.
pub(crate) fn nanos(duration: Duration) -> i128 {
    i128::from(duration.as_secs()) * 1_000_000_000 + i128::from(duration.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offset_moves_both_clocks() {
        let hour = Duration::from_secs(3_600);
        let clock = Clock::new();
        let (before, uptime) = (clock.now(), clock.uptime());
        clock.clone().set_offset(3_600);
        assert!(clock.now() >= before + hour);
        assert!(clock.uptime() >= uptime + nanos(hour));
        clock.set_offset(-3_600);
        assert!(clock.now() < before);
        assert!(clock.uptime() < uptime);
        clock.set_offset(i32::MIN);
        assert_eq!(clock.now(), SystemTime::UNIX_EPOCH);
    }
}
