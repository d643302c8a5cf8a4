//! The waiting room: who may call the issuer next, and how many at once.
//!
//! * 64 calls at once, of which a quarter is kept for known keys.
//! * Known keys and unknown ones take turns. Known ones have facts to live on meanwhile, so they may not keep the others out
//!   for good: after a long outage, the refreshes of the few that are known would. Of the unknown, keys that were good in
//!   the last day go first, then strangers, whose peers take turns.
//! * Every refusal costs a token of the *budget of refusals*. A stranger's token is taken when the call begins and given
//!   back if the issuer says yes or does not tell, so good keys alone are never slowed down. When junk has emptied the budget,
//!   unknown keys go at the pace at which it fills.
//! * 256 flights may wait, and half of the places are kept for known keys, half for unknown ones. When the room is full, one
//!   that stands further behind, or beyond its half, makes room: a stranger for a former key, the last of the longest row of
//!   strangers for a peer with a shorter one.
//!
//! This is a state machine without a clock, a task or a lock of its own: it is told the time and says whom it lets go.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;

use super::bucket::Bucket;
use super::strangers::Strangers;
use super::throttle::Throttle;
use super::{Asker, CannotTell};
use crate::clock::Tick;

pub(super) const MAX_CALLS: usize = 64;
/// Kept for known keys.
pub(super) const RESERVE: usize = MAX_CALLS / 4;
pub(super) const MAX_WAITING: usize = 256;
/// Of the places, kept for known keys and for unknown ones alike.
const HALF: usize = MAX_WAITING / 2;
const REFUSAL_BURST: f64 = 500.0;
const REFUSALS_PER_SECOND: f64 = 50.0;

/// What a flight hears that waits: go, or why not.
pub(super) type Word = Result<(), CannotTell>;

#[derive(Debug)]
pub(super) struct Room {
    known: VecDeque<oneshot::Sender<Word>>,
    former: VecDeque<oneshot::Sender<Word>>,
    strangers: Strangers,
    /// Whose turn it is, if both wait.
    is_turn_of_unknown: bool,
    calls_of_known: usize,
    calls_of_unknown: usize,
    refusals: Bucket,
    pub(super) throttle: Throttle,
}

/// How a flight gets its turn.
#[derive(Debug)]
pub(super) enum Place {
    /// It may go now.
    Called,
    /// It will hear.
    Waiting(oneshot::Receiver<Word>),
}

/// Why nobody else goes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nobody waits, or all wait for a call to end.
    Idle,
    /// Time alone will let the next one go.
    In(Duration),
}

impl Room {
    pub(super) fn new(calls_per_second: Option<u32>, now: Tick) -> Self {
        Self {
            known: VecDeque::new(),
            former: VecDeque::new(),
            strangers: Strangers::default(),
            is_turn_of_unknown: false,
            calls_of_known: 0,
            calls_of_unknown: 0,
            refusals: Bucket::new(REFUSAL_BURST, REFUSALS_PER_SECOND, now),
            throttle: Throttle::new(calls_per_second, now),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.known.len() + self.waiting_unknown()
    }

    fn waiting_unknown(&self) -> usize {
        self.former.len() + self.strangers.len()
    }

    pub(super) fn calls(&self) -> usize {
        self.calls_of_known + self.calls_of_unknown
    }

    /// Takes a place. `patience` is what a flight is told that finds none.
    pub(super) fn enter(
        &mut self,
        asker: Asker,
        now: Tick,
        patience: Duration,
    ) -> Result<Place, CannotTell> {
        if let Some(remaining) = self.throttle.pause(now) {
            // Nothing waits through a pause. The trickle shows whether the issuer is in a better mood.
            let may_trickle =
                !asker.is_known() && self.has_slot(asker) && self.throttle.take_trickle(now);
            return if may_trickle {
                self.go(asker, now);
                Ok(Place::Called)
            } else {
                Err(CannotTell::unavailable(remaining))
            };
        }
        if self.is_first(asker, now) && self.may_go(asker, now).is_ok() {
            self.go(asker, now);
            return Ok(Place::Called);
        }
        if self.waiting() >= MAX_WAITING && !self.make_room(asker, now, patience) {
            let wait = self.wait_of_a_newcomer(now, patience);
            return Err(CannotTell::unavailable(wait));
        }
        let (word, place) = oneshot::channel();
        match asker {
            Asker::Known => self.known.push_back(word),
            Asker::Former => self.former.push_back(word),
            Asker::Stranger { peer } => self.strangers.push(peer, word),
        }
        Ok(Place::Waiting(place))
    }

    /// Lets go whoever may go now.
    pub(super) fn call_up(&mut self, now: Tick) -> Next {
        if self.throttle.pause(now).is_some() {
            return Next::Idle;
        }
        let mut next = Next::Idle;
        loop {
            let asker = match self.next_to_go(now) {
                Ok(asker) => asker,
                Err(wait) => {
                    next = next.or(wait);
                    break;
                }
            };
            let word = match asker {
                Asker::Known => self.known.pop_front(),
                Asker::Former => self.former.pop_front(),
                Asker::Stranger { .. } => self.strangers.pop(),
            };
            self.is_turn_of_unknown = asker.is_known();
            // One that has gone away meanwhile takes no slot.
            if let Some(word) = word
                && !word.is_closed()
            {
                self.go(asker, now);
                if word.send(Ok(())).is_err() {
                    self.end(asker, false);
                }
            }
        }
        next
    }

    /// A call ended. Only a refusal costs what it took from the budget.
    pub(super) fn end(&mut self, asker: Asker, is_refusal: bool) {
        if asker.is_known() {
            self.calls_of_known -= 1;
        } else {
            self.calls_of_unknown -= 1;
            if !is_refusal {
                self.refusals.refund();
            }
        }
    }

    /// Sends everybody away.
    pub(super) fn dismiss(&mut self, cannot_tell: CannotTell) {
        let strangers = std::mem::take(&mut self.strangers).into_words();
        for word in self
            .known
            .drain(..)
            .chain(self.former.drain(..))
            .chain(strangers)
        {
            // One that has gone away meanwhile needs no telling.
            let _gone = word.send(Err(cannot_tell));
        }
    }

    fn go(&mut self, asker: Asker, now: Tick) {
        self.throttle.count(now);
        if asker.is_known() {
            self.calls_of_known += 1;
        } else {
            self.calls_of_unknown += 1;
            self.refusals.spend(now);
        }
    }

    fn has_slot(&self, asker: Asker) -> bool {
        self.calls() < MAX_CALLS
            && (asker.is_known() || self.calls_of_unknown < MAX_CALLS - RESERVE)
    }

    /// `Err` says how long time alone takes; `None` that a call has to end first.
    fn may_go(&mut self, asker: Asker, now: Tick) -> Result<(), Option<Duration>> {
        if !self.has_slot(asker) {
            return Err(None);
        }
        self.throttle.check(now).map_err(Some)?;
        if !asker.is_known() && !self.refusals.has(now) {
            return Err(Some(self.refusals.wait(now)));
        }
        Ok(())
    }

    /// Whether nobody waits who goes before this one.
    fn is_first(&mut self, asker: Asker, now: Tick) -> bool {
        match asker {
            // The reserve and the budget hold back unknown keys alone, and a known one then passes them by.
            Asker::Known => {
                self.known.is_empty()
                    && self
                        .front_of_unknown()
                        .is_none_or(|unknown| self.may_go(unknown, now).is_err())
            }
            Asker::Former => self.known.is_empty() && self.former.is_empty(),
            Asker::Stranger { .. } => self.waiting() == 0,
        }
    }

    /// Who goes next. `Err` says how long time alone takes, if it does.
    fn next_to_go(&mut self, now: Tick) -> Result<Asker, Option<Duration>> {
        let mut fronts = [self.front_of_known(), self.front_of_unknown()];
        if self.is_turn_of_unknown {
            fronts.reverse();
        }
        let mut soonest: Option<Duration> = None;
        for asker in fronts.into_iter().flatten() {
            match self.may_go(asker, now) {
                Ok(()) => return Ok(asker),
                Err(wait) => soonest = soonest.into_iter().chain(wait).min(),
            }
        }
        Err(soonest)
    }

    fn front_of_known(&self) -> Option<Asker> {
        (!self.known.is_empty()).then_some(Asker::Known)
    }

    fn front_of_unknown(&self) -> Option<Asker> {
        if self.former.is_empty() {
            self.strangers.front()
        } else {
            Some(Asker::Former)
        }
    }

    /// Sends away one that stands behind where this one would stand.
    fn make_room(&mut self, asker: Asker, now: Tick, patience: Duration) -> bool {
        self.forget_the_gone();
        if self.waiting() < MAX_WAITING {
            return true;
        }
        let sent_away = if self.known.len() > HALF && !asker.is_known() {
            self.known.pop_back()
        } else {
            match asker {
                // Only if that row is longer than the newcomer's own becomes.
                Asker::Stranger { peer } => {
                    let own = self.strangers.row_of(peer) + 1;
                    self.strangers.pop_last_of_row_beyond(own)
                }
                Asker::Former => self.strangers.pop_last_of_row_beyond(0),
                Asker::Known if self.waiting_unknown() > HALF => self
                    .strangers
                    .pop_last_of_row_beyond(0)
                    .or_else(|| self.former.pop_back()),
                Asker::Known => None,
            }
        };
        let Some(word) = sent_away else { return false };
        let wait = self.wait_of_a_newcomer(now, patience);
        let _gone = word.send(Err(CannotTell::unavailable(wait)));
        true
    }

    /// Those who stopped waiting leave their places empty until somebody looks.
    pub(super) fn forget_the_gone(&mut self) {
        self.known.retain(|word| !word.is_closed());
        self.former.retain(|word| !word.is_closed());
        self.strangers.retain(|word| !word.is_closed());
    }

    /// An honest guess: the unknown keys that wait go at the pace of the budget, and all of them at that of the throttle.
    #[allow(clippy::cast_precision_loss)] // A few hundred.
    fn wait_of_a_newcomer(&mut self, now: Tick, patience: Duration) -> Duration {
        let by_budget = self.waiting_unknown() as f64 / REFUSALS_PER_SECOND;
        let rate = self.throttle.rate(now);
        let by_rate = rate.map_or(0.0, |rate| self.waiting() as f64 / rate);
        patience.max(Duration::from_secs_f64(by_budget.max(by_rate)))
    }
}

impl Next {
    fn or(self, wait: Option<Duration>) -> Self {
        match (self, wait) {
            (Self::Idle, Some(wait)) => Self::In(wait),
            (next, _) => next,
        }
    }
}

#[cfg(test)]
mod tests;
