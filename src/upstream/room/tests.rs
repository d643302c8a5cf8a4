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
