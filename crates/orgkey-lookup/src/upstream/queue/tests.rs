use super::*;

const KNOWN: Priority = Priority::Known;
const RECENT: Priority = Priority::RecentlyValid;
const CALLER_DEADLINE: Duration = Duration::from_millis(2_500);

fn at(millis: u64) -> Tick {
    Tick::ZERO.after(Duration::from_millis(1_000_000 + millis))
}

fn unknown(peer: u64) -> Priority {
    Priority::Unknown { peer: Some(peer) }
}

fn queue(calls_per_second: Option<u32>) -> AdmissionQueue {
    AdmissionQueue::new(calls_per_second, CALLER_DEADLINE, at(0))
}

fn enter(queue: &mut AdmissionQueue, priority: Priority) -> Result<Place, CannotTell> {
    queue.enter(priority, at(0))
}

#[track_caller]
fn called(place: Result<Place, CannotTell>) {
    match place {
        Ok(Place::Called) => {}
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn waits(place: Result<Place, CannotTell>) -> oneshot::Receiver<Turn> {
    match place {
        Ok(Place::Waiting(turn)) => turn,
        other => panic!("{other:?}"),
    }
}

fn started(places: &mut [oneshot::Receiver<Turn>]) -> usize {
    let turns = places.iter_mut().filter_map(|place| place.try_recv().ok());
    turns.flatten().count()
}

/// A queue with a budget that invalid keys have used up.
fn with_empty_budget() -> AdmissionQueue {
    let mut queue = queue(None);
    for _ in 0..500 {
        called(enter(&mut queue, unknown(0)));
        queue.end(unknown(0), true, FIRST_ESTIMATE);
    }
    queue
}

#[test]
fn a_quarter_is_reserved_for_known_keys() {
    let mut queue = queue(None);
    for _ in 0..48 {
        called(enter(&mut queue, unknown(0)));
    }
    let mut unknown_waits = waits(enter(&mut queue, unknown(0)));
    for _ in 0..16 {
        called(enter(&mut queue, KNOWN));
    }
    let mut known_waits = waits(enter(&mut queue, KNOWN));
    assert_eq!(queue.calls(), 64);
    queue.release(unknown(0), false);
    assert_eq!(queue.start_ready(at(0)), Next::Idle);
    assert_eq!(known_waits.try_recv(), Ok(Ok(())));
    assert!(unknown_waits.try_recv().is_err());
    queue.release(KNOWN, false);
    queue.start_ready(at(0));
    assert_eq!(unknown_waits.try_recv(), Ok(Ok(())));
}

#[test]
fn valid_keys_alone_use_no_budget() {
    let mut queue = queue(None);
    for _ in 0..10_000 {
        called(enter(&mut queue, unknown(0)));
        queue.release(unknown(0), false);
    }
}

#[test]
fn an_empty_budget_slows_unknown_keys_only() {
    let mut queue = with_empty_budget();
    let mut places: Vec<_> = (0..100)
        .map(|_| waits(enter(&mut queue, unknown(0))))
        .collect();
    called(enter(&mut queue, KNOWN));
    let mut gone = 0;
    for millis in 0..1_000 {
        queue.start_ready(at(millis));
        let now_gone = started(&mut places);
        for _ in 0..now_gone {
            queue.release(unknown(0), true);
        }
        gone += now_gone;
    }
    assert!((49..=50).contains(&gone), "{gone}");
}

#[test]
fn the_budget_says_when_the_next_one_starts() {
    let mut queue = with_empty_budget();
    let _place = waits(enter(&mut queue, unknown(0)));
    assert_eq!(
        queue.start_ready(at(0)),
        Next::In(Duration::from_millis(20))
    );
    assert_eq!(queue.start_ready(at(20)), Next::Idle);
}

#[test]
fn recently_valid_go_first_and_peers_take_turns() {
    let mut queue = with_empty_budget();
    let mut flood: Vec<_> = (0..100)
        .map(|_| waits(enter(&mut queue, unknown(1))))
        .collect();
    let mut other = waits(enter(&mut queue, unknown(2)));
    let mut recent = waits(enter(&mut queue, RECENT));
    queue.start_ready(at(20));
    assert_eq!(recent.try_recv(), Ok(Ok(())));
    queue.start_ready(at(40));
    queue.start_ready(at(60));
    assert_eq!(other.try_recv(), Ok(Ok(())), "the second of two turns");
    assert_eq!(started(&mut flood), 1);
}

#[test]
fn a_newcomer_overtakes_only_what_it_goes_before() {
    let overtakes = |waiting, newcomer| {
        let mut queue = queue(Some(10));
        called(enter(&mut queue, KNOWN));
        let _waiting = waits(enter(&mut queue, waiting));
        // Whatever is started now may call.
        let place = queue.enter(newcomer, at(100));
        matches!(place.unwrap(), Place::Called)
    };
    for waiting in [KNOWN, RECENT, unknown(1)] {
        assert!(!overtakes(waiting, KNOWN), "{waiting:?}");
        assert!(!overtakes(waiting, unknown(2)), "{waiting:?}");
    }
    assert!(!overtakes(KNOWN, RECENT));
    assert!(!overtakes(RECENT, RECENT));
    assert!(overtakes(unknown(1), RECENT));
}

/// Fills the queue with lookups of this priority until one is rejected.
fn fill(
    queue: &mut AdmissionQueue,
    priority: Priority,
) -> (Vec<oneshot::Receiver<Turn>>, CannotTell) {
    let mut places = Vec::new();
    loop {
        match enter(queue, priority) {
            Ok(Place::Waiting(place)) => places.push(place),
            Ok(Place::Called) => {}
            Err(cannot_tell) => return (places, cannot_tell),
        }
    }
}

#[test]
fn the_budget_bounds_the_wait_of_each_peer() {
    let mut queue = with_empty_budget();
    let (_flood, rejected) = fill(&mut queue, unknown(1));
    // 50 per second, for at most 2.5 s.
    assert_eq!(queue.waiting(), 124);
    assert_eq!(rejected.retry_after, Duration::from_millis(2_500));
    // The next peer in turn does not wait for the flood of another one.
    let _other = waits(enter(&mut queue, unknown(2)));
    let _recent = waits(enter(&mut queue, RECENT));
    called(enter(&mut queue, KNOWN));
}

#[test]
fn many_peers_share_the_wait() {
    let mut queue = with_empty_budget();
    let mut places: Vec<_> = (0..124)
        .map(|peer| waits(enter(&mut queue, unknown(peer))))
        .collect();
    assert!(enter(&mut queue, unknown(200)).is_err());
    assert!(enter(&mut queue, unknown(0)).is_err());
    let mut order = Vec::new();
    for turn in 1..=124 {
        queue.start_ready(at(20 * turn));
        for (peer, place) in places.iter_mut().enumerate() {
            if place.try_recv() == Ok(Ok(())) {
                order.push(peer);
                queue.release(unknown(0), true);
            }
        }
    }
    assert_eq!(order, (0..124).collect::<Vec<_>>());
}

#[test]
fn slots_and_mean_call_bound_the_wait() {
    for (took, waiting) in [(50, 2_399), (100, 1_199), (1_000, 119)] {
        let mut queue = queue(None);
        // Until the mean is near it.
        for _ in 0..400 {
            called(enter(&mut queue, KNOWN));
            queue.end(KNOWN, false, Duration::from_millis(took));
        }
        let (_places, rejected) = fill(&mut queue, unknown(0));
        let difference = queue.waiting().abs_diff(waiting);
        assert!(difference <= 1, "{took} ms: {}", queue.waiting());
        let retry_after = rejected.retry_after.as_millis();
        assert!((2_490..2_530).contains(&retry_after), "{retry_after}");
        // Turns are taken, so a known key waits for one unknown key.
        queue.calls_of_known = MAX_CALLS - RESERVE;
        let _known = waits(enter(&mut queue, KNOWN));
    }
}

#[test]
fn a_machine_that_slept_does_not_skew_the_mean() {
    let mut queue = queue(None);
    for _ in 0..48 {
        called(enter(&mut queue, unknown(0)));
    }
    called(enter(&mut queue, KNOWN));
    queue.end(KNOWN, false, Duration::from_secs(3_600));
    waits(enter(&mut queue, unknown(0)));
}

#[test]
fn the_rate_bounds_the_wait() {
    let mut queue = queue(Some(10));
    called(enter(&mut queue, KNOWN));
    let (_known, rejected) = fill(&mut queue, KNOWN);
    assert_eq!(queue.waiting(), 24);
    assert_eq!(rejected.retry_after, Duration::from_millis(2_500));
    let (_recent, _) = fill(&mut queue, RECENT);
    // They take turns: half of what can go in 2.5 s.
    assert_eq!(queue.waiting(), 24 + 12);
}

#[test]
fn refreshes_leave_half_of_the_wait() {
    let mut queue = queue(Some(20));
    called(enter(&mut queue, Priority::Refresh));
    let (_refreshes, rejected) = fill(&mut queue, Priority::Refresh);
    assert_eq!(queue.waiting(), 24);
    assert_eq!(rejected.retry_after, Duration::from_millis(1_250));
    let (_overdue, rejected) = fill(&mut queue, KNOWN);
    assert_eq!(queue.waiting(), 49);
    assert_eq!(rejected.retry_after, Duration::from_millis(2_500));
}

#[test]
fn memory_is_bounded_whatever_the_wait() {
    let mut queue = queue(None);
    for _ in 0..1_000 {
        queue.start(KNOWN, at(0));
        queue.end(KNOWN, false, Duration::ZERO);
    }
    let (_known, _) = fill(&mut queue, KNOWN);
    assert_eq!(queue.waiting(), MAX_WAITING);
    let _recent = waits(enter(&mut queue, RECENT));
}

#[test]
fn known_and_unknown_keys_take_turns() {
    let mut queue = queue(Some(10));
    called(enter(&mut queue, KNOWN));
    let mut known: Vec<_> = (0..10).map(|_| waits(enter(&mut queue, KNOWN))).collect();
    let mut recent: Vec<_> = (0..10).map(|_| waits(enter(&mut queue, RECENT))).collect();
    for tenth in 1..=10 {
        queue.start_ready(at(100 * tenth));
    }
    assert_eq!((started(&mut known), started(&mut recent)), (5, 5));
}

#[test]
fn invalid_keys_have_a_quarter_of_a_rate() {
    let mut queue = queue(Some(20));
    let (mut places, mut known, mut invalid) = (Vec::new(), 0, 0);
    // The budget is full at first: 200.
    for millis in (0..120_000).step_by(10) {
        if millis == 60_000 {
            (known, invalid) = (0, 0);
        }
        for priority in [KNOWN, unknown(1)] {
            places.extend(queue.enter(priority, at(millis)));
        }
        queue.start_ready(at(millis));
        while queue.calls_of_known > 0 {
            queue.release(KNOWN, false);
            known += 1;
        }
        while queue.calls_of_unknown > 0 {
            queue.release(unknown(1), true);
            invalid += 1;
        }
    }
    assert_eq!(known + invalid, 20 * 60);
    assert!((5 * 60 - 1..=5 * 60 + 1).contains(&invalid), "{invalid}");
}

#[test]
fn dropped_lookups_take_neither_place_nor_slot() {
    let mut queue = with_empty_budget();
    for _ in 0..2_000 {
        drop(waits(enter(&mut queue, unknown(1))));
    }
    let mut place = waits(enter(&mut queue, unknown(1)));
    for millis in 0..10_000 {
        queue.start_ready(at(millis));
    }
    assert_eq!(place.try_recv(), Ok(Ok(())));
    assert_eq!((queue.calls(), queue.waiting()), (1, 0));
}

#[test]
fn a_pause_rejects_all_but_a_trickle() {
    let mut queue = queue(None);
    queue
        .throttle
        .too_many(Some(Duration::from_secs(30)), at(0));
    for priority in [KNOWN, RECENT, unknown(0)] {
        assert_eq!(
            enter(&mut queue, priority).unwrap_err().retry_after,
            Duration::from_secs(30)
        );
    }
    assert!(queue.enter(KNOWN, at(10_000)).is_err());
    called(queue.enter(unknown(0), at(10_000)));
    assert!(queue.enter(unknown(0), at(10_000)).is_err());
    called(queue.enter(KNOWN, at(30_000)));
}

#[test]
fn waiting_lookups_are_rejected_with_the_reason() {
    let cannot_tell = CannotTell::unavailable(Duration::from_secs(7));
    for all in [false, true] {
        let mut queue = queue(Some(10));
        called(enter(&mut queue, KNOWN));
        let mut unknown = waits(enter(&mut queue, unknown(0)));
        let mut others = [KNOWN, RECENT].map(|other| waits(enter(&mut queue, other)));
        if all {
            queue.reject_all(cannot_tell);
        } else {
            queue.reject_unknown(cannot_tell);
        }
        assert_eq!(unknown.try_recv(), Ok(Err(cannot_tell)));
        for other in &mut others {
            assert_eq!(other.try_recv().is_ok(), all);
        }
        assert_eq!(queue.waiting(), if all { 0 } else { 2 });
    }
}
