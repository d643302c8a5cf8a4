//! The dispatcher: the admission queue behind its lock, and the task that wakes it while lookups wait only for time to pass.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::queue::{AdmissionQueue, Next, Place, Turn};
use super::{CannotTell, Priority};
use crate::clock::{Clock, Tick};
use crate::source::{Label, Source, Telemetry};

pub(super) struct Dispatcher<S> {
    label: Label,
    clock: Clock,
    state: Mutex<State>,
    source: PhantomData<fn() -> S>,
}

pub(super) struct State {
    pub(super) queue: AdmissionQueue,
    has_timer: bool,
}

/// A lookup that waits for its turn.
pub(super) struct Queued<S: Source> {
    pub(super) turn: oneshot::Receiver<Turn>,
    pub(super) dispatcher: Arc<Dispatcher<S>>,
    pub(super) priority: Priority,
}

/// The slot of a call. Dropped, it ends the call.
pub(super) struct Permit<S: Source> {
    dispatcher: Arc<Dispatcher<S>>,
    priority: Priority,
    began: Tick,
    /// Whether the call showed that the key is invalid.
    pub(super) is_invalid: bool,
}

impl<S: Source> Dispatcher<S> {
    pub(super) fn new(queue: AdmissionQueue, clock: Clock, label: Label) -> Self {
        Self {
            label,
            source: PhantomData,
            clock,
            state: Mutex::new(State {
                queue,
                has_timer: false,
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a lookup. The caller [reports](Self::report) when it holds no lock.
    pub(super) fn enter(
        self: &Arc<Self>,
        priority: Priority,
        now: Tick,
    ) -> Result<Place, CannotTell> {
        let mut state = self.lock();
        let place = state.queue.enter(priority, now)?;
        if matches!(place, Place::Waiting(_)) {
            self.start_ready(state, now);
        }
        Ok(place)
    }

    pub(super) fn pause(&self, retry_after: Option<Duration>, now: Tick) {
        let mut state = self.lock();
        let is_new = state.queue.throttle.pause(now).is_none();
        let wait = state.queue.throttle.too_many(retry_after, now);
        state.queue.reject_all(CannotTell::unavailable(wait));
        drop(state);
        if is_new {
            S::Telemetry::throttled(&self.label, wait);
        }
    }

    /// Returns whether a call that holds a slot may be repeated. `Err` is the rest of the pause, if that is the reason.
    pub(super) fn may_repeat(&self, now: Tick) -> Result<(), Option<Duration>> {
        let throttle = &mut self.lock().queue.throttle;
        if let Some(remaining) = throttle.pause(now) {
            return Err(Some(remaining));
        }
        throttle.check(now).map_err(|_| None)?;
        throttle.count(now);
        Ok(())
    }

    /// Starts the lookups that may call now, and sets the gauges.
    fn dispatch(self: &Arc<Self>, state: MutexGuard<'_, State>, now: Tick) {
        self.start_ready(state, now);
        self.report();
    }

    /// Starts the lookups that may call now, and a timer if the next one waits only for time to pass.
    fn start_ready(self: &Arc<Self>, mut state: MutexGuard<'_, State>, now: Tick) {
        let next = state.queue.start_ready(now);
        let wait = match next {
            Next::In(wait) if !state.has_timer => wait,
            _ => return,
        };
        // Without a runtime no lookup can be waiting.
        let runtime = tokio::runtime::Handle::try_current().ok();
        state.has_timer = runtime.is_some();
        // A runtime that is shutting down drops the timer at once, on this thread, and the timer's drop takes the lock.
        drop(state);
        if let Some(runtime) = runtime {
            let timer = Timer {
                dispatcher: Arc::clone(self),
                is_running: true,
            };
            runtime.spawn(timer.run(wait));
        }
    }

    /// Sets the gauges, without the lock: a recorder may read the state of the layer.
    pub(super) fn report(&self) {
        super::report_until_current::<S, _>(
            || {
                let state = self.lock();
                (state.queue.calls(), state.queue.waiting())
            },
            |(calls, waiting)| S::Telemetry::occupied(&self.label, calls, waiting),
        );
    }
}

/// Wakes the dispatcher. Dropped while it runs, with its runtime, it lets another timer start.
struct Timer<S: Source> {
    dispatcher: Arc<Dispatcher<S>>,
    is_running: bool,
}

impl<S: Source> Timer<S> {
    async fn run(mut self, mut wait: Duration) {
        loop {
            // Timers are no finer.
            tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
            let mut state = self.dispatcher.lock();
            let next = state.queue.start_ready(self.dispatcher.clock.now());
            if next == Next::Idle {
                state.has_timer = false;
                self.is_running = false;
            }
            drop(state);
            self.dispatcher.report();
            match next {
                Next::In(next) => wait = next,
                Next::Idle => return,
            }
        }
    }
}

impl<S: Source> Drop for Timer<S> {
    fn drop(&mut self) {
        if self.is_running {
            self.dispatcher.lock().has_timer = false;
        }
    }
}

impl<S: Source> Permit<S> {
    pub(super) fn new(dispatcher: &Arc<Dispatcher<S>>, priority: Priority) -> Self {
        Self {
            dispatcher: Arc::clone(dispatcher),
            priority,
            began: dispatcher.clock.now(),
            is_invalid: false,
        }
    }
}

impl<S: Source> Drop for Permit<S> {
    fn drop(&mut self) {
        let now = self.dispatcher.clock.now();
        let mut state = self.dispatcher.lock();
        let took = now.since(self.began);
        state.queue.end(self.priority, self.is_invalid, took);
        self.dispatcher.dispatch(state, now);
    }
}

impl<S: Source> Drop for Queued<S> {
    /// Gives back a turn that was granted and never taken.
    fn drop(&mut self) {
        if let Ok(Ok(())) = self.turn.try_recv() {
            let mut state = self.dispatcher.lock();
            state.queue.release(self.priority, false);
            self.dispatcher.dispatch(state, self.dispatcher.clock.now());
        }
    }
}
