use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use tower_orgkey::OrgCode;

use super::ledger::Ledger;

/// The error of a [`TotalsStore`]. It is logged, so it must not contain a secret.
pub type TotalsError = Box<dyn Error + Send + Sync>;

/// Keeps what was counted and what was sent for each organization: a [`TotalsFile`](crate::TotalsFile) for one node, or a
/// database that all nodes share.
///
/// Everything is durable when its future completes. Futures may be dropped at any `await`, and the call is then repeated.
///
/// # In a database
///
/// * [`bind`](Self::bind): compare the issuer and the code with those that the store was created for.
/// * [`add`](Self::add): in one transaction, insert the ids with `on conflict do nothing`, and add the units of the inserted ones
///   to the row of their organization.
/// * [`load`](Self::load): take an advisory lock on a connection that is kept (`pg_try_advisory_lock`), and return `None` if another
///   node has it.
/// * [`save`](Self::save): write the ledgers on the connection that has the lock, so that it fails if the lock was lost.
/// * After a restore from a backup, and after a failover that may have lost transactions: [forget](OrgTotal::forget) what each
///   ledger has sent, and set [`unknown_before`](Totals::unknown_before) to the present time.
///
/// The example `billing` of the repository does this in PostgreSQL; `TotalsFile` is the template for what else a store keeps.
pub trait TotalsStore: Send + Sync + 'static {
    /// Binds the store to a metered feature of an issuer, when a sink is built. May block.
    ///
    /// Counts and totals are those of one feature of one Kinde environment. So each feature needs a separate store, and the same
    /// one after a restart. `issuer` is [`ManagementApi::issuer`](tower_orgkey::kinde::ManagementApi::issuer).
    ///
    /// # Errors
    ///
    /// The store belongs to another issuer or to a feature with another code, or failed.
    fn bind(&self, issuer: &str, feature_code: &str) -> Result<(), TotalsError>;

    /// Adds the units of records whose ids were not added before, of all of them or, after an error, of none.
    ///
    /// The error [`MaybeAdded`] parks the records that it names, as [`MaybeStored`](crate::ParkReason::MaybeStored); others push
    /// all of them again.
    fn add(&self, records: &[RecordUnits]) -> impl Future<Output = Result<(), TotalsError>> + Send;

    /// Returns all organizations if this node is the one that sends, else `None`.
    fn load(&self) -> impl Future<Output = Result<Option<Totals>, TotalsError>> + Send;

    /// Stores ledgers. What was counted does not change.
    fn save(
        &self,
        ledgers: &[(OrgCode, Ledger)],
    ) -> impl Future<Output = Result<(), TotalsError>> + Send;
}

impl<S: TotalsStore> TotalsStore for Arc<S> {
    fn bind(&self, issuer: &str, feature_code: &str) -> Result<(), TotalsError> {
        S::bind(self, issuer, feature_code)
    }

    fn add(&self, records: &[RecordUnits]) -> impl Future<Output = Result<(), TotalsError>> + Send {
        S::add(self, records)
    }

    fn load(&self) -> impl Future<Output = Result<Option<Totals>, TotalsError>> + Send {
        S::load(self)
    }

    fn save(
        &self,
        ledgers: &[(OrgCode, Ledger)],
    ) -> impl Future<Output = Result<(), TotalsError>> + Send {
        S::save(self, ledgers)
    }
}

/// The error of [`TotalsStore::add`] for old records: the store no longer knows whether it has added them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} usage records are too old to know whether they were counted", .places.len())]
pub struct MaybeAdded {
    /// The places of these records in the slice, counted from 0, ascending.
    pub places: Vec<usize>,
}

/// The units of one [`UsageRecord`](crate::UsageRecord).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordUnits {
    /// The id of the record. Count each id once.
    pub id: String,
    /// The start of the minute, in seconds since the Unix epoch.
    pub minute: u64,
    /// The organization.
    pub organization: OrgCode,
    /// What the record adds; not 0.
    pub units: u64,
}

/// The contents of a [`TotalsStore`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Each organization once.
    pub organizations: Vec<OrgTotal>,
    /// Totals that were sent before this time may be missing. `None` if none are. Organizations without a total wait for a billing
    /// period that begins later.
    pub unknown_before: Option<SystemTime>,
}

/// An organization in a [`TotalsStore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrgTotal {
    /// The organization.
    pub organization: OrgCode,
    /// The sum of all units that were added; it never decreases.
    pub counted: u64,
    /// The ledger that was stored last, or the default.
    pub ledger: Ledger,
}

impl OrgTotal {
    /// Ends the total of the present billing period, because the stored one is older than what was sent. Units that may have been
    /// sent since are parked.
    pub fn forget(&mut self) {
        self.ledger.forget(self.counted);
    }
}
