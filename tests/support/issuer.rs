//! An issuer in memory that counts its calls.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;
use tower_orgkey::{ApiKey, KeyId, OrgCode, Scopes, Verification, Verifier, VerifyError};

/// The issuer's answer about a key.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    Yes(Verification),
    No,
    Unconfirmed,
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
pub(crate) fn org(code: &str, scopes: &[&str]) -> Say {
    Say::Yes(verification(code, scopes))
}

pub(crate) fn verification(code: &str, scopes: &[&str]) -> Verification {
    Verification::of_organization(OrgCode::new(code).unwrap())
        .with_key_id(KeyId::new(format!("id_of_{code}")).unwrap())
        .with_scopes(Scopes::from_names(scopes.iter().copied()))
}

pub(crate) fn expiring(code: &str, at: SystemTime) -> Say {
    Say::Yes(verification(code, &[]).with_expires_at(at))
}

/// Clones share their state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Issuer(Arc<State>);

#[derive(Debug, Default)]
struct State {
    keys: Mutex<HashMap<String, Say>>,
    override_all: Mutex<Option<Say>>,
    latency: Mutex<Duration>,
    gate: Mutex<Option<Arc<Semaphore>>>,
    calls: AtomicUsize,
    calls_again: AtomicUsize,
    finished: AtomicUsize,
    dropped: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    panicked: AtomicUsize,
    last: Mutex<Option<String>>,
    per_key: Mutex<HashMap<String, u64>>,
    at: Mutex<Vec<tokio::time::Instant>>,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// An issuer with these keys; all others are invalid.
    pub(crate) fn knowing<const N: usize>(keys: [(&str, Say); N]) -> Self {
        let issuer = Self::new();
        for (key, say) in keys {
            issuer.set(key, say);
        }
        issuer
    }

    pub(crate) fn set(&self, key: &str, say: Say) {
        self.0.keys.lock().unwrap().insert(key.to_owned(), say);
    }

    /// Gives this answer about every key until [`recover`](Self::recover).
    pub(crate) fn fail(&self, say: Say) {
        *self.0.override_all.lock().unwrap() = Some(say);
    }

    pub(crate) fn recover(&self) {
        *self.0.override_all.lock().unwrap() = None;
    }

    /// Sets the duration of a call.
    pub(crate) fn latency(&self, latency: Duration) {
        *self.0.latency.lock().unwrap() = latency;
    }

    /// Delays every answer until the semaphore has a permit for it.
    pub(crate) fn hold(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.0.gate.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    /// The number of calls that have begun.
    pub(crate) fn calls(&self) -> usize {
        self.0.calls.load(Ordering::SeqCst)
    }

    /// The number of calls about a known key.
    pub(crate) fn calls_again(&self) -> usize {
        self.0.calls_again.load(Ordering::SeqCst)
    }

    pub(crate) fn calls_for(&self, key: &str) -> u64 {
        let per_key = self.0.per_key.lock().unwrap();
        per_key.get(key).copied().unwrap_or_default()
    }

    pub(crate) fn finished(&self) -> usize {
        self.0.finished.load(Ordering::SeqCst)
    }

    /// The number of calls that were dropped before their answer.
    pub(crate) fn dropped(&self) -> usize {
        self.0.dropped.load(Ordering::SeqCst) - self.in_flight()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::SeqCst)
    }

    pub(crate) fn most_in_flight(&self) -> usize {
        self.0.most_in_flight.load(Ordering::SeqCst)
    }

    pub(crate) fn panicked(&self) -> usize {
        self.0.panicked.load(Ordering::SeqCst)
    }

    /// The key of the last call.
    pub(crate) fn last(&self) -> Option<String> {
        self.0.last.lock().unwrap().clone()
    }

    /// The start times of all calls.
    pub(crate) fn call_times(&self) -> Vec<tokio::time::Instant> {
        self.0.at.lock().unwrap().clone()
    }

    /// The number of references: a layer's cache, lookups in flight, and the test.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    fn begin(&self, key: &ApiKey) -> Option<Say> {
        let state = &self.0;
        state.calls.fetch_add(1, Ordering::SeqCst);
        state.at.lock().unwrap().push(tokio::time::Instant::now());
        let key = key.expose_secret();
        *state.last.lock().unwrap() = Some(key.to_owned());
        *state
            .per_key
            .lock()
            .unwrap()
            .entry(key.to_owned())
            .or_default() += 1;
        let override_all = state.override_all.lock().unwrap().clone();
        override_all.or_else(|| state.keys.lock().unwrap().get(key).cloned())
    }

    async fn answer(&self, say: Option<Say>) -> Result<Verification, VerifyError> {
        let _call = Call::begin(self.clone());
        let latency = *self.0.latency.lock().unwrap();
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let gate = self.0.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        match say.unwrap_or(Say::No) {
            Say::Yes(verification) => Ok(verification),
            Say::No => Ok(Verification::invalid()),
            Say::Unconfirmed => Ok(Verification::invalid_unconfirmed()),
            Say::Unavailable => Err(VerifyError::unavailable("out of order")),
            Say::Misconfigured => Err(VerifyError::misconfigured("wrong secret")),
            Say::Throttled(wait) => Err(VerifyError::throttled(wait)),
            Say::Silence => std::future::pending().await,
            Say::Panic | Say::PanicAtOnce => {
                self.0.panicked.fetch_add(1, Ordering::SeqCst);
                panic!("a verifier that panics on purpose")
            }
        }
    }
}

/// Counts a call as in flight until its future is dropped.
struct Call(Issuer);

impl Call {
    fn begin(issuer: Issuer) -> Self {
        let in_flight = issuer.0.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        issuer
            .0
            .most_in_flight
            .fetch_max(in_flight, Ordering::SeqCst);
        issuer.0.dropped.fetch_add(1, Ordering::SeqCst);
        Self(issuer)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Verifier for Issuer {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        let say = self.begin(key);
        let answer = self.answer(say).await;
        self.0.finished.fetch_add(1, Ordering::SeqCst);
        self.0.dropped.fetch_sub(1, Ordering::SeqCst);
        answer
    }

    fn reverify(
        &self,
        key: &ApiKey,
    ) -> impl Future<Output = Result<Verification, VerifyError>> + Send {
        self.0.calls_again.fetch_add(1, Ordering::SeqCst);
        self.verify(key)
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
        let override_all = self.0.0.override_all.lock().unwrap().clone();
        if matches!(override_all, Some(Say::PanicAtOnce)) {
            self.0.0.calls.fetch_add(1, Ordering::SeqCst);
            self.0.0.panicked.fetch_add(1, Ordering::SeqCst);
            panic!("a verifier that panics on purpose");
        }
        let (issuer, key) = (self.0.clone(), key.clone());
        async move { issuer.verify(&key).await }
    }
}
