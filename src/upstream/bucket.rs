//! A token bucket on the crate's clock. Tokens may be borrowed and returned, and its rate may change.

use std::time::Duration;

use crate::clock::Tick;

#[derive(Clone, Debug)]
pub(super) struct Bucket {
    tokens: f64,
    burst: f64,
    per_second: f64,
    filled_at: Tick,
}

impl Bucket {
    /// Returns a full bucket.
    pub(super) fn new(burst: f64, per_second: f64, now: Tick) -> Self {
        Self {
            tokens: burst,
            burst,
            per_second,
            filled_at: now,
        }
    }

    /// Returns the bucket without its tokens.
    pub(super) fn emptied(mut self) -> Self {
        self.tokens = 0.0;
        self
    }

    pub(super) fn per_second(&self) -> f64 {
        self.per_second
    }

    pub(super) fn set_rate(&mut self, burst: f64, per_second: f64, now: Tick) {
        self.fill(now);
        self.burst = burst;
        self.per_second = per_second;
        self.tokens = self.tokens.min(burst);
    }

    pub(super) fn take(&mut self, now: Tick) -> bool {
        let has = self.has(now);
        if has {
            self.spend(now);
        }
        has
    }

    /// Takes a token, on credit if there is none.
    pub(super) fn spend(&mut self, now: Tick) {
        self.fill(now);
        self.tokens -= 1.0;
    }

    pub(super) fn has(&mut self, now: Tick) -> bool {
        self.fill(now);
        // A billionth short is a rounding error of the refill, not a missing token.
        self.tokens >= 1.0 - 1e-9
    }

    /// Returns a token.
    pub(super) fn refund(&mut self) {
        self.tokens = (self.tokens + 1.0).min(self.burst);
    }

    /// Returns whether no token is missing.
    pub(super) fn is_full(&mut self, now: Tick) -> bool {
        self.fill(now);
        self.tokens >= self.burst
    }

    /// Returns how long it takes until there is a token.
    pub(super) fn wait(&mut self, now: Tick) -> Duration {
        self.wait_for(1.0, now)
    }

    /// Returns how long it takes until there are so many tokens.
    pub(super) fn wait_for(&mut self, tokens: f64, now: Tick) -> Duration {
        self.fill(now);
        let missing = (tokens - self.tokens).max(0.0);
        Duration::try_from_secs_f64(missing / self.per_second).unwrap_or(Duration::MAX)
    }

    fn fill(&mut self, now: Tick) {
        let elapsed = now.since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.per_second).min(self.burst);
        self.filled_at = self.filled_at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::ZERO.after(Duration::from_millis(millis))
    }

    #[test]
    fn burst_then_rate_and_returned_tokens() {
        let mut bucket = Bucket::new(3.0, 10.0, at(0));
        assert_eq!((0..10).filter(|_| bucket.take(at(0))).count(), 3);
        assert_eq!(bucket.wait(at(0)), Duration::from_millis(100));
        assert!(!bucket.take(at(99)));
        assert!(bucket.take(at(100)));
        assert!(!bucket.take(at(100)));
        bucket.refund();
        assert!(bucket.take(at(100)));
        for _ in 0..10 {
            bucket.refund();
        }
        assert_eq!((0..10).filter(|_| bucket.take(at(100))).count(), 3);
    }

    #[test]
    fn wait_is_the_time_to_refill_what_is_missing() {
        let mut bucket = Bucket::new(1.0, 10.0, at(0));
        assert_eq!(bucket.wait(at(0)), Duration::ZERO);
        bucket.spend(at(0));
        assert_eq!(bucket.wait(at(0)), Duration::from_millis(100));
        assert_eq!(bucket.wait(at(50)), Duration::from_millis(50));
        bucket.spend(at(50));
        assert_eq!(bucket.wait(at(50)), Duration::from_millis(150));
        assert_eq!(bucket.wait(at(200)), Duration::ZERO);
    }

    #[test]
    fn earlier_clock_readings_refill_nothing() {
        let mut bucket = Bucket::new(1.0, 1.0, at(5_000)).emptied();
        assert!(!bucket.take(at(0)));
        assert!(!bucket.take(at(5_999)));
        assert!(bucket.take(at(6_000)));
    }
}
