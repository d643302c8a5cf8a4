//! The circuit breaker: stops the calls to a failing issuer, and tests periodically whether it has recovered.
//!
//! There are two circuits, because anyone can send an unknown key, and its failures must not affect known keys:
//!
//! * The *known* circuit counts calls for known and recently valid keys. While it is open, no key is verified.
//! * The *unknown* circuit counts calls for unknown keys. While it is open, no unknown key is verified.
//!
//! A circuit opens on at least 20 calls in 10 s of which half failed, or on failures of 5 distinct keys in a row. A key's
//! failures count once in 10 s. It stays open for 5 s, doubling to 60 s and shortened at random by up to a fifth. Then it is
//! half open: one call is let through, and its outcome closes the circuit or opens it again. The call of a known key closes
//! both. If a known key was rejected while its circuit was open, a known key makes the half-open call: unknown keys wait up to
//! 5 s longer. The key that made the last failed half-open call lets others go first, also for up to 5 s.
//!
//! A failure is "the issuer is unavailable". An invalid answer about the key, a 429 and rejected credentials of the verifier show
//! that the issuer is alive. An invalid response concerns its key only, unless 10 distinct keys in a row have one.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Tick;
use crate::source::{BreakerState, Circuit, IndexKey, Label, Source, Telemetry};

const WINDOW: Duration = Duration::from_secs(10);
const BUCKETS: usize = 10;
const MIN_CALLS: u32 = 20;
/// Distinct keys that fail in a row.
const MAX_FAILING: usize = 5;
/// Distinct keys with invalid responses in a row. The verifier may be unable to parse the responses of several organizations.
const MAX_INVALID_RESPONSES: usize = 10;
const MIN_OPEN: Duration = Duration::from_secs(5);
const MAX_OPEN: Duration = Duration::from_secs(60);
/// The time for which a half-open circuit waits for keys that go first.
const PRECEDENCE: Duration = Duration::from_secs(5);
/// The `Retry-After` while the half-open call is in flight.
const RETRY_AFTER_TRIAL: Duration = Duration::from_secs(1);

/// The evidence of a call about the issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// The issuer answered the question.
    Answered,
    /// The issuer is unavailable.
    Failed,
    /// The response about this key is invalid.
    InvalidResponse,
    /// The issuer is alive: 429, rejected credentials of the verifier, missing evidence.
    Alive,
}

pub(super) struct Breaker<S: Source> {
    label: Label,
    state: Mutex<State<S::Key>>,
}

struct State<K> {
    known: CircuitState<K>,
    unknown: CircuitState<K>,
    /// Whether a known key was rejected since the known circuit opened.
    has_rejected_known: bool,
    /// Distinct keys with invalid responses since the last valid one, of either circuit.
    invalid_responses: HashSet<K>,
}

struct CircuitState<K> {
    phase: Phase,
    /// Openings without a success between them.
    openings: u32,
    /// Counts changes of phase, so that the outcome of a call from an earlier phase is ignored.
    generation: u64,
    slots: [Slot<K>; BUCKETS],
    /// Distinct keys that failed since the last success.
    failing: HashSet<K>,
    /// The key of the last half-open call that failed.
    last_trial: Option<K>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Open {
        until: Tick,
    },
    /// The half-open call is in flight.
    Trial,
}

/// The calls of one second.
struct Slot<K> {
    second: u64,
    calls: u32,
    failures: u32,
    failed_keys: HashSet<K>,
}

/// A change of a circuit, to be reported once the lock is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Opened(Duration),
    Tries,
    Closed,
}

/// A call that the breaker let through. Dropped without an outcome, it lets another call try.
pub(super) struct Call<'a, S: Source> {
    breaker: &'a Breaker<S>,
    circuit: Circuit,
    key: S::Key,
    generation: u64,
    is_done: bool,
}

impl<S: Source> Breaker<S> {
    pub(super) fn new(label: Label) -> Self {
        Self {
            label,
            state: Mutex::new(State {
                known: CircuitState::new(0),
                unknown: CircuitState::new(0),
                has_rejected_known: false,
                invalid_responses: HashSet::new(),
            }),
        }
    }

    /// Returns whether a call would go through, or how long it has to wait.
    pub(super) fn check(&self, circuit: Circuit, key: &S::Key, now: Tick) -> Result<(), Duration> {
        self.lock().check(circuit, key, now)
    }

    pub(super) fn begin(
        &self,
        circuit: Circuit,
        key: &S::Key,
        now: Tick,
    ) -> Result<Call<'_, S>, Duration> {
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
            key: key.clone(),
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
                S::Telemetry::breaker_opened(&self.label, circuit, open_for);
            }
            Change::Tries => S::Telemetry::breaker_tries(&self.label, circuit),
            Change::Closed => S::Telemetry::breaker_closed(&self.label, circuit),
        }
        super::report_until_current::<S, _>(
            || self.state(circuit, now),
            |state| S::Telemetry::breaker_state(&self.label, circuit, state),
        );
    }

    fn lock(&self) -> MutexGuard<'_, State<S::Key>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Call<'_, S> {
    /// Counts the outcome of the call. Returns whether a circuit opened on it.
    pub(super) fn end(mut self, health: Health, now: Tick) -> bool {
        self.is_done = true;
        let (circuit, key) = (self.circuit, &self.key);
        let mut state = self.breaker.lock();
        let has_too_many = state.record_invalid_response(health, key);
        if state.of(circuit).generation != self.generation {
            return false;
        }
        let changes = match (state.of(circuit).phase, health) {
            (Phase::Trial, Health::Failed) => {
                state.of(circuit).last_trial = Some(key.clone());
                state.open(circuit, now)
            }
            (Phase::Trial, Health::InvalidResponse) => {
                let of = state.of(circuit);
                of.last_trial = Some(key.clone());
                of.turn(Phase::Open { until: now });
                Vec::new()
            }
            (Phase::Trial, Health::Answered | Health::Alive) => state.close(circuit),
            (_, Health::Answered) => {
                state.of(circuit).count_answer(now);
                Vec::new()
            }
            (_, Health::InvalidResponse) if has_too_many => state.open(circuit, now),
            (_, Health::Failed) if state.of(circuit).count_failure(key, now) => {
                state.open(circuit, now)
            }
            (_, Health::InvalidResponse | Health::Failed | Health::Alive) => Vec::new(),
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

impl<S: Source> Drop for Call<'_, S> {
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

impl<K: IndexKey> State<K> {
    fn of(&mut self, circuit: Circuit) -> &mut CircuitState<K> {
        match circuit {
            Circuit::Known => &mut self.known,
            Circuit::Unknown => &mut self.unknown,
        }
    }

    fn check(&mut self, circuit: Circuit, key: &K, now: Tick) -> Result<(), Duration> {
        let known_first_until = self.known_first_until(now);
        let of = self.of(circuit);
        let gives_way = of.last_trial.as_ref() == Some(key);
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
        self.has_rejected_known |= circuit == Circuit::Known;
        Err(wait)
    }

    /// Until when unknown keys leave the half-open call to a known key.
    fn known_first_until(&self, now: Tick) -> Tick {
        match self.known.phase {
            Phase::Open { until } if self.has_rejected_known => until.after(PRECEDENCE),
            // Closing the known circuit also closes the unknown one.
            Phase::Trial => now.after(RETRY_AFTER_TRIAL),
            Phase::Open { .. } | Phase::Closed => Tick::ZERO,
        }
    }

    /// Counts keys with invalid responses. Returns whether there are too many in a row.
    fn record_invalid_response(&mut self, health: Health, key: &K) -> bool {
        match health {
            Health::Answered => self.invalid_responses.clear(),
            Health::InvalidResponse if self.invalid_responses.len() < MAX_INVALID_RESPONSES => {
                self.invalid_responses.insert(key.clone());
            }
            Health::InvalidResponse | Health::Failed | Health::Alive => {}
        }
        self.invalid_responses.len() >= MAX_INVALID_RESPONSES
    }

    /// Opens a circuit. The known circuit opens for unknown keys too.
    fn open(&mut self, circuit: Circuit, now: Tick) -> Vec<(Circuit, Change)> {
        let of = self.of(circuit);
        let open_for = MIN_OPEN
            .saturating_mul(1 << of.openings.min(10))
            .min(MAX_OPEN)
            .mul_f64(1.0 - 0.2 * fastrand::f64());
        of.openings += 1;
        let until = now.after(open_for);
        of.turn(Phase::Open { until });
        let mut changes = vec![(circuit, Change::Opened(open_for))];
        if circuit == Circuit::Known {
            self.has_rejected_known = false;
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
            *of = CircuitState::new(of.generation + 1);
        }
        closed
            .into_iter()
            .map(|circuit| (circuit, Change::Closed))
            .collect()
    }
}

impl<K: IndexKey> CircuitState<K> {
    fn new(generation: u64) -> Self {
        Self {
            phase: Phase::Closed,
            openings: 0,
            generation,
            slots: std::array::from_fn(|_| Slot::new(0)),
            failing: HashSet::new(),
            last_trial: None,
        }
    }

    fn turn(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation += 1;
    }

    fn count_answer(&mut self, now: Tick) {
        self.failing.clear();
        self.slot(now).calls += 1;
    }

    /// Counts a failure. Returns whether it is one too many.
    fn count_failure(&mut self, key: &K, now: Tick) -> bool {
        let oldest = (second(now) + 1).saturating_sub(WINDOW.as_secs());
        let is_recent = |slot: &&Slot<K>| slot.second >= oldest;
        let mut recent = self.slots.iter().filter(is_recent);
        if recent.any(|slot| slot.failed_keys.contains(key)) {
            return false;
        }
        let slot = self.slot(now);
        slot.calls += 1;
        slot.failures += 1;
        slot.failed_keys.insert(key.clone());
        self.failing.insert(key.clone());
        let recent = self.slots.iter().filter(is_recent);
        let (calls, failures) = recent.fold((0, 0), |(calls, failures), slot| {
            (calls + slot.calls, failures + slot.failures)
        });
        self.failing.len() >= MAX_FAILING || (calls >= MIN_CALLS && failures * 2 >= calls)
    }

    fn slot(&mut self, now: Tick) -> &mut Slot<K> {
        let second = second(now);
        #[allow(clippy::cast_possible_truncation)] // Reduced to the number of slots first.
        let slot = &mut self.slots[(second % BUCKETS as u64) as usize];
        if slot.second != second {
            *slot = Slot::new(second);
        }
        slot
    }
}

impl<K> Slot<K> {
    fn new(second: u64) -> Self {
        Self {
            second,
            calls: 0,
            failures: 0,
            failed_keys: HashSet::new(),
        }
    }
}

fn second(now: Tick) -> u64 {
    now.0 / 1_000_000_000
}

#[cfg(test)]
mod tests;
