//! Two bounded channels, and the worker thread that moves their events into the sink.
//!
//! Events with and without an organization have a channel each, so that requests without a key cannot displace those of
//! a customer. Both senders are dropped together when the trail is shut down: the worker then writes what is left and
//! ends. Every event is counted once, as written, as given up, or as dropped because its channel was full.

use std::convert::Infallible;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{
    Receiver, RecvTimeoutError, Sender, TrySendError, bounded, select, unbounded,
};

use crate::event::{
    AuditEvent, AuditEventKind, AuditedRequest, LostEvents, Period, Source, SuppressedRejections,
};
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

/// The most events of one batch.
const BATCH: usize = 256;
/// How long the worker collects events before it writes fewer than a batch, so that requests rarely have to wake it.
const COLLECT: Duration = Duration::from_millis(1);
/// The same for each event that fits into the queue, so that the queue cannot fill up meanwhile: ten million events per second
/// would fill it.
const COLLECT_PER_EVENT: Duration = Duration::from_nanos(100);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often lost and suppressed events are reported.
const REPORT_PERIOD: Duration = Duration::from_secs(1);
/// How long the worker sleeps when it has nothing to report. Any value: it is woken by what it waits for.
const IDLE: Duration = Duration::from_secs(3_600);

/// The side of the requests.
pub(crate) struct Exporter {
    /// `None` once the trail is shut down.
    channels: RwLock<Option<Channels>>,
    commands: Sender<Command>,
    /// Disconnected when the worker has ended and dropped the sink.
    ended: Receiver<Infallible>,
    counts: Arc<Counts>,
}

struct Channels {
    organizations: Sender<Box<AuditedRequest>>,
    unauthenticated: Sender<Box<AuditedRequest>>,
}

enum Command {
    /// Write what was accepted, report what was lost, then reply.
    Flush(Sender<()>),
    /// There is something new to report.
    Report,
    /// Give up what is not written.
    Abandon,
}

#[derive(Default)]
struct Counts {
    /// Counted before the event is sent, so never behind `written` and `given_up`.
    accepted: AtomicU64,
    written: AtomicU64,
    given_up: AtomicU64,
    /// Events whose channel was full or closed.
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
        let (organizations, organizations_out) = bounded(capacity);
        let (unauthenticated, unauthenticated_out) = bounded(capacity.div_ceil(2));
        let (commands, commands_out) = unbounded();
        let (end, ended) = bounded(0);
        let counts = Arc::<Counts>::default();
        let exporter = Self {
            channels: RwLock::new(Some(Channels {
                organizations,
                unauthenticated,
            })),
            commands,
            ended,
            counts: Arc::clone(&counts),
        };
        let worker = Worker {
            sink,
            organizations: organizations_out,
            unauthenticated: unauthenticated_out,
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

    /// Sends an event to the worker, or counts it as lost if its channel is full. Does not block on the worker.
    pub(crate) fn send(&self, request: Box<AuditedRequest>) {
        Counts::add(&self.counts.accepted, 1);
        if self.try_send(request).is_err() {
            self.counts.accepted.fetch_sub(1, Ordering::SeqCst);
            Counts::add(&self.counts.dropped, 1);
            let is_first = Counts::add(&self.counts.unreported, 1) == 0;
            telemetry::lost(is_first);
        }
    }

    fn try_send(
        &self,
        request: Box<AuditedRequest>,
    ) -> Result<(), TrySendError<Box<AuditedRequest>>> {
        let channels = self.channels.read();
        match &*channels.unwrap_or_else(PoisonError::into_inner) {
            Some(channels) if request.org_code().is_some() => {
                channels.organizations.try_send(request)
            }
            Some(channels) => channels.unauthenticated.try_send(request),
            None => Err(TrySendError::Disconnected(request)),
        }
    }

    /// Wakes the worker, so that it reports suppressed events in time.
    pub(crate) fn report_soon(&self) {
        // Fails only after the worker has ended.
        let _ = self.commands.send(Command::Report);
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

    /// Closes the channels: later events are lost, and the worker ends when it has written what is left.
    pub(crate) fn close(&self) {
        let channels = self.channels.write();
        channels.unwrap_or_else(PoisonError::into_inner).take();
        // Ends a pause before the next retry.
        self.report_soon();
    }

    /// Closes the channels, and waits until the worker has ended. Blocks. After the deadline the worker gives up.
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
    organizations: Receiver<Box<AuditedRequest>>,
    unauthenticated: Receiver<Box<AuditedRequest>>,
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

/// Why the worker woke up.
enum Wake {
    Event(Box<AuditedRequest>),
    Command(Command),
    Timeout,
    /// The channels are closed.
    Closed,
}

impl<S: AuditSink> Worker<S> {
    /// Runs until the channels are closed and empty.
    pub(crate) fn run(mut self) {
        while !self.is_abandoned {
            let first = match self.wait() {
                Wake::Event(request) => {
                    self.collect();
                    Some(request)
                }
                Wake::Command(command) => {
                    self.obey(command);
                    None
                }
                Wake::Timeout => None,
                Wake::Closed => break,
            };
            let flushes = std::mem::take(&mut self.flushes);
            let left = if flushes.is_empty() {
                // Half of a batch at most is without an organization.
                let unauthenticated = self.unauthenticated.len().min(BATCH / 2);
                let rest = BATCH - 1 - unauthenticated;
                (self.organizations.len().min(rest), unauthenticated)
            } else {
                (self.organizations.len(), self.unauthenticated.len())
            };
            self.export(first, left);
            if !flushes.is_empty() || self.reported_at.elapsed() >= REPORT_PERIOD {
                self.report();
            }
            for flush in flushes {
                let _ = flush.send(());
            }
        }
        self.end();
    }

    /// Waits for an event, a command, or the time of the next report.
    fn wait(&self) -> Wake {
        if !self.flushes.is_empty() {
            return Wake::Timeout;
        }
        let is_due = Counts::get(&self.counts.unreported) > 0 || !self.sampler.is_empty();
        let timeout = if is_due {
            REPORT_PERIOD.saturating_sub(self.reported_at.elapsed())
        } else {
            IDLE
        };
        // All senders are dropped together. What they sent is taken in `end`.
        select! {
            recv(self.commands) -> command => command.map_or(Wake::Closed, Wake::Command),
            recv(self.organizations) -> event => event.map_or(Wake::Closed, Wake::Event),
            recv(self.unauthenticated) -> event => event.map_or(Wake::Closed, Wake::Event),
            default(timeout) => Wake::Timeout,
        }
    }

    /// Collects events. Waits for a command only, so events do not wake the worker.
    fn collect(&mut self) {
        if self.organizations.len() + self.unauthenticated.len() < BATCH
            && let Ok(command) = self.commands.recv_timeout(self.collect)
        {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Flush(reply) => self.flushes.push(reply),
            Command::Report => {}
            Command::Abandon => self.is_abandoned = true,
        }
    }

    /// Exports an event, and so many that wait in each channel, in batches. Stops after a batch if the worker is abandoned.
    fn export(
        &mut self,
        first: Option<Box<AuditedRequest>>,
        (organizations, unauthenticated): (usize, usize),
    ) {
        let waiting = [
            (self.organizations.clone(), organizations),
            (self.unauthenticated.clone(), unauthenticated),
        ];
        let mut events = first.into_iter().chain(
            waiting
                .iter()
                .flat_map(|(channel, number)| channel.try_iter().take(*number)),
        );
        loop {
            let batch: Vec<AuditEvent> = events
                .by_ref()
                .take(BATCH)
                .map(|request| self.event(AuditEventKind::Request(request)))
                .collect();
            if batch.is_empty() {
                return;
            }
            self.deliver(&batch);
            while let Ok(command) = self.commands.try_recv() {
                self.obey(command);
            }
            if self.is_abandoned {
                return;
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
            events.push(self.event(AuditEventKind::Suppressed(suppressed)));
        }
        if lost > 0 {
            let lost = LostEvents {
                period,
                count: lost,
            };
            events.push(self.event(AuditEventKind::Lost(lost)));
        }
        if !events.is_empty() {
            self.deliver(&events);
        }
    }

    fn event(&mut self, kind: AuditEventKind) -> AuditEvent {
        let sequence = self.sequence;
        self.sequence += 1;
        AuditEvent {
            kind,
            source: Arc::clone(&self.source),
            sequence,
        }
    }

    fn deliver(&mut self, events: &[AuditEvent]) {
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
        let is_drained =
            |worker: &Self| worker.organizations.is_empty() && worker.unauthenticated.is_empty();
        while !self.is_abandoned && !is_drained(&self) {
            self.export(None, (BATCH / 2, BATCH / 2));
        }
        if !self.is_abandoned {
            self.report();
        }
        let Self {
            sink,
            organizations,
            unauthenticated,
            counts,
            _end,
            ..
        } = self;
        // A sink that panics while it is dropped has written its events all the same.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(sink)));
        let rest = organizations.try_iter().chain(unauthenticated.try_iter());
        let rest = rest.count() as u64;
        if rest > 0 {
            Counts::add(&counts.given_up, rest);
            let reason = SinkError::permanent("the trail was shut down before they were written");
            telemetry::failed_permanently(rest, reason.source().unwrap_or(&reason));
        }
    }
}
