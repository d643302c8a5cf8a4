//! The thread that hands the events to the sink.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::event::{AuditEvent, AuditEventKind, LeftOutRefusals, LostEvents, Period, Source};
use super::left_out::LeftOut;
use super::queue::{End, Queue, Work};
use super::sink::{AuditSink, SinkError};
use crate::telemetry;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Writer<S> {
    sink: S,
    queue: Arc<Queue>,
    left_out: Arc<LeftOut>,
    source: Arc<Source>,
    sequence: u64,
    /// When lost and left out events were told of, on both clocks.
    told_at: Instant,
    told_time: SystemTime,
}

impl<S: AuditSink> Writer<S> {
    pub(super) fn new(
        sink: S,
        queue: Arc<Queue>,
        left_out: Arc<LeftOut>,
        source: Arc<Source>,
    ) -> Self {
        Self {
            sink,
            queue,
            left_out,
            source,
            sequence: 0,
            told_at: Instant::now(),
            told_time: SystemTime::now(),
        }
    }

    /// Until the queue is closed and empty.
    pub(super) fn run(mut self) {
        while let Some(work) = self.queue.next(self.told_at, || !self.left_out.is_empty()) {
            self.deliver(work);
        }
        let Self { sink, queue, .. } = self;
        // A sink that panics while it is dropped has written everything all the same.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(sink)));
        let rest = queue.end();
        if rest > 0 {
            let reason = SinkError::give_up("the trail was shut down before they were written");
            telemetry::given_up(rest, reason.source().unwrap_or(&reason));
        }
    }

    fn deliver(&mut self, work: Work) {
        let asked = work.asked;
        let requests = work.requests.len() as u64;
        let events = self.events(work);
        let end = if events.is_empty() {
            End::Written
        } else if self.write(&events) {
            telemetry::written(events.len() as u64);
            End::Written
        } else {
            End::GivenUp {
                untold: self.take_back(&events),
            }
        };
        self.queue.finish(requests, asked, end);
    }

    /// Stamps the requests, and adds what is to be told of those that have no event.
    fn events(&mut self, work: Work) -> Vec<AuditEvent> {
        let mut events = Vec::with_capacity(work.requests.len() + 2);
        for request in work.requests {
            events.push(self.event(request));
        }
        if work.tell {
            let period = Period {
                since: self.told_time,
                until: SystemTime::now(),
            };
            self.told_at = Instant::now();
            self.told_time = period.until;
            let by_code = self.left_out.take();
            if !by_code.is_empty() {
                let left_out = LeftOutRefusals { period, by_code };
                events.push(self.event(AuditEventKind::LeftOut(left_out)));
            }
            if work.lost > 0 {
                let count = work.lost;
                events.push(self.event(AuditEventKind::Lost(LostEvents { period, count })));
            }
        }
        events
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

    /// Hands a batch to the sink until it has taken it, given it up, or nobody waits any more.
    fn write(&mut self, events: &[AuditEvent]) -> bool {
        let mut pause = FIRST_PAUSE;
        let mut has_failed = false;
        loop {
            // What a panic leaves of a sink is the sink's: its documentation says so.
            let written = catch_unwind(AssertUnwindSafe(|| self.sink.write(events)))
                .unwrap_or_else(|_| Err(SinkError::give_up("it panicked")));
            let error = match written {
                Ok(()) => {
                    if has_failed {
                        telemetry::sink_works_again();
                    }
                    return true;
                }
                Err(error) => error,
            };
            let reason: &(dyn Error + 'static) = error.source().unwrap_or(&error);
            if error.is_final() {
                telemetry::given_up(events.len() as u64, reason);
                return false;
            }
            if !has_failed {
                telemetry::sink_fails(reason);
            }
            has_failed = true;
            if !self.queue.pause(pause) {
                telemetry::given_up(events.len() as u64, reason);
                return false;
            }
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// How many lost events are to be told of after a batch was given up.
    fn take_back(&self, events: &[AuditEvent]) -> u64 {
        let mut untold = 0;
        for event in events {
            match &event.kind {
                AuditEventKind::Request(_) => untold += 1,
                AuditEventKind::Lost(lost) => untold += lost.count,
                AuditEventKind::LeftOut(left_out) => self.left_out.give_back(&left_out.by_code),
            }
        }
        untold
    }
}
