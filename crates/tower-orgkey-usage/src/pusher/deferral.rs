//! Accounts whose last push failed. Their records wait behind those of others.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::account::Account;
use crate::queue::Queue;
use crate::record::UsageRecord;
use crate::sink::PushError;

#[derive(Debug, Default)]
pub(super) struct Deferral {
    /// Until when no record of the account is pushed.
    accounts: HashMap<Account, Instant>,
    /// So many of the last waiting records are not pushed now.
    excluded: usize,
    /// So many of these are not pushed before the next pause.
    resting: usize,
    /// The last error since then.
    error: Option<PushError>,
    /// Failures since the last success or pause, each with another account.
    pub(super) in_a_row: u32,
}

impl Deferral {
    /// Moves the records of the deferred accounts behind all others.
    pub(super) fn begin(&mut self, queue: &mut Queue) {
        let now = Instant::now();
        let accounts = &self.accounts;
        let is = |account: &Account, resting: bool| {
            let until = accounts.get(account);
            until.is_some_and(|until| (*until > now) == resting)
        };
        self.excluded = 0;
        self.resting = 0;
        if !accounts.is_empty() {
            self.excluded = queue.defer(|account| is(account, false));
            self.resting = queue.defer(|account| is(account, true));
            self.excluded += self.resting;
        }
    }

    /// As [`begin`](Self::begin), but accounts that may be pushed are deferred no longer, so that they get their turn although
    /// there are always others.
    pub(super) fn begin_again(&mut self, queue: &mut Queue) {
        let now = Instant::now();
        self.accounts.retain(|_, until| *until > now);
        self.begin(queue);
    }

    /// Defers the accounts of this batch, which are the oldest records, at least for as long as the sink asks for.
    pub(super) fn add(
        &mut self,
        batch: &[UsageRecord],
        asked: Duration,
        error: PushError,
        queue: &mut Queue,
    ) {
        let until = Instant::now() + asked;
        for record in batch {
            self.accounts.insert(record.account.clone(), until);
        }
        let records = queue.defer(|account| batch.iter().any(|record| record.account == *account));
        self.excluded += records;
        self.resting += records;
        self.error = Some(error);
        self.in_a_row = self.in_a_row.saturating_add(1);
    }

    /// So many of the last waiting records are not pushed now.
    pub(super) fn excluded(&self) -> usize {
        self.excluded
    }

    /// Once no others wait: returns whether there are deferred records to push.
    pub(super) fn takes_turn(&mut self) -> bool {
        let is_due = self.excluded > self.resting;
        self.excluded = self.resting;
        is_due
    }

    /// Once only deferred records wait: returns the error that asks for a pause.
    pub(super) fn end(&mut self, queue: &Queue) -> Option<PushError> {
        if !self.accounts.is_empty() {
            let waiting = queue.accounts();
            self.accounts.retain(|account, _| waiting.contains(account));
        }
        self.in_a_row = 0;
        let error = self.error.take();
        error.filter(|_| !self.accounts.is_empty())
    }

    /// Pushes no deferred record for so long.
    pub(super) fn rest(&mut self, pause: Duration) {
        let end = Instant::now() + pause;
        for until in self.accounts.values_mut() {
            *until = end.max(*until);
        }
    }

    /// When the next deferred record can be pushed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.accounts.values().min().copied()
    }

    /// Notes that a record of this account was stored.
    pub(super) fn stored(&mut self, account: &Account) {
        self.accounts.remove(account);
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
