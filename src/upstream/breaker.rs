//! The circuit breaker: an issuer that fails is left alone, and asked now and then whether it is back.
//!
//! It opens on at least 20 calls in 10 s of which half failed, or on 5 failures in a row. It stays open for 5 s, then twice
//! as long each time up to 60 s, shortened by up to a fifth so that a fleet does not come back in step. Then one call goes
//! through; its outcome closes the breaker or opens it again. What counts as a failure is "no usable answer": a refusal is
//! an answer, a 429 is the throttle's business, and our own credentials being refused says that the issuer is alive.
//!
//! Where a failure may be one *subject's* own fault (an organization whose settings no loader can make sense of), calls say
//! whom they are about. Then the 5 in a row have to be failures of 5 subjects, a subject's failures count once in 10 s among
//! the calls, and one whose probe failed lets others go first for 5 s: whatever is wrong with one costs the others nothing.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Tick;
use crate::key::KeyDigest;
use crate::telemetry::{self, Voice};

const WINDOW: Duration = Duration::from_secs(10);
const BUCKETS: usize = 10;
const MIN_CALLS: u32 = 20;
const MAX_IN_A_ROW: u32 = 5;
const FIRST_OPEN: Duration = Duration::from_secs(5);
const LONGEST_OPEN: Duration = Duration::from_secs(60);

/// What the breaker learns from a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Answered,
    Failed,
    /// Alive, and no more can be said: 429, or our own credentials refused.
    Alive,
}

/// The breaker's state, for readiness probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// No calls go through for this long.
    Open {
        /// Until one call may try again.
        remaining: Duration,
    },
    /// One call is trying, or the next one will.
    HalfOpen,
}

#[derive(Debug, Default)]
pub(super) struct Breaker {
    voice: Voice,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Openings without a success between them.
    openings: u32,
    /// Counts changes of phase: an outcome of a call from an earlier phase says nothing about this one.
    generation: u64,
    slots: [Slot; BUCKETS],
    failed_in_a_row: u32,
    /// The subjects among those.
    subjects_in_a_row: HashSet<KeyDigest>,
    /// Whose probe failed last.
    last_probe: Option<KeyDigest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Open { until: Tick },
    Probing,
}

#[derive(Debug, Default)]
struct Slot {
    second: u64,
    calls: u32,
    failures: u32,
    /// The subjects among those.
    subjects: HashSet<KeyDigest>,
}

/// A call that the breaker let through. Dropped without an outcome, it gives its turn back.
#[derive(Debug)]
pub(super) struct Call<'a> {
    breaker: &'a Breaker,
    generation: u64,
    is_done: bool,
    subject: Option<KeyDigest>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            phase: Phase::Closed,
            openings: 0,
            generation: 0,
            slots: Default::default(),
            failed_in_a_row: 0,
            subjects_in_a_row: HashSet::new(),
            last_probe: None,
        }
    }
}

impl Breaker {
    pub(super) fn new(voice: Voice) -> Self {
        Self {
            voice,
            ..Self::default()
        }
    }

    /// Whether a call would go through, or how long it has to wait.
    pub(super) fn check(&self, now: Tick) -> Result<(), Duration> {
        match self.lock().phase {
            Phase::Closed => Ok(()),
            Phase::Open { until } if now >= until => Ok(()),
            Phase::Open { until } => Err(until.since(now)),
            Phase::Probing => Err(Duration::from_secs(1)),
        }
    }

    /// How long a subject lets others go first, since its own probe was the last to fail.
    pub(super) fn give_way(&self, subject: Option<KeyDigest>, now: Tick) -> Result<(), Duration> {
        let Some(subject) = subject else {
            return Ok(());
        };
        let state = self.lock();
        match state.phase {
            Phase::Open { until } if state.last_probe == Some(subject) => {
                let until = until.after(FIRST_OPEN);
                (now >= until).then_some(()).ok_or(until.since(now))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn begin(&self, now: Tick) -> Result<Call<'_>, Duration> {
        let mut state = self.lock();
        match state.phase {
            Phase::Closed => {}
            Phase::Open { until } if now >= until => {
                state.turn(Phase::Probing);
                telemetry::breaker_probes(self.voice);
            }
            Phase::Open { until } => return Err(until.since(now)),
            Phase::Probing => return Err(Duration::from_secs(1)),
        }
        Ok(Call {
            breaker: self,
            generation: state.generation,
            is_done: false,
            subject: None,
        })
    }

    pub(super) fn state(&self, now: Tick) -> BreakerState {
        match self.lock().phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { until } if now < until => BreakerState::Open {
                remaining: until.since(now),
            },
            Phase::Open { .. } | Phase::Probing => BreakerState::HalfOpen,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call<'_> {
    /// Says whom it is about, where a failure may be its subject's own fault.
    pub(super) fn about(mut self, subject: Option<KeyDigest>) -> Self {
        self.subject = subject;
        self
    }

    /// Tells what became of the call. `true` when the breaker opened on it.
    pub(super) fn end(mut self, health: Health, now: Tick) -> bool {
        self.is_done = true;
        let voice = self.breaker.voice;
        let mut state = self.breaker.lock();
        if state.generation != self.generation {
            return false;
        }
        match (state.phase, health) {
            (Phase::Probing, Health::Failed) => {
                state.last_probe = self.subject;
                state.open(voice, now);
            }
            (Phase::Probing, Health::Answered | Health::Alive) => {
                *state = State {
                    generation: state.generation + 1,
                    ..State::default()
                };
                telemetry::breaker_closed(voice);
            }
            (_, Health::Alive) => return false,
            (_, health) => {
                if !state.count(health, self.subject, now) {
                    return false;
                }
                state.open(voice, now);
            }
        }
        health == Health::Failed
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut state = self.breaker.lock();
        if !self.is_done && state.generation == self.generation && state.phase == Phase::Probing {
            // The next one may try at once.
            state.turn(Phase::Open { until: Tick::ZERO });
        }
    }
}

impl State {
    fn turn(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation += 1;
    }

    fn open(&mut self, voice: Voice, now: Tick) {
        let open = FIRST_OPEN
            .saturating_mul(1 << self.openings.min(10))
            .min(LONGEST_OPEN);
        let open = open.mul_f64(1.0 - 0.2 * fastrand::f64());
        self.openings += 1;
        self.turn(Phase::Open {
            until: now.after(open),
        });
        telemetry::breaker_opened(voice, open);
    }

    /// Counts an outcome. `true` when it is one failure too many.
    fn count(&mut self, health: Health, subject: Option<KeyDigest>, now: Tick) -> bool {
        let second = now.0 / 1_000_000_000;
        let oldest = (second + 1).saturating_sub(WINDOW.as_secs());
        let is_repeated = health == Health::Failed
            && subject.is_some_and(|subject| {
                let mut recent = self.slots.iter().filter(|slot| slot.second >= oldest);
                recent.any(|slot| slot.subjects.contains(&subject))
            });
        if is_repeated {
            return false;
        }
        #[allow(clippy::cast_possible_truncation)] // Reduced to the number of slots first.
        let slot = &mut self.slots[(second % BUCKETS as u64) as usize];
        if slot.second != second {
            *slot = Slot {
                second,
                ..Slot::default()
            };
        }
        slot.calls += 1;
        if health == Health::Answered {
            self.failed_in_a_row = 0;
            self.subjects_in_a_row.clear();
            return false;
        }
        slot.failures += 1;
        slot.subjects.extend(subject);
        if subject.is_none_or(|subject| self.subjects_in_a_row.insert(subject)) {
            self.failed_in_a_row += 1;
        }
        let recent = self.slots.iter().filter(|slot| slot.second >= oldest);
        let (calls, failures) = recent.fold((0, 0), |(calls, failures), slot| {
            (calls + slot.calls, failures + slot.failures)
        });
        self.failed_in_a_row >= MAX_IN_A_ROW || (calls >= MIN_CALLS && failures * 2 >= calls)
    }
}

#[cfg(test)]
mod tests;
