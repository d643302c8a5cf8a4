//! What stands between the requests and the writer: a bounded queue, and the counts of what became of its events.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::event::{AuditEventKind, AuditedRequest};
use super::trail::AuditStats;

/// A batch is so many events at most.
pub(super) const BATCH: usize = 256;

#[derive(Debug)]
pub(super) struct Queue {
    capacity: usize,
    state: Mutex<State>,
    /// For the writer: there is something to do.
    work: Condvar,
    /// For those who wait for a flush: something was done.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Box<AuditedRequest>>,
    /// Events that found a place in the queue.
    accepted: u64,
    /// Accepted events that were written.
    written: u64,
    /// Accepted events that the sink gave up.
    given_up: u64,
    /// Events that found no place.
    turned_away: u64,
    /// Lost events that no event has told of yet.
    untold: u64,
    /// How often somebody asked for everything to be told, and up to which time that was done.
    asked: u64,
    answered: u64,
    /// The writer waits for an event, and wants to be woken.
    is_idle: bool,
    phase: Phase,
}

/// How far a trail has come. It never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Open,
    /// No event is accepted any more.
    Closed,
    /// The writer is to end at once.
    Abandoned,
    /// The writer has ended, and dropped the sink.
    Over,
}

impl State {
    fn reach(&mut self, phase: Phase) {
        self.phase = self.phase.max(phase);
    }

    fn settled(&self) -> u64 {
        self.written + self.given_up
    }
}

/// What the writer has to do next.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) requests: Vec<AuditEventKind>,
    /// How many events are lost that no event has told of; they are told of now.
    pub(super) lost: u64,
    /// Whether what was left out is told of now.
    pub(super) tell: bool,
    pub(super) asked: u64,
}

/// What a flush waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    accepted: u64,
    asked: u64,
    until_over: bool,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event in, if there is room for it. Waits for nothing but other requests' pushes.
    ///
    /// Events without an organization may fill half of the queue, so that nobody's requests cannot push out those of a
    /// customer.
    pub(super) fn push(&self, request: Box<AuditedRequest>) -> bool {
        let room = if request.is_strangers() {
            self.capacity.div_ceil(2)
        } else {
            self.capacity
        };
        let mut state = self.state();
        if state.phase >= Phase::Closed || state.waiting.len() >= room {
            state.turned_away += 1;
            state.untold += 1;
            return false;
        }
        state.waiting.push_back(request);
        state.accepted += 1;
        let was_idle = std::mem::take(&mut state.is_idle);
        drop(state);
        if was_idle {
            self.work.notify_one();
        }
        true
    }

    /// Wakes the writer if it waits, so that it sees to it that what was left out is told in time.
    pub(super) fn nudge(&self) {
        self.state().is_idle = false;
        self.work.notify_one();
    }

    /// Waits for work. `None` when there is none and never will be.
    ///
    /// Lost and left out events are told of once `told_at` is a second ago, or when somebody asks.
    pub(super) fn next(&self, told_at: Instant, has_left_out: impl Fn() -> bool) -> Option<Work> {
        const PERIOD: Duration = Duration::from_secs(1);

        let mut state = self.state();
        loop {
            if state.phase >= Phase::Abandoned {
                return None;
            }
            let is_asked = state.asked > state.answered;
            let has_untold = state.untold > 0 || has_left_out();
            let since = told_at.elapsed();
            let tell = has_untold && (is_asked || state.phase >= Phase::Closed || since >= PERIOD);
            if tell || is_asked || !state.waiting.is_empty() {
                let batch = state.waiting.len().min(BATCH);
                let requests = state.waiting.drain(..batch);
                let requests = requests.map(AuditEventKind::Request).collect();
                let lost = if tell {
                    std::mem::take(&mut state.untold)
                } else {
                    0
                };
                return Some(Work {
                    requests,
                    lost,
                    tell,
                    asked: state.asked,
                });
            }
            if state.phase >= Phase::Closed {
                return None;
            }
            state.is_idle = true;
            state = if has_untold {
                let wait = PERIOD.saturating_sub(since);
                let waited = self.work.wait_timeout(state, wait);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                let waited = self.work.wait(state);
                waited.unwrap_or_else(PoisonError::into_inner)
            };
            state.is_idle = false;
        }
    }

    /// A batch was written, or given up.
    pub(super) fn finish(&self, requests: u64, asked: u64, end: End) {
        let mut state = self.state();
        match end {
            End::Written => state.written += requests,
            End::GivenUp { untold } => {
                state.given_up += requests;
                state.untold += untold;
            }
        }
        state.answered = state.answered.max(asked);
        drop(state);
        self.done.notify_all();
    }

    /// Waits before a batch is tried again: less if somebody asks for a flush meanwhile. Whether to go on at all.
    pub(super) fn pause(&self, wait: Duration) -> bool {
        let mut state = self.state();
        let asked = state.asked;
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.phase >= Phase::Abandoned || state.asked > asked || left.is_zero() {
                return state.phase < Phase::Abandoned;
            }
            let waited = self.work.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks for all that is accepted to be written, and for all that is lost to be told.
    pub(super) fn ask(&self) -> Ticket {
        let mut state = self.state();
        state.asked += 1;
        let ticket = Ticket {
            accepted: state.accepted,
            asked: state.asked,
            until_over: false,
        };
        drop(state);
        self.work.notify_one();
        ticket
    }

    /// Accepts no event any more; the writer ends when it has written what there is.
    pub(super) fn close(&self) -> Ticket {
        self.state().reach(Phase::Closed);
        Ticket {
            until_over: true,
            ..self.ask()
        }
    }

    /// Waits for a flush to be done. Otherwise says how many accepted events are not written when the time is up.
    pub(super) fn wait(&self, ticket: Ticket, deadline: Duration) -> Result<(), u64> {
        // A deadline further away than clocks reach is none.
        let until = Instant::now().checked_add(deadline);
        let mut state = self.state();
        loop {
            let is_told = state.answered >= ticket.asked || state.phase == Phase::Over;
            let is_done = state.settled() >= ticket.accepted && is_told;
            if is_done && (state.phase == Phase::Over || !ticket.until_over) {
                return match state.given_up {
                    0 => Ok(()),
                    given_up => Err(given_up),
                };
            }
            let left = match until {
                None => Duration::MAX,
                Some(until) => until.saturating_duration_since(Instant::now()),
            };
            if left.is_zero() || state.phase == Phase::Over {
                let missing = ticket.accepted.saturating_sub(state.settled()) + state.given_up;
                return Err(missing);
            }
            let waited = self.done.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes the writer end as soon as the sink lets it.
    pub(super) fn abandon(&self) {
        self.state().reach(Phase::Abandoned);
        self.work.notify_one();
    }

    /// The writer has ended. Returns how many events it left behind, which are lost.
    pub(super) fn end(&self) -> u64 {
        let mut state = self.state();
        let rest = state.waiting.len() as u64;
        state.waiting = VecDeque::new();
        state.given_up += rest;
        state.reach(Phase::Over);
        drop(state);
        self.done.notify_all();
        rest
    }

    pub(super) fn stats(&self) -> AuditStats {
        let state = self.state();
        AuditStats {
            accepted: state.accepted,
            written: state.written,
            lost: state.turned_away + state.given_up,
            waiting: state.accepted - state.settled(),
        }
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Written,
    /// Lost, with so many events that are to be told of, again or for the first time.
    GivenUp {
        untold: u64,
    },
}
