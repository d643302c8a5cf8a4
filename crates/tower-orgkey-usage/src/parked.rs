//! Records that are not pushed again until somebody has settled them.

use serde::{Deserialize, Serialize};

use crate::record::UsageRecord;

/// A record that is neither pushed nor dropped until it is [settled](crate::ParkedRecords::settle).
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
    /// The meter may have stored the record, and has forgotten its id or rejects it now, or the sink panics on the record. Look it up
    /// at the meter.
    MaybeStored {
        /// When the first push without a clear answer began, in seconds since the Unix epoch. If only the sink
        /// [knows](crate::PushError::park_maybe_stored) that there may have been one, not before this time.
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
