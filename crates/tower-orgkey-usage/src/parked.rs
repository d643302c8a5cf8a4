//! Records that are not pushed again until somebody has settled them.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::aggregator::Aggregator;
use crate::queue::{self, Queue};
use crate::record::UsageRecord;

/// A record that is neither pushed nor dropped until it is [settled](ParkedRecords::settle).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ParkedRecord {
    /// The record.
    pub record: UsageRecord,
    /// Why it is parked.
    pub reason: ParkReason,
}

/// Why a record is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ParkReason {
    /// The meter may have stored the record, and has forgotten its id or rejects it now. Look it up at the meter.
    MaybeStored {
        /// When the first push without a clear answer began, in seconds since the Unix epoch.
        since: u64,
    },
    /// The record is older than the meter [accepts](crate::UsageSink::oldest), and was never stored.
    TooOld,
    /// The sink cannot push the record now, as [`PushError::park`](crate::PushError::park) says. It was never stored. If the
    /// record is of [other organizations](crate::Account::OtherOrganizations), pushing it again parks it again: bill it in another
    /// way, and raise [`organizations`](crate::UsageLayerBuilder::organizations).
    Held,
}

impl ParkReason {
    /// Returns the name for logs and metrics: `maybe_stored`, `too_old` or `held`.
    pub fn name(self) -> &'static str {
        match self {
            Self::MaybeStored { .. } => "maybe_stored",
            Self::TooOld => "too_old",
            Self::Held => "held",
        }
    }
}

/// What happens to a parked record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settlement {
    /// The record is billed, or will be in another way: it is removed.
    Billed,
    /// The record is not billed: it is pushed again, after all others that wait.
    PushAgain,
}

/// Lists and settles the parked records of a [`UsagePusher`](crate::UsagePusher), also while it runs. Clones share them, and keep
/// the spool file open.
///
/// ```
/// use tower_orgkey_usage::{ParkReason, ParkedRecords, Settlement};
///
/// /// For an endpoint of operators, once the customers that were missing exist.
/// async fn push_held(parked: &ParkedRecords) -> std::io::Result<usize> {
///     parked.settle(Settlement::PushAgain, |parked| parked.reason == ParkReason::Held).await
/// }
/// ```
#[derive(Clone)]
pub struct ParkedRecords {
    pub(crate) aggregator: Arc<Aggregator>,
    pub(crate) queue: Arc<Mutex<Queue>>,
}

impl ParkedRecords {
    /// Returns the parked records, the one first that was parked first. Copies them.
    pub fn list(&self) -> Vec<ParkedRecord> {
        queue::lock(&self.queue).parked()
    }

    /// Settles the parked records that `select` returns `true` for, and returns how many there were.
    ///
    /// `select` is called with a lock held that pushes need, so it must not block. Records that are pushed again arrive after
    /// later minutes; a push may take until the next minute closes.
    ///
    /// # Errors
    ///
    /// The spool file cannot be written. The records are settled, but parked again if the process ends before a later write
    /// succeeds.
    ///
    /// # Panics
    ///
    /// Outside a Tokio runtime, if there is a spool file.
    pub async fn settle(
        &self,
        settlement: Settlement,
        select: impl FnMut(&ParkedRecord) -> bool,
    ) -> io::Result<usize> {
        let settled = queue::lock(&self.queue).settle(settlement, select);
        if settlement == Settlement::Billed {
            let records = &self.aggregator.records;
            records.settled.fetch_add(settled as u64, Ordering::Relaxed);
        }
        queue::report(&self.queue, &self.aggregator.records);
        queue::save(&self.queue).await?;
        Ok(settled)
    }
}

impl fmt::Debug for ParkedRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParkedRecords").finish_non_exhaustive()
    }
}
