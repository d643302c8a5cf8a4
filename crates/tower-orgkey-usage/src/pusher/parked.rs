//! The handle to parked records.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use crate::aggregator::Aggregator;
use crate::parked::{ParkedRecord, Settlement};
use crate::queue::{self, Queue};

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
    pub(super) aggregator: Arc<Aggregator>,
    pub(super) queue: Arc<Mutex<Queue>>,
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
