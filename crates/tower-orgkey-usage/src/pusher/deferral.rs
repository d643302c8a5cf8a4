//! Accounts whose last push failed. Their records wait behind those of others.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use super::jitter;
use crate::account::Account;
use crate::queue::Queue;
use crate::record::UsageRecord;

#[derive(Debug, Default)]
pub(super) struct Deferral {
    accounts: HashMap<Account, Failing>,
    /// When the records were ordered. Accounts that rest longer are not pushed.
    at: Option<Instant>,
    /// Accounts that have rested wait for all others.
    due_wait: bool,
    /// So many of the last waiting records are not pushed now.
    excluded: usize,
    /// So many of these are of accounts that rest.
    resting: usize,
    /// Failures since the last record that was sent.
    in_a_row: u32,
    /// The account of the first of these, and whether there are others.
    first: Option<Account>,
    are_several: bool,
}

#[derive(Debug, Default)]
struct Failing {
    /// Until when no record of the account is pushed. `None`: it does not fail.
    until: Option<Instant>,
    /// The next rests.
    backoff: Option<ExponentialBackoff>,
    /// Permanent errors since the last rest.
    rejected: u32,
}

impl Deferral {
    /// Moves the records of the deferred accounts behind all others.
    pub(super) fn begin(&mut self, queue: &mut Queue) {
        self.due_wait = true;
        self.at = Some(Instant::now());
        self.order(queue);
    }

    /// As [`begin`](Self::begin), but accounts that have rested wait for no others, so that they get their turn although there
    /// are always others.
    pub(super) fn begin_again(&mut self, queue: &mut Queue) {
        self.due_wait = false;
        self.at = Some(Instant::now());
        self.order(queue);
    }

    /// Those that rest are last. The one that can be pushed first comes first.
    fn order(&mut self, queue: &mut Queue) {
        (self.excluded, self.resting) = (0, 0);
        if !self.fails() {
            return;
        }
        let (accounts, at, due_wait) = (&self.accounts, self.at, self.due_wait);
        let is_resting = |until: &Instant| at.is_none_or(|at| *until > at);
        let excluded = queue.order(|account| {
            let until = accounts.get(account)?.until;
            until.filter(|until| due_wait || is_resting(until))
        });
        self.excluded = excluded.len();
        self.resting = excluded.iter().filter(|until| is_resting(until)).count();
    }

    /// Defers these accounts, at least for as long as the sink asks for.
    pub(super) fn add(
        &mut self,
        batch: &[UsageRecord],
        asked: Duration,
        backoff: ExponentialBuilder,
        queue: &mut Queue,
    ) {
        let now = Instant::now();
        // The same for all, so that they keep their order.
        let part = jitter();
        let batch: HashSet<&Account> = batch.iter().map(|record| &record.account).collect();
        for account in batch {
            let failing = self.accounts.entry(account.clone()).or_default();
            let own = failing.backoff.get_or_insert_with(|| backoff.build());
            let own = own.next().unwrap_or_default().mul_f64(part);
            failing.until = Some(now + own.max(asked));
            failing.rejected = 0;
            let first = self.first.get_or_insert_with(|| account.clone());
            self.are_several |= first != account;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.order(queue);
    }

    /// Whether one more failure is the last of `most` in a row, and they are of several accounts.
    pub(super) fn is_last(&self, batch: &[UsageRecord], most: u32) -> bool {
        let mut batch = batch.iter();
        let are_several = self.are_several
            || (self.first.as_ref())
                .is_some_and(|first| batch.any(|other| other.account != *first));
        self.in_a_row.saturating_add(1) >= most && are_several
    }

    /// Counts a permanent error, and returns how many there were since the account rested.
    pub(super) fn rejected(&mut self, account: &Account) -> u32 {
        let failing = self.accounts.entry(account.clone()).or_default();
        failing.rejected = failing.rejected.saturating_add(1);
        failing.rejected
    }

    /// So many of the last waiting records are not pushed now.
    pub(super) fn excluded(&self) -> usize {
        self.excluded
    }

    /// Once no others wait: returns whether there are deferred records to push.
    pub(super) fn takes_turn(&mut self) -> bool {
        let is_due = self.excluded > self.resting;
        self.due_wait = false;
        self.excluded = self.resting;
        is_due
    }

    /// Once only records of accounts that rest wait.
    pub(super) fn end(&mut self, queue: &Queue) {
        if !self.accounts.is_empty() {
            let waiting = queue.accounts();
            self.accounts.retain(|account, _| waiting.contains(account));
        }
    }

    /// Whether a push of some account failed, and none has stored a record of it since.
    pub(super) fn fails(&self) -> bool {
        let mut accounts = self.accounts.values();
        accounts.any(|failing| failing.until.is_some())
    }

    /// Whether pushes of this account fail.
    pub(super) fn has(&self, account: &Account) -> bool {
        let failing = self.accounts.get(account);
        failing.is_some_and(|failing| failing.until.is_some())
    }

    /// When the next deferred record can be pushed.
    pub(super) fn due(&self) -> Option<Instant> {
        let accounts = self.accounts.values();
        accounts.filter_map(|failing| failing.until).min()
    }

    /// Notes that a record of this account was stored.
    pub(super) fn stored(&mut self, account: &Account) {
        if let Some(failing) = self.accounts.get_mut(account) {
            failing.until = None;
            failing.backoff = None;
        }
    }

    /// Notes that the sink works, or that it was not called.
    pub(super) fn reset_row(&mut self) {
        self.in_a_row = 0;
        self.first = None;
        self.are_several = false;
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
