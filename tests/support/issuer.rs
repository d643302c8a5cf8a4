//! An issuer in memory that logs its calls.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKey, KeyId, OrgCode, Scopes, Verification, Verifier, VerifyError};

/// The issuer's answer about a key.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Valid(Verification),
    Invalid,
    Unconfirmed,
    InvalidResponse,
    Unavailable,
    Misconfigured,
    Throttled(Option<Duration>),
    /// Never answers.
    Silence,
    /// Panics at the first poll.
    Panic,
    /// Panics before it returns a future.
    PanicAtOnce,
}

/// A valid key of this organization with these scopes.
pub(crate) fn org(code: &str, scopes: &[&str]) -> Answer {
    Answer::Valid(verification(code, scopes))
}

pub(crate) fn verification(code: &str, scopes: &[&str]) -> Verification {
    key_of(code, &format!("id_of_{code}")).with_scopes(Scopes::from_names(scopes.iter().copied()))
}

/// The result for a valid key of this organization with this identifier.
pub(crate) fn key_of(org: &str, id: &str) -> Verification {
    Verification::of_organization(OrgCode::new(org).unwrap()).with_key_id(KeyId::new(id).unwrap())
}

pub(crate) fn expiring(code: &str, at: SystemTime) -> Answer {
    Answer::Valid(verification(code, &[]).with_expires_at(at))
}

/// The behavior of the issuer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Behavior {
    /// Answers about each key, after its latency.
    #[default]
    Answers,
    /// Fails at once: a refused connection or a 5xx.
    Fails,
    /// Accepts calls and never answers.
    Silent,
    /// One of this many calls fails.
    FailsOneOf(usize),
    Throttles(Option<Duration>),
    /// The same, after the first duration.
    ThrottlesAfter(Duration, Duration),
    /// Gives an unconfirmed invalid answer to all calls: a 400.
    Unconfirmed,
    /// Rejects the credentials of the verifier.
    Misconfigured,
    /// Fails for keys that it did not issue.
    FailsForUnknown,
    /// Answers 429 to calls above this number per second.
    PermitsPerSecond(usize),
}

impl Behavior {
    /// All kinds of outages.
    pub(crate) const OUTAGES: [Self; 5] = [
        Self::Fails,
        Self::Silent,
        Self::Throttles(Some(Duration::from_secs(30))),
        Self::Throttles(None),
        Self::Misconfigured,
    ];
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) key: String,
    /// The time when it was sent, on the issuer's clock.
    pub(crate) at: Duration,
    /// Whether the layer called it a known key.
    pub(crate) known: bool,
    pub(crate) outcome: CallOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallOutcome {
    InFlight,
    Valid,
    Invalid,
    Fault,
}

/// An issuer in memory: keys that it has are valid and all others are invalid, unless it is set otherwise.
///
/// Clones share their state.
#[derive(Clone, Debug)]
pub(crate) struct Issuer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: TestClock,
    state: Mutex<State>,
    /// Calls that have returned.
    finished: AtomicUsize,
    panicked: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    keys: HashMap<String, Answer>,
    override_all: Option<Answer>,
    behavior: Behavior,
    latency: Duration,
    gate: Option<Arc<Semaphore>>,
    calls: Vec<Call>,
    in_flight: usize,
    max_in_flight: usize,
}

impl Issuer {
    /// An issuer without keys or latency.
    pub(crate) fn new() -> Self {
        Self::on(TestClock::new())
    }

    /// An issuer whose log of calls has the times of this clock.
    pub(crate) fn on(clock: TestClock) -> Self {
        Self(Arc::new(Shared {
            clock,
            state: Mutex::default(),
            finished: AtomicUsize::new(0),
            panicked: AtomicUsize::new(0),
        }))
    }

    /// An issuer with these keys; all others are invalid.
    pub(crate) fn knowing<const N: usize>(keys: [(&str, Answer); N]) -> Self {
        let issuer = Self::new();
        for (key, answer) in keys {
            issuer.set(key, answer);
        }
        issuer
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// Sets the answer about a key.
    pub(crate) fn set(&self, key: &str, answer: Answer) {
        self.state().keys.insert(key.to_owned(), answer);
    }

    /// Issues a key of the organization `org_1`. Its id is `id_` and the secret.
    pub(crate) fn issue(&self, secret: &str) {
        self.issue_as(secret, "org_1", &format!("id_{secret}"));
    }

    pub(crate) fn issue_as(&self, secret: &str, org: &str, id: &str) {
        self.set(secret, Answer::Valid(key_of(org, id)));
    }

    /// Changes the verification result of a valid key.
    pub(crate) fn change(&self, secret: &str, change: impl FnOnce(Verification) -> Verification) {
        let mut state = self.state();
        let Some(Answer::Valid(verification)) = state.keys.get_mut(secret) else {
            panic!("nothing to change");
        };
        *verification = change(verification.clone());
    }

    pub(crate) fn revoke(&self, secret: &str) {
        assert!(
            self.state().keys.remove(secret).is_some(),
            "nothing to revoke"
        );
    }

    pub(crate) fn is(&self, behavior: Behavior) {
        self.state().behavior = behavior;
    }

    /// Gives this answer about every key until [`recover`](Self::recover).
    pub(crate) fn fail(&self, answer: Answer) {
        self.state().override_all = Some(answer);
    }

    pub(crate) fn recover(&self) {
        self.state().override_all = None;
    }

    /// Sets the duration of a call that is answered.
    pub(crate) fn latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// Delays every answer until the semaphore has a permit for it.
    pub(crate) fn hold(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.state().gate = Some(Arc::clone(&gate));
        gate
    }

    /// The number of calls that have begun.
    pub(crate) fn calls(&self) -> usize {
        self.state().calls.len()
    }

    /// The number of calls about a known key.
    pub(crate) fn calls_for_known(&self) -> usize {
        self.logged(|call| call.known).len()
    }

    pub(crate) fn calls_for(&self, key: &str) -> usize {
        self.logged(|call| call.key == key).len()
    }

    pub(crate) fn faults(&self) -> usize {
        self.logged(|call| call.outcome == CallOutcome::Fault).len()
    }

    pub(crate) fn logged(&self, filter: impl Fn(&Call) -> bool) -> Vec<Call> {
        let state = self.state();
        let logged = state.calls.iter().filter(|call| filter(call));
        logged.cloned().collect()
    }

    pub(crate) fn finished(&self) -> usize {
        self.0.finished.load(Ordering::SeqCst)
    }

    /// The number of calls that were dropped before their answer.
    pub(crate) fn dropped(&self) -> usize {
        let state = self.state();
        state.calls.len() - self.finished() - state.in_flight
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.state().in_flight
    }

    pub(crate) fn max_in_flight(&self) -> usize {
        self.state().max_in_flight
    }

    /// The maximum number of calls in any second.
    pub(crate) fn most_in_a_second(&self, from: Duration) -> usize {
        let times: Vec<_> = self
            .logged(|call| call.at >= from)
            .iter()
            .map(|call| call.at)
            .collect();
        (0..times.len())
            .map(|first| {
                times[first..]
                    .iter()
                    .take_while(|&&at| at < times[first] + Duration::from_secs(1))
                    .count()
            })
            .max()
            .unwrap_or(0)
    }

    pub(crate) fn panicked(&self) -> usize {
        self.0.panicked.load(Ordering::SeqCst)
    }

    /// The key of the last call.
    pub(crate) fn last(&self) -> Option<String> {
        self.state().calls.last().map(|call| call.key.clone())
    }

    /// The start times of all calls.
    pub(crate) fn call_times(&self) -> Vec<Duration> {
        self.state().calls.iter().map(|call| call.at).collect()
    }

    /// The number of references: a layer's cache, calls in flight, and the test.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    async fn call(&self, key: &ApiKey, known: bool) -> Result<Verification, VerifyError> {
        let call = self.begin(key.expose_secret(), known);
        // The answer is decided when the call arrives, as in a database.
        let (answer, latency, gate) = self.decide(call.number, key.expose_secret());
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        call.ended(match answer {
            Answer::Valid(_) => CallOutcome::Valid,
            Answer::Invalid | Answer::Unconfirmed => CallOutcome::Invalid,
            _ => CallOutcome::Fault,
        });
        let verified = match answer {
            Answer::Valid(verification) => Ok(verification),
            Answer::Invalid => Ok(Verification::invalid()),
            Answer::Unconfirmed => Ok(Verification::invalid_unconfirmed()),
            Answer::InvalidResponse => Err(VerifyError::invalid_response("2,000 scopes")),
            Answer::Unavailable => Err(VerifyError::unavailable("connection refused")),
            Answer::Misconfigured => Err(VerifyError::misconfigured("the token is rejected")),
            Answer::Throttled(wait) => Err(VerifyError::throttled(wait)),
            Answer::Silence => std::future::pending().await,
            Answer::Panic | Answer::PanicAtOnce => {
                self.0.panicked.fetch_add(1, Ordering::SeqCst);
                panic!("a verifier that panics on purpose")
            }
        };
        drop(call);
        self.0.finished.fetch_add(1, Ordering::SeqCst);
        verified
    }

    fn begin(&self, key: &str, known: bool) -> InFlight {
        let mut state = self.state();
        state.calls.push(Call {
            key: key.to_owned(),
            at: self.0.clock.elapsed(),
            known,
            outcome: CallOutcome::InFlight,
        });
        state.in_flight += 1;
        state.max_in_flight = state.max_in_flight.max(state.in_flight);
        InFlight {
            number: state.calls.len() - 1,
            issuer: self.clone(),
        }
    }

    /// The answer to a call, and what it waits for.
    fn decide(&self, call: usize, key: &str) -> (Answer, Duration, Option<Arc<Semaphore>>) {
        let state = self.state();
        let second = state.calls[call].at.as_secs();
        let earlier = state.calls[..call].iter().rev();
        let in_this_second = || {
            earlier
                .take_while(|call| call.at.as_secs() == second)
                .count()
        };
        let at_once = |answer| (answer, Duration::ZERO, None);
        match state.behavior {
            Behavior::Fails => return at_once(Answer::Unavailable),
            Behavior::FailsOneOf(n) if call.is_multiple_of(n) => {
                return at_once(Answer::Unavailable);
            }
            Behavior::FailsForUnknown if !state.keys.contains_key(key) => {
                return at_once(Answer::Unavailable);
            }
            Behavior::Silent => return at_once(Answer::Silence),
            Behavior::Throttles(wait) => return at_once(Answer::Throttled(wait)),
            Behavior::ThrottlesAfter(latency, wait) => {
                return (Answer::Throttled(Some(wait)), latency, None);
            }
            Behavior::PermitsPerSecond(most) if in_this_second() >= most => {
                return at_once(Answer::Throttled(None));
            }
            Behavior::Unconfirmed => return at_once(Answer::Unconfirmed),
            Behavior::Misconfigured => return at_once(Answer::Misconfigured),
            Behavior::Answers
            | Behavior::FailsOneOf(_)
            | Behavior::FailsForUnknown
            | Behavior::PermitsPerSecond(_) => {}
        }
        let answer = state.override_all.as_ref().or_else(|| state.keys.get(key));
        let answer = answer.cloned().unwrap_or(Answer::Invalid);
        (answer, state.latency, state.gate.clone())
    }
}

/// A call, in flight until it is dropped.
struct InFlight {
    number: usize,
    issuer: Issuer,
}

impl InFlight {
    fn ended(&self, outcome: CallOutcome) {
        self.issuer.state().calls[self.number].outcome = outcome;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.issuer.state().in_flight -= 1;
    }
}

impl Verifier for Issuer {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.call(key, false).await
    }

    async fn reverify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.call(key, true).await
    }
}

/// A verifier that panics before it returns a future.
#[derive(Clone, Debug)]
pub(crate) struct PanicsAtOnce(pub(crate) Issuer);

impl Verifier for PanicsAtOnce {
    fn verify(
        &self,
        key: &ApiKey,
    ) -> impl Future<Output = Result<Verification, VerifyError>> + Send {
        let panics = matches!(self.0.state().override_all, Some(Answer::PanicAtOnce));
        if panics {
            drop(self.0.begin(key.expose_secret(), false));
            self.0.0.panicked.fetch_add(1, Ordering::SeqCst);
            panic!("a verifier that panics on purpose");
        }
        let (issuer, key) = (self.0.clone(), key.clone());
        async move { issuer.verify(&key).await }
    }
}
