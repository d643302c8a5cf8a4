//! A store of settings in memory that counts its calls, with fault injection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tower_orgkey::OrgCode;
use tower_orgkey::settings::{SettingsError, SettingsLoader};

/// The settings of an organization, and how often they were changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) org: String,
    pub(crate) revision: u64,
}

impl Plan {
    pub(crate) fn of(org: &str, revision: u64) -> Self {
        Self {
            org: org.to_owned(),
            revision,
        }
    }
}

/// A fault to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Unavailable,
    Broken,
    Throttled,
    /// Never completes.
    Silent,
    /// Panics when polled.
    Panics,
    /// Panics before the future is returned.
    PanicsAtOnce,
}

/// Clones share one store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store(Arc<State>);

#[derive(Debug, Default)]
struct State {
    revisions: Mutex<HashMap<String, u64>>,
    faults: Mutex<HashMap<String, Fault>>,
    fault: Mutex<Option<Fault>>,
    latency: Mutex<Duration>,
    gate: Mutex<Option<Arc<Semaphore>>>,
    calls: Mutex<HashMap<String, usize>>,
    finished: AtomicUsize,
    failures: AtomicUsize,
}

impl Store {
    /// Changes an organization's settings.
    pub(crate) fn change(&self, org: &str) {
        let mut revisions = self.0.revisions.lock().unwrap();
        *revisions.entry(org.to_owned()).or_default() += 1;
    }

    /// Fails the loads of this organization.
    pub(crate) fn fails_for(&self, org: &str, fault: Fault) {
        self.0.faults.lock().unwrap().insert(org.to_owned(), fault);
    }

    pub(crate) fn fails(&self, fault: Fault) {
        *self.0.fault.lock().unwrap() = Some(fault);
    }

    pub(crate) fn recovers(&self) {
        *self.0.fault.lock().unwrap() = None;
        self.0.faults.lock().unwrap().clear();
    }

    pub(crate) fn latency(&self, latency: Duration) {
        *self.0.latency.lock().unwrap() = latency;
    }

    /// Holds every load back until the semaphore has a permit for it. Its result is that of the time when it began.
    pub(crate) fn hold(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.0.gate.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.calls.lock().unwrap().values().sum()
    }

    pub(crate) fn calls_for(&self, org: &str) -> usize {
        let calls = self.0.calls.lock().unwrap();
        calls.get(org).copied().unwrap_or_default()
    }

    pub(crate) fn finished(&self) -> usize {
        self.0.finished.load(Ordering::SeqCst)
    }

    /// Returns how many faults were injected.
    pub(crate) fn failures(&self) -> usize {
        self.0.failures.load(Ordering::SeqCst)
    }

    fn fault(&self, org: &str) -> Option<Fault> {
        let of_all = *self.0.fault.lock().unwrap();
        of_all.or_else(|| self.0.faults.lock().unwrap().get(org).copied())
    }

    async fn answer(&self, plan: Plan, fault: Option<Fault>) -> Result<Plan, SettingsError> {
        let latency = *self.0.latency.lock().unwrap();
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let gate = self.0.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        match fault {
            None => Ok(plan),
            Some(Fault::Unavailable) => Err(SettingsError::unavailable("connection refused")),
            Some(Fault::Broken) => Err(SettingsError::broken("no such plan")),
            Some(Fault::Throttled) => Err(SettingsError::throttled(Some(Duration::from_secs(30)))),
            Some(Fault::Silent) => std::future::pending().await,
            Some(Fault::Panics | Fault::PanicsAtOnce) => panic!("a loader that panics on purpose"),
        }
    }
}

impl SettingsLoader<Plan> for Store {
    fn load(&self, org: &OrgCode) -> impl Future<Output = Result<Plan, SettingsError>> + Send {
        let org = org.as_str().to_owned();
        *self.0.calls.lock().unwrap().entry(org.clone()).or_default() += 1;
        let fault = self.fault(&org);
        if fault.is_some() {
            self.0.failures.fetch_add(1, Ordering::SeqCst);
        }
        assert!(
            fault != Some(Fault::PanicsAtOnce),
            "a loader that panics on purpose"
        );
        let revisions = self.0.revisions.lock().unwrap();
        let revision = revisions.get(&org).copied().unwrap_or_default();
        let (store, plan) = (self.clone(), Plan { org, revision });
        async move {
            let answer = store.answer(plan, fault).await;
            store.0.finished.fetch_add(1, Ordering::SeqCst);
            answer
        }
    }
}
