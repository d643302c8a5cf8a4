//! Decides whether results are fetched from the engine now.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// After this many failures in a row nothing is fetched for a while.
const FAILURES: u32 = 5;
/// The first pause. It doubles with each failure after it, to the longest one.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The maximum number of fetches per second that find nothing. Invalid keys cause them.
const MISSES_PER_SECOND: u32 = 2_000;

#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    paused_until: Option<Instant>,
    /// The misses of the second that began then.
    misses: Option<(Instant, u32)>,
}

impl Breaker {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn allows(&self) -> bool {
        let now = Instant::now();
        self.with(|state| {
            let has_room = state.misses.is_none_or(|(since, misses)| {
                misses < MISSES_PER_SECOND || now.duration_since(since) >= Duration::from_secs(1)
            });
            has_room && state.paused_until.is_none_or(|until| now >= until)
        })
    }

    pub(crate) fn failed(&self) {
        self.with(|state| {
            state.failures = state.failures.saturating_add(1);
            if let Some(more) = state.failures.checked_sub(FAILURES) {
                let pause = PAUSE.saturating_mul(1 << more.min(5)).min(LONGEST_PAUSE);
                state.paused_until = Some(Instant::now() + pause);
            }
        });
    }

    pub(crate) fn answered(&self, is_miss: bool) {
        let now = Instant::now();
        self.with(|state| {
            state.failures = 0;
            state.paused_until = None;
            if is_miss {
                let misses = state
                    .misses
                    .filter(|(since, _)| now.duration_since(*since) < Duration::from_secs(1));
                let (since, misses) = misses.unwrap_or((now, 0));
                state.misses = Some((since, misses + 1));
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
            breaker.failed();
            assert!(breaker.allows());
        }
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            breaker.failed();
            assert!(!breaker.allows());
            tokio::time::advance(Duration::from_millis(seconds * 1_000 - 1)).await;
            assert!(!breaker.allows(), "{seconds} s");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(breaker.allows(), "{seconds} s");
        }
        breaker.answered(false);
        breaker.failed();
        assert!(breaker.allows());
    }

    #[tokio::test(start_paused = true)]
    async fn misses_are_limited_by_second() {
        let breaker = Breaker::default();
        for _ in 0..MISSES_PER_SECOND {
            assert!(breaker.allows());
            breaker.answered(true);
        }
        assert!(!breaker.allows());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(breaker.allows());
        breaker.answered(true);
        assert!(breaker.allows());
    }
}
