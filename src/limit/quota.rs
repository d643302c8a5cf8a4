use std::fmt;
use std::time::Duration;

/// The longest window: a leap year.
const LONGEST_WINDOW: u64 = 366 * 24 * 3600 * 1_000_000_000;

/// The longest that a used-up quota takes to be whole again: 146 years, so that sums of two of them fit into 64 bits.
const LONGEST_FILL: u64 = 1 << 62;

/// So many requests in so much time, and so many of them at once.
///
/// Requests are given back one by one, evenly over the window: after `per_minute(60)` is used up, one request passes in
/// the next second and not sixty in the next minute. Unless [`burst`](Self::burst) says otherwise, a whole window's requests may
/// come at once. In any stretch of time `d` at most `burst + d × requests / window` requests pass.
///
/// A quota of no requests lets none pass.
///
/// ```
/// use std::time::Duration;
/// use tower_orgkey::Quota;
///
/// let starter = Quota::per_minute(60);
/// let business = Quota::per_second(100).burst(500);
/// let nightly = Quota::per(10_000, Duration::from_secs(24 * 3600));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    requests: u32,
    burst: u32,
    /// Nanoseconds.
    window: u64,
    /// Nanoseconds in which one request is given back. Rounded up: a quota is never exceeded.
    period: u64,
}

impl Quota {
    /// So many requests in a second.
    pub const fn per_second(requests: u32) -> Self {
        Self::per(requests, Duration::from_secs(1))
    }

    /// So many requests in a minute.
    pub const fn per_minute(requests: u32) -> Self {
        Self::per(requests, Duration::from_secs(60))
    }

    /// So many requests in an hour.
    pub const fn per_hour(requests: u32) -> Self {
        Self::per(requests, Duration::from_secs(3600))
    }

    /// So many requests in a window of 1 ns to 366 days. What is shorter or longer is taken for the bound.
    pub const fn per(requests: u32, window: Duration) -> Self {
        let window = match window.as_nanos() {
            0 => 1,
            nanos if nanos > LONGEST_WINDOW as u128 => LONGEST_WINDOW,
            // Within 64 bits, as the line above found.
            #[allow(clippy::cast_possible_truncation)]
            nanos => nanos as u64,
        };
        let period = if requests == 0 {
            window
        } else {
            window.div_ceil(requests as u64)
        };
        let quota = Self {
            requests,
            burst: 0,
            window,
            period,
        };
        quota.burst(requests)
    }

    /// How many requests may come at once, after a pause that was long enough. As many as in a window unless set; with none,
    /// nothing passes.
    ///
    /// A burst that takes more than 146 years to be given back is cut to one that does not.
    pub const fn burst(mut self, requests: u32) -> Self {
        let most = LONGEST_FILL / self.period;
        self.burst = if requests as u64 > most {
            // Smaller than a `u32`, as the line above found.
            #[allow(clippy::cast_possible_truncation)]
            {
                most as u32
            }
        } else {
            requests
        };
        self
    }

    pub(super) fn requests(&self) -> u32 {
        self.requests
    }

    pub(super) fn window(&self) -> Duration {
        Duration::from_nanos(self.window)
    }

    /// The time in which one request is given back, in nanoseconds.
    pub(super) fn period(&self) -> u64 {
        self.period
    }

    /// The time in which a used-up burst is given back, in nanoseconds. Zero if nothing passes.
    pub(super) fn fill(&self) -> u64 {
        self.period * u64::from(self.burst)
    }

    /// `None` for a quota that lets nothing pass.
    pub(super) fn governors(&self) -> Option<governor::Quota> {
        let burst = std::num::NonZeroU32::new(self.burst)?;
        if self.requests == 0 {
            return None;
        }
        Some(governor::Quota::with_period(Duration::from_nanos(self.period))?.allow_burst(burst))
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quota")
            .field("requests", &self.requests)
            .field("window", &self.window())
            .field("burst", &self.burst)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_is_given_back_in_no_less_than_its_part_of_the_window() {
        for (quota, period) in [
            (Quota::per_second(3), 333_333_334),
            (Quota::per_minute(60), 1_000_000_000),
            (Quota::per_hour(7), 514_285_714_286),
            (Quota::per(u32::MAX, Duration::from_secs(1)), 1),
            (Quota::per(5, Duration::ZERO), 1),
            (Quota::per(1, Duration::MAX), LONGEST_WINDOW),
        ] {
            assert_eq!(quota.period(), period, "{quota:?}");
            assert!(u128::from(period) * u128::from(quota.requests) >= quota.window().as_nanos());
        }
    }

    #[test]
    fn no_quota_overflows_what_its_debts_are_counted_in() {
        for requests in [0, 1, 2, 1_000, u32::MAX] {
            for window in [Duration::ZERO, Duration::from_secs(1), Duration::MAX] {
                for burst in [0, 1, 1_000, u32::MAX] {
                    let quota = Quota::per(requests, window).burst(burst);
                    let fill = u128::from(quota.period()) * u128::from(quota.burst);
                    assert!(fill <= u128::from(LONGEST_FILL), "{quota:?}");
                    assert_eq!(u128::from(quota.fill()), fill);
                    assert_eq!(quota.governors().is_none(), requests == 0 || burst == 0);
                }
            }
        }
    }
}
