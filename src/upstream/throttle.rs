//! How fast the issuer is asked: as fast as its operator says, slower after it answered 429.
//!
//! A 429 does two things. It pauses all calls for as long as the issuer said, at most 60 s, or for a backoff of our own when
//! it said nothing sensible; during a pause only a trickle of unknown keys goes through, one call in 10 s. And it halves the
//! rate, which then rises step by step, a tenth a second, until it is where it was.

use std::time::Duration;

use super::bucket::Bucket;
use crate::clock::Tick;

/// No pause is longer, whatever the issuer says.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// During a pause one unknown key in so many seconds is verified all the same.
const TRICKLE: Duration = Duration::from_secs(10);
/// A step of the recovery.
const STEP: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Throttle {
    /// What the user said the issuer can bear.
    configured: Option<f64>,
    limit: Option<Limit>,
    pause: Option<Pause>,
    /// 429s without an answer between them.
    in_a_row: u32,
    /// Calls of this second and of the one before, to know what rate was too much.
    this_second: (u64, u32),
    last_second: u32,
}

#[derive(Debug)]
struct Limit {
    bucket: Bucket,
    /// The rate at which the limit is where it was, or is lifted.
    full: f64,
    raised_at: Tick,
}

#[derive(Debug)]
struct Pause {
    until: Tick,
    trickle: Bucket,
}

impl Throttle {
    pub(super) fn new(calls_per_second: Option<u32>, now: Tick) -> Self {
        let configured = calls_per_second.map(f64::from);
        Self {
            configured,
            limit: configured.map(|rate| Limit::new(rate, rate, now)),
            pause: None,
            in_a_row: 0,
            this_second: (0, 0),
            last_second: 0,
        }
    }

    /// How much longer the issuer wants to be left alone.
    pub(super) fn pause(&mut self, now: Tick) -> Option<Duration> {
        if self.pause.as_ref().is_some_and(|pause| now >= pause.until) {
            self.pause = None;
        }
        self.pause.as_ref().map(|pause| pause.until.since(now))
    }

    /// Takes the trickle's turn, if it is due.
    pub(super) fn take_trickle(&mut self, now: Tick) -> bool {
        self.pause
            .as_mut()
            .is_some_and(|pause| pause.trickle.take(now))
    }

    /// Whether the rate allows a call now, or how long it has to wait.
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

    /// Counts a call that is made.
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

    /// The issuer answered.
    pub(super) fn answered(&mut self) {
        self.in_a_row = 0;
    }

    /// The issuer answered 429.
    pub(super) fn too_many(&mut self, retry_after: Option<Duration>, now: Tick) -> Duration {
        let asked = retry_after.filter(|wait| !wait.is_zero());
        let wait = asked
            .unwrap_or_else(|| FIRST_PAUSE.saturating_mul(1 << self.in_a_row.min(10)))
            .min(LONGEST_PAUSE);
        self.in_a_row = self.in_a_row.saturating_add(1);
        let until = now.after(wait);
        match &mut self.pause {
            Some(pause) if now < pause.until => pause.until = pause.until.max(until),
            _ => {
                // One cut a pause: the calls that were under way when it began are answered 429 too.
                self.cut(now);
                self.pause = Some(Pause {
                    until,
                    trickle: Bucket::new(1.0, 1.0 / TRICKLE.as_secs_f64(), now).emptied(),
                });
            }
        }
        if let (Some(limit), Some(pause)) = (&mut self.limit, &self.pause) {
            // A pause is no time to gather calls for afterwards.
            limit.raised_at = pause.until;
        }
        wait
    }

    /// The rate in force, in calls per second.
    pub(super) fn rate(&mut self, now: Tick) -> Option<f64> {
        self.raise(now);
        self.limit.as_ref().map(|limit| limit.bucket.per_second())
    }

    fn cut(&mut self, now: Tick) {
        let observed = f64::from(self.this_second.1.max(self.last_second));
        let (too_much, full) = match &self.limit {
            Some(limit) => (limit.bucket.per_second(), limit.full),
            None => (observed, observed),
        };
        self.limit = Some(Limit::new(
            (too_much / 2.0).max(1.0),
            self.configured.unwrap_or(full).max(1.0),
            now,
        ));
    }

    /// Raises a lowered rate by the steps that have passed since the pause.
    fn raise(&mut self, now: Tick) {
        let Some(limit) = &mut self.limit else { return };
        let mut rate = limit.bucket.per_second();
        while rate < limit.full && now.since(limit.raised_at) >= STEP {
            rate = (rate + (rate / 10.0).max(1.0)).min(limit.full);
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

/// The calls of a hundredth of a second may go at once, which is as fine as timers are.
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
    fn a_pause_lasts_as_long_as_the_issuer_says_and_at_most_a_minute() {
        for (said, lasts) in [(1, 1), (30, 30), (60, 60), (61, 60), (u64::MAX, 60)] {
            let mut throttle = Throttle::new(None, at(0));
            throttle.too_many(Some(seconds(said)), at(0));
            assert_eq!(throttle.pause(at(0)), Some(seconds(lasts)));
            assert_eq!(throttle.pause(at(lasts)), None);
        }
    }

    #[test]
    fn without_a_sensible_word_the_pause_doubles_from_one_second() {
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
    fn a_shorter_word_does_not_shorten_a_pause() {
        let mut throttle = Throttle::new(None, at(0));
        throttle.too_many(Some(seconds(30)), at(0));
        throttle.too_many(Some(seconds(5)), at(10));
        assert_eq!(throttle.pause(at(10)), Some(seconds(20)));
    }

    #[test]
    fn the_trickle_is_one_call_in_ten_seconds_and_only_in_a_pause() {
        let mut throttle = Throttle::new(None, at(0));
        assert!(!throttle.take_trickle(at(0)));
        throttle.too_many(Some(seconds(60)), at(0));
        let taken: Vec<_> = (0..60).filter(|&n| throttle.take_trickle(at(n))).collect();
        assert_eq!(taken, [10, 20, 30, 40, 50]);
    }

    #[test]
    fn a_429_halves_the_configured_rate_which_rises_again_to_where_it_was() {
        let mut throttle = Throttle::new(Some(100), at(0));
        assert_eq!(throttle.rate(at(0)), Some(100.0));
        throttle.too_many(Some(seconds(1)), at(0));
        throttle.too_many(Some(seconds(1)), at(0));
        assert_eq!(throttle.rate(at(0)), Some(50.0), "one cut a pause");
        assert_eq!(throttle.rate(at(1)), Some(50.0));
        assert_eq!(throttle.rate(at(2)), Some(55.0));
        assert_eq!(throttle.rate(at(100)), Some(100.0));
    }

    #[test]
    fn without_a_configured_rate_the_observed_one_is_halved_and_the_limit_lifted_in_the_end() {
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
    fn the_rate_that_was_too_much_is_that_of_this_second_or_of_the_one_before() {
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
    fn a_429_at_the_end_of_a_pause_begins_another_and_halves_the_rate_once_more() {
        let mut throttle = Throttle::new(Some(100), at(0));
        throttle.too_many(Some(seconds(10)), at(0));
        assert_eq!(throttle.rate(at(10)), Some(50.0));
        throttle.too_many(Some(seconds(10)), at(10));
        assert_eq!(throttle.rate(at(10)), Some(25.0));
        assert!(!throttle.take_trickle(at(10)), "the trickle begins anew");
    }

    #[test]
    fn the_calls_of_a_hundredth_of_a_second_go_at_once_and_at_least_one() {
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
    fn no_second_has_more_calls_than_the_rate_allows() {
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
}
