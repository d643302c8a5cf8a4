//! Pushes closed minutes to a sink.

mod builder;
mod deferral;
mod parked;
mod report;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

pub use self::builder::UsagePusherBuilder;
use self::deferral::Deferral;
pub use self::parked::ParkedRecords;
pub use self::report::PushReport;
use super::account::Account;
use super::aggregator::Aggregator;
use super::catch_unwind::CatchUnwind;
use super::parked::ParkReason;
use super::queue::{self, Limits, ParkedNow, Queue, lock};
use super::record::UsageRecord;
use super::sink::{PushError, PushErrorKind, Scope, UsageSink};
use crate::telemetry;

/// Closes minutes and pushes their records to a [`UsageSink`], in order, until the sink has stored them.
///
/// A minute is closed up to 2 s after its end, at a random moment, so that instances do not push together. Its records are
/// written to the [spool file](UsagePusherBuilder::spool_file), if there is one, and then pushed in batches. Minutes that end
/// while older records are pushed are closed before the next batch.
///
/// Nothing runs until the pusher is spawned. It can be dropped at any moment. A layer has one pusher.
///
/// # Failures
///
/// A batch that fails is pushed in smaller ones: after a [permanent error](PushError::permanent) in halves, else one record first and
/// then twice as many each time. So a meter that is too slow for large batches gets small ones. A single record that fails delays the
/// records of its own account only: they wait behind those of all others, and are pushed again after 1 s, doubling to 60 s and
/// shortened at random by up to half, or later if the sink asks for it, up to 5 min. Each account has its own delay, which begins anew
/// when a record of it is stored. Of an account's records that cause permanent errors, up to 10 are dropped or parked before it waits.
///
/// After 10 failures in a row, or two waits after permanent errors, the sink itself may be at fault if they are of several accounts:
/// the pusher pauses for 1 s, doubling to 60 s and shortened likewise, and then tries one account between two pauses. It also pauses
/// after errors that concern the sink whatever is pushed: no connection, and the replies of an `HttpMeter` that ask to wait. During a
/// pause, minutes are still closed and kept. A success ends the row if it shows that the sink works: the sink stored a record of
/// an organization with requests that were [served](crate::Counts::served), because many sinks skip all others.
///
/// So the failures of one account delay others by some 20 failed pushes, each of up to
/// [`push_timeout`](UsagePusherBuilder::push_timeout), and its permanent errors by some 50 pushes.
///
/// # What can be lost
///
/// | event | without a spool file | with a spool file |
/// |---|---|---|
/// | shutdown with [`flush`](Self::flush), the sink stores everything before the deadline | nothing | nothing |
/// | shutdown with `flush`, the sink does not | waiting records; counted and logged | nothing |
/// | the process is killed | waiting records and minutes that are not closed | minutes that are not closed: the current one, and one that ended up to 2 s ago or during a push in flight |
/// | more records wait than [`max_waiting`](UsagePusherBuilder::max_waiting) | the oldest of the accounts with the most; counted and logged | the same |
///
/// A sink that counts each [`id`](UsageRecord::id) once never counts a request twice.
///
/// # Parked records
///
/// If the sink [forgets ids](UsageSink::remembers), a record that it may have stored is not pushed again when it could have
/// forgotten the id. If it [rejects old records](UsageSink::oldest), those are not pushed. Such records are parked: kept, also in
/// the spool file, counted and logged, until they are settled through [`ParkedRecords`]. For each organization, the requests
/// that were served are the sum of those that are billed, wait, are parked, or were dropped with a log message. Requests of
/// [organizations that were counted together](crate::Account::OtherOrganizations) are in one sum: `StripeSink`,
/// `KindeBillingSink`, and `OpenMeterSink` without an unattributed subject park their records.
///
/// With such a sink and a spool file, the beginning of a push is written to the file first, so that it is known after a crash. While
/// the file cannot be written, nothing is pushed. At most [`max_waiting`](UsagePusherBuilder::max_waiting) records are parked; beyond,
/// the oldest of the accounts with the most are dropped, counted and logged.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tokio::sync::oneshot;
/// use tower_orgkey_usage::{PushError, UsageLayer, UsageRecord, UsageSink};
///
/// struct Print;
///
/// impl UsageSink for Print {
///     async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
///         for record in batch {
///             println!("{}: {} requests of {:?}", record.id, record.counts.requests(), record.account);
///         }
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let usage = UsageLayer::new();
/// let mut pusher = usage.handle().pusher(Print).build()?;
/// let (stop, stopped) = oneshot::channel::<()>();
/// let pushing = tokio::spawn(async move {
///     pusher.run_until(async { _ = stopped.await }).await;
///     pusher.flush(Duration::from_secs(5)).await
/// });
/// // … serve with `usage` as the outermost layer; once no request is in flight:
/// drop(stop);
/// assert_eq!(pushing.await?.waiting, 0);
/// # Ok(()) }
/// ```
pub struct UsagePusher<S> {
    aggregator: Arc<Aggregator>,
    sink: S,
    settings: Settings,
    queue: Arc<Mutex<Queue>>,
    /// The size of the next batch.
    batch: usize,
    /// The pauses after the next failures.
    backoff: ExponentialBackoff,
    /// No push before then.
    not_before: Option<Instant>,
    /// Single records that were dropped since the sink sent one.
    undeliverable_in_a_row: u32,
    deferral: Deferral,
    /// An account or the sink fails, which was logged.
    is_failing: bool,
    /// The pusher has paused since the sink sent a record.
    is_down: bool,
    is_spool_failing: bool,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    batch_size: usize,
    push_timeout: Duration,
    max_waiting: usize,
    backoff: ExponentialBuilder,
}

/// Minutes are closed at most so long after their end.
const AFTER_THE_MINUTE: Duration = Duration::from_secs(2);
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
    /// Returns the records that are parked, to list and settle them while the pusher runs.
    pub fn parked(&self) -> ParkedRecords {
        ParkedRecords {
            aggregator: Arc::clone(&self.aggregator),
            queue: Arc::clone(&self.queue),
        }
    }

    /// Closes and pushes every minute, until the future is dropped.
    pub async fn run(mut self) {
        self.run_until(std::future::pending()).await;
    }

    /// Closes and pushes every minute until `stop` completes. A push in flight is cancelled, and its records wait.
    pub async fn run_until(&mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        while !is_first(stop.as_mut(), self.turn()).await {}
    }

    /// Closes the current minute and pushes everything that waits, for at most `deadline`. For shutdowns.
    pub async fn flush(&mut self, deadline: Duration) -> PushReport {
        let end = Instant::now() + deadline;
        let before = self.report();
        self.deferral.clear();
        // After a timeout the records stay where they are.
        let _ = timeout_at(end, self.close(true)).await;
        while timeout_at(end, self.push_waiting()).await.is_ok() {
            match self.due() {
                Some(at) if at < end => sleep_until(at).await,
                _ => break,
            }
        }
        self.report().since(before)
    }

    /// Closes past minutes and pushes what waits. For your own schedule.
    ///
    /// Returns when everything is pushed, or when a pause is due, which the caller has to make. Minutes that end meanwhile are
    /// pushed too, so it does not return while records come faster than the sink takes them.
    pub async fn push_closed(&mut self) -> PushReport {
        let before = self.report();
        self.deferral.clear();
        self.close(false).await;
        // `waiting` in the report shows a failure.
        self.push_waiting().await;
        self.report().since(before)
    }

    /// Waits for the end of the minute or of a pause, then closes and pushes what is due.
    async fn turn(&mut self) {
        let is_waiting = lock(&self.queue).len() > 0;
        let jitter = AFTER_THE_MINUTE.mul_f64(fastrand::f64());
        let closing = Instant::now() + self.aggregator.wall.to_next_minute() + jitter;
        let due = match self.due() {
            // Records of an earlier run, or of a cancelled push.
            None if is_waiting => Instant::now(),
            None => closing,
            Some(at) => at.min(closing),
        };
        sleep_until(due).await;
        self.close(false).await;
        if self.not_before.is_none_or(|at| at <= Instant::now()) {
            self.push_waiting().await;
        }
    }

    /// The end of the pause, if one is due.
    fn due(&self) -> Option<Instant> {
        self.not_before.or_else(|| self.deferral.due())
    }

    /// Moves the records of past minutes from the aggregator to the queue.
    async fn close(&mut self, early: bool) {
        // No await in between: a record is in the aggregator or in the queue.
        let dropped = {
            let mut queue = lock(&self.queue);
            queue.add(self.aggregator.close(early))
        };
        self.dropped(dropped, "more waited than max_waiting");
        self.report_waiting();
        self.save().await;
    }

    fn dropped(&self, number: usize, reason: &'static str) {
        if number > 0 {
            let number = number as u64;
            let records = &self.aggregator.records;
            records.dropped.fetch_add(number, Ordering::Relaxed);
            telemetry::dropped(number, reason);
        }
    }

    /// Pushes until nothing waits or a pause is due.
    async fn push_waiting(&mut self) {
        self.deferral.begin(&mut lock(&self.queue));
        loop {
            // A backlog takes longer than a minute, which only the spool file keeps if the process is killed.
            if self.aggregator.is_minute_over() {
                self.close(false).await;
                self.deferral.begin_again(&mut lock(&self.queue));
            }
            let limits = self.limits();
            let batch = self.begin_push(&limits);
            // Also what a cancelled `close` did not save.
            let is_saved = self.save().await;
            if batch.is_empty() {
                if self.deferral.takes_turn() {
                    // As after a failure.
                    self.batch = 1;
                    continue;
                }
                self.not_before = None;
                self.deferral.end(&lock(&self.queue));
                if lock(&self.queue).len() == 0 && self.undeliverable_in_a_row == 0 {
                    // Everything was stored, whatever the sink sends.
                    self.works();
                }
                self.report_recovery();
                return;
            }
            let result = if is_saved || !limits.are_set() {
                self.push(&batch).await
            } else {
                Err(PushError::not_stored("the spool file cannot be written").of_sink())
            };
            let is_paused = match result {
                Ok(()) => {
                    self.stored(&batch, (0..batch.len()).collect()).await;
                    false
                }
                Err(error) => self.failed(batch, error).await,
            };
            if is_paused {
                return;
            }
        }
    }

    /// Handles an error. Returns whether a pause is due.
    async fn failed(&mut self, mut batch: Vec<UsageRecord>, error: PushError) -> bool {
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

    fn limits(&self) -> Limits {
        Limits {
            now: self.aggregator.wall.seconds(),
            push: self.settings.push_timeout,
            remembers: self.sink.remembers(),
            oldest: self.sink.oldest(),
        }
    }

    /// Returns the next batch, after parking what must not be pushed.
    fn begin_push(&self, limits: &Limits) -> Vec<UsageRecord> {
        let most = self.sink.max_batch().unwrap_or(usize::MAX).max(1);
        let most = self.batch.min(most);
        let at = limits.are_set().then_some(limits.now);
        let (batch, parked) = {
            let mut queue = lock(&self.queue);
            let excluded = self.deferral.excluded();
            let parked = queue.park_expired(most, excluded, limits);
            let most = most.min(queue.len().saturating_sub(excluded));
            (queue.begin_push(most, at), parked)
        };
        self.parked_now(&parked);
        batch
    }

    /// Parks the records at these places.
    async fn park(&mut self, reason: ParkReason, places: Vec<usize>) {
        let parked = lock(&self.queue).park(reason, places);
        self.parked_now(&parked);
        self.save().await;
    }

    fn parked_now(&self, parked: &[ParkedNow]) {
        if parked.is_empty() {
            return;
        }
        for record in parked {
            telemetry::parked(&record.id, record.reason);
        }
        let dropped = lock(&self.queue).trim_parked();
        self.dropped(dropped, "more were parked than max_waiting");
        self.report_waiting();
    }

    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        // In an async block, so that a panic before the first await is caught too.
        let push = CatchUnwind::new(async { self.sink.push(batch).await });
        match timeout(self.settings.push_timeout, push).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(panicked)) => Err(PushError::retry(panicked)),
            Err(_) => Err(PushError::retry("the push timed out")),
        }
    }

    /// Removes the records at these places of the batch.
    async fn stored(&mut self, batch: &[UsageRecord], places: Vec<usize>) {
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
    fn works(&mut self) {
        self.undeliverable_in_a_row = 0;
        self.deferral.reset_row();
        self.not_before = None;
        self.backoff = self.settings.backoff.build();
        self.is_down = false;
    }

    fn report_recovery(&mut self) {
        let fails = self.is_down || self.undeliverable_in_a_row > 0 || self.deferral.fails();
        if self.is_failing && !fails {
            self.is_failing = false;
            telemetry::push_recovered();
        }
    }

    async fn removed(&mut self) {
        self.report_waiting();
        self.save().await;
    }

    /// Writes the spool file. Returns whether it is as it should be.
    async fn save(&mut self) -> bool {
        match queue::save(&self.queue).await {
            Ok(()) => {
                if std::mem::take(&mut self.is_spool_failing) {
                    telemetry::spool_recovered();
                }
                true
            }
            // The runtime is shutting down.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
            Err(error) => {
                if !std::mem::replace(&mut self.is_spool_failing, true) {
                    telemetry::spool_failed(&error);
                }
                false
            }
        }
    }

    fn report_waiting(&self) {
        queue::report(&self.queue, &self.aggregator.records);
    }

    fn report(&self) -> PushReport {
        let records = &self.aggregator.records;
        PushReport {
            pushed: records.pushed.load(Ordering::Relaxed),
            undeliverable: records.undeliverable.load(Ordering::Relaxed),
            dropped: records.dropped.load(Ordering::Relaxed),
            waiting: lock(&self.queue).len(),
            parked: records.parked.load(Ordering::Relaxed),
        }
    }
}

impl<S> Drop for UsagePusher<S> {
    fn drop(&mut self) {
        let untaken = self.aggregator.keep_no_more();
        let dropped = (untaken + lock(&self.queue).unsaved()) as u64;
        let records = &self.aggregator.records;
        records.waiting.store(0, Ordering::Relaxed);
        records.parked.store(0, Ordering::Relaxed);
        records.too_old.store(0, Ordering::Relaxed);
        telemetry::waiting(0);
        telemetry::parked_now(0);
        if dropped > 0 {
            records.dropped.fetch_add(dropped, Ordering::Relaxed);
            telemetry::dropped(dropped, "the pusher was dropped");
        }
    }
}

impl<S> fmt::Debug for UsagePusher<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsagePusher")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The part of a pause that is made. Pauses are shortened at random, so that instances do not retry together.
fn jitter() -> f64 {
    0.5 + 0.5 * fastrand::f64()
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

/// Returns whether `stop` completes before `work`, which is then dropped.
async fn is_first(
    mut stop: Pin<&mut impl Future<Output = ()>>,
    work: impl Future<Output = ()>,
) -> bool {
    let mut work = pin!(work);
    poll_fn(|cx| match stop.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(true),
        Poll::Pending => work.as_mut().poll(cx).map(|()| false),
    })
    .await
}
