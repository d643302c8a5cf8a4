//! What stands before any verifier, so that the issuer's trouble does not become ours, nor ours the issuer's.
//!
//! A flight first takes a [`Ticket`]: at once, without a task, it learns whether it may call, may wait, or is told to come
//! back later. A known key that is told so is served from what is held; an unknown one gets 503 with an honest
//! `Retry-After`. Then it asks:
//!
//! ```text
//! breaker ─▶ waiting room ─▶ attempt, with its deadline ─▶ (one retry, if the budget of retries allows) ─▶ answer
//! ```
//!
//! * [`breaker`]: an issuer that fails is left alone.
//! * [`room`]: calls at once, the reserve for known keys, the order of those who wait, the budget of refusals. [`gate`] is its
//!   door, with a lock and a watch over the clock.
//! * [`throttle`]: calls a second, and what a 429 does to them.
//!
//! Nothing here knows what a key's facts are, or caches anything.

mod breaker;
mod bucket;
mod gate;
mod room;
mod strangers;
mod throttle;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tower::retry::budget::{Budget, TpsBudget};

pub use self::breaker::BreakerState;
use self::breaker::{Breaker, Health};
use self::gate::{Gate, Permit, Queued};
use self::room::{Place, Room};
use crate::clock::{Clock, Tick};
use crate::config::Settings;
use crate::key::{ApiKey, KeyDigest};
use crate::telemetry::{self, Voice};
use crate::verify::{
    Answer, Attempt, DynVerifier, Invalid, Verification, VerifyError, VerifyErrorKind,
};

/// On whose behalf the issuer is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A key whose facts are held.
    Known,
    /// A key that was good in the last day.
    Former,
    /// Any other key, and who presents it.
    Stranger { peer: Option<u64> },
}

impl Asker {
    fn is_known(self) -> bool {
        matches!(self, Self::Known)
    }
}

/// The issuer did not tell, or was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CannotTell {
    pub(crate) is_misconfigured: bool,
    pub(crate) retry_after: Duration,
}

impl CannotTell {
    pub(crate) fn unavailable(retry_after: Duration) -> Self {
        Self {
            is_misconfigured: false,
            retry_after,
        }
    }
}

/// When the operator has to act, a caller need not knock every second.
const MISCONFIGURED_RETRY_AFTER: Duration = Duration::from_secs(10);

/// How things stand between us and the issuer, for readiness probes and dashboards.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct UpstreamState {
    /// Whether calls go through.
    pub breaker: BreakerState,
    /// How much longer the issuer wants to be left alone, after a 429.
    pub paused_for: Option<Duration>,
    /// The limit in force, in calls per second.
    pub calls_per_second: Option<f64>,
    /// Calls under way; at most 64.
    pub in_flight: usize,
    /// Flights that wait for their turn; at most 256.
    pub waiting: usize,
}

pub(crate) struct Upstream {
    voice: Voice,
    verifier: Arc<dyn DynVerifier>,
    clock: Clock,
    attempt_deadline: Duration,
    retry_after: Duration,
    breaker: Breaker,
    retries: TpsBudget,
    backoff: ExponentialBuilder,
    gate: Arc<Gate>,
}

/// The leave to ask: at once, or when one's turn has come.
#[derive(Debug)]
pub(crate) struct Ticket {
    asker: Asker,
    /// Whom the call is about, where a failure may be its subject's own fault.
    subject: Option<KeyDigest>,
    turn: Turn,
}

#[derive(Debug)]
enum Turn {
    Now(Permit),
    Later(Queued),
}

impl Upstream {
    pub(crate) fn new(
        verifier: Arc<dyn DynVerifier>,
        clock: Clock,
        settings: &Settings,
        voice: Voice,
    ) -> Self {
        let room = Room::new(settings.max_calls_per_second, clock.now());
        Self {
            voice,
            verifier,
            attempt_deadline: settings.attempt_deadline,
            retry_after: settings.retry_after,
            breaker: Breaker::new(voice),
            // A tenth of the calls, and one a second: SRE book, Finagle.
            retries: TpsBudget::new(Duration::from_secs(10), 1, 0.1),
            backoff: ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(50))
                .with_max_times(1)
                .with_jitter(),
            gate: Arc::new(Gate::new(room, clock.clone(), voice)),
            clock,
        }
    }

    /// Whom this speaks of.
    pub(crate) fn voice(&self) -> Voice {
        self.voice
    }

    /// The subject of a call about this key, where a failure may be the subject's own fault.
    fn subject(&self, digest: KeyDigest) -> Option<KeyDigest> {
        match self.voice {
            // An issuer that gives no usable answer gives it to none.
            Voice::Issuer => {
                let _ = digest;
                None
            }
            #[cfg(feature = "settings")]
            Voice::Settings(_) => Some(digest),
        }
    }

    /// Whether the issuer may be asked about this key now, or soon. Decides at once.
    pub(crate) fn ticket(
        &self,
        asker: Asker,
        digest: KeyDigest,
        now: Tick,
    ) -> Result<Ticket, CannotTell> {
        let subject = self.subject(digest);
        self.breaker
            .check(now)
            .and_then(|()| self.breaker.give_way(subject, now))
            .map_err(CannotTell::unavailable)?;
        let place = self.gate.enter(asker, now, self.retry_after)?;
        let turn = match place {
            Place::Called => Turn::Now(Permit::new(&self.gate, asker)),
            Place::Waiting(word) => Turn::Later(Queued {
                word,
                gate: Arc::clone(&self.gate),
                asker,
            }),
        };
        Ok(Ticket {
            asker,
            subject,
            turn,
        })
    }

    /// Asks the issuer. `sent` hears when each call is sent. Returns the answer and when its call was sent.
    pub(crate) async fn ask(
        &self,
        ticket: Ticket,
        key: &ApiKey,
        sent: impl Fn(Tick),
    ) -> Result<(Verification, Tick), CannotTell> {
        let Ticket {
            asker,
            subject,
            turn,
        } = ticket;
        let mut permit = match turn {
            Turn::Now(permit) => permit,
            Turn::Later(mut queued) => match (&mut queued.word).await {
                Ok(Ok(())) => Permit::new(&self.gate, asker),
                Ok(Err(cannot_tell)) => return Err(cannot_tell),
                Err(_) => return Err(CannotTell::unavailable(self.retry_after)),
            },
        };
        // Known keys have something to fall back on, so only unknown ones are worth a second call.
        let mut retries = (!asker.is_known())
            .then(|| self.backoff.build())
            .into_iter()
            .flatten();
        self.retries.deposit();
        loop {
            let now = self.clock.now();
            sent(now);
            let error = match self.attempt(key, asker, subject, now).await? {
                Ok(verified) => {
                    permit.is_refusal = matches!(verified.answer, Answer::Invalid(invalid) if !matches!(invalid, Invalid::Undecided { .. }));
                    return Ok((verified, now));
                }
                Err(error) => error,
            };
            let cannot_tell = self.read(&error);
            let is_worth_a_retry = error.kind() == VerifyErrorKind::Unavailable;
            let Some(wait) = retries
                .next()
                .filter(|_| is_worth_a_retry && self.retries.withdraw())
            else {
                return Err(cannot_tell);
            };
            tokio::time::sleep(wait).await;
            if let Err(paused_for) = self.gate.may_repeat(self.clock.now()) {
                // The breaker may be open for longer than the pause lasts.
                let retry_after = cannot_tell.retry_after.max(paused_for.unwrap_or_default());
                return Err(CannotTell::unavailable(retry_after));
            }
        }
    }

    /// One call under its deadline. The outer `Err` says that the breaker has opened meanwhile.
    async fn attempt(
        &self,
        key: &ApiKey,
        asker: Asker,
        subject: Option<KeyDigest>,
        now: Tick,
    ) -> Result<Result<Verification, VerifyError>, CannotTell> {
        let call = self
            .breaker
            .give_way(subject, now)
            .and_then(|()| self.breaker.begin(now))
            .map_err(CannotTell::unavailable)?
            .about(subject);
        let attempt = Attempt::new(self.attempt_deadline);
        let attempt = if asker.is_known() {
            attempt.known(None)
        } else {
            attempt
        };
        let verified = self.verifier.call(key, attempt).await;
        let end = self.clock.now();
        let health = match &verified {
            Ok(_) => {
                self.gate.lock().room.throttle.answered();
                Health::Answered
            }
            Err(error) => match error.kind() {
                VerifyErrorKind::Unavailable => Health::Failed,
                VerifyErrorKind::Throttled { retry_after } => {
                    self.gate.pause(retry_after, end);
                    Health::Alive
                }
                VerifyErrorKind::InvalidResponse
                | VerifyErrorKind::Inconclusive
                | VerifyErrorKind::Misconfigured => Health::Alive,
            },
        };
        let took = end.since(now);
        match self.voice {
            Voice::Issuer => telemetry::issuer_called(&verified, took),
            // What stands in a key's place is an organization's code, and no secret.
            #[cfg(feature = "settings")]
            Voice::Settings(of) => {
                telemetry::settings::called(of, key.expose_secret(), &verified, took);
            }
        }
        if call.end(health, end)
            && let Err(remaining) = self.breaker.check(end)
        {
            self.gate
                .lock()
                .room
                .dismiss(CannotTell::unavailable(remaining));
        }
        Ok(verified)
    }

    /// What a caller is told about an error.
    fn read(&self, error: &VerifyError) -> CannotTell {
        let now = self.clock.now();
        let remaining = match error.kind() {
            VerifyErrorKind::Unavailable
            | VerifyErrorKind::InvalidResponse
            | VerifyErrorKind::Inconclusive => self.breaker.check(now).err(),
            VerifyErrorKind::Throttled { .. } => self.gate.lock().room.throttle.pause(now),
            VerifyErrorKind::Misconfigured => {
                return CannotTell {
                    is_misconfigured: true,
                    retry_after: MISCONFIGURED_RETRY_AFTER,
                };
            }
        };
        CannotTell::unavailable(remaining.unwrap_or(self.retry_after))
    }

    pub(crate) fn state(&self) -> UpstreamState {
        let now = self.clock.now();
        let breaker = self.breaker.state(now);
        let mut inside = self.gate.lock();
        inside.room.forget_the_gone();
        UpstreamState {
            breaker,
            paused_for: inside.room.throttle.pause(now),
            calls_per_second: inside.room.throttle.rate(now),
            in_flight: inside.room.calls(),
            waiting: inside.room.waiting(),
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
