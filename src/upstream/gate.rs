//! The waiting room's door: its lock, the places in it, and the task that watches the clock while somebody waits for time to
//! pass.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::room::{Next, Place, Room, Word};
use super::{Asker, CannotTell};
use crate::clock::{Clock, Tick};
use crate::telemetry::{self, Voice};

/// The room, its lock, and whether the clock is watched.
pub(super) struct Gate {
    voice: Voice,
    clock: Clock,
    inside: Mutex<Inside>,
}

pub(super) struct Inside {
    pub(super) room: Room,
    is_watched: bool,
}

/// A place in the waiting room.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) word: oneshot::Receiver<Word>,
    pub(super) gate: Arc<Gate>,
    pub(super) asker: Asker,
}

/// A call's slot, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    gate: Arc<Gate>,
    asker: Asker,
    pub(super) is_refusal: bool,
}

impl Gate {
    pub(super) fn new(room: Room, clock: Clock, voice: Voice) -> Self {
        Self {
            voice,
            clock,
            inside: Mutex::new(Inside {
                room,
                is_watched: false,
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(
        self: &Arc<Self>,
        asker: Asker,
        now: Tick,
        patience: Duration,
    ) -> Result<Place, CannotTell> {
        let mut inside = self.lock();
        let place = inside.room.enter(asker, now, patience)?;
        if matches!(place, Place::Waiting(_)) {
            self.call_up(inside, now);
        } else {
            telemetry::occupied(self.voice, inside.room.calls(), inside.room.waiting());
        }
        Ok(place)
    }

    pub(super) fn pause(&self, retry_after: Option<Duration>, now: Tick) {
        let mut inside = self.lock();
        let is_new = inside.room.throttle.pause(now).is_none();
        let wait = inside.room.throttle.too_many(retry_after, now);
        if is_new {
            telemetry::throttled(self.voice, wait);
        }
        inside.room.dismiss(CannotTell::unavailable(wait));
    }

    /// Whether a call may be repeated by one that holds a slot already. `Err` says how long the issuer wants to be left
    /// alone, if that is why not.
    pub(super) fn may_repeat(&self, now: Tick) -> Result<(), Option<Duration>> {
        let throttle = &mut self.lock().room.throttle;
        if let Some(remaining) = throttle.pause(now) {
            return Err(Some(remaining));
        }
        throttle.check(now).map_err(|_| None)?;
        throttle.count(now);
        Ok(())
    }

    /// Lets go whoever may, and sees to it that the clock is watched while time alone holds the next one back.
    fn call_up(self: &Arc<Self>, mut inside: MutexGuard<'_, Inside>, now: Tick) {
        let next = inside.room.call_up(now);
        telemetry::occupied(self.voice, inside.room.calls(), inside.room.waiting());
        let Next::In(wait) = next else { return };
        if inside.is_watched {
            return;
        }
        // Without a runtime nobody can be waiting.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            inside.is_watched = true;
            // A runtime that shuts down drops the watch at once, on this very thread, and the watch then takes the lock.
            drop(inside);
            let watch = Watch {
                gate: Arc::clone(self),
                is_on_duty: true,
            };
            runtime.spawn(watch.run(wait));
        }
    }
}

/// Watches the clock. Dropped on duty, with its runtime, it lets the next one take over.
struct Watch {
    gate: Arc<Gate>,
    is_on_duty: bool,
}

impl Watch {
    async fn run(mut self, mut wait: Duration) {
        loop {
            // Timers are no finer.
            tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
            let mut inside = self.gate.lock();
            match inside.room.call_up(self.gate.clock.now()) {
                Next::In(next) => wait = next,
                Next::Idle => {
                    inside.is_watched = false;
                    self.is_on_duty = false;
                    return;
                }
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.is_on_duty {
            self.gate.lock().is_watched = false;
        }
    }
}

impl Permit {
    pub(super) fn new(gate: &Arc<Gate>, asker: Asker) -> Self {
        Self {
            gate: Arc::clone(gate),
            asker,
            is_refusal: false,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = self.gate.clock.now();
        let mut inside = self.gate.lock();
        inside.room.end(self.asker, self.is_refusal);
        self.gate.call_up(inside, now);
    }
}

impl Drop for Queued {
    /// A turn that was granted and never taken would keep its slot.
    fn drop(&mut self) {
        if let Ok(Ok(())) = self.word.try_recv() {
            drop(Permit::new(&self.gate, self.asker));
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}
