//! The admission queue: which lookups may call the issuer next, and how many at once.
//!
//! * At most 64 calls are in flight, a quarter of them reserved for known keys.
//! * A lookup is admitted while its expected wait is below the caller deadline. The expected wait follows from the lookups
//!   ahead of it, the mean duration of a call, the rate limit, the budget below and the share of unknown keys that use it.
//!   Other lookups are rejected at once, with the expected wait for `Retry-After`.
//! * A refresh is admitted while its expected wait is below half the caller deadline, so that a known key whose result is too old
//!   to be served meanwhile finds a place. Otherwise some keys would never be refreshed when a rate limit is scarce.
//! * Known and unknown keys take turns. Known keys can be served from the cache meanwhile, so they must not starve the
//!   others. Among the unknown, recently valid keys go first, then the others, in a fair queue by peer.
//! * Every invalid key costs a token of a budget: 500 at once, 50 per second. The token of an unknown key is taken when its
//!   call begins and returned unless the key is invalid, so valid keys are never slowed down. After invalid keys have used up the
//!   budget, unknown keys are admitted at its refill rate. Under a rate limit, the budget is at most a quarter of it, so that the
//!   refreshes of known keys have the rest; at low rates it is up to half, so that a new key is in time behind an invalid one.
//!
//! This is a state machine without a clock, a task or a lock: its callers pass in the time.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;

use super::bucket::Bucket;
use super::fair_queue::FairQueue;
use super::throttle::Throttle;
use super::{CannotTell, Priority, RETRY_AFTER};
use crate::clock::Tick;

pub(super) const MAX_CALLS: usize = 64;
/// Reserved for known keys.
pub(super) const RESERVE: usize = MAX_CALLS / 4;
/// Bounds the memory of known and of unknown lookups that wait, whatever their expected wait is.
pub(super) const MAX_WAITING: usize = 4_096;
const INVALID_BURST: f64 = 500.0;
const INVALID_PER_SECOND: f64 = 50.0;
/// The share of invalid keys in a rate limit.
const INVALID_SHARE: f64 = 0.25;
/// Under a rate limit, the calls of this many seconds are the burst: no lookup is in flight for longer by default.
const INVALID_BURST_SECONDS: f64 = 10.0;
/// The duration of a call, as long as none has ended.
const FIRST_ESTIMATE: Duration = Duration::from_millis(100);
/// The weight of a call in the means.
const WEIGHT: f64 = 1.0 / 16.0;

/// The message to a waiting lookup: it may call now, or why not.
pub(super) type Turn = Result<(), CannotTell>;

pub(super) struct AdmissionQueue {
    /// Lookups that would wait for longer are rejected.
    caller_deadline: Duration,
    known: VecDeque<oneshot::Sender<Turn>>,
    recently_valid: VecDeque<oneshot::Sender<Turn>>,
    unknown: FairQueue,
    /// The class that goes first if both wait.
    is_turn_of_unknown: bool,
    calls_of_known: usize,
    calls_of_unknown: usize,
    mean_call: Duration,
    /// The mean share of unknown keys that are invalid.
    invalid_share: f64,
    invalid_budget: Bucket,
    pub(super) throttle: Throttle,
}

/// How a lookup gets its turn.
#[derive(Debug)]
pub(super) enum Place {
    /// It may call now.
    Called,
    /// It is sent its turn.
    Waiting(oneshot::Receiver<Turn>),
}

/// When the next lookup may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// No lookup waits, or all wait for a call to end.
    Idle,
    /// After this time.
    In(Duration),
}

impl AdmissionQueue {
    pub(super) fn new(calls_per_second: Option<u32>, caller_deadline: Duration, now: Tick) -> Self {
        Self {
            caller_deadline,
            known: VecDeque::new(),
            recently_valid: VecDeque::new(),
            unknown: FairQueue::default(),
            is_turn_of_unknown: false,
            calls_of_known: 0,
            calls_of_unknown: 0,
            mean_call: FIRST_ESTIMATE,
            invalid_share: 0.0,
            invalid_budget: Bucket::new(INVALID_BURST, INVALID_PER_SECOND, now),
            throttle: Throttle::new(calls_per_second, now),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.known.len() + self.waiting_unknown()
    }

    fn waiting_unknown(&self) -> usize {
        self.recently_valid.len() + self.unknown.len()
    }

    pub(super) fn calls(&self) -> usize {
        self.calls_of_known + self.calls_of_unknown
    }

    /// Admits a lookup, or rejects it.
    pub(super) fn enter(&mut self, priority: Priority, now: Tick) -> Result<Place, CannotTell> {
        if let Some(remaining) = self.throttle.pause(now) {
            // Lookups do not wait through a pause. The trickle shows whether the issuer takes calls again.
            let may_trickle =
                !priority.is_known() && self.has_slot(priority) && self.throttle.take_trickle(now);
            return if may_trickle {
                self.start(priority, now);
                Ok(Place::Called)
            } else {
                Err(CannotTell::unavailable(remaining))
            };
        }
        if self.is_first(priority, now) && self.may_start(priority, now).is_ok() {
            self.start(priority, now);
            return Ok(Place::Called);
        }
        if let Err(wait) = self.admit(priority, now) {
            // Lookups that were dropped while they waited hold their places until now.
            self.remove_closed();
            self.admit(priority, now)
                .map_err(|_| CannotTell::unavailable(wait.max(RETRY_AFTER)))?;
        }
        let (turn, place) = oneshot::channel();
        match priority {
            Priority::Known | Priority::Refresh => self.known.push_back(turn),
            Priority::RecentlyValid => self.recently_valid.push_back(turn),
            Priority::Unknown { peer } => self.unknown.push(peer, turn),
        }
        Ok(Place::Waiting(place))
    }

    /// Starts every lookup that may call now.
    pub(super) fn start_ready(&mut self, now: Tick) -> Next {
        if self.throttle.pause(now).is_some() {
            return Next::Idle;
        }
        loop {
            let priority = match self.next_to_start(now) {
                Ok(priority) => priority,
                Err(wait) => return wait.map_or(Next::Idle, Next::In),
            };
            let turn = match priority {
                Priority::Known | Priority::Refresh => self.known.pop_front(),
                Priority::RecentlyValid => self.recently_valid.pop_front(),
                Priority::Unknown { .. } => self.unknown.pop(),
            };
            self.is_turn_of_unknown = priority.is_known();
            // A lookup that was dropped meanwhile takes no slot.
            if let Some(turn) = turn
                && !turn.is_closed()
            {
                self.start(priority, now);
                if turn.send(Ok(())).is_err() {
                    self.release(priority, false);
                }
            }
        }
    }

    /// Ends a call that took this long.
    pub(super) fn end(&mut self, priority: Priority, is_invalid: bool, took: Duration) {
        // A call that lasts longer than a caller waits spans a sleep of the machine, which must not dominate the mean.
        let took = took.min(self.caller_deadline);
        let mean = self.mean_call.as_secs_f64();
        let mean = mean + (took.as_secs_f64() - mean) * WEIGHT;
        self.mean_call = Duration::try_from_secs_f64(mean).unwrap_or(FIRST_ESTIMATE);
        if !priority.is_known() {
            let share = f64::from(u8::from(is_invalid));
            self.invalid_share += (share - self.invalid_share) * WEIGHT;
        }
        self.release(priority, is_invalid);
    }

    /// Gives a slot back. Only an invalid key costs its token.
    pub(super) fn release(&mut self, priority: Priority, is_invalid: bool) {
        if priority.is_known() {
            self.calls_of_known -= 1;
        } else {
            self.calls_of_unknown -= 1;
            if !is_invalid {
                self.invalid_budget.refund();
            }
        }
    }

    /// Rejects every waiting lookup.
    pub(super) fn reject_all(&mut self, cannot_tell: CannotTell) {
        self.reject_unknown(cannot_tell);
        for turn in self.known.drain(..).chain(self.recently_valid.drain(..)) {
            // Fails for a lookup that was dropped meanwhile.
            let _ = turn.send(Err(cannot_tell));
        }
    }

    /// Rejects the waiting lookups of unknown keys.
    pub(super) fn reject_unknown(&mut self, cannot_tell: CannotTell) {
        for turn in std::mem::take(&mut self.unknown).into_turns() {
            let _ = turn.send(Err(cannot_tell));
        }
    }

    fn start(&mut self, priority: Priority, now: Tick) {
        self.throttle.count(now);
        if priority.is_known() {
            self.calls_of_known += 1;
        } else {
            self.calls_of_unknown += 1;
            self.invalid_budget(now).spend(now);
        }
    }

    fn slots(priority: Priority) -> usize {
        if priority.is_known() {
            MAX_CALLS
        } else {
            MAX_CALLS - RESERVE
        }
    }

    fn has_slot(&self, priority: Priority) -> bool {
        self.calls() < MAX_CALLS
            && (priority.is_known() || self.calls_of_unknown < Self::slots(priority))
    }

    /// Returns whether a lookup may start. `Err` is how long it has to wait, or `None` until a call ends.
    fn may_start(&mut self, priority: Priority, now: Tick) -> Result<(), Option<Duration>> {
        if !self.has_slot(priority) {
            return Err(None);
        }
        self.throttle.check(now).map_err(Some)?;
        if !priority.is_known() && !self.invalid_budget(now).has(now) {
            return Err(Some(self.invalid_budget.wait(now)));
        }
        Ok(())
    }

    /// Returns the budget for invalid keys under the present rate limit.
    fn invalid_budget(&mut self, now: Tick) -> &mut Bucket {
        // One lookup that waits must leave time for the next one, and for its call.
        let two_in_time = 2.5 / self.caller_deadline.as_secs_f64();
        let (burst, per_second) = match self.throttle.rate(now) {
            Some(rate) => (
                (rate * INVALID_BURST_SECONDS).clamp(1.0, INVALID_BURST),
                (rate * INVALID_SHARE)
                    .max(two_in_time.min(rate / 2.0))
                    .min(INVALID_PER_SECOND),
            ),
            None => (INVALID_BURST, INVALID_PER_SECOND),
        };
        self.invalid_budget.set_rate(burst, per_second, now);
        &mut self.invalid_budget
    }

    /// Returns whether no other lookup goes before this one.
    fn is_first(&mut self, priority: Priority, now: Tick) -> bool {
        match priority {
            // The reserve and the budget apply to unknown keys only.
            Priority::Known | Priority::Refresh => {
                self.known.is_empty()
                    && self
                        .front_of_unknown()
                        .is_none_or(|unknown| self.may_start(unknown, now).is_err())
            }
            Priority::RecentlyValid => self.known.is_empty() && self.recently_valid.is_empty(),
            Priority::Unknown { .. } => self.waiting() == 0,
        }
    }

    /// Returns which lookup starts next. `Err` is how long that takes, or `None` until a call ends.
    fn next_to_start(&mut self, now: Tick) -> Result<Priority, Option<Duration>> {
        let mut fronts = [self.front_of_known(), self.front_of_unknown()];
        if self.is_turn_of_unknown {
            fronts.reverse();
        }
        let mut soonest: Option<Duration> = None;
        for priority in fronts.into_iter().flatten() {
            match self.may_start(priority, now) {
                Ok(()) => return Ok(priority),
                Err(wait) => soonest = soonest.into_iter().chain(wait).min(),
            }
        }
        Err(soonest)
    }

    fn front_of_known(&self) -> Option<Priority> {
        (!self.known.is_empty()).then_some(Priority::Known)
    }

    fn front_of_unknown(&self) -> Option<Priority> {
        if self.recently_valid.is_empty() {
            self.unknown.front()
        } else {
            Some(Priority::RecentlyValid)
        }
    }

    /// Estimates how long a lookup would wait that came now.
    #[allow(clippy::cast_precision_loss)] // Some thousands.
    fn expected_wait(&mut self, priority: Priority, now: Tick) -> Duration {
        let (known, unknown) = match priority {
            Priority::Known | Priority::Refresh => {
                let known = self.known.len();
                (known, self.waiting_unknown().min(known + 1))
            }
            Priority::RecentlyValid => {
                let unknown = self.recently_valid.len();
                (self.known.len().min(unknown + 1), unknown)
            }
            Priority::Unknown { peer } => {
                let unknown = self.recently_valid.len() + self.unknown.ahead_of(peer);
                (self.known.len().min(unknown + 1), unknown)
            }
        };
        let turn = (known + unknown + 1) as f64;
        let by_slots = self.mean_call.mul_f64(turn / Self::slots(priority) as f64);
        let by_rate = self.throttle.rate(now).map(|rate| turn / rate);
        let by_rate = Duration::from_secs_f64(by_rate.unwrap_or_default());
        let by_budget = if priority.is_known() {
            Duration::ZERO
        } else {
            let invalid = unknown as f64 * self.invalid_share;
            self.invalid_budget(now).wait_for(invalid + 1.0, now)
        };
        by_slots.max(by_rate).max(by_budget)
    }

    /// Returns whether a lookup may wait. `Err` is its expected wait.
    fn admit(&mut self, priority: Priority, now: Tick) -> Result<(), Duration> {
        let waiting = if priority.is_known() {
            self.known.len()
        } else {
            self.waiting_unknown()
        };
        let wait = self.expected_wait(priority, now);
        // The other half is left to known keys whose results are too old to be served.
        let longest = match priority {
            Priority::Refresh => self.caller_deadline / 2,
            _ => self.caller_deadline,
        };
        if wait < longest && waiting < MAX_WAITING {
            Ok(())
        } else {
            Err(wait)
        }
    }

    /// Removes lookups that were dropped while they waited.
    pub(super) fn remove_closed(&mut self) {
        self.known.retain(|turn| !turn.is_closed());
        self.recently_valid.retain(|turn| !turn.is_closed());
        self.unknown.retain(|turn| !turn.is_closed());
    }
}

#[cfg(test)]
mod tests;
