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
mod tests {
    use super::*;

    const KNOWN: Asker = Asker::Known;
    const PATIENCE: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Tick {
        Tick::ZERO.after(Duration::from_millis(1_000_000 + millis))
    }

    fn stranger(peer: u64) -> Asker {
        Asker::Stranger { peer: Some(peer) }
    }

    fn enter(room: &mut Room, asker: Asker) -> Result<Place, CannotTell> {
        room.enter(asker, at(0), PATIENCE)
    }

    fn waits(place: Result<Place, CannotTell>) -> oneshot::Receiver<Word> {
        match place {
            Ok(Place::Waiting(word)) => word,
            other => panic!("{other:?}"),
        }
    }

    /// A room whose budget of refusals junk has used up.
    fn with_empty_budget() -> Room {
        let mut room = Room::new(None, at(0));
        for _ in 0..500 {
            assert!(matches!(enter(&mut room, stranger(0)), Ok(Place::Called)));
            room.end(stranger(0), true);
        }
        room
    }

    #[test]
    fn a_quarter_of_the_calls_is_kept_for_known_keys() {
        let mut room = Room::new(None, at(0));
        for _ in 0..48 {
            assert!(matches!(enter(&mut room, stranger(0)), Ok(Place::Called)));
        }
        let mut stranger_waits = waits(enter(&mut room, stranger(0)));
        for _ in 0..16 {
            assert!(matches!(enter(&mut room, KNOWN), Ok(Place::Called)));
        }
        let mut known_waits = waits(enter(&mut room, KNOWN));
        assert_eq!(room.calls(), 64);
        room.end(stranger(0), false);
        assert_eq!(room.call_up(at(0)), Next::Idle);
        assert_eq!(
            known_waits.try_recv(),
            Ok(Ok(())),
            "the known one goes first"
        );
        assert!(stranger_waits.try_recv().is_err());
        room.end(KNOWN, false);
        room.call_up(at(0));
        assert_eq!(stranger_waits.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn a_yes_costs_nothing_so_good_keys_alone_are_never_throttled() {
        let mut room = Room::new(None, at(0));
        for _ in 0..10_000 {
            assert!(matches!(enter(&mut room, stranger(0)), Ok(Place::Called)));
            room.end(stranger(0), false);
        }
    }

    #[test]
    fn when_junk_has_used_up_the_budget_unknown_keys_go_at_its_pace_and_known_ones_freely() {
        let mut room = with_empty_budget();
        let mut places: Vec<_> = (0..100)
            .map(|_| waits(enter(&mut room, stranger(0))))
            .collect();
        assert!(matches!(enter(&mut room, KNOWN), Ok(Place::Called)));
        let mut gone = 0;
        for millis in 0..1_000 {
            room.call_up(at(millis));
            let now_gone = places
                .iter_mut()
                .filter_map(|place| place.try_recv().ok())
                .count();
            for _ in 0..now_gone {
                room.end(stranger(0), true);
            }
            gone += now_gone;
        }
        assert!((49..=50).contains(&gone), "{gone}");
    }

    #[test]
    fn the_budget_says_when_the_next_one_goes() {
        let mut room = with_empty_budget();
        let _place = waits(enter(&mut room, stranger(0)));
        assert_eq!(room.call_up(at(0)), Next::In(Duration::from_millis(20)));
        assert_eq!(room.call_up(at(20)), Next::Idle);
    }

    #[test]
    fn former_keys_go_before_strangers_and_peers_take_turns() {
        let mut room = with_empty_budget();
        let mut flood: Vec<_> = (0..100)
            .map(|_| waits(enter(&mut room, stranger(1))))
            .collect();
        let mut other = waits(enter(&mut room, stranger(2)));
        let mut former = waits(enter(&mut room, Asker::Former));
        room.call_up(at(20));
        assert_eq!(former.try_recv(), Ok(Ok(())));
        room.call_up(at(40));
        room.call_up(at(60));
        assert_eq!(
            other.try_recv(),
            Ok(Ok(())),
            "the second of two turns at the latest"
        );
        assert_eq!(
            flood
                .iter_mut()
                .filter_map(|place| place.try_recv().ok())
                .count(),
            1
        );
    }

    #[test]
    fn a_newcomer_passes_nobody_whose_turn_it_is_or_may_be() {
        let is_called = |waiting, newcomer| {
            let mut room = Room::new(Some(10), at(0));
            assert!(matches!(enter(&mut room, KNOWN), Ok(Place::Called)));
            let _waiting = waits(enter(&mut room, waiting));
            // Whoever is called up now may go.
            let place = room.enter(newcomer, at(100), PATIENCE);
            matches!(place.unwrap(), Place::Called)
        };
        for waiting in [KNOWN, Asker::Former, stranger(1)] {
            assert!(!is_called(waiting, KNOWN), "{waiting:?}");
            assert!(!is_called(waiting, stranger(2)), "{waiting:?}");
        }
        assert!(!is_called(KNOWN, Asker::Former));
        assert!(!is_called(Asker::Former, Asker::Former));
        assert!(is_called(stranger(1), Asker::Former));
    }

    #[test]
    fn a_full_room_makes_room_for_those_who_go_first_and_says_when_to_come_back() {
        let mut room = with_empty_budget();
        let mut flood: Vec<_> = (0..MAX_WAITING)
            .map(|_| waits(enter(&mut room, stranger(1))))
            .collect();
        let refused = enter(&mut room, stranger(1)).unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_secs_f64(256.0 / 50.0));
        let _other = waits(enter(&mut room, stranger(2)));
        let _former = waits(enter(&mut room, Asker::Former));
        assert_eq!(room.waiting(), MAX_WAITING);
        let sent_away: Vec<_> = flood
            .iter_mut()
            .filter_map(|place| place.try_recv().ok())
            .collect();
        assert_eq!(sent_away.len(), 2);
        assert!(sent_away.iter().all(Result::is_err));
        assert!(
            flood[0]
                .try_recv()
                .is_err_and(|error| error == oneshot::error::TryRecvError::Empty)
        );
    }

    #[test]
    fn nobody_makes_room_for_a_peer_whose_row_would_be_as_long() {
        let mut room = with_empty_budget();
        let mut row = |asker, len: usize| -> Vec<_> {
            let places = (0..len).map(|_| waits(enter(&mut room, asker)));
            places.collect()
        };
        let mut rows = [
            row(Asker::Former, 1),
            row(stranger(1), 127),
            row(stranger(2), 128),
        ];
        let mut sent_away = || {
            rows.each_mut().map(|row| {
                row.iter_mut()
                    .filter_map(|place| place.try_recv().ok())
                    .count()
            })
        };
        assert!(enter(&mut room, stranger(1)).is_err());
        assert!(enter(&mut room, stranger(2)).is_err());
        assert_eq!(sent_away(), [0, 0, 0]);
        let _third = waits(enter(&mut room, stranger(3)));
        assert_eq!(sent_away(), [0, 0, 1], "of the longest row");
    }

    #[test]
    fn a_peer_that_makes_room_takes_nobody_elses_turn_along() {
        let mut room = with_empty_budget();
        let mut places: Vec<_> = (0..MAX_WAITING as u64)
            .map(|peer| waits(enter(&mut room, stranger(peer))))
            .collect();
        let mut former = waits(enter(&mut room, Asker::Former));
        let (mut called, mut sent_away) = (Vec::new(), 0);
        for turn in 0..=MAX_WAITING as u64 {
            room.call_up(at(20 * turn));
            for (peer, place) in places.iter_mut().enumerate() {
                match place.try_recv() {
                    Ok(Ok(())) => {
                        called.push(peer);
                        room.end(stranger(0), true);
                    }
                    Ok(Err(_)) => sent_away += 1,
                    Err(_) => {}
                }
            }
        }
        assert_eq!(former.try_recv(), Ok(Ok(())));
        assert_eq!((called.len(), sent_away), (MAX_WAITING - 1, 1));
        assert!(called.is_sorted(), "{called:?}");
    }

    #[test]
    fn half_of_the_room_is_kept_for_known_keys_and_half_for_unknown_ones() {
        let mut room = with_empty_budget();
        for _ in 0..MAX_CALLS {
            assert!(matches!(enter(&mut room, KNOWN), Ok(Place::Called)));
        }
        for (first, second) in [(Asker::Former, KNOWN), (KNOWN, Asker::Former)] {
            let mut first: Vec<_> = (0..MAX_WAITING)
                .map(|_| waits(enter(&mut room, first)))
                .collect();
            let second: Vec<_> = (0..HALF).map(|_| waits(enter(&mut room, second))).collect();
            let sent_away = first
                .iter_mut()
                .filter_map(|place| place.try_recv().ok())
                .filter(Result::is_err)
                .count();
            assert_eq!(sent_away, HALF);
            for asker in [KNOWN, Asker::Former, stranger(9)] {
                assert!(enter(&mut room, asker).is_err());
            }
            assert_eq!(room.waiting(), MAX_WAITING);
            drop((first, second));
            room.forget_the_gone();
        }
    }

    #[test]
    fn known_and_unknown_keys_take_turns_when_the_rate_holds_both_back() {
        let mut room = Room::new(Some(10), at(0));
        assert!(matches!(enter(&mut room, KNOWN), Ok(Place::Called)));
        let mut known: Vec<_> = (0..20).map(|_| waits(enter(&mut room, KNOWN))).collect();
        let mut former: Vec<_> = (0..20)
            .map(|_| waits(enter(&mut room, Asker::Former)))
            .collect();
        for tenth in 1..=10 {
            room.call_up(at(100 * tenth));
        }
        let gone = |places: &mut Vec<oneshot::Receiver<Word>>| {
            places
                .iter_mut()
                .filter_map(|place| place.try_recv().ok())
                .count()
        };
        assert_eq!((gone(&mut known), gone(&mut former)), (5, 5));
    }

    #[test]
    fn those_who_have_gone_away_take_neither_place_nor_slot() {
        let mut room = with_empty_budget();
        for _ in 0..10 * MAX_WAITING {
            drop(waits(enter(&mut room, stranger(1))));
        }
        let mut place = waits(enter(&mut room, stranger(1)));
        for millis in 0..10_000 {
            room.call_up(at(millis));
        }
        assert_eq!(place.try_recv(), Ok(Ok(())));
        assert_eq!((room.calls(), room.waiting()), (1, 0));
    }

    #[test]
    fn nothing_waits_through_a_pause_but_a_trickle_goes() {
        let mut room = Room::new(None, at(0));
        room.throttle.too_many(Some(Duration::from_secs(30)), at(0));
        for asker in [KNOWN, Asker::Former, stranger(0)] {
            assert_eq!(
                enter(&mut room, asker).unwrap_err().retry_after,
                Duration::from_secs(30)
            );
        }
        assert!(room.enter(KNOWN, at(10_000), PATIENCE).is_err());
        assert!(matches!(
            room.enter(stranger(0), at(10_000), PATIENCE),
            Ok(Place::Called)
        ));
        assert!(room.enter(stranger(0), at(10_000), PATIENCE).is_err());
        assert!(matches!(
            room.enter(KNOWN, at(30_000), PATIENCE),
            Ok(Place::Called)
        ));
    }

    #[test]
    fn those_who_wait_are_dismissed_with_the_reason() {
        let mut room = with_empty_budget();
        let mut places = [
            waits(enter(&mut room, stranger(0))),
            waits(enter(&mut room, Asker::Former)),
        ];
        room.dismiss(CannotTell::unavailable(Duration::from_secs(7)));
        for place in &mut places {
            assert_eq!(
                place.try_recv(),
                Ok(Err(CannotTell::unavailable(Duration::from_secs(7))))
            );
        }
        assert_eq!(room.waiting(), 0);
    }
}
