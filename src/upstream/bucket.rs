//! A token bucket on our clock, from which tokens may be borrowed and given back, and whose rate may change.

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
    /// A full bucket.
    pub(super) fn new(burst: f64, per_second: f64, now: Tick) -> Self {
        Self {
            tokens: burst,
            burst,
            per_second,
            filled_at: now,
        }
    }

    /// The same without its tokens.
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

    /// Takes a token whether there is one or not, and lets the bucket make up for it.
    pub(super) fn spend(&mut self, now: Tick) {
        self.fill(now);
        self.tokens -= 1.0;
    }

    pub(super) fn has(&mut self, now: Tick) -> bool {
        self.fill(now);
        // A billionth short is a rounding error of the refill, not a missing token.
        self.tokens >= 1.0 - 1e-9
    }

    /// Gives a token back.
    pub(super) fn refund(&mut self) {
        self.tokens = (self.tokens + 1.0).min(self.burst);
    }

    /// How long until there is a token.
    pub(super) fn wait(&mut self, now: Tick) -> Duration {
        self.fill(now);
        let missing = (1.0 - self.tokens).max(0.0);
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
    fn a_bucket_gives_its_burst_then_its_rate_and_takes_tokens_back() {
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
    fn a_wait_is_as_long_as_what_is_missing_of_a_token_takes() {
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
    fn a_clock_that_reads_earlier_gives_nothing() {
        let mut bucket = Bucket::new(1.0, 1.0, at(5_000)).emptied();
        assert!(!bucket.take(at(0)));
        assert!(!bucket.take(at(5_999)));
        assert!(bucket.take(at(6_000)));
    }
}
