//! What the sink's answer to a push does to its records, their accounts and the next push.

use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::BackoffBuilder;
use tokio::time::Instant;

use super::{UsagePusher, jitter};
use crate::account::Account;
use crate::parked::ParkReason;
use crate::queue::lock;
use crate::record::UsageRecord;
use crate::sink::{PushError, PushErrorKind, Scope, UsageSink};
use crate::telemetry;

/// The longest pause that a sink can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// After so many permanent errors of an account it rests. After so many records that were dropped in a row, of whatever accounts,
/// each further one makes its account rest.
const MAX_UNDELIVERABLE: u32 = 10;
/// A record is parked after so many panics of the sink on it alone: fewer may be about something else.
const MAX_PANICS_OF_ONE: u32 = 3;
/// After so many failures in a row, of several accounts, these may not be at fault: the pusher pauses.
const MAX_FAILURES_IN_A_ROW: u32 = 10;
/// As few as possible, because each has dropped a record.
const MAX_UNDELIVERABLE_RESTS_IN_A_ROW: u32 = 2;

impl<S: UsageSink> UsagePusher<S> {
    /// Handles an error. Returns whether a pause is due.
    pub(super) async fn failed(&mut self, mut batch: Vec<UsageRecord>, error: PushError) -> bool {
        let places = error.places(batch.len());
        let kind = match (error.kind(), &places) {
            (PushErrorKind::Park, Some(places)) if places.is_empty() => {
                PushErrorKind::NotStored { after: None }
            }
            (kind, _) => kind,
        };
        if let (Some(failed), true) = (&places, error.kind() != PushErrorKind::Park) {
            let mut failed = failed.iter().copied().peekable();
            let all = 0..batch.len();
            let stored: Vec<usize> = all
                .filter(|place| failed.next_if_eq(place).is_none())
                .collect();
            if !stored.is_empty() {
                self.stored(&batch, stored.clone()).await;
            }
            for place in stored.iter().rev() {
                batch.remove(*place);
            }
            if batch.is_empty() {
                return false;
            }
        }
        if !matches!(kind, PushErrorKind::Retry { .. }) {
            lock(&self.queue).not_stored(batch.len());
            self.save().await;
        }
        match kind {
            PushErrorKind::Permanent if batch.len() > 1 => {
                // Isolate the record that fails.
                self.batch = batch.len().div_ceil(2);
                telemetry::push_ended("permanent");
                false
            }
            PushErrorKind::Permanent => {
                telemetry::push_ended("permanent");
                if lock(&self.queue).may_be_stored() {
                    self.park(ParkReason::Held, vec![0]).await;
                } else {
                    self.drop_undeliverable(&batch, &error).await;
                }
                let of_account = self.deferral.rejected(&batch[0].account);
                if of_account.max(self.undeliverable_in_a_row) < MAX_UNDELIVERABLE {
                    return false;
                }
                let most = MAX_UNDELIVERABLE_RESTS_IN_A_ROW;
                self.defer(&batch, &error, most).await
            }
            PushErrorKind::Park => {
                telemetry::push_ended("park");
                let places = places.unwrap_or_default();
                let minutes = places.iter().map(|place| batch[*place].minute);
                let reason = match minutes.min() {
                    Some(since) if error.may_be_stored() => ParkReason::MaybeStored { since },
                    _ => ParkReason::Held,
                };
                self.park(reason, places).await;
                false
            }
            PushErrorKind::Retry { .. } | PushErrorKind::NotStored { .. } => {
                telemetry::push_ended("retry");
                match error.scope() {
                    Scope::Sink => {
                        self.pause(&error);
                        return true;
                    }
                    Scope::Unknown if batch.len() > 1 => {
                        // Whether it is about the sink, about an account or about the size, one record alone shows soonest.
                        self.batch = 1;
                        return false;
                    }
                    Scope::Unknown | Scope::Accounts => {}
                }
                if error.is_panic() && lock(&self.queue).panicked() >= MAX_PANICS_OF_ONE {
                    let since = batch[0].minute;
                    self.park(ParkReason::MaybeStored { since }, vec![0]).await;
                    return false;
                }
                self.defer(&batch, &error, MAX_FAILURES_IN_A_ROW).await
            }
        }
    }

    /// Pushes the records of other accounts first. After `most` failures in a row, of several accounts, pauses and returns `true`.
    async fn defer(&mut self, batch: &[UsageRecord], error: &PushError, most: u32) -> bool {
        let is_paused = self.deferral.is_last(batch, most);
        if is_paused {
            self.pause(error);
        } else if !std::mem::replace(&mut self.is_failing, true) {
            telemetry::push_failed(error);
        }
        let (asked, backoff) = (asked(error), self.settings.backoff);
        self.deferral
            .add(batch, asked, backoff, &mut lock(&self.queue));
        if is_paused && error.scope() == Scope::Accounts {
            // The sink was not called.
            self.deferral.reset_row();
        }
        self.save().await;
        is_paused
    }

    /// Removes the records at these places of the batch.
    pub(super) async fn stored(&mut self, batch: &[UsageRecord], places: Vec<usize>) {
        let number = places.len() as u64;
        telemetry::push_ended("accepted");
        telemetry::pushed(number);
        let records = &self.aggregator.records;
        records.pushed.fetch_add(number, Ordering::Relaxed);
        self.batch = (self.batch * 2).min(self.settings.batch_size);
        let mut is_sent = false;
        for place in &places {
            let UsageRecord {
                account, counts, ..
            } = &batch[*place];
            // Sinks skip records that are not billed.
            is_sent |= match account {
                Account::Organization(_) if counts.served() == 0 => continue,
                Account::Organization(_) => true,
                _ => self.deferral.has(account),
            };
            self.deferral.stored(account);
        }
        if is_sent {
            self.works();
        }
        self.report_recovery();
        lock(&self.queue).remove_at(places);
        self.removed().await;
    }

    async fn drop_undeliverable(&mut self, record: &[UsageRecord], error: &PushError) {
        for record in record {
            telemetry::undeliverable(&record.id, error);
        }
        let number = record.len();
        self.aggregator
            .records
            .undeliverable
            .fetch_add(number as u64, Ordering::Relaxed);
        self.undeliverable_in_a_row = self.undeliverable_in_a_row.saturating_add(1);
        lock(&self.queue).remove(number);
        self.removed().await;
    }

    fn pause(&mut self, error: &PushError) {
        if !std::mem::replace(&mut self.is_down, true) {
            telemetry::push_failed(error);
        }
        self.is_failing = true;
        let own = self.backoff.next().unwrap_or_default();
        let pause = own.mul_f64(jitter()).max(asked(error));
        self.not_before = Some(Instant::now() + pause);
    }

    /// Notes that the sink stores records.
    pub(super) fn works(&mut self) {
        self.undeliverable_in_a_row = 0;
        self.deferral.reset_row();
        self.not_before = None;
        self.backoff = self.settings.backoff.build();
        self.is_down = false;
    }

    pub(super) fn report_recovery(&mut self) {
        let fails = self.is_down || self.undeliverable_in_a_row > 0 || self.deferral.fails();
        if self.is_failing && !fails {
            self.is_failing = false;
            telemetry::push_recovered();
        }
    }
}

/// The pause that the sink asks for.
fn asked(error: &PushError) -> Duration {
    match error.kind() {
        PushErrorKind::Retry { after } | PushErrorKind::NotStored { after } => {
            after.unwrap_or_default().min(LONGEST_PAUSE)
        }
        PushErrorKind::Permanent | PushErrorKind::Park => Duration::ZERO,
    }
}
