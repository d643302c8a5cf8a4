//! The queues of events, between the requests and the worker.
//!
//! Events of organizations and operators have a queue, and all others another one, so that requests without a key cannot displace
//! those of a customer, or the record of a block. In the first, rejected requests leave a quarter free for the others: what is allowed
//! is bounded by limits, what is rejected is not. Requests write their events into a batch, which the worker takes as a whole and
//! gives back empty.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::event::AuditEvent;

/// The most events of one batch.
pub(crate) const BATCH: usize = 256;

/// The most empty batches that each queue keeps.
const SPARE: usize = 2;

/// Both queues, under one lock.
pub(crate) struct Queues(Mutex<State>);

/// One of the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// And operators.
    Organizations,
    Unauthenticated,
}

/// The queue is full or closed.
#[derive(Debug)]
pub(crate) struct Full;

struct State {
    queues: [Queue; 2],
    is_closed: bool,
    /// The worker sleeps until it is woken.
    is_idle: bool,
}

struct Queue {
    capacity: usize,
    /// How many events there may be when that of a rejected request is added.
    capacity_of_rejected: usize,
    /// The most events of one batch of this queue.
    batch: usize,
    len: usize,
    /// The oldest first. None is empty.
    full: VecDeque<Vec<AuditEvent>>,
    last: Vec<AuditEvent>,
    spare: Vec<Vec<AuditEvent>>,
}

/// What the worker finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Events,
    /// The next event wakes the worker.
    Nothing,
    Closed,
}

impl Queues {
    /// `capacity` is that of the queue of organizations.
    pub(crate) fn new(capacity: usize) -> Self {
        // Half of what the worker writes at most is without an organization.
        let half = capacity.div_ceil(2);
        let queues = [
            (capacity, capacity - capacity / 4, BATCH),
            (half, half, BATCH / 2),
        ];
        Self(Mutex::new(State {
            queues: queues.map(|(capacity, capacity_of_rejected, batch)| Queue {
                capacity,
                capacity_of_rejected,
                batch: batch.min(capacity),
                len: 0,
                full: VecDeque::new(),
                last: Vec::new(),
                spare: Vec::new(),
            }),
            is_closed: false,
            is_idle: false,
        }))
    }

    /// Adds an event, which is not made if there is no room. Returns whether the worker has to be woken.
    #[inline]
    pub(crate) fn push(
        &self,
        of: Of,
        is_rejected: bool,
        event: impl FnOnce() -> AuditEvent,
    ) -> Result<bool, Full> {
        let mut state = self.lock();
        let is_closed = state.is_closed;
        let queue = &mut state.queues[of as usize];
        let capacity = if is_rejected {
            queue.capacity_of_rejected
        } else {
            queue.capacity
        };
        if is_closed || queue.len >= capacity {
            return Err(Full);
        }
        // Never grown, so events are not moved.
        if queue.last.len() == queue.last.capacity() {
            queue.begin_batch();
        }
        queue.len += 1;
        queue.last.push(event());
        Ok(std::mem::take(&mut state.is_idle))
    }

    /// Returns whether events wait. If none do, the next one wakes the worker.
    pub(crate) fn find(&self) -> Found {
        let mut state = self.lock();
        if state.is_closed {
            return Found::Closed;
        }
        state.is_idle = state.queues.iter().all(|queue| queue.len == 0);
        if state.is_idle {
            Found::Nothing
        } else {
            Found::Events
        }
    }

    /// Returns how many events wait in each queue.
    pub(crate) fn lens(&self) -> [usize; 2] {
        self.lock().queues.each_ref().map(|queue| queue.len)
    }

    /// Returns both queues, the one with the oldest event first.
    pub(crate) fn in_order(&self) -> [Of; 2] {
        let state = self.lock();
        let [organizations, unauthenticated] = state.queues.each_ref().map(Queue::arrived);
        match (organizations, unauthenticated) {
            (Some(of_organization), Some(other)) if other < of_organization => {
                [Of::Unauthenticated, Of::Organizations]
            }
            _ => [Of::Organizations, Of::Unauthenticated],
        }
    }

    /// Takes the oldest batch. It is empty if no events wait.
    pub(crate) fn take(&self, of: Of) -> Vec<AuditEvent> {
        let queue = &mut self.lock().queues[of as usize];
        let batch = if let Some(batch) = queue.full.pop_front() {
            batch
        } else {
            let next = queue.spare.pop().unwrap_or_default();
            std::mem::replace(&mut queue.last, next)
        };
        queue.len -= batch.len();
        batch
    }

    /// Gives back a batch that was taken. Its events are dropped.
    pub(crate) fn give_back(&self, of: Of, mut batch: Vec<AuditEvent>) {
        batch.clear();
        let queue = &mut self.lock().queues[of as usize];
        if queue.spare.len() < SPARE && batch.capacity() > 0 {
            queue.spare.push(batch);
        }
    }

    /// From now on, events do not fit.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Returns when the request of the first event arrived.
    fn arrived(&self) -> Option<Instant> {
        let batch = self.full.front().unwrap_or(&self.last);
        Some(batch.first()?.request()?.arrived)
    }

    #[cold]
    fn begin_batch(&mut self) {
        let batch = self.spare.pop();
        let batch = batch.unwrap_or_else(|| Vec::with_capacity(self.batch));
        let full = std::mem::replace(&mut self.last, batch);
        if !full.is_empty() {
            self.full.push_back(full);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{AuditEventKind, AuditedRequest};

    fn event() -> AuditEvent {
        let request = AuditedRequest::of_operator("operation", "target");
        AuditEvent::new(AuditEventKind::Request(request))
    }

    #[test]
    fn events_beyond_the_capacity_do_not_fit() {
        let queues = Queues::new(1_001);
        for (of, capacity) in [(Of::Organizations, 1_001), (Of::Unauthenticated, 501)] {
            for _ in 0..capacity {
                assert!(queues.push(of, false, event).is_ok());
            }
            let made = queues.push(of, false, || unreachable!("there is no room"));
            assert!(made.is_err());
            let batch = queues.take(of);
            let freed = batch.len();
            queues.give_back(of, batch);
            for _ in 0..freed {
                assert!(queues.push(of, false, event).is_ok());
            }
            assert!(queues.push(of, false, event).is_err());
        }
        assert_eq!(queues.lens(), [1_001, 501]);
    }

    #[test]
    fn rejected_requests_leave_a_quarter_free() {
        let queues = Queues::new(8);
        let push = |of| queues.push(of, true, event).is_ok();
        assert_eq!((0..10).filter(|_| push(Of::Organizations)).count(), 6);
        assert_eq!((0..10).filter(|_| push(Of::Unauthenticated)).count(), 4);
        assert!(queues.push(Of::Organizations, false, event).is_ok());
        assert!(queues.push(Of::Organizations, false, event).is_ok());
        assert!(queues.push(Of::Organizations, false, event).is_err());
    }

    #[test]
    fn batches_are_bounded_and_complete() {
        for (of, most) in [(Of::Organizations, 256), (Of::Unauthenticated, 128)] {
            let queues = Queues::new(10_000);
            let mut taken = 0;
            for pushed in [1, 700, 3, 0, 500] {
                for _ in 0..pushed {
                    assert!(queues.push(of, false, event).is_ok());
                }
                let batch = queues.take(of);
                assert!(batch.len() <= most);
                taken += batch.len();
                queues.give_back(of, batch);
            }
            while queues.lens() != [0, 0] {
                let batch = queues.take(of);
                assert!((1..=most).contains(&batch.len()));
                taken += batch.len();
            }
            assert_eq!(taken, 1_204);
        }
    }

    #[test]
    fn only_the_next_event_wakes_the_worker() {
        let queues = Queues::new(10);
        let push = |of| queues.push(of, false, event).ok();
        assert_eq!(push(Of::Organizations), Some(false));
        assert_eq!(queues.find(), Found::Events);
        assert_eq!(push(Of::Organizations), Some(false));
        drop(queues.take(Of::Organizations));
        assert_eq!(queues.find(), Found::Nothing);
        assert_eq!(push(Of::Unauthenticated), Some(true));
        assert_eq!(push(Of::Organizations), Some(false));
        assert_eq!(queues.find(), Found::Events);
    }

    #[test]
    fn the_older_queue_comes_first() {
        let queues = Queues::new(10);
        let [first, second, third] = [event(), event(), event()];
        assert!(queues.push(Of::Unauthenticated, false, || first).is_ok());
        assert!(queues.push(Of::Organizations, false, || second).is_ok());
        assert!(queues.push(Of::Unauthenticated, false, || third).is_ok());
        assert_eq!(queues.in_order()[0], Of::Unauthenticated);
        drop(queues.take(Of::Unauthenticated));
        assert_eq!(queues.in_order()[0], Of::Organizations);
    }

    #[test]
    fn nothing_fits_after_the_end() {
        let queues = Queues::new(10);
        assert!(queues.push(Of::Organizations, false, event).is_ok());
        queues.close();
        assert!(queues.push(Of::Organizations, false, event).is_err());
        assert_eq!(queues.find(), Found::Closed);
        assert_eq!(queues.take(Of::Organizations).len(), 1);
    }
}
