use std::time::Duration;

/// The longest window: a leap year.
const MAX_WINDOW: u64 = 366 * 24 * 3600 * 1_000_000_000;

/// The longest time in which a burst refills: 146 years, so that the sum of two fits into 64 bits.
const MAX_REFILL: u64 = 1 << 62;

/// A number of requests per window of time, with a burst.
///
/// The quota refills continuously: after `per_minute(60)` is used up, one request passes per second. The burst is the number
/// of requests per window unless [`burst`](Self::burst) sets another. In any duration `d`, at most
/// `burst + d × requests / window` requests pass.
///
/// A quota of zero requests rejects every request.
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
    /// Nanoseconds in which one request refills, rounded up so that the quota is never exceeded.
    period: u64,
}

impl Quota {
    /// A quota of `requests` per second.
    pub const fn per_second(requests: u32) -> Self {
        Self::per(requests, Duration::from_secs(1))
    }

    /// A quota of `requests` per minute.
    pub const fn per_minute(requests: u32) -> Self {
        Self::per(requests, Duration::from_secs(60))
    }

    /// A quota of `requests` per hour.
    pub const fn per_hour(requests: u32) -> Self {
        Self::per(requests, Duration::from_secs(3600))
    }

    /// A quota of `requests` per `window`, which is clamped to 1 ns..=366 days.
    pub const fn per(requests: u32, window: Duration) -> Self {
        let window = match window.as_nanos() {
            0 => 1,
            nanos if nanos > MAX_WINDOW as u128 => MAX_WINDOW,
            // At most `MAX_WINDOW`, as the line above checks.
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

    /// Sets how many requests can pass at once when the quota is full. The number of requests per window unless set; zero
    /// rejects every request.
    ///
    /// A burst that takes more than 146 years to refill is reduced to one that takes 146 years.
    pub const fn burst(mut self, requests: u32) -> Self {
        let max = MAX_REFILL / self.period;
        self.burst = if requests as u64 > max {
            // Less than a `u32`, as the line above checks.
            #[allow(clippy::cast_possible_truncation)]
            {
                max as u32
            }
        } else {
            requests
        };
        self
    }

    /// Returns how many requests pass per [`window`](Self::window).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_orgkey::Quota;
    ///
    /// let quota = Quota::per_minute(600).burst(50);
    /// assert_eq!((quota.requests(), quota.window()), (600, Duration::from_secs(60)));
    /// assert_eq!(quota.max_burst(), 50);
    /// ```
    pub const fn requests(&self) -> u32 {
        self.requests
    }

    /// Returns how many requests can pass at once. See [`burst`](Self::burst).
    pub const fn max_burst(&self) -> u32 {
        self.burst
    }

    /// Returns the window: 1 ns to 366 days.
    pub const fn window(&self) -> Duration {
        Duration::from_nanos(self.window)
    }

    /// The time in which one request refills, in nanoseconds.
    pub(super) fn period(&self) -> u64 {
        self.period
    }

    /// The time in which the whole burst refills, in nanoseconds. Zero if the quota rejects every request.
    pub(super) fn refill(&self) -> u64 {
        if self.requests == 0 {
            return 0;
        }
        self.period * u64::from(self.burst)
    }
}

impl_debug!(Quota, |quota| {
    requests: quota.requests,
    window: quota.window(),
    burst: quota.burst
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn period_is_rounded_up() {
        for (quota, period) in [
            (Quota::per_second(3), 333_333_334),
            (Quota::per_minute(60), 1_000_000_000),
            (Quota::per_hour(7), 514_285_714_286),
            (Quota::per(u32::MAX, Duration::from_secs(1)), 1),
            (Quota::per(5, Duration::ZERO), 1),
            (Quota::per(1, Duration::MAX), MAX_WINDOW),
        ] {
            assert_eq!(quota.period(), period, "{quota:?}");
            assert!(u128::from(period) * u128::from(quota.requests) >= quota.window().as_nanos());
        }
    }

    #[test]
    fn refill_time_is_bounded() {
        for requests in [0, 1, 2, 1_000, u32::MAX] {
            for window in [Duration::ZERO, Duration::from_secs(1), Duration::MAX] {
                for burst in [0, 1, 1_000, u32::MAX] {
                    let quota = Quota::per(requests, window).burst(burst);
                    let refill = u128::from(quota.period()) * u128::from(quota.burst);
                    assert!(refill <= u128::from(MAX_REFILL), "{quota:?}");
                    let expected = if requests == 0 { 0 } else { refill };
                    assert_eq!(u128::from(quota.refill()), expected);
                }
            }
        }
    }
}
