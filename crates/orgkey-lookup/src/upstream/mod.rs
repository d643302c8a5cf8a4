//! Limits, retries and isolates calls to the issuer.
//!
//! A lookup is first admitted: it may call, has to wait, or is rejected. A rejected lookup of a
//! known key is served from the cache; an unknown key gets 503 with a `Retry-After` that says how long it would have waited.
//! Then it calls:
//!
//! ```text
//! backoff of the key ─▶ breaker ─▶ admission queue ─▶ call ─▶ (one retry, within the retry budget) ─▶ answer
//! ```
//!
//! What a failure affects:
//!
//! * An error about one key delays only that key (`backoff`).
//! * Failures of unknown keys stop the calls of unknown keys only; those of known keys stop all calls (`breaker`).
//! * A 429 of the issuer stops and then slows all calls (`throttle`).
//! * A lookup is rejected if its expected wait is longer than the caller deadline (`queue`, behind the lock of `dispatcher`).
//! * An organization that forces verifications waits for its own turn (`pacing`).
//!
//! Nothing here caches a result, and nothing is logged or measured while a lock is held.

mod backoff;
mod breaker;
mod bucket;
mod dispatcher;
mod fair_queue;
mod pacing;
mod queue;
mod throttle;

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tower::retry::budget::{Budget, TpsBudget};

use self::backoff::KeyBackoff;
use self::breaker::{Breaker, Health};
use self::dispatcher::{Dispatcher, Permit, Queued};
use self::pacing::ForcedPace;
use self::queue::{AdmissionQueue, Place};
use crate::clock::{Clock, Tick};
use crate::config::Config;
use crate::source::{
    Answer, Answered, BreakerState, Circuit, Failure, FailureKind, Invalid, Label, Source,
    Telemetry,
};

/// The priority of a key's lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// A result of the key is cached.
    Known,
    /// The same, and it is served meanwhile.
    Refresh,
    /// The key was valid in the last day.
    RecentlyValid,
    /// Any other key, and who presents it.
    Unknown { peer: Option<u64> },
}

impl Priority {
    fn is_known(self) -> bool {
        matches!(self, Self::Known | Self::Refresh)
    }

    fn circuit(self) -> Circuit {
        match self {
            Self::Known | Self::Refresh | Self::RecentlyValid => Circuit::Known,
            Self::Unknown { .. } => Circuit::Unknown,
        }
    }
}

/// The key of a lookup.
pub(crate) struct Subject<K> {
    pub(crate) key: K,
    pub(crate) priority: Priority,
}

/// The `Retry-After` of a failure without its own.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The verification failed, or was not attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CannotTell {
    /// Whether an operator has to act.
    pub is_misconfigured: bool,
    /// When the caller may try again.
    pub retry_after: Duration,
}

impl CannotTell {
    /// The upstream did not answer.
    pub fn unavailable(retry_after: Duration) -> Self {
        Self {
            is_misconfigured: false,
            retry_after,
        }
    }

    /// An operator has to act, so callers need not retry every second.
    pub fn misconfigured() -> Self {
        Self {
            is_misconfigured: true,
            retry_after: Duration::from_secs(10),
        }
    }
}

/// The state of the calls to the issuer, for readiness probes and dashboards.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct UpstreamState {
    /// The circuit of known keys. While it is open, no key is verified.
    pub breaker: BreakerState,
    /// The circuit of unknown keys. While it is open, no unknown key is verified.
    pub unknown_breaker: BreakerState,
    /// The rest of the pause after a 429.
    pub paused_for: Option<Duration>,
    /// The rate limit in force, in calls per second.
    pub calls_per_second: Option<f64>,
    /// Calls in flight; at most 64.
    pub in_flight: usize,
    /// Lookups that wait for their turn; at most 8,192.
    pub waiting: usize,
}

pub(crate) struct Upstream<S: Source> {
    label: Label,
    clock: Clock,
    attempt_deadline: Duration,
    caller_deadline: Duration,
    breaker: Breaker<S>,
    key_backoff: KeyBackoff<S::Key>,
    forced_pace: ForcedPace,
    retries: TpsBudget,
    retry_backoff: ExponentialBuilder,
    dispatcher: Arc<Dispatcher<S>>,
}

/// An admitted lookup, which may call at once or when its turn comes.
pub(crate) struct Admission<S: Source> {
    subject: Subject<S::Key>,
    turn: Turn<S>,
}

enum Turn<S: Source> {
    Now(Permit<S>),
    Later(Queued<S>),
}

impl<S: Source> Upstream<S> {
    pub(crate) fn new(label: Label, clock: Clock, config: &Config) -> Self {
        let queue = AdmissionQueue::new(
            config.max_calls_per_second,
            config.caller_deadline,
            clock.now(),
        );
        Self {
            attempt_deadline: config.attempt_deadline,
            caller_deadline: config.caller_deadline,
            breaker: Breaker::new(Label::clone(&label)),
            key_backoff: KeyBackoff::default(),
            forced_pace: ForcedPace::default(),
            // A tenth of the calls, and one per second: SRE book, Finagle.
            retries: TpsBudget::new(Duration::from_secs(10), 1, 0.1),
            retry_backoff: ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(50))
                .with_max_times(1)
                .with_jitter(),
            dispatcher: Arc::new(Dispatcher::new(queue, clock.clone(), Label::clone(&label))),
            clock,
            label,
        }
    }

    /// Returns the name of the upstream in telemetry.
    pub(crate) fn label(&self) -> &Label {
        &self.label
    }

    /// Takes an organization's turn for a forced verification. Returns how long it is away, or how long it would be.
    pub(crate) fn take_forced_turn(
        &self,
        organization: Option<&str>,
        now: Tick,
    ) -> Result<Duration, CannotTell> {
        let limit = self.dispatcher.lock().queue.throttle.rate(now);
        self.forced_pace
            .take(organization, limit, self.caller_deadline, now)
            .map_err(CannotTell::unavailable)
    }

    /// Sets the gauges of the admission queue. Must not be called while a lock is held: a recorder may use the handle.
    pub(crate) fn report(&self) {
        self.dispatcher.report();
    }

    /// Divides the rate of calls by the number of nodes that share it.
    pub(crate) fn share_calls(&self, nodes: u32) {
        let now = self.clock.now();
        self.dispatcher.lock().queue.throttle.share(nodes, now);
    }

    /// Admits a lookup, or rejects it. Decides at once. The caller [reports](Self::report) when it holds no lock.
    pub(crate) fn admit(
        &self,
        subject: Subject<S::Key>,
        now: Tick,
    ) -> Result<Admission<S>, CannotTell> {
        let priority = subject.priority;
        self.key_backoff
            .check(&subject.key, now)
            .and_then(|()| self.breaker.check(priority.circuit(), &subject.key, now))
            .map_err(CannotTell::unavailable)?;
        let turn = match self.dispatcher.enter(priority, now)? {
            Place::Called => Turn::Now(Permit::new(&self.dispatcher, priority)),
            Place::Waiting(turn) => Turn::Later(Queued {
                turn,
                dispatcher: Arc::clone(&self.dispatcher),
                priority,
            }),
        };
        Ok(Admission { subject, turn })
    }

    /// Makes the calls of a lookup. `sent` is called when each call is sent. Returns the answer and when its call was sent.
    pub(crate) async fn call(
        &self,
        source: &S,
        admission: Admission<S>,
        query: &S::Query,
        known: Option<&S::Value>,
        sent: impl Fn(Tick),
    ) -> Result<(Answered<S::Value>, Tick), CannotTell> {
        let Admission { subject, turn } = admission;
        let mut permit = match turn {
            Turn::Now(permit) => permit,
            Turn::Later(mut queued) => match (&mut queued.turn).await {
                Ok(Ok(())) => Permit::new(&self.dispatcher, subject.priority),
                Ok(Err(cannot_tell)) => return Err(cannot_tell),
                Err(_) => return Err(CannotTell::unavailable(RETRY_AFTER)),
            },
        };
        // A known key is served from the cache, so only unknown ones are worth a second call.
        let mut retries = (!subject.priority.is_known())
            .then(|| self.retry_backoff.build())
            .into_iter()
            .flatten();
        self.retries.deposit();
        loop {
            let now = self.clock.now();
            sent(now);
            let error = match self.attempt(source, query, known, &subject, now).await? {
                Ok(answered) => {
                    permit.is_invalid = !answered.answer.is_valid();
                    return Ok((answered, now));
                }
                Err(error) => error,
            };
            let cannot_tell = self.cannot_tell(&error, &subject);
            let is_worth_a_retry = error.kind() == FailureKind::Unavailable;
            let Some(wait) = retries
                .next()
                .filter(|_| is_worth_a_retry && self.retries.withdraw())
            else {
                return Err(cannot_tell);
            };
            tokio::time::sleep(wait).await;
            if let Err(paused_for) = self.dispatcher.may_repeat(self.clock.now()) {
                // The breaker may be open for longer than the pause lasts.
                let retry_after = cannot_tell.retry_after.max(paused_for.unwrap_or_default());
                return Err(CannotTell::unavailable(retry_after));
            }
        }
    }

    /// Makes one attempt. The outer `Err` means that the breaker opened meanwhile.
    async fn attempt(
        &self,
        source: &S,
        query: &S::Query,
        known: Option<&S::Value>,
        subject: &Subject<S::Key>,
        now: Tick,
    ) -> Result<Result<Answered<S::Value>, S::Error>, CannotTell> {
        let circuit = subject.priority.circuit();
        let call = self
            .breaker
            .begin(circuit, &subject.key, now)
            .map_err(CannotTell::unavailable)?;
        let outcome = source.call(query, known, self.attempt_deadline).await;
        let end = self.clock.now();
        let health = self.note(&outcome, subject, end);
        S::Telemetry::called(&self.label, query, &outcome, end.since(now));
        if call.end(health, end)
            && let Err(remaining) = self.breaker.check(circuit, &subject.key, end)
        {
            let queue = &mut self.dispatcher.lock().queue;
            match circuit {
                Circuit::Known => queue.reject_all(CannotTell::unavailable(remaining)),
                Circuit::Unknown => queue.reject_unknown(CannotTell::unavailable(remaining)),
            }
        }
        Ok(outcome)
    }

    /// Applies what an outcome means for the key and for the rate of calls. Returns what it shows about the issuer.
    fn note(
        &self,
        outcome: &Result<Answered<S::Value>, S::Error>,
        subject: &Subject<S::Key>,
        now: Tick,
    ) -> Health {
        match outcome.as_ref().map_err(Failure::kind) {
            Ok(answered) => {
                self.key_backoff.forget(&subject.key);
                self.dispatcher.lock().queue.throttle.answered();
                match answered.answer {
                    Answer::Invalid(Invalid::Undecided { .. }) => Health::Alive,
                    Answer::Valid(_) | Answer::Invalid(_) => Health::Answered,
                }
            }
            Err(FailureKind::Unavailable) => Health::Failed,
            Err(FailureKind::Throttled { retry_after }) => {
                self.dispatcher.pause(retry_after, now);
                Health::Alive
            }
            Err(FailureKind::InvalidResponse) => {
                self.key_backoff.delay(&subject.key, now);
                Health::InvalidResponse
            }
            Err(FailureKind::Inconclusive | FailureKind::Misconfigured) => Health::Alive,
        }
    }

    /// Turns an error into the response for a caller.
    fn cannot_tell(&self, error: &S::Error, subject: &Subject<S::Key>) -> CannotTell {
        let now = self.clock.now();
        let wait = match error.kind() {
            FailureKind::Unavailable => {
                let circuit = subject.priority.circuit();
                self.breaker.check(circuit, &subject.key, now).err()
            }
            FailureKind::Throttled { .. } => self.dispatcher.lock().queue.throttle.pause(now),
            FailureKind::InvalidResponse => self.key_backoff.check(&subject.key, now).err(),
            FailureKind::Inconclusive => None,
            FailureKind::Misconfigured => return CannotTell::misconfigured(),
        };
        CannotTell::unavailable(wait.unwrap_or(RETRY_AFTER))
    }

    pub(crate) fn state(&self) -> UpstreamState {
        let now = self.clock.now();
        let breaker = self.breaker.state(Circuit::Known, now);
        let unknown_breaker = self.breaker.state(Circuit::Unknown, now);
        let queue = &mut self.dispatcher.lock().queue;
        queue.remove_closed();
        UpstreamState {
            breaker,
            unknown_breaker,
            paused_for: queue.throttle.pause(now),
            calls_per_second: queue.throttle.rate(now),
            in_flight: queue.calls(),
            waiting: queue.waiting(),
        }
    }
}

/// Emits a value until it is the present one. Emitting takes time and no lock, so another thread may have changed the value
/// and emitted that earlier.
fn report_until_current<S: Source, T: PartialEq + Copy>(read: impl Fn() -> T, emit: impl Fn(T)) {
    /// More changes than this while one value is emitted leave the rest to those who make them.
    const ROUNDS: usize = 4;

    if !S::Telemetry::HAS_GAUGES {
        return;
    }
    let mut value = read();
    for _ in 0..ROUNDS {
        emit(value);
        let present = read();
        if present == value {
            return;
        }
        value = present;
    }
}
