//! The circuit breaker: stops calling an issuer that fails, and tries it again now and then.
//!
//! There are two circuits, because anybody can present an unknown key, and nobody else may pay for what happens to it:
//!
//! * The *known* circuit counts calls for known and recently valid keys. While it is open, no key is verified.
//! * The *unknown* circuit counts calls for unknown keys. While it is open, no unknown key is verified.
//!
//! A circuit opens on at least 20 calls in 10 s of which half failed, or on failures of 5 distinct keys in a row. A key's
//! failures count once in 10 s. It stays open for 5 s, doubling to 60 s and shortened at random by up to a fifth. Then it is
//! half open: one call is let through, and its outcome closes the circuit or opens it again. The call of a known key closes
//! both. A known key that asked while its circuit was open goes first: unknown keys wait up to 5 s longer for it. A key whose
//! half-open call failed lets others go first for as long.
//!
//! A failure is "the issuer is unavailable". Answers that reject the key, a 429 and rejected credentials of our own show that
//! the issuer is alive. A response that makes no sense is about its key, until those of 10 distinct keys in a row make none.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Tick;
use crate::key::KeyDigest;
use crate::telemetry::{self, Component};

const WINDOW: Duration = Duration::from_secs(10);
const BUCKETS: usize = 10;
const MIN_CALLS: u32 = 20;
/// Distinct keys that fail in a row.
const MAX_FAILING: usize = 5;
/// Distinct keys whose responses make no sense, in a row. Several organizations may have a key that the issuer describes
/// in a way we do not understand.
const MAX_SENSELESS: usize = 10;
const FIRST_OPEN: Duration = Duration::from_secs(5);
const LONGEST_OPEN: Duration = Duration::from_secs(60);
/// How long a half-open circuit waits for those who go first.
const PRECEDENCE: Duration = Duration::from_secs(5);
/// What a caller is told while the half-open call is in flight.
const RETRY_AFTER_TRIAL: Duration = Duration::from_secs(1);

/// Which circuit a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Circuit {
    Known,
    Unknown,
}

impl Circuit {
    /// Returns the name of the circuit in telemetry.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Unknown => "unknown",
        }
    }
}

/// What a call shows about the issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// The issuer answered the question.
    Answered,
    /// The issuer is unavailable.
    Failed,
    /// The response about this key makes no sense.
    Senseless,
    /// The issuer is alive, and no more is known: 429, rejected credentials of our own, missing evidence.
    Alive,
}

/// The state of a circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// No calls go through.
    Open {
        /// Until one call may try again.
        remaining: Duration,
    },
    /// One call is trying, or the next one will.
    HalfOpen,
}

#[derive(Debug)]
pub(super) struct Breaker {
    component: Component,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: CircuitState,
    unknown: CircuitState,
    /// Whether a known key was turned away since the known circuit opened.
    has_known_asked: bool,
    /// Distinct keys whose responses made no sense since the last one that did, of either circuit.
    senseless: HashSet<KeyDigest>,
}

#[derive(Debug, Default)]
struct CircuitState {
    phase: Phase,
    /// Openings without a success between them.
    openings: u32,
    /// Counts changes of phase, so that the outcome of a call from an earlier phase is ignored.
    generation: u64,
    slots: [Slot; BUCKETS],
    /// Distinct keys that failed since the last success.
    failing: HashSet<KeyDigest>,
    /// The key whose half-open call failed last.
    last_trial: Option<KeyDigest>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Closed,
    Open {
        until: Tick,
    },
    /// The half-open call is in flight.
    Trial,
}

/// The calls of one second.
#[derive(Debug, Default)]
struct Slot {
    second: u64,
    calls: u32,
    failures: u32,
    failed_keys: HashSet<KeyDigest>,
}

/// A change of a circuit, to be reported once the lock is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Opened(Duration),
    Tries,
    Closed,
}

/// A call that the breaker let through. Dropped without an outcome, it lets another call try.
#[derive(Debug)]
pub(super) struct Call<'a> {
    breaker: &'a Breaker,
    circuit: Circuit,
    key: KeyDigest,
    generation: u64,
    is_done: bool,
}

impl Breaker {
    pub(super) fn new(component: Component) -> Self {
        Self {
            component,
            state: Mutex::default(),
        }
    }

    /// Returns whether a call would go through, or how long it has to wait.
    pub(super) fn check(
        &self,
        circuit: Circuit,
        key: KeyDigest,
        now: Tick,
    ) -> Result<(), Duration> {
        self.lock().check(circuit, key, now)
    }

    pub(super) fn begin(
        &self,
        circuit: Circuit,
        key: KeyDigest,
        now: Tick,
    ) -> Result<Call<'_>, Duration> {
        let mut state = self.lock();
        state.check(circuit, key, now)?;
        let of = state.of(circuit);
        let is_trial = of.phase != Phase::Closed;
        if is_trial {
            of.turn(Phase::Trial);
        }
        let call = Call {
            breaker: self,
            circuit,
            key,
            generation: of.generation,
            is_done: false,
        };
        drop(state);
        if is_trial {
            self.report(circuit, Change::Tries, now);
        }
        Ok(call)
    }

    pub(super) fn state(&self, circuit: Circuit, now: Tick) -> BreakerState {
        match self.lock().of(circuit).phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { until } if now < until => BreakerState::Open {
                remaining: until.since(now),
            },
            Phase::Open { .. } | Phase::Trial => BreakerState::HalfOpen,
        }
    }

    /// Emits an event, and the state of the circuit. Called without the lock, so changes may be reported late: the gauge is
    /// set again until it shows the present state.
    fn report(&self, circuit: Circuit, change: Change, now: Tick) {
        match change {
            Change::Opened(open_for) => {
                telemetry::breaker_opened(self.component, circuit, open_for);
            }
            Change::Tries => telemetry::breaker_tries(self.component, circuit),
            Change::Closed => telemetry::breaker_closed(self.component, circuit),
        }
        super::report_until_current(
            || self.state(circuit, now),
            |state| telemetry::breaker_state(self.component, circuit, state),
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call<'_> {
    /// Counts the outcome of the call. Returns whether a circuit opened on it.
    pub(super) fn end(mut self, health: Health, now: Tick) -> bool {
        self.is_done = true;
        let (circuit, key) = (self.circuit, self.key);
        let mut state = self.breaker.lock();
        let is_senseless = state.note_sense(health, key);
        if state.of(circuit).generation != self.generation {
            return false;
        }
        let changes = match (state.of(circuit).phase, health) {
            (Phase::Trial, Health::Failed) => {
                state.of(circuit).last_trial = Some(key);
                state.open(circuit, now)
            }
            (Phase::Trial, Health::Senseless) => {
                let of = state.of(circuit);
                of.last_trial = Some(key);
                of.turn(Phase::Open { until: now });
                Vec::new()
            }
            (Phase::Trial, Health::Answered | Health::Alive) => state.close(circuit),
            (_, Health::Answered) => {
                state.of(circuit).count_answer(now);
                Vec::new()
            }
            (_, Health::Senseless) if is_senseless => state.open(circuit, now),
            (_, Health::Failed) if state.of(circuit).count_failure(key, now) => {
                state.open(circuit, now)
            }
            (_, Health::Senseless | Health::Failed | Health::Alive) => Vec::new(),
        };
        drop(state);
        let is_open = |&(_, change): &(Circuit, Change)| matches!(change, Change::Opened(_));
        let has_opened = changes.iter().any(is_open);
        for (circuit, change) in changes {
            self.breaker.report(circuit, change, now);
        }
        has_opened
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let mut state = self.breaker.lock();
        let of = state.of(self.circuit);
        if of.generation == self.generation && of.phase == Phase::Trial {
            of.turn(Phase::Open { until: Tick::ZERO });
        }
    }
}

impl State {
    fn of(&mut self, circuit: Circuit) -> &mut CircuitState {
        match circuit {
            Circuit::Known => &mut self.known,
            Circuit::Unknown => &mut self.unknown,
        }
    }

    fn check(&mut self, circuit: Circuit, key: KeyDigest, now: Tick) -> Result<(), Duration> {
        let known_first_until = self.known_first_until(now);
        let of = self.of(circuit);
        let gives_way = of.last_trial == Some(key);
        let wait = match (of.phase, circuit) {
            (Phase::Closed, _) => return Ok(()),
            (Phase::Trial, _) => RETRY_AFTER_TRIAL,
            (Phase::Open { until }, circuit) => {
                let until = match circuit {
                    _ if gives_way => until.after(PRECEDENCE),
                    Circuit::Unknown => until.max(known_first_until),
                    Circuit::Known => until,
                };
                if now >= until {
                    return Ok(());
                }
                until.since(now)
            }
        };
        self.has_known_asked |= circuit == Circuit::Known;
        Err(wait)
    }

    /// Until when unknown keys leave the half-open call to a known key.
    fn known_first_until(&self, now: Tick) -> Tick {
        match self.known.phase {
            Phase::Open { until } if self.has_known_asked => until.after(PRECEDENCE),
            // Its outcome is theirs, too.
            Phase::Trial => now.after(RETRY_AFTER_TRIAL),
            Phase::Open { .. } | Phase::Closed => Tick::ZERO,
        }
    }

    /// Counts keys whose responses make no sense. Returns whether they are too many.
    fn note_sense(&mut self, health: Health, key: KeyDigest) -> bool {
        match health {
            Health::Answered => self.senseless.clear(),
            Health::Senseless if self.senseless.len() < MAX_SENSELESS => {
                self.senseless.insert(key);
            }
            Health::Senseless | Health::Failed | Health::Alive => {}
        }
        self.senseless.len() >= MAX_SENSELESS
    }

    /// Opens a circuit. The known circuit opens for unknown keys too.
    fn open(&mut self, circuit: Circuit, now: Tick) -> Vec<(Circuit, Change)> {
        let of = self.of(circuit);
        let open_for = FIRST_OPEN
            .saturating_mul(1 << of.openings.min(10))
            .min(LONGEST_OPEN)
            .mul_f64(1.0 - 0.2 * fastrand::f64());
        of.openings += 1;
        let until = now.after(open_for);
        of.turn(Phase::Open { until });
        let mut changes = vec![(circuit, Change::Opened(open_for))];
        if circuit == Circuit::Known {
            self.has_known_asked = false;
            let later = match self.unknown.phase {
                Phase::Open { until: later } => until.max(later),
                Phase::Closed | Phase::Trial => until,
            };
            self.unknown.turn(Phase::Open { until: later });
            changes.push((Circuit::Unknown, Change::Opened(later.since(now))));
        }
        changes
    }

    /// Closes a circuit. A known key's call closes both.
    fn close(&mut self, circuit: Circuit) -> Vec<(Circuit, Change)> {
        let mut closed = vec![circuit];
        if circuit == Circuit::Known && self.unknown.phase != Phase::Closed {
            closed.push(Circuit::Unknown);
        }
        for &circuit in &closed {
            let of = self.of(circuit);
            *of = CircuitState {
                generation: of.generation + 1,
                ..CircuitState::default()
            };
        }
        closed
            .into_iter()
            .map(|circuit| (circuit, Change::Closed))
            .collect()
    }
}

impl CircuitState {
    fn turn(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation += 1;
    }

    fn count_answer(&mut self, now: Tick) {
        self.failing.clear();
        self.slot(now).calls += 1;
    }

    /// Counts a failure. Returns whether it is one too many.
    fn count_failure(&mut self, key: KeyDigest, now: Tick) -> bool {
        let oldest = (second(now) + 1).saturating_sub(WINDOW.as_secs());
        let is_recent = |slot: &&Slot| slot.second >= oldest;
        let mut recent = self.slots.iter().filter(is_recent);
        if recent.any(|slot| slot.failed_keys.contains(&key)) {
            return false;
        }
        let slot = self.slot(now);
        slot.calls += 1;
        slot.failures += 1;
        slot.failed_keys.insert(key);
        self.failing.insert(key);
        let recent = self.slots.iter().filter(is_recent);
        let (calls, failures) = recent.fold((0, 0), |(calls, failures), slot| {
            (calls + slot.calls, failures + slot.failures)
        });
        self.failing.len() >= MAX_FAILING || (calls >= MIN_CALLS && failures * 2 >= calls)
    }

    fn slot(&mut self, now: Tick) -> &mut Slot {
        let second = second(now);
        #[allow(clippy::cast_possible_truncation)] // Reduced to the number of slots first.
        let slot = &mut self.slots[(second % BUCKETS as u64) as usize];
        if slot.second != second {
            *slot = Slot {
                second,
                ..Slot::default()
            };
        }
        slot
    }
}

fn second(now: Tick) -> u64 {
    now.0 / 1_000_000_000
}

#[cfg(test)]
mod tests;
