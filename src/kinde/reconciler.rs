//! Compares the cached keys with Kinde's list of keys, so that a rotation or deletion in Kinde takes effect early.

mod builder;
mod comparison;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use self::builder::KeyReconcilerBuilder;
use self::comparison::Comparison;
use super::token::RenewalBackoff;
use super::verifier::{Kinde, KindeVerifier};
use crate::handle::{ApiKeyHandle, CachedKey};
use crate::identifier::KeyId;
use crate::telemetry::reconciler as telemetry;
use crate::verify::{VerifyError, VerifyErrorKind};

/// Reads Kinde's list of keys periodically and invalidates cached keys that were rotated, revoked or deleted.
///
/// Kinde sends no event when a key is rotated or deleted, neither for its own pages nor for its self-serve portal. Without a
/// reconciler, such a change takes effect by the soft TTL: after at most twice its length and one verification. With one, it
/// takes effect within one [period](KeyReconcilerBuilder::period), the time to read the list and one verification, whatever
/// the soft TTL.
///
/// # What is invalidated
///
/// A reconciliation calls `GET /api/v1/api_keys?key_type=organization&status=active`, once per page. These calls do not count
/// against the limits of verifications. After the whole list was read,
///
/// * a cached key with an id that is not in the list is [invalidated](ApiKeyHandle::invalidate_key), and
/// * so is a cached secret with other last four characters than those in the list: it was rotated.
///
/// Nothing is blocked: the next request with an invalidated key verifies it. Keys that were verified after the reconciliation
/// started are left alone, and so are keys without an id or an organization, and keys of users. A reconciliation that ends
/// early changes nothing: after an error, an invalid page, a key that is listed twice, or a list that is longer than
/// [`max_calls`](KeyReconcilerBuilder::max_calls).
///
/// A list by which more than half of the cached keys, and at least twenty, are outdated is probably incomplete (a token that is
/// restricted to one organization, or a fault of Kinde). The reconciler logs an error and invalidates these keys only if the
/// next complete list shows the same.
///
/// To recognize a rotated secret, entries have four more bytes: a keyed digest of the last four characters of the secret, from
/// which they cannot be recovered. Only layers with a reconciler store it, for keys that were verified after the reconciler was
/// built. Two secrets with the same last four characters cannot be distinguished; the soft TTL applies to them.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_orgkey::ApiKeyLayer;
/// use tower_orgkey::kinde::{KeyReconciler, KindeVerifier};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_orgkey::ConfigError> {
/// let kinde = KindeVerifier::builder("http://127.0.0.1:4010")
///     .client_credentials("the client's id", "the client's secret")
///     .build()?;
/// let auth = ApiKeyLayer::builder(kinde.clone()).soft_ttl(Duration::from_secs(300)).build()?;
/// let reconciler = KeyReconciler::builder(&kinde, auth.handle())
///     .period(Duration::from_secs(30))
///     .build()?;
/// let task = tokio::spawn(reconciler.run());
/// // At shutdown:
/// task.abort();
/// # Ok(()) }
/// ```
pub struct KeyReconciler {
    kinde: Arc<Kinde>,
    keys: ApiKeyHandle,
    settings: Settings,
    /// The time of the next call at the earliest.
    next_call: Instant,
    /// The calls of the current reconciliation.
    calls: u32,
    renewals: RenewalBackoff,
    /// By the last complete list most keys were outdated, which needs confirmation.
    needs_confirmation: bool,
    is_failing: bool,
}

type Filter = Box<dyn Fn(&KeyId) -> bool + Send + Sync>;

struct Settings {
    period: Duration,
    page_size: u32,
    max_calls: u32,
    calls_per_second: u32,
    only: Option<Filter>,
    /// What the ids of the compared keys begin with, and Kinde's do not.
    issuer: Option<String>,
}

impl Settings {
    /// Returns the id of a cached key in Kinde's list, if it is to be compared.
    fn listed_id(&self, key: &CachedKey) -> Option<KeyId> {
        let key_id = key.key_id()?;
        if self.only.as_ref().is_some_and(|only| !only(key_id)) {
            return None;
        }
        match &self.issuer {
            Some(issuer) => KeyId::new(key_id.as_str().strip_prefix(&**issuer)?).ok(),
            None => Some(key_id.clone()),
        }
    }
}

/// The longest duration of a reconciliation. Keys that are verified meanwhile are not compared.
const MAX_DURATION: Duration = Duration::from_secs(10 * 60);
/// The longest pause after a 429.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Fewer invalidations than this need no confirmation by a second list.
const UNCONFIRMED_LIMIT: usize = 20;

/// The result of a reconciliation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReconcileReport {
    /// The number of calls: one per page, and one more per renewed token. 0 if no key was cached.
    pub calls: u32,
    /// The number of keys in Kinde's list.
    pub listed: usize,
    /// The number of cached secrets that were compared with the list.
    pub compared: usize,
    /// The number of secrets that were invalidated.
    pub invalidated: usize,
    /// `false` if so many keys are outdated that nothing is invalidated until the next list confirms it.
    pub is_confirmed: bool,
}

/// A reconciliation ended early and changed nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[error("reading the issuer's list of keys failed")]
pub struct ReconcileError(#[source] VerifyError);

impl ReconcileError {
    /// Returns the kind of the failure.
    pub fn kind(&self) -> VerifyErrorKind {
        self.0.kind()
    }
}

impl KeyReconciler {
    /// Returns a builder of a reconciler for the layer of this handle. It uses the verifier's token and connections.
    ///
    /// The token needs the scope `read:api_keys` for the whole environment. A token that is restricted to an organization gets
    /// only the keys of that organization.
    pub fn builder(kinde: &KindeVerifier, keys: ApiKeyHandle) -> KeyReconcilerBuilder {
        KeyReconcilerBuilder::new(kinde, keys)
    }

    /// Reconciles once per period, forever. Drop the future to stop.
    ///
    /// After a failure, the next reconciliation starts after a period, or after the time that a 429 of Kinde asks for if that
    /// is longer, up to 60 s.
    pub async fn run(mut self) {
        // Spreads the calls of nodes that start at the same time.
        let mut next = Instant::now() + self.settings.period.mul_f64(fastrand::f64());
        loop {
            tokio::time::sleep_until(next).await;
            let period = self.settings.period.mul_f64(0.9 + 0.1 * fastrand::f64());
            next = Instant::now() + period;
            if let Err(ReconcileError(error)) = self.reconcile_once().await {
                let asked = error.retry_after().unwrap_or_default().min(MAX_PAUSE);
                next = next.max(Instant::now() + asked);
            }
        }
    }

    /// Reconciles once, now.
    ///
    /// If the future is dropped before it completes, some of the keys may have been invalidated.
    pub async fn reconcile_once(&mut self) -> Result<ReconcileReport, ReconcileError> {
        let result = match tokio::time::timeout(MAX_DURATION, self.reconcile()).await {
            Ok(result) => result,
            Err(_) => Err(VerifyError::unavailable("reading the list takes too long")),
        };
        match &result {
            Ok(report) => {
                let result = match report {
                    // No key was cached, so the list was not requested.
                    ReconcileReport { calls: 0, .. } => "idle",
                    report if report.is_confirmed => "complete",
                    _ => "unconfirmed",
                };
                telemetry::ran(result, report.compared, report.invalidated);
                if report.calls > 0 && std::mem::take(&mut self.is_failing) {
                    telemetry::recovered();
                }
            }
            Err(error) => {
                telemetry::failed();
                if !std::mem::replace(&mut self.is_failing, true) {
                    telemetry::fails(error);
                }
            }
        }
        result.map_err(ReconcileError)
    }

    async fn reconcile(&mut self) -> Result<ReconcileReport, VerifyError> {
        let (cached, began) = self.keys.cached_keys();
        let mut by_id: HashMap<KeyId, Vec<CachedKey>> = HashMap::new();
        let mut compared = 0;
        for key in cached {
            if let Some(listed_id) = self.settings.listed_id(&key) {
                by_id.entry(listed_id).or_default().push(key);
                compared += 1;
            }
        }
        let mut report = ReconcileReport {
            calls: 0,
            listed: 0,
            compared,
            invalidated: 0,
            is_confirmed: true,
        };
        if by_id.is_empty() {
            return Ok(report);
        }
        self.calls = 0;
        let mut comparison = Comparison::new(self.keys.clone(), by_id);
        let mut cursor: Option<KeyId> = None;
        loop {
            let page = self.page(cursor.as_ref()).await?;
            report.listed += page.keys.len();
            cursor = page.keys.last().map(|key| key.id.clone());
            comparison.add(page.keys)?;
            if !page.has_more {
                break;
            }
            if cursor.is_none() {
                return Err(VerifyError::unavailable(
                    "an empty page of the list is not the last one",
                ));
            }
        }
        report.calls = self.calls;
        let outdated = comparison.outdated();
        let outdates_most = outdated.len() >= UNCONFIRMED_LIMIT && outdated.len() > compared / 2;
        report.is_confirmed = !outdates_most || self.needs_confirmation;
        self.needs_confirmation = !report.is_confirmed;
        if report.is_confirmed {
            report.invalidated = self.keys.invalidate_cached(&outdated, began).await;
        } else {
            telemetry::unconfirmed(outdated.len(), compared);
        }
        Ok(report)
    }
}

impl_debug!(KeyReconciler, |reconciler| {
    issuer: reconciler.kinde.issuer,
    period: reconciler.settings.period
});
