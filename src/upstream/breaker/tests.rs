use super::*;

fn at(millis: u64) -> Tick {
    Tick::ZERO.after(Duration::from_millis(1_000_000 + millis))
}

fn end(breaker: &Breaker, health: Health, now: Tick) -> bool {
    breaker.begin(now).unwrap().end(health, now)
}

#[test]
fn five_failures_in_a_row_open_it_and_an_answer_between_them_does_not() {
    let breaker = Breaker::default();
    for _ in 0..4 {
        assert!(!end(&breaker, Health::Failed, at(0)));
    }
    assert!(!end(&breaker, Health::Answered, at(0)));
    for _ in 0..4 {
        assert!(!end(&breaker, Health::Failed, at(0)));
    }
    assert_eq!(breaker.state(at(0)), BreakerState::Closed);
    assert!(end(&breaker, Health::Failed, at(0)));
    assert!(matches!(breaker.state(at(0)), BreakerState::Open { .. }));
}

#[test]
fn half_of_twenty_calls_in_ten_seconds_open_it() {
    let breaker = Breaker::default();
    for n in 0..9 {
        assert!(!end(&breaker, Health::Answered, at(n * 100)));
        assert!(!end(&breaker, Health::Failed, at(n * 100)));
    }
    assert!(!end(&breaker, Health::Answered, at(9_000)));
    assert!(
        end(&breaker, Health::Failed, at(9_000)),
        "the 20th call, the 10th failure"
    );
}

#[test]
fn failures_older_than_the_window_count_no_more() {
    let breaker = Breaker::default();
    for n in 0..9 {
        end(&breaker, Health::Answered, at(n * 100));
        end(&breaker, Health::Failed, at(n * 100));
    }
    end(&breaker, Health::Answered, at(11_000));
    assert!(!end(&breaker, Health::Failed, at(11_000)));
}

#[test]
fn it_opens_for_5_s_then_twice_as_long_up_to_60_s_less_up_to_a_fifth_and_lets_one_call_try() {
    let breaker = Breaker::default();
    let mut now = at(0);
    for _ in 0..5 {
        end(&breaker, Health::Failed, now);
    }
    for longest in [5, 10, 20, 40, 60, 60] {
        let BreakerState::Open { remaining } = breaker.state(now) else {
            panic!("not open")
        };
        let longest = Duration::from_secs(longest);
        assert!(
            remaining <= longest && remaining >= longest.mul_f64(0.79),
            "{remaining:?}"
        );
        assert_eq!(breaker.begin(now).unwrap_err(), remaining);
        now = now.after(remaining);
        let probe = breaker.begin(now).unwrap();
        assert!(breaker.begin(now).is_err(), "a second call");
        assert!(breaker.check(now).is_err());
        assert!(probe.end(Health::Failed, now));
    }
    let BreakerState::Open { remaining } = breaker.state(now) else {
        panic!("not open")
    };
    now = now.after(remaining);
    assert!(!end(&breaker, Health::Answered, now));
    assert_eq!(breaker.state(now), BreakerState::Closed);
}

#[test]
fn a_dropped_probe_gives_its_turn_back_and_a_429_closes() {
    let breaker = Breaker::default();
    let mut now = at(0);
    for _ in 0..5 {
        end(&breaker, Health::Failed, now);
    }
    now = now.after(Duration::from_secs(5));
    drop(breaker.begin(now).unwrap());
    assert!(!end(&breaker, Health::Alive, now));
    assert_eq!(breaker.state(now), BreakerState::Closed);
    for _ in 0..100 {
        assert!(!end(&breaker, Health::Alive, now));
    }
    assert_eq!(breaker.state(now), BreakerState::Closed);
}

/// Opens it while this many calls are under way that began before.
fn open_past(breaker: &Breaker, calls: usize) -> impl Iterator<Item = Call<'_>> {
    let under_way: Vec<_> = (0..calls).map(|_| breaker.begin(at(0)).unwrap()).collect();
    for _ in 0..5 {
        end(breaker, Health::Failed, at(0));
    }
    under_way.into_iter()
}

#[test]
fn an_outcome_from_before_the_opening_changes_nothing_then_or_later() {
    const ALL: [Health; 3] = [Health::Failed, Health::Answered, Health::Alive];

    let breaker = Breaker::default();
    let mut old = open_past(&breaker, 2 * ALL.len() + 5);
    let open = breaker.state(at(0));
    for (health, call) in ALL.into_iter().zip(&mut old) {
        assert!(!call.end(health, at(0)), "{health:?}");
        assert_eq!(breaker.state(at(0)), open, "{health:?}");
    }
    let probe = breaker.begin(at(5_000)).unwrap();
    for health in ALL {
        assert!(!old.next().unwrap().end(health, at(5_000)), "{health:?}");
        assert!(breaker.begin(at(5_000)).is_err(), "{health:?}");
    }
    assert!(!probe.end(Health::Answered, at(5_000)));
    for call in old {
        assert!(!call.end(Health::Failed, at(5_000)));
    }
    assert_eq!(breaker.state(at(5_000)), BreakerState::Closed);
}

#[test]
fn a_dropped_call_gives_back_no_turn_but_its_own() {
    let breaker = Breaker::default();
    drop(breaker.begin(at(0)).unwrap());
    assert_eq!(breaker.state(at(0)), BreakerState::Closed);
    let mut old = open_past(&breaker, 2);
    let open = breaker.state(at(0));
    drop(old.next());
    assert_eq!(breaker.state(at(0)), open);
    let probe = breaker.begin(at(5_000)).unwrap();
    drop(old.next());
    assert!(breaker.begin(at(5_000)).is_err(), "a second probe");
    drop(probe);
    assert!(breaker.begin(at(5_000)).is_ok());
}

fn subjects(n: usize) -> Vec<KeyDigest> {
    let secret = crate::key::DigestSecret::draw().unwrap();
    (0..n).map(|n| secret.digest(n.to_string())).collect()
}

fn end_about(breaker: &Breaker, subject: KeyDigest, health: Health, now: Tick) -> bool {
    let call = breaker.begin(now).unwrap();
    call.about(Some(subject)).end(health, now)
}

#[test]
fn one_subject_that_fails_for_ever_never_opens_it_and_five_do() {
    let breaker = Breaker::default();
    let subjects = subjects(6);
    // An hour of its failures alone, and then among the answers of another.
    for second in 0..3_600 {
        assert!(!end_about(
            &breaker,
            subjects[0],
            Health::Failed,
            at(second * 1_000)
        ));
    }
    for n in 0..3_600 {
        let now = at(3_600_000 + n * 100);
        assert!(!end_about(&breaker, subjects[0], Health::Failed, now));
        if n % 2 == 0 {
            assert!(!end_about(&breaker, subjects[5], Health::Answered, now));
        }
    }
    assert_eq!(breaker.state(at(4_000_000)), BreakerState::Closed);
    for (n, &subject) in subjects[..5].iter().enumerate() {
        let opens = end_about(&breaker, subject, Health::Failed, at(4_000_000));
        assert_eq!(opens, n == 4, "{n}");
    }
}

#[test]
fn a_subjects_failures_count_once_in_ten_seconds_and_then_once_more() {
    for (again, opens) in [(9_999, false), (10_000, true)] {
        let breaker = Breaker::default();
        let subjects = subjects(5);
        for &subject in &subjects {
            assert!(!end_about(&breaker, subject, Health::Failed, at(0)));
            assert!(!end(&breaker, Health::Answered, at(0)));
        }
        for (n, &subject) in subjects.iter().enumerate() {
            let opened = end_about(&breaker, subject, Health::Failed, at(again));
            assert_eq!(opened, opens && n == 4, "{n} after {again} ms");
        }
    }
}

#[test]
fn half_of_twenty_calls_about_many_subjects_open_it() {
    let breaker = Breaker::default();
    let subjects = subjects(40);
    let opened = subjects.chunks(2).position(|pair| {
        end_about(&breaker, pair[0], Health::Answered, at(0));
        end_about(&breaker, pair[1], Health::Failed, at(0))
    });
    assert_eq!(opened, Some(9));
}

#[test]
fn a_subject_whose_probe_failed_lets_others_go_first_for_five_seconds() {
    let breaker = Breaker::default();
    let subjects = subjects(5);
    let mut now = at(0);
    for &subject in &subjects {
        end_about(&breaker, subject, Health::Failed, now);
    }
    now = now.after(Duration::from_secs(5));
    assert_eq!(breaker.give_way(Some(subjects[0]), now), Ok(()));
    assert!(end_about(&breaker, subjects[0], Health::Failed, now));
    let BreakerState::Open { remaining } = breaker.state(now) else {
        panic!("not open")
    };
    now = now.after(remaining);
    assert_eq!(breaker.check(now), Ok(()));
    assert_eq!(
        breaker.give_way(Some(subjects[0]), now),
        Err(Duration::from_secs(5))
    );
    assert_eq!(breaker.give_way(Some(subjects[1]), now), Ok(()));
    assert_eq!(breaker.give_way(None, now), Ok(()));
    let later = now.after(Duration::from_secs(5));
    assert_eq!(breaker.give_way(Some(subjects[0]), later), Ok(()));
    assert!(!end_about(&breaker, subjects[1], Health::Answered, now));
    assert_eq!(breaker.give_way(Some(subjects[0]), now), Ok(()));
}
