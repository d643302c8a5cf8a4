//! Decides whether results are fetched from the engine now.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// After this many failures in a row, one after the other, nothing is fetched for a while.
const FAILURES: u32 = 5;
/// The first pause. It doubles with each failure after it, to the longest one.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
/// The maximum number of fetches per second of unknown keys that find nothing. Invalid keys cause them.
const MISSES_PER_SECOND: u32 = 2_000;

#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// When the last one was counted.
    failed_at: Option<Instant>,
    paused_until: Option<Instant>,
    misses: PerSecond,
}

/// Counts the events of a second.
#[derive(Debug, Default)]
struct PerSecond(Option<(Instant, u32)>);

impl PerSecond {
    fn count(&self, now: Instant) -> u32 {
        let current = self
            .0
            .filter(|(since, _)| now.duration_since(*since) < SECOND);
        current.map_or(0, |(_, count)| count)
    }

    fn add(&mut self, now: Instant) {
        let count = self.count(now);
        let since = match self.0 {
            Some((since, _)) if count > 0 => since,
            _ => now,
        };
        self.0 = Some((since, count + 1));
    }
}

impl Breaker {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn allows(&self) -> bool {
        let now = Instant::now();
        self.with(|state| state.paused_until.is_none_or(|until| now >= until))
    }

    /// Returns whether results of unknown keys may be fetched.
    pub(crate) fn has_room(&self) -> bool {
        let now = Instant::now();
        self.with(|state| state.misses.count(now) < MISSES_PER_SECOND)
    }

    /// Takes the failure of a fetch that began at this time.
    pub(crate) fn failed(&self, began: Instant) {
        let now = Instant::now();
        self.with(|state| {
            // Those that were under way at the same time are one failure: one stall of this node or the engine fails them all.
            if state.failed_at.is_some_and(|at| began < at) {
                return;
            }
            state.failed_at = Some(now);
            state.failures = state.failures.saturating_add(1);
            if let Some(more) = state.failures.checked_sub(FAILURES) {
                let pause = PAUSE.saturating_mul(1 << more.min(5)).min(LONGEST_PAUSE);
                state.paused_until = Some(now + pause);
            }
        });
    }

    pub(crate) fn answered(&self, is_miss: bool) {
        let now = Instant::now();
        self.with(|state| {
            state.failures = 0;
            state.paused_until = None;
            if is_miss {
                state.misses.add(now);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn five_failures_pause_fetches() {
        let breaker = Breaker::default();
        for _ in 0..FAILURES - 1 {
            breaker.failed(Instant::now());
            assert!(breaker.allows());
        }
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            breaker.failed(Instant::now());
            assert!(!breaker.allows());
            tokio::time::advance(Duration::from_millis(seconds * 1_000 - 1)).await;
            assert!(!breaker.allows(), "{seconds} s");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(breaker.allows(), "{seconds} s");
        }
        breaker.answered(false);
        breaker.failed(Instant::now());
        assert!(breaker.allows());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_at_the_same_time_are_one() {
        let breaker = Breaker::default();
        for _ in 0..FAILURES - 1 {
            let began = Instant::now();
            tokio::time::advance(Duration::from_millis(20)).await;
            for _ in 0..100 {
                breaker.failed(began);
            }
            assert!(breaker.allows());
        }
        breaker.failed(Instant::now());
        assert!(!breaker.allows());
    }

    #[tokio::test(start_paused = true)]
    async fn misses_are_limited_by_second() {
        let breaker = Breaker::default();
        for _ in 0..MISSES_PER_SECOND {
            assert!(breaker.has_room());
            breaker.answered(true);
        }
        assert!(!breaker.has_room());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(breaker.has_room());
        breaker.answered(true);
        assert!(breaker.has_room());
    }
}
