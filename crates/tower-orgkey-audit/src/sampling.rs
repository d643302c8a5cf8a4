//! Limits the events of rejected and unverified requests without an organization, and counts the others.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many events pass at once, whatever the rate.
const BURST: u32 = 100;

#[derive(Debug)]
pub(crate) struct Sampler {
    /// The time that one event takes up.
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The rate is used up until then.
    used_until: Instant,
    suppressed: Vec<(&'static str, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sample {
    /// The request has an event.
    Admitted,
    /// The request is the first of a new count.
    FirstSuppressed,
    Suppressed,
}

impl Sampler {
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / per_second.max(1),
            state: Mutex::new(State {
                used_until: Instant::now(),
                suppressed: Vec::new(),
            }),
        }
    }

    pub(crate) fn sample(&self, now: Instant, code: &'static str) -> Sample {
        let mut state = self.state();
        let used_until = state.used_until.max(now) + self.interval;
        if used_until.duration_since(now) <= self.interval * BURST {
            state.used_until = used_until;
            return Sample::Admitted;
        }
        let is_first = state.suppressed.is_empty();
        state.count(code, 1);
        if is_first {
            Sample::FirstSuppressed
        } else {
            Sample::Suppressed
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state().suppressed.is_empty()
    }

    /// Takes the counts, which start again at zero.
    pub(crate) fn take(&self) -> Vec<(&'static str, u64)> {
        std::mem::take(&mut self.state().suppressed)
    }

    /// Puts back counts that could not be exported.
    pub(crate) fn put_back(&self, suppressed: &[(&'static str, u64)]) {
        let mut state = self.state();
        for (code, count) in suppressed {
            state.count(code, *count);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A linear search: an application has about a dozen codes.
    fn count(&mut self, code: &'static str, more: u64) {
        match self.suppressed.iter_mut().find(|(held, _)| *held == code) {
            Some((_, count)) => *count += more,
            None => self.suppressed.push((code, more)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excess_is_counted_after_the_burst() {
        let sampler = Sampler::new(10);
        let start = Instant::now() + Duration::from_secs(5);
        let mut admitted = 0;
        for second in 0..3 {
            for _ in 0..1_000 {
                let now = start + Duration::from_secs(second);
                let sample = sampler.sample(now, "invalid-token");
                admitted += usize::from(sample == Sample::Admitted);
            }
        }
        assert_eq!(admitted, 100 + 10 + 10);
        assert_eq!(sampler.take(), [("invalid-token", 3_000 - 120)]);
        assert!(sampler.is_empty());
    }

    #[test]
    fn the_first_of_a_count_is_reported() {
        let sampler = Sampler::new(1);
        let now = Instant::now();
        while sampler.sample(now, "a") == Sample::Admitted {}
        assert_eq!(sampler.sample(now, "a"), Sample::Suppressed);
        assert_eq!(sampler.sample(now, "b"), Sample::Suppressed);
        let taken = sampler.take();
        assert_eq!(taken, [("a", 2), ("b", 1)]);
        assert_eq!(sampler.sample(now, "b"), Sample::FirstSuppressed);
        sampler.put_back(&taken);
        assert_eq!(sampler.take(), [("b", 2), ("a", 2)]);
    }
}
