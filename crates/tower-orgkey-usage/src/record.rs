use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::account::{Account, KeyName, Route};
use super::counts::Counts;

/// What one key of one account did on one route in one minute: what a [`UsageSink`](super::UsageSink) is given.
///
/// The record is final. Once it has its [`id`](Self::id) no number in it changes, and no request that it counts is counted
/// in a record of another id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UsageRecord {
    /// Visible ASCII, at most 128 characters. No other record has it, of this process or another. A record that is pushed
    /// again, after a restart too, has the id that it had: a receiver that counts each id once counts every request once.
    pub id: String,
    /// When the minute began, in seconds since the Unix epoch: a multiple of 60.
    pub minute: u64,
    /// Whose requests they are.
    pub account: Account,
    /// Which key made them.
    pub key: KeyName,
    /// Where they went.
    pub route: Route,
    /// How many they were, and what became of them.
    pub counts: Counts,
}

impl UsageRecord {
    /// When the minute began.
    pub fn begins_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(self.minute))
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// A minute, or a part of one that was closed before it was over. They come one after another and are counted into one at
/// a time, so what was closed stays closed, whichever way the wall clock steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Period {
    /// Since the Unix epoch.
    pub(super) minute: u64,
    pub(super) part: u32,
}

impl Period {
    /// The whole of this minute, as long as nothing closes it early.
    pub(super) fn of(minute: u64) -> Self {
        Self { minute, part: 0 }
    }

    /// The rest of the minute.
    pub(super) fn next_part(self) -> Self {
        match self.part.checked_add(1) {
            Some(part) => Self { part, ..self },
            None => Self::of(self.minute.saturating_add(1)),
        }
    }
}
