//! Pushes closed minutes to a sink.

mod builder;
mod deferral;
mod outcome;
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

use backon::{ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

pub use self::builder::UsagePusherBuilder;
use self::deferral::Deferral;
pub use self::parked::ParkedRecords;
pub use self::report::PushReport;
use super::aggregator::Aggregator;
use super::catch_unwind::CatchUnwind;
use super::parked::ParkReason;
use super::queue::{self, Limits, ParkedNow, Queue, lock};
use super::record::UsageRecord;
use super::sink::{PushError, UsageSink};
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
