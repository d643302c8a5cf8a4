use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::account::{Account, KeyName, Route};
use crate::counts::Counts;

/// The counts of a key on a route in one minute, for a [`UsageSink`](crate::UsageSink).
///
/// A record is final: it never changes, and no request is counted in two records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UsageRecord {
    /// Unique across processes and restarts: visible ASCII, at most 100 characters. A record that is pushed again has the
    /// same id, so a receiver that counts each id once counts every request once.
    pub id: String,
    /// The start of the minute, in seconds since the Unix epoch: a multiple of 60. Not after the minute in which it was closed:
    /// a clock that was ahead does not put requests into the future.
    pub minute: u64,
    /// The account.
    pub account: Account,
    /// The key.
    pub key: KeyName,
    /// The route.
    pub route: Route,
    /// The counts.
    pub counts: Counts,
}

impl UsageRecord {
    /// Returns the start of the minute.
    pub fn begins_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(self.minute))
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// A minute, or a part of a minute that was closed early. Periods only move forward, so a closed period stays closed,
/// whichever way the wall clock steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Period {
    /// Since the Unix epoch.
    pub(crate) minute: u64,
    pub(crate) part: u32,
}

impl Period {
    /// The whole minute.
    pub(crate) fn of(minute: u64) -> Self {
        Self { minute, part: 0 }
    }

    /// The rest of the minute.
    pub(crate) fn next_part(self) -> Self {
        match self.part.checked_add(1) {
            Some(part) => Self { part, ..self },
            None => Self::of(self.minute.saturating_add(1)),
        }
    }
}
