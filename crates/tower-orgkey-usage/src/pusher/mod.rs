//! Pushes closed minutes to a sink.

mod builder;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

pub use self::builder::UsagePusherBuilder;
use super::books::Books;
use super::caught::Caught;
use super::outbox::Outbox;
use super::record::UsageRecord;
use super::sink::{PushError, PushErrorKind, UsageSink};
use crate::telemetry;

/// Closes minutes and pushes them to a [`UsageSink`], in order, until it has taken them.
///
/// A minute is closed up to 2 s after its end (each time drawn anew, so that instances do not push together), kept in the
/// [file](UsagePusherBuilder::unsent_file) if there is one, and then pushed in batches, one after another. While the sink
/// takes nothing, minutes go on being closed and kept; the push is tried again after 1 s, doubling to 60 s, each time less up
/// to half of it, or when the sink asked for it.
///
/// Nothing runs before you spawn it, and dropping it stops it at any moment. There is one for each layer.
///
/// # What is lost, and what is not
///
/// | when | without a file | with a file |
/// |---|---|---|
/// | a shutdown with [`flush`](Self::flush) whose deadline the sink meets | nothing | nothing |
/// | the same, and the sink does not take everything in time | what waits; counted and told | nothing |
/// | the process is killed | what waits, and the minute under way | the minute under way |
/// | more waits than [`max_waiting`](UsagePusherBuilder::max_waiting) | the oldest records; counted and told | the same |
///
/// Nothing is ever billed twice by a sink that counts each [`id`](UsageRecord::id) once.
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
/// // … serve with `usage` as the outermost layer; once no request is under way any more:
/// drop(stop);
/// assert_eq!(pushing.await?.waiting, 0);
/// # Ok(()) }
/// ```
pub struct UsagePusher<S> {
    books: Arc<Books>,
    sink: S,
    settings: Settings,
    outbox: Arc<Mutex<Outbox>>,
    /// How many records go into the next batch.
    batch: usize,
    /// How long to wait after the next failure, and the one after it.
    backoff: ExponentialBackoff,
    /// The sink is left alone until then.
    not_before: Option<Instant>,
    /// Single records refused since one was taken.
    refused_in_a_row: u32,
    is_failing: bool,
    is_unsaved: bool,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    batch_size: usize,
    push_timeout: Duration,
    max_waiting: usize,
    backoff: ExponentialBuilder,
}

/// Minutes are closed so long after their end, at the most.
const AFTER_THE_MINUTE: Duration = Duration::from_secs(2);
/// The longest pause that a sink can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// After so many records refused one by one, with none taken in between, the fault may well be the sink's: no more than one
/// is given up between two pauses.
const REFUSED_IN_A_ROW: u32 = 10;

/// What a push came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PushReport {
    /// Records that the sink has taken.
    pub pushed: u64,
    /// Records that it has refused for good.
    pub refused: u64,
    /// Records that were given up since more were waiting than may.
    pub dropped: u64,
    /// Records that still wait.
    pub waiting: usize,
}

impl<S: UsageSink> UsagePusher<S> {
    /// Closes and pushes every minute, for ever. Dropping the future stops it, at any moment.
    pub async fn run(mut self) {
        self.run_until(std::future::pending()).await;
    }

    /// The same until `stop` ends. A push that is under way then is given up, and comes again.
    pub async fn run_until(&mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        while !is_first(stop.as_mut(), self.turn()).await {}
    }

    /// Closes the minute under way, and pushes everything that waits, until that is done or the deadline passes. For
    /// shutdowns: what ends after it is counted in a record of its own, if anything is pushed again.
    pub async fn flush(&mut self, deadline: Duration) -> PushReport {
        let end = Instant::now() + deadline;
        let before = self.report();
        // What does not get this far in time stays where it is.
        let _ = timeout_at(end, self.close(true)).await;
        loop {
            match timeout_at(end, self.push_waiting()).await {
                Ok(Err(_)) => {}
                Ok(Ok(())) | Err(_) => break,
            }
            match self.not_before {
                Some(at) if at < end => sleep_until(at).await,
                _ => break,
            }
        }
        self.report().since(before)
    }

    /// Closes the minutes that are over and pushes what waits, once, now. For schedules of your own.
    ///
    /// It ends when everything is pushed, or at the sink's first answer that calls for a pause, which is for you to make.
    pub async fn push_closed(&mut self) -> PushReport {
        let before = self.report();
        self.close(false).await;
        // The pause is told by what waits.
        let _ = self.push_waiting().await;
        self.report().since(before)
    }

    /// Waits for the end of the minute, or of a pause, and does what is due.
    async fn turn(&mut self) {
        let is_waiting = lock(&self.outbox).len() > 0;
        let jitter = AFTER_THE_MINUTE.mul_f64(fastrand::f64());
        let closing = Instant::now() + self.books.wall.to_next_minute() + jitter;
        let due = match self.not_before {
            // Left behind by an earlier run, or by a push that was given up.
            None if is_waiting => Instant::now(),
            None => closing,
            Some(at) => at.min(closing),
        };
        sleep_until(due).await;
        self.close(false).await;
        if self.not_before.is_none_or(|at| at <= Instant::now()) {
            // The pause is noted.
            let _ = self.push_waiting().await;
        }
    }

    /// Takes what is over out of the books, and keeps it.
    async fn close(&mut self, early: bool) {
        // Nothing awaits between the two: a record is in the books or here.
        let dropped = {
            let mut outbox = lock(&self.outbox);
            let records = self.books.close(early);
            outbox.add(records)
        };
        if dropped > 0 {
            let dropped = dropped as u64;
            self.books
                .tally
                .dropped
                .fetch_add(dropped, Ordering::Relaxed);
            telemetry::dropped(dropped, "more wait than may");
        }
        self.tell_waiting();
        self.save().await;
    }

    /// Pushes until nothing waits, or the sink wants a pause.
    async fn push_waiting(&mut self) -> Result<(), PushError> {
        // Closing may have been given up before it came to that.
        self.save().await;
        loop {
            let batch = lock(&self.outbox).head(self.batch);
            if batch.is_empty() {
                // There is nothing to make a pause for.
                self.not_before = None;
                return Ok(());
            }
            match self.push(&batch).await {
                Ok(()) => self.taken(batch.len()).await,
                Err(error) => match error.kind() {
                    PushErrorKind::Refused if batch.len() > 1 => {
                        // Somewhere in it is what cannot be taken; the rest shall not suffer for it.
                        self.batch = batch.len().div_ceil(2);
                        telemetry::push_ended("refused");
                    }
                    PushErrorKind::Refused => {
                        self.refused(&batch, &error).await;
                        if self.refused_in_a_row >= REFUSED_IN_A_ROW {
                            self.pause(&error, None);
                            return Err(error);
                        }
                    }
                    PushErrorKind::Retry { after } => {
                        telemetry::push_ended("retry");
                        self.pause(&error, after);
                        return Err(error);
                    }
                },
            }
        }
    }

    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        // In a block of its own, so that a panic before there is a future is caught with the others.
        let push = Caught::new(async { self.sink.push(batch).await });
        match timeout(self.settings.push_timeout, push).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(PushError::retry("the sink panicked")),
            Err(_) => Err(PushError::retry("the sink did not answer in time")),
        }
    }

    async fn taken(&mut self, number: usize) {
        telemetry::push_ended("accepted");
        telemetry::pushed(number as u64);
        self.books
            .tally
            .pushed
            .fetch_add(number as u64, Ordering::Relaxed);
        self.batch = (self.batch * 2).min(self.settings.batch_size);
        self.refused_in_a_row = 0;
        self.not_before = None;
        self.backoff = self.settings.backoff.build();
        if std::mem::take(&mut self.is_failing) {
            telemetry::takes_records_again();
        }
        self.remove(number).await;
    }

    async fn refused(&mut self, record: &[UsageRecord], error: &PushError) {
        telemetry::push_ended("refused");
        for record in record {
            telemetry::refused(&record.id, error);
        }
        let number = record.len();
        self.books
            .tally
            .refused
            .fetch_add(number as u64, Ordering::Relaxed);
        self.refused_in_a_row = self.refused_in_a_row.saturating_add(1);
        self.remove(number).await;
    }

    fn pause(&mut self, error: &PushError, asked: Option<Duration>) {
        let own = self.backoff.next().unwrap_or_default();
        // Less up to half of it, so that instances that failed together do not come again together.
        let own = own.mul_f64(0.5 + 0.5 * fastrand::f64());
        let asked = asked.unwrap_or_default().min(LONGEST_PAUSE);
        self.not_before = Some(Instant::now() + own.max(asked));
        if !std::mem::replace(&mut self.is_failing, true) {
            telemetry::takes_no_records(error);
        }
    }

    async fn remove(&mut self, number: usize) {
        lock(&self.outbox).remove(number);
        self.tell_waiting();
        self.save().await;
    }

    /// Brings the file up to date. If that fails, records are pushed all the same, and would be gone with this process.
    async fn save(&mut self) {
        if !lock(&self.outbox).is_to_be_saved() {
            return;
        }
        let outbox = Arc::clone(&self.outbox);
        let saved = tokio::task::spawn_blocking(move || lock(&outbox).save()).await;
        match saved {
            Ok(Ok(())) => {
                if std::mem::take(&mut self.is_unsaved) {
                    telemetry::file_written_again();
                }
            }
            Ok(Err(error)) => {
                if !std::mem::replace(&mut self.is_unsaved, true) {
                    telemetry::file_not_written(&error);
                }
            }
            // The runtime is shutting down.
            Err(_) => {}
        }
    }

    fn tell_waiting(&self) {
        let waiting = lock(&self.outbox).len();
        self.books.tally.waiting.store(waiting, Ordering::Relaxed);
        telemetry::waiting(waiting);
    }

    fn report(&self) -> PushReport {
        let tally = &self.books.tally;
        PushReport {
            pushed: tally.pushed.load(Ordering::Relaxed),
            refused: tally.refused.load(Ordering::Relaxed),
            dropped: tally.dropped.load(Ordering::Relaxed),
            waiting: lock(&self.outbox).len(),
        }
    }
}

impl PushReport {
    fn since(self, before: Self) -> Self {
        Self {
            pushed: self.pushed - before.pushed,
            refused: self.refused - before.refused,
            dropped: self.dropped - before.dropped,
            waiting: self.waiting,
        }
    }
}

impl<S> Drop for UsagePusher<S> {
    fn drop(&mut self) {
        let untaken = self.books.keep_no_more();
        let dropped = (untaken + lock(&self.outbox).unsaved()) as u64;
        let tally = &self.books.tally;
        tally.waiting.store(0, Ordering::Relaxed);
        telemetry::waiting(0);
        if dropped > 0 {
            tally.dropped.fetch_add(dropped, Ordering::Relaxed);
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

/// Whether `stop` ends before `work`, which is then dropped.
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

fn lock(outbox: &Mutex<Outbox>) -> MutexGuard<'_, Outbox> {
    outbox.lock().unwrap_or_else(PoisonError::into_inner)
}
