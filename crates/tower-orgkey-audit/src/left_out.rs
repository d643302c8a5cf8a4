//! How many refusals of nobody's have an event of their own, and the count of the others.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So many at once, whatever the rate.
const BURST: u32 = 100;

/// A rate on our clock, and what it left out.
#[derive(Debug)]
pub(super) struct LeftOut {
    /// What one event costs.
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The time up to which the rate is used up.
    spent_until: Instant,
    by_code: Vec<(&'static str, u64)>,
}

/// Whether a refusal has an event of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Admitted,
    /// The first of a count.
    FirstLeftOut,
    LeftOut,
}

impl LeftOut {
    /// `per_second` events, after a first hundred.
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / per_second.max(1),
            state: Mutex::new(State {
                spent_until: Instant::now(),
                by_code: Vec::new(),
            }),
        }
    }

    pub(super) fn admit(&self, now: Instant, code: &'static str) -> Admission {
        let mut state = self.state();
        let spent_until = state.spent_until.max(now) + self.interval;
        if spent_until.duration_since(now) <= self.interval * BURST {
            state.spent_until = spent_until;
            return Admission::Admitted;
        }
        let is_first = state.by_code.is_empty();
        state.count(code, 1);
        if is_first {
            Admission::FirstLeftOut
        } else {
            Admission::LeftOut
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().by_code.is_empty()
    }

    /// The counts, which start anew.
    pub(super) fn take(&self) -> Vec<(&'static str, u64)> {
        std::mem::take(&mut self.state().by_code)
    }

    /// Counts that were taken and not told.
    pub(super) fn give_back(&self, by_code: &[(&'static str, u64)]) {
        let mut state = self.state();
        for (code, count) in by_code {
            state.count(code, *count);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// There are as many codes as there are kinds of rejections: a dozen.
    fn count(&mut self, code: &'static str, more: u64) {
        match self.by_code.iter_mut().find(|(held, _)| *held == code) {
            Some((_, count)) => *count += more,
            None => self.by_code.push((code, more)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_burst_the_rate_is_kept_and_the_rest_is_counted() {
        let left_out = LeftOut::new(10);
        let start = Instant::now();
        let second = |n: u64| start + Duration::from_secs(n);
        let mut admitted = 0;
        for at in 5..8 {
            for _ in 0..1_000 {
                let admission = left_out.admit(second(at), "invalid-token");
                admitted += usize::from(admission == Admission::Admitted);
            }
        }
        assert_eq!(admitted, 100 + 10 + 10);
        assert_eq!(left_out.take(), [("invalid-token", 3_000 - 120)]);
        assert!(left_out.is_empty());
    }

    #[test]
    fn the_first_of_a_count_is_told_apart() {
        let left_out = LeftOut::new(1);
        let now = Instant::now();
        while left_out.admit(now, "a") == Admission::Admitted {}
        assert_eq!(left_out.admit(now, "a"), Admission::LeftOut);
        assert_eq!(left_out.admit(now, "b"), Admission::LeftOut);
        let taken = left_out.take();
        assert_eq!(taken, [("a", 2), ("b", 1)]);
        assert_eq!(left_out.admit(now, "b"), Admission::FirstLeftOut);
        left_out.give_back(&taken);
        assert_eq!(left_out.take(), [("b", 2), ("a", 2)]);
    }
}
