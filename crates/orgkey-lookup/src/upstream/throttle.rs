//! The rate limit of calls to the issuer: the configured one, and a lower one after a 429.
//!
//! A 429 has two effects:
//!
//! * All calls pause for as long as the issuer asks, at most 60 s. If it does not say, the pause is 1 s, doubling with each 429
//!   in a row. During a pause one call for an unknown key is let through every 10 s.
//! * The rate is halved. It then rises by a tenth per second to its earlier value.

use std::time::Duration;

use super::bucket::Bucket;
use crate::clock::Tick;

/// The longest pause, whatever the issuer asks for.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The time between calls for unknown keys during a pause.
const TRICKLE: Duration = Duration::from_secs(10);
/// The time between two increases of a lowered rate.
const STEP: Duration = Duration::from_secs(1);

pub(super) struct Throttle {
    /// The rate of all nodes that share it.
    calls_per_second: Option<u32>,
    /// The rate of this node, in calls per second.
    configured: Option<f64>,
    limit: Option<Limit>,
    pause: Option<Pause>,
    /// 429s since the last answer.
    in_a_row: u32,
    /// The calls of this second and of the one before: the rate that a 429 halves if none is configured.
    this_second: (u64, u32),
    last_second: u32,
}

struct Limit {
    bucket: Bucket,
    /// The rate at which the limit is restored, or removed if none is configured.
    full: f64,
    raised_at: Tick,
}

struct Pause {
    until: Tick,
    trickle: Bucket,
}

impl Throttle {
    pub(super) fn new(calls_per_second: Option<u32>, now: Tick) -> Self {
        let configured = calls_per_second.map(f64::from);
        Self {
            calls_per_second,
            configured,
            limit: configured.map(|rate| Limit::new(rate, rate, now)),
            pause: None,
            in_a_row: 0,
            this_second: (0, 0),
            last_second: 0,
        }
    }

    /// Divides the configured rate by the number of nodes that share it.
    pub(super) fn share(&mut self, nodes: u32, now: Tick) {
        let Some(calls) = self.calls_per_second else {
            return;
        };
        let rate = f64::from(calls) / f64::from(nodes.max(1));
        if self.configured == Some(rate) {
            return;
        }
        self.configured = Some(rate);
        if let Some(limit) = &mut self.limit {
            let lowered = limit.bucket.per_second() < limit.full;
            limit.full = rate;
            // A rate that a 429 has lowered goes on rising from there.
            if !lowered || limit.bucket.per_second() > rate {
                limit.bucket.set_rate(burst(rate), rate, now);
            }
        }
    }

    /// Returns the rest of the pause.
    pub(super) fn pause(&mut self, now: Tick) -> Option<Duration> {
        if self.pause.as_ref().is_some_and(|pause| now >= pause.until) {
            self.pause = None;
        }
        self.pause.as_ref().map(|pause| pause.until.since(now))
    }

    /// Takes the turn of an unknown key during a pause. Returns whether it was due.
    pub(super) fn take_trickle(&mut self, now: Tick) -> bool {
        self.pause
            .as_mut()
            .is_some_and(|pause| pause.trickle.take(now))
    }

    /// Returns whether the rate allows a call now. `Err` is how long it has to wait.
    pub(super) fn check(&mut self, now: Tick) -> Result<(), Duration> {
        self.raise(now);
        match &mut self.limit {
            Some(limit) => {
                let has_token = limit.bucket.has(now);
                has_token
                    .then_some(())
                    .ok_or_else(|| limit.bucket.wait(now))
            }
            None => Ok(()),
        }
    }

    /// Counts a call that starts now.
    pub(super) fn count(&mut self, now: Tick) {
        let second = now.0 / 1_000_000_000;
        if self.this_second.0 != second {
            self.last_second = if self.this_second.0 + 1 == second {
                self.this_second.1
            } else {
                0
            };
            self.this_second = (second, 0);
        }
        self.this_second.1 += 1;
        if let Some(limit) = &mut self.limit {
            limit.bucket.spend(now);
        }
    }

    /// Notes that the issuer answered.
    pub(super) fn answered(&mut self) {
        self.in_a_row = 0;
    }

    /// Notes a 429 and the `Retry-After` it came with. Returns how long calls pause.
    pub(super) fn too_many(&mut self, retry_after: Option<Duration>, now: Tick) -> Duration {
        let requested = retry_after.filter(|wait| !wait.is_zero());
        let wait = requested
            .unwrap_or_else(|| FIRST_PAUSE.saturating_mul(1 << self.in_a_row.min(10)))
            .min(LONGEST_PAUSE);
        self.in_a_row = self.in_a_row.saturating_add(1);
        let until = now.after(wait);
        match &mut self.pause {
            Some(pause) if now < pause.until => pause.until = pause.until.max(until),
            _ => {
                // Once per pause: calls that were in flight when it began are answered 429, too.
                self.halve(now);
                self.pause = Some(Pause {
                    until,
                    trickle: Bucket::new(1.0, 1.0 / TRICKLE.as_secs_f64(), now).emptied(),
                });
            }
        }
        if let (Some(limit), Some(pause)) = (&mut self.limit, &self.pause) {
            // The rate does not rise during a pause.
            limit.raised_at = pause.until;
        }
        wait
    }

    /// Returns the rate limit, in calls per second.
    pub(super) fn rate(&mut self, now: Tick) -> Option<f64> {
        self.raise(now);
        self.limit.as_ref().map(|limit| limit.bucket.per_second())
    }

    /// Halves the rate.
    fn halve(&mut self, now: Tick) {
        let observed = f64::from(self.this_second.1.max(self.last_second));
        let (rate, full) = match &self.limit {
            Some(limit) => (limit.bucket.per_second(), limit.full),
            None => (observed, observed.max(1.0)),
        };
        // A configured rate, or a node's share of it, may be below two calls per second.
        let lowest = self.configured.map_or(1.0, |rate| (rate / 2.0).min(1.0));
        self.limit = Some(Limit::new((rate / 2.0).max(lowest), full, now));
    }

    /// Raises a lowered rate by the steps since the pause.
    fn raise(&mut self, now: Tick) {
        let Some(limit) = &mut self.limit else { return };
        let mut rate = limit.bucket.per_second();
        while rate < limit.full && now.since(limit.raised_at) >= STEP {
            let step = (rate / 10.0).max((limit.full / 10.0).min(1.0));
            rate = (rate + step).min(limit.full);
            limit.raised_at = limit.raised_at.after(STEP);
            limit.bucket.set_rate(burst(rate), rate, now);
        }
        if rate >= limit.full && self.configured.is_none() {
            self.limit = None;
        }
    }
}

impl Limit {
    fn new(rate: f64, full: f64, now: Tick) -> Self {
        Self {
            bucket: Bucket::new(burst(rate), rate, now),
            full,
            raised_at: now,
        }
    }
}

/// The calls of 10 ms may start at once, because timers are not much finer.
fn burst(rate: f64) -> f64 {
    (rate / 100.0).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Tick {
        Tick::ZERO.after(Duration::from_secs(1_000 + seconds))
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_pause_lasts_as_asked_and_at_most_a_minute() {
        for (said, lasts) in [(1, 1), (30, 30), (60, 60), (61, 60), (u64::MAX, 60)] {
            let mut throttle = Throttle::new(None, at(0));
            throttle.too_many(Some(seconds(said)), at(0));
            assert_eq!(throttle.pause(at(0)), Some(seconds(lasts)));
            assert_eq!(throttle.pause(at(lasts)), None);
        }
    }

    #[test]
    fn a_pause_of_unknown_length_doubles_from_1_s() {
        let mut throttle = Throttle::new(None, at(0));
        let mut now = at(0);
        for lasts in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(throttle.too_many(None, now), seconds(lasts));
            now = now.after(seconds(lasts));
            assert_eq!(throttle.pause(now), None);
        }
        throttle.answered();
        assert_eq!(throttle.too_many(Some(Duration::ZERO), now), seconds(1));
    }

    #[test]
    fn a_shorter_retry_after_shortens_no_pause() {
        let mut throttle = Throttle::new(None, at(0));
        throttle.too_many(Some(seconds(30)), at(0));
        throttle.too_many(Some(seconds(5)), at(10));
        assert_eq!(throttle.pause(at(10)), Some(seconds(20)));
    }

    #[test]
    fn a_pause_lets_one_call_through_every_10_s() {
        let mut throttle = Throttle::new(None, at(0));
        assert!(!throttle.take_trickle(at(0)));
        throttle.too_many(Some(seconds(60)), at(0));
        let taken: Vec<_> = (0..60).filter(|&n| throttle.take_trickle(at(n))).collect();
        assert_eq!(taken, [10, 20, 30, 40, 50]);
    }

    #[test]
    fn a_429_halves_the_configured_rate_for_a_while() {
        let mut throttle = Throttle::new(Some(100), at(0));
        assert_eq!(throttle.rate(at(0)), Some(100.0));
        throttle.too_many(Some(seconds(1)), at(0));
        throttle.too_many(Some(seconds(1)), at(0));
        assert_eq!(throttle.rate(at(0)), Some(50.0), "once per pause");
        assert_eq!(throttle.rate(at(1)), Some(50.0));
        assert_eq!(throttle.rate(at(2)), Some(55.0));
        assert_eq!(throttle.rate(at(100)), Some(100.0));
    }

    #[test]
    fn fault_10b_a_429_raises_no_rate() {
        for (calls, nodes) in [(10, 40), (10, 10), (1, 1), (1, 100), (3, 2)] {
            let mut throttle = Throttle::new(Some(calls), at(0));
            throttle.share(nodes, at(0));
            let share = throttle.rate(at(0)).unwrap();
            throttle.too_many(Some(seconds(1)), at(0));
            assert!(
                throttle.rate(at(1)).unwrap() <= share * 0.75,
                "{calls}, {nodes}"
            );
            throttle.too_many(Some(seconds(1)), at(1));
            throttle.share(nodes, at(2));
            assert!(throttle.rate(at(3)).unwrap() < share, "{calls}, {nodes}");
            assert_eq!(throttle.rate(at(100)), Some(share));
        }
    }

    #[test]
    fn a_429_halves_the_observed_rate_for_a_while() {
        let mut throttle = Throttle::new(None, at(0));
        for _ in 0..40 {
            throttle.count(at(0));
        }
        assert_eq!(throttle.rate(at(0)), None);
        throttle.too_many(Some(seconds(1)), at(0));
        assert_eq!(throttle.rate(at(0)), Some(20.0));
        assert_eq!(throttle.rate(at(60)), None);
    }

    #[test]
    fn the_observed_rate_is_of_the_last_two_seconds() {
        for (calls, lowered) in [
            (&[(0, 40)][..], 20.0),
            (&[(0, 40), (1, 2)], 20.0),
            (&[(0, 2), (1, 40)], 20.0),
            (&[(0, 40), (1, 6), (2, 4)], 3.0),
            (&[(0, 40), (2, 6)], 3.0),
        ] {
            let mut throttle = Throttle::new(None, at(0));
            let mut now = at(0);
            for &(second, calls) in calls {
                now = at(second);
                for _ in 0..calls {
                    throttle.count(now);
                }
            }
            throttle.too_many(Some(seconds(1)), now);
            assert_eq!(throttle.rate(now), Some(lowered), "{calls:?}");
        }
    }

    #[test]
    fn a_429_after_a_pause_halves_the_rate_again() {
        let mut throttle = Throttle::new(Some(100), at(0));
        throttle.too_many(Some(seconds(10)), at(0));
        assert_eq!(throttle.rate(at(10)), Some(50.0));
        throttle.too_many(Some(seconds(10)), at(10));
        assert_eq!(throttle.rate(at(10)), Some(25.0));
        assert!(!throttle.take_trickle(at(10)), "a new pause");
    }

    #[test]
    fn the_burst_is_10_ms_and_at_least_one_call() {
        for (rate, at_once) in [(1, 1), (100, 1), (1_000, 10)] {
            let mut throttle = Throttle::new(Some(rate), at(0));
            for _ in 0..at_once {
                assert_eq!(throttle.check(at(0)), Ok(()), "{rate}");
                throttle.count(at(0));
            }
            let wait = seconds(1) / rate;
            assert_eq!(throttle.check(at(0)), Err(wait), "{rate}");
        }
    }

    #[test]
    fn no_second_has_more_calls_than_the_rate() {
        let mut throttle = Throttle::new(Some(50), at(0));
        let start = at(0);
        let mut calls = Vec::new();
        for millis in 0..3_000 {
            let now = start.after(Duration::from_millis(millis));
            while throttle.check(now).is_ok() {
                throttle.count(now);
                calls.push(millis);
            }
        }
        for from in 0..2_000 {
            let in_window = calls
                .iter()
                .filter(|&&at| (from..from + 1_000).contains(&at))
                .count();
            assert!(in_window <= 51, "{in_window} from {from}");
        }
        assert!(calls.len() >= 149, "{}", calls.len());
    }

    #[test]
    fn nodes_share_the_configured_rate() {
        let mut throttle = Throttle::new(Some(100), at(0));
        throttle.share(4, at(0));
        assert_eq!(throttle.rate(at(0)), Some(25.0));
        throttle.share(2, at(0));
        assert_eq!(throttle.rate(at(0)), Some(50.0));
        // A rate that was lowered rises to the share.
        throttle.too_many(Some(seconds(1)), at(0));
        assert_eq!(throttle.rate(at(0)), Some(25.0));
        throttle.share(1, at(0));
        assert_eq!(throttle.rate(at(0)), Some(25.0));
        assert_eq!(throttle.rate(at(100)), Some(100.0));
        throttle.share(10, at(100));
        assert_eq!(throttle.rate(at(100)), Some(10.0));
        let mut unlimited = Throttle::new(None, at(0));
        unlimited.share(10, at(0));
        assert_eq!(unlimited.rate(at(0)), None);
    }
}
