//! The verifier under test, and a record of what it returned.

use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tower_orgkey::verify::{Attempt, Issuer, VerifyErrorKind};
use tower_orgkey::{ApiKey, Verification, Verifier, VerifyError};

/// Longer than a layer's lookup may take.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Valid,
    Invalid,
    Failed(VerifyErrorKind),
}

pub(super) struct Watched<V> {
    verifier: V,
    record: Arc<Record>,
}

#[derive(Default)]
pub(super) struct Record {
    outcomes: Mutex<Vec<Outcome>>,
    /// What showed a key.
    leak: Mutex<Option<&'static str>>,
    finished: watch::Sender<usize>,
}

impl<V: Verifier> Watched<V> {
    pub(super) fn new(verifier: V) -> Self {
        Self {
            verifier,
            record: Arc::default(),
        }
    }

    pub(super) fn record(&self) -> Arc<Record> {
        Arc::clone(&self.record)
    }
}

impl Record {
    /// Returns the number of verifications that have ended.
    pub(super) fn finished(&self) -> usize {
        *self.finished.borrow()
    }

    /// Waits until more verifications than this have ended.
    pub(super) async fn wait_beyond(&self, finished: usize) -> Result<(), String> {
        let mut watching = self.finished.subscribe();
        let ended = watching.wait_for(|number| *number > finished);
        match tokio::time::timeout(PATIENCE, ended).await {
            Ok(_) => Ok(()),
            Err(_) => Err("no verification ended".to_owned()),
        }
    }

    pub(super) fn outcomes_since(&self, finished: usize) -> Vec<Outcome> {
        let outcomes = self.outcomes.lock();
        let outcomes = outcomes.unwrap_or_else(PoisonError::into_inner);
        outcomes.get(finished..).unwrap_or_default().to_vec()
    }

    pub(super) fn leak(&self) -> Result<(), String> {
        let leak = *self.leak.lock().unwrap_or_else(PoisonError::into_inner);
        leak.map_or(Ok(()), |leak| Err(format!("{leak} holds the key")))
    }

    fn end(&self, key: &ApiKey, verified: &Result<Verification, VerifyError>) {
        let (outcome, shown) = match verified {
            Ok(valid) if valid.is_valid() => (Outcome::Valid, format!("{valid:?}")),
            Ok(invalid) => (Outcome::Invalid, format!("{invalid:?}")),
            Err(error) => {
                let mut shown = format!("{error} {error:?}");
                let mut source = error.source();
                while let Some(error) = source {
                    // Writing to a string does not fail.
                    let _ = write!(shown, " {error} {error:?}");
                    source = error.source();
                }
                (Outcome::Failed(error.kind()), shown)
            }
        };
        let secret = key.expose_secret();
        // As it is in a quoted form or URL.
        let encoded: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        if shown.contains(secret) || shown.contains(&encoded) {
            let what = match outcome {
                Outcome::Failed(_) => "an error",
                _ => "the `Debug` output of a result",
            };
            *self.leak.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
        }
        let outcomes = self.outcomes.lock();
        outcomes
            .unwrap_or_else(PoisonError::into_inner)
            .push(outcome);
    }
}

/// Counts the end of a verification, also when the layer drops it.
struct Finish<'a>(&'a watch::Sender<usize>);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|finished| *finished += 1);
    }
}

impl<V: Verifier> Verifier for Watched<V> {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.verifier.verify(key).await
    }

    async fn reverify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        self.verifier.reverify(key).await
    }

    async fn verify_attempt(
        &self,
        key: &ApiKey,
        attempt: Attempt,
    ) -> Result<Verification, VerifyError> {
        let _finish = Finish(&self.record.finished);
        let verified = self.verifier.verify_attempt(key, attempt).await;
        self.record.end(key, &verified);
        verified
    }

    fn issuers(&self) -> Vec<Issuer> {
        self.verifier.issuers()
    }

    fn issuer_of(&self, key: &ApiKey) -> Option<usize> {
        self.verifier.issuer_of(key)
    }
}
