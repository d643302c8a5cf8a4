//! Two bounded queues, and the worker thread that moves their events into the sink.
//!
//! Both queues are closed together when the trail is shut down: the worker then writes what is left and ends. Every event is
//! counted once, as written, as given up, or as dropped because its queue was full.

use std::convert::Infallible;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::event::{
    Actor, AuditEvent, AuditEventKind, AuditedRequest, LostEvents, Outcome, Period, Source,
    SuppressedRejections,
};
use crate::queue::{BATCH, Found, Full, Of, Queues};
use crate::sampling::Sampler;
use crate::sink::{AuditSink, SinkError};
use crate::telemetry;

/// Counts of an [`AuditTrail`](crate::AuditTrail) since it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditStats {
    /// Events of requests that fit into the queue.
    pub accepted: u64,
    /// Events of requests that the sink has written.
    pub written: u64,
    /// Events of requests that are lost: they did not fit into the queue, or the sink failed permanently.
    pub lost: u64,
    /// Events of requests that wait for the sink, or are on their way to it.
    pub waiting: u64,
}

/// How long the worker collects events before it writes fewer than a batch, so that requests rarely have to wake it.
const COLLECT: Duration = Duration::from_millis(2);
/// The same for each event that fits into the queue, so that the queue cannot fill up meanwhile: four million events per second
/// would fill it.
const COLLECT_PER_EVENT: Duration = Duration::from_nanos(250);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often lost and suppressed events are reported.
const REPORT_PERIOD: Duration = Duration::from_secs(1);
/// How long the worker sleeps when it has nothing to report. Any value: it is woken by what it waits for.
const IDLE: Duration = Duration::from_secs(3_600);

/// The side of the requests.
pub(crate) struct Exporter {
    queues: Arc<Queues>,
    commands: Sender<Command>,
    /// Disconnected when the worker has ended and dropped the sink.
    ended: Receiver<Infallible>,
    counts: Arc<Counts>,
}

enum Command {
    /// Write what was accepted, report what was lost, then reply.
    Flush(Sender<()>),
    /// There is an event, something new to report, or nothing more to come.
    Wake,
    /// Give up what is not written.
    Abandon,
}

#[derive(Default)]
struct Counts {
    /// Counted before the event is sent, so never behind `written` and `given_up`.
    accepted: AtomicU64,
    written: AtomicU64,
    given_up: AtomicU64,
    /// Events whose queue was full or closed.
    dropped: AtomicU64,
    /// Lost events that no event has reported yet.
    unreported: AtomicU64,
}

impl Counts {
    fn add(counter: &AtomicU64, events: u64) -> u64 {
        counter.fetch_add(events, Ordering::SeqCst)
    }

    fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::SeqCst)
    }

    fn settled(&self) -> u64 {
        Self::get(&self.written) + Self::get(&self.given_up)
    }

    /// Returns how many of the first `accepted` events are not settled.
    fn waiting(&self, accepted: u64) -> u64 {
        accepted.saturating_sub(self.settled())
    }

    /// The result of a wait that left `waiting` events behind.
    fn check(&self, waiting: u64) -> Result<(), u64> {
        match waiting + Self::get(&self.given_up) {
            0 => Ok(()),
            missing => Err(missing),
        }
    }
}

impl Exporter {
    /// Creates both sides. The worker has to be [run](Worker::run) on a thread.
    pub(crate) fn new<S: AuditSink>(
        capacity: usize,
        sink: S,
        sampler: Arc<Sampler>,
        source: Source,
    ) -> (Self, Worker<S>) {
        let queues = Arc::new(Queues::new(capacity));
        let (commands, commands_out) = unbounded();
        let (end, ended) = bounded(0);
        let counts = Arc::<Counts>::default();
        let exporter = Self {
            queues: Arc::clone(&queues),
            commands,
            ended,
            counts: Arc::clone(&counts),
        };
        let worker = Worker {
            sink,
            queues,
            commands: commands_out,
            counts,
            sampler,
            source: Arc::new(source),
            collect: u32::try_from(capacity)
                .ok()
                .and_then(|capacity| COLLECT_PER_EVENT.checked_mul(capacity))
                .map_or(COLLECT, |filled| filled.min(COLLECT)),
            sequence: 0,
            reported_at: Instant::now(),
            reported_time: SystemTime::now(),
            flushes: Vec::new(),
            is_abandoned: false,
            _end: end,
        };
        (exporter, worker)
    }

    /// Queues an event for the worker, or counts it as lost if its queue is full. Does not block on the worker.
    pub(crate) fn send(&self, request: Box<AuditedRequest>) {
        Counts::add(&self.counts.accepted, 1);
        let of = match request.actor {
            Actor::Organization { .. } | Actor::Operator { .. } => Of::Organizations,
            Actor::Unknown | Actor::Anonymous | Actor::OtherCredential => Of::Unauthenticated,
        };
        let is_rejected = !matches!(request.outcome, Outcome::Allowed);
        let event = || AuditEvent::new(AuditEventKind::Request(*request));
        match self.queues.push(of, is_rejected, event) {
            Ok(true) => self.wake(),
            Ok(false) => {}
            Err(Full) => self.count_dropped(),
        }
    }

    #[cold]
    fn count_dropped(&self) {
        self.counts.accepted.fetch_sub(1, Ordering::SeqCst);
        Counts::add(&self.counts.dropped, 1);
        let is_first = Counts::add(&self.counts.unreported, 1) == 0;
        telemetry::lost(is_first);
        if is_first {
            // The worker may sleep already.
            self.wake();
        }
    }

    /// Wakes the worker, for example so that it reports suppressed events in time.
    #[cold]
    pub(crate) fn wake(&self) {
        // Fails only after the worker has ended.
        let _ = self.commands.send(Command::Wake);
    }

    /// Waits until everything that was accepted before is written. Blocks. Otherwise returns how many events are not.
    pub(crate) fn flush(&self, deadline: Duration) -> Result<(), u64> {
        // In this order, so that equal numbers mean that nothing waits.
        let settled = self.counts.settled();
        let accepted = Counts::get(&self.counts.accepted);
        let (reply, replied) = bounded(1);
        // If the worker has ended, the reply is disconnected.
        let _ = self.commands.send(Command::Flush(reply));
        self.counts.check(match replied.recv_timeout(deadline) {
            Ok(()) => 0,
            Err(_) if settled == accepted => 0,
            // Later events may have been written before earlier ones, so at least one is missing.
            Err(RecvTimeoutError::Timeout) => self.counts.waiting(accepted).max(1),
            Err(RecvTimeoutError::Disconnected) => self.counts.waiting(accepted),
        })
    }

    /// Closes the queues: later events are lost, and the worker ends when it has written what is left.
    pub(crate) fn close(&self) {
        self.queues.close();
        // Ends a pause before the next retry.
        self.wake();
    }

    /// Closes the queues, and waits until the worker has ended. Blocks. After the deadline the worker gives up.
    pub(crate) fn shutdown(&self, deadline: Duration) -> Result<(), u64> {
        self.close();
        let accepted = Counts::get(&self.counts.accepted);
        let ended = self.ended.recv_timeout(deadline);
        let result = self.counts.check(match ended {
            Err(RecvTimeoutError::Timeout) => self.counts.waiting(accepted),
            // Disconnected: the worker has counted what it gave up.
            _ => 0,
        });
        let _ = self.commands.send(Command::Abandon);
        result
    }

    pub(crate) fn stats(&self) -> AuditStats {
        let counts = &*self.counts;
        // In this order, so that `waiting` is not below what waits.
        let settled = counts.settled();
        let accepted = Counts::get(&counts.accepted);
        AuditStats {
            accepted,
            written: Counts::get(&counts.written),
            lost: Counts::get(&counts.dropped) + Counts::get(&counts.given_up),
            waiting: accepted.saturating_sub(settled),
        }
    }
}

/// The thread that owns the sink.
pub(crate) struct Worker<S> {
    sink: S,
    queues: Arc<Queues>,
    commands: Receiver<Command>,
    counts: Arc<Counts>,
    sampler: Arc<Sampler>,
    source: Arc<Source>,
    collect: Duration,
    sequence: u64,
    /// When lost and suppressed events were last reported, on both clocks.
    reported_at: Instant,
    reported_time: SystemTime,
    /// Flushes that wait for a reply.
    flushes: Vec<Sender<()>>,
    is_abandoned: bool,
    _end: Sender<Infallible>,
}

impl<S: AuditSink> Worker<S> {
    /// Runs until the queues are closed and empty.
    pub(crate) fn run(mut self) {
        while !self.is_abandoned && self.wait() {
            let flushes = std::mem::take(&mut self.flushes);
            let left = if flushes.is_empty() {
                // A batch of each.
                [1, 1]
            } else {
                self.queues.lens()
            };
            self.export(left);
            if self.is_abandoned {
                // Events may be left, so flushes fail.
                break;
            }
            if !flushes.is_empty() || self.reported_at.elapsed() >= REPORT_PERIOD {
                self.report();
            }
            for flush in flushes {
                let _ = flush.send(());
            }
        }
        self.end();
    }

    /// Waits for events, a command, or the time of the next report. `false` if the queues are closed.
    fn wait(&mut self) -> bool {
        while self.flushes.is_empty() && !self.is_abandoned {
            match self.queues.find() {
                Found::Events => {
                    self.collect();
                    return true;
                }
                Found::Nothing => {}
                Found::Closed => return false,
            }
            let is_due = Counts::get(&self.counts.unreported) > 0 || !self.sampler.is_empty();
            let timeout = if is_due {
                REPORT_PERIOD.saturating_sub(self.reported_at.elapsed())
            } else {
                IDLE
            };
            match self.commands.recv_timeout(timeout) {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => return true,
                // The trail was dropped.
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    /// Collects events. Sleeps, because waiting for a command would spin first; commands wait as long.
    fn collect(&self) {
        if self.queues.lens().iter().sum::<usize>() < BATCH {
            thread::sleep(self.collect);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Flush(reply) => self.flushes.push(reply),
            Command::Wake => {}
            Command::Abandon => self.is_abandoned = true,
        }
    }

    /// Exports at least so many of the events that wait in each queue, in batches. Stops after a batch if the worker is
    /// abandoned.
    fn export(&mut self, mut left: [usize; 2]) {
        while left != [0, 0] {
            for of in self.queues.in_order() {
                let left = &mut left[of as usize];
                if *left == 0 {
                    continue;
                }
                let mut batch = self.queues.take(of);
                if batch.is_empty() {
                    *left = 0;
                    continue;
                }
                *left = left.saturating_sub(batch.len());
                self.deliver(&mut batch);
                self.queues.give_back(of, batch);
                while let Ok(command) = self.commands.try_recv() {
                    self.obey(command);
                }
                if self.is_abandoned {
                    return;
                }
            }
        }
    }

    /// Exports how many events are lost and suppressed, if any are.
    fn report(&mut self) {
        let lost = self.counts.unreported.swap(0, Ordering::SeqCst);
        let by_code = self.sampler.take();
        let period = Period {
            since: self.reported_time,
            until: SystemTime::now(),
        };
        self.reported_at = Instant::now();
        self.reported_time = period.until;
        let mut events = Vec::new();
        if !by_code.is_empty() {
            let suppressed = SuppressedRejections { period, by_code };
            events.push(AuditEvent::new(AuditEventKind::Suppressed(suppressed)));
        }
        if lost > 0 {
            let lost = LostEvents {
                period,
                count: lost,
            };
            events.push(AuditEvent::new(AuditEventKind::Lost(lost)));
        }
        if !events.is_empty() {
            self.deliver(&mut events);
        }
    }

    /// Numbers the events, and writes them.
    fn deliver(&mut self, events: &mut [AuditEvent]) {
        for event in &mut *events {
            event.source = Some(Arc::clone(&self.source));
            event.sequence = self.sequence;
            self.sequence += 1;
        }
        let requests = events.iter().filter(|event| event.request().is_some());
        let requests = requests.count() as u64;
        if self.write(events, requests) {
            telemetry::written(events.len() as u64);
            Counts::add(&self.counts.written, requests);
            return;
        }
        for event in events {
            let unreported = match &event.kind {
                AuditEventKind::Request(_) => 1,
                AuditEventKind::Lost(lost) => lost.count,
                AuditEventKind::Suppressed(suppressed) => {
                    self.sampler.put_back(&suppressed.by_code);
                    0
                }
            };
            Counts::add(&self.counts.unreported, unreported);
        }
        Counts::add(&self.counts.given_up, requests);
    }

    /// Hands a batch with so many requests to the sink until it takes it, fails permanently, or the worker is abandoned.
    fn write(&mut self, events: &[AuditEvent], requests: u64) -> bool {
        let mut pause = FIRST_PAUSE;
        let mut has_failed = false;
        loop {
            // `AuditSink` documents that a sink is used again after a panic.
            let written = catch_unwind(AssertUnwindSafe(|| self.sink.write(events)))
                .unwrap_or_else(|_| Err(SinkError::permanent("it panicked")));
            let error = match written {
                Ok(()) => {
                    if has_failed {
                        telemetry::sink_recovered();
                    }
                    return true;
                }
                Err(error) => error,
            };
            let reason: &(dyn Error + 'static) = error.source().unwrap_or(&error);
            if !error.is_permanent() {
                if !has_failed {
                    telemetry::sink_failed(reason);
                }
                has_failed = true;
                self.pause(pause);
                pause = LONGEST_PAUSE.min(pause * 2);
            }
            if error.is_permanent() || self.is_abandoned {
                telemetry::failed_permanently(requests, reason);
                return false;
            }
        }
    }

    /// Waits before a retry: at most `pause`, and less if a command arrives.
    fn pause(&mut self, pause: Duration) {
        match self.commands.recv_timeout(pause) {
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => thread::sleep(pause),
        }
    }

    /// Writes what is left, drops the sink, and counts what an abandoned worker leaves behind.
    fn end(mut self) {
        while !self.is_abandoned && self.queues.lens() != [0, 0] {
            self.export([1, 1]);
        }
        if !self.is_abandoned {
            self.report();
        }
        let Self {
            sink,
            queues,
            counts,
            _end,
            ..
        } = self;
        // A sink that panics while it is dropped has written its events all the same.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(sink)));
        let rest = queues.lens().iter().sum::<usize>() as u64;
        if rest > 0 {
            Counts::add(&counts.given_up, rest);
            let reason = SinkError::permanent("the trail was shut down before they were written");
            telemetry::failed_permanently(rest, reason.source().unwrap_or(&reason));
        }
    }
}
