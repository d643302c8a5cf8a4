use super::Circuit::{Known, Unknown};
use super::*;
use crate::kit::{TestKey, TestSource, test_key};

fn at(millis: u64) -> Tick {
    Tick::ZERO.after(Duration::from_millis(1_000_000 + millis))
}

fn breaker() -> Breaker<TestSource> {
    Breaker::new(Label::from("issuer"))
}

fn keys(n: usize) -> Vec<TestKey> {
    (0..n).map(|n| test_key(n.to_string())).collect()
}

fn end(
    breaker: &Breaker<TestSource>,
    circuit: Circuit,
    key: TestKey,
    health: Health,
    now: Tick,
) -> bool {
    breaker.begin(circuit, &key, now).unwrap().end(health, now)
}

/// Lets five keys fail.
fn open(breaker: &Breaker<TestSource>, circuit: Circuit, now: Tick) {
    for key in keys(5) {
        end(breaker, circuit, key, Health::Failed, now);
    }
    remaining(breaker, circuit, now);
}

#[track_caller]
fn remaining(breaker: &Breaker<TestSource>, circuit: Circuit, now: Tick) -> Duration {
    match breaker.state(circuit, now) {
        BreakerState::Open { remaining } => remaining,
        other => panic!("{circuit:?} is {other:?}"),
    }
}

#[test]
fn five_failing_keys_in_a_row_open_it() {
    for circuit in [Known, Unknown] {
        let breaker = breaker();
        let keys = keys(10);
        for &key in &keys[..4] {
            assert!(!end(&breaker, circuit, key, Health::Failed, at(0)));
        }
        assert!(!end(&breaker, circuit, keys[4], Health::Answered, at(0)));
        for &key in &keys[5..9] {
            assert!(!end(&breaker, circuit, key, Health::Failed, at(0)));
        }
        assert_eq!(breaker.state(circuit, at(0)), BreakerState::Closed);
        assert!(end(&breaker, circuit, keys[9], Health::Failed, at(0)));
        remaining(&breaker, circuit, at(0));
    }
}

#[test]
fn unknown_keys_open_it_for_unknown_keys_only() {
    let breaker = breaker();
    open(&breaker, Unknown, at(0));
    assert_eq!(breaker.state(Known, at(0)), BreakerState::Closed);
    assert_eq!(breaker.check(Known, &keys(1)[0], at(0)), Ok(()));
}

#[test]
fn known_keys_open_and_close_it_for_all() {
    let breaker = breaker();
    let key = keys(1)[0];
    open(&breaker, Known, at(0));
    assert_eq!(
        remaining(&breaker, Known, at(0)),
        remaining(&breaker, Unknown, at(0))
    );
    assert!(!end(&breaker, Known, key, Health::Answered, at(5_000)));
    for circuit in [Known, Unknown] {
        assert_eq!(breaker.state(circuit, at(5_000)), BreakerState::Closed);
    }
}

#[test]
fn unknown_keys_close_the_unknown_circuit_only() {
    let breaker = breaker();
    open(&breaker, Known, at(0));
    end(&breaker, Unknown, keys(1)[0], Health::Answered, at(5_000));
    assert_eq!(breaker.state(Unknown, at(5_000)), BreakerState::Closed);
    assert_eq!(breaker.state(Known, at(5_000)), BreakerState::HalfOpen);
}

#[test]
fn failing_unknown_keys_delay_no_known_key() {
    let breaker = breaker();
    let keys = keys(100);
    open(&breaker, Known, at(0));
    for (n, &key) in keys.iter().enumerate() {
        let now = at(5_000 + 1_000 * n as u64);
        if let Ok(call) = breaker.begin(Unknown, &key, now) {
            call.end(Health::Failed, now);
        }
        assert_eq!(breaker.check(Known, &keys[0], now), Ok(()));
    }
}

#[test]
fn a_known_key_that_asked_goes_first_for_5_s() {
    for has_asked in [true, false] {
        let breaker = breaker();
        let keys = keys(2);
        open(&breaker, Known, at(0));
        let end_of_pause = at(0).after(remaining(&breaker, Known, at(0)));
        if has_asked {
            assert!(breaker.check(Known, &keys[0], at(1)).is_err());
        }
        let unknown = breaker.check(Unknown, &keys[1], end_of_pause);
        if has_asked {
            assert_eq!(unknown, Err(PRECEDENCE));
            let later = end_of_pause.after(PRECEDENCE);
            assert_eq!(breaker.check(Unknown, &keys[1], later), Ok(()));
        } else {
            assert_eq!(unknown, Ok(()));
        }
        assert_eq!(breaker.check(Known, &keys[0], end_of_pause), Ok(()));
    }
}

#[test]
fn unknown_keys_wait_for_a_known_keys_trial() {
    let breaker = breaker();
    let keys = keys(2);
    open(&breaker, Known, at(0));
    let trial = breaker.begin(Known, &keys[0], at(5_000)).unwrap();
    let waits = Err(RETRY_AFTER_TRIAL);
    assert_eq!(breaker.check(Unknown, &keys[1], at(5_000)), waits);
    drop(trial);
    assert_eq!(breaker.check(Unknown, &keys[1], at(5_000)), Ok(()));
}

#[test]
fn half_of_twenty_calls_in_ten_seconds_open_it() {
    let breaker = breaker();
    let keys = keys(20);
    for (n, pair) in keys.chunks(2).enumerate() {
        let now = at(900 * n as u64);
        assert!(!end(&breaker, Known, pair[0], Health::Answered, now));
        let opened = end(&breaker, Known, pair[1], Health::Failed, now);
        assert_eq!(opened, n == 9, "{n}");
    }
}

#[test]
fn calls_older_than_the_window_do_not_count() {
    let breaker = breaker();
    let keys = keys(20);
    for (n, pair) in keys.chunks(2).enumerate() {
        let now = at(if n == 9 { 11_000 } else { 100 * n as u64 });
        end(&breaker, Known, pair[0], Health::Answered, now);
        assert!(!end(&breaker, Known, pair[1], Health::Failed, now));
    }
}

#[test]
fn it_opens_for_longer_each_time() {
    let breaker = breaker();
    let mut now = at(0);
    let keys = keys(2);
    open(&breaker, Known, now);
    for (n, longest) in [5, 10, 20, 40, 60, 60].into_iter().enumerate() {
        let open_for = remaining(&breaker, Known, now);
        let longest = Duration::from_secs(longest);
        assert!(open_for <= longest && open_for >= longest.mul_f64(0.79));
        // In turn: after a failed trial, a key lets the other one go first.
        let key = keys[n % 2];
        assert_eq!(breaker.begin(Known, &key, now).err().unwrap(), open_for);
        now = now.after(open_for);
        let trial = breaker.begin(Known, &key, now).unwrap();
        assert!(breaker.begin(Known, &keys[(n + 1) % 2], now).is_err());
        assert!(breaker.check(Known, &key, now).is_err());
        assert!(trial.end(Health::Failed, now));
    }
    now = now.after(remaining(&breaker, Known, now));
    assert!(!end(&breaker, Known, keys[0], Health::Answered, now));
    assert_eq!(breaker.state(Known, now), BreakerState::Closed);
}

#[test]
fn dropped_trial_lets_another_try_and_429_closes() {
    let breaker = breaker();
    let key = keys(1)[0];
    open(&breaker, Known, at(0));
    let now = at(5_000);
    drop(breaker.begin(Known, &key, now).unwrap());
    assert!(!end(&breaker, Known, key, Health::Alive, now));
    assert_eq!(breaker.state(Known, now), BreakerState::Closed);
    for _ in 0..100 {
        assert!(!end(&breaker, Known, key, Health::Alive, now));
    }
    assert_eq!(breaker.state(Known, now), BreakerState::Closed);
}

/// Opens it while this many calls are in flight that began before.
fn open_past(
    breaker: &Breaker<TestSource>,
    calls: usize,
) -> impl Iterator<Item = Call<'_, TestSource>> {
    let in_flight: Vec<_> = keys(calls)
        .into_iter()
        .map(|key| breaker.begin(Known, &key, at(0)).unwrap())
        .collect();
    open(breaker, Known, at(0));
    in_flight.into_iter()
}

#[test]
fn outcomes_from_before_opening_change_nothing() {
    const ALL: [Health; 4] = [
        Health::Failed,
        Health::Answered,
        Health::Alive,
        Health::InvalidResponse,
    ];

    let breaker = breaker();
    let keys = keys(2);
    let mut old = open_past(&breaker, 2 * ALL.len() + 5);
    let open = breaker.state(Known, at(0));
    for (health, call) in ALL.into_iter().zip(&mut old) {
        assert!(!call.end(health, at(0)), "{health:?}");
        assert_eq!(breaker.state(Known, at(0)), open, "{health:?}");
    }
    let trial = breaker.begin(Known, &keys[0], at(5_000)).unwrap();
    for health in ALL {
        assert!(!old.next().unwrap().end(health, at(5_000)), "{health:?}");
        assert!(breaker.begin(Known, &keys[1], at(5_000)).is_err());
    }
    assert!(!trial.end(Health::Answered, at(5_000)));
    for call in old {
        assert!(!call.end(Health::Failed, at(5_000)));
    }
    assert_eq!(breaker.state(Known, at(5_000)), BreakerState::Closed);
}

#[test]
fn a_dropped_call_ends_no_other_trial() {
    let breaker = breaker();
    let keys = keys(2);
    drop(breaker.begin(Known, &keys[0], at(0)).unwrap());
    assert_eq!(breaker.state(Known, at(0)), BreakerState::Closed);
    let mut old = open_past(&breaker, 2);
    let open = breaker.state(Known, at(0));
    drop(old.next());
    assert_eq!(breaker.state(Known, at(0)), open);
    let trial = breaker.begin(Known, &keys[0], at(5_000)).unwrap();
    drop(old.next());
    assert!(breaker.begin(Known, &keys[1], at(5_000)).is_err());
    drop(trial);
    assert!(breaker.begin(Known, &keys[1], at(5_000)).is_ok());
}

#[test]
fn one_key_that_always_fails_never_opens_it() {
    let breaker = breaker();
    let keys = keys(6);
    // An hour of its failures alone, and then among the answers of another key.
    for second in 0..3_600 {
        let now = at(second * 1_000);
        assert!(!end(&breaker, Known, keys[0], Health::Failed, now));
    }
    for n in 0..3_600 {
        let now = at(3_600_000 + n * 100);
        assert!(!end(&breaker, Known, keys[0], Health::Failed, now));
        if n % 2 == 0 {
            assert!(!end(&breaker, Known, keys[5], Health::Answered, now));
        }
    }
    assert_eq!(breaker.state(Known, at(4_000_000)), BreakerState::Closed);
}

#[test]
fn a_keys_failures_count_once_in_ten_seconds() {
    for (again, opens) in [(9_999, false), (10_000, true)] {
        let breaker = breaker();
        let keys = keys(6);
        for &key in &keys[..5] {
            assert!(!end(&breaker, Known, key, Health::Failed, at(0)));
            assert!(!end(&breaker, Known, keys[5], Health::Answered, at(0)));
        }
        for (n, &key) in keys[..5].iter().enumerate() {
            let opened = end(&breaker, Known, key, Health::Failed, at(again));
            assert_eq!(opened, opens && n == 4, "{n} after {again} ms");
        }
    }
}

#[test]
fn ten_invalid_responses_in_a_row_open_it() {
    for circuit in [Known, Unknown] {
        let breaker = breaker();
        let keys = keys(20);
        for _ in 0..100 {
            for &key in &keys[..9] {
                assert!(!end(&breaker, circuit, key, Health::InvalidResponse, at(0)));
            }
        }
        // An answer about any key shows that the issuer makes sense.
        assert!(!end(&breaker, Known, keys[19], Health::Answered, at(0)));
        for (n, &key) in keys[..10].iter().enumerate() {
            let opened = end(&breaker, circuit, key, Health::InvalidResponse, at(0));
            assert_eq!(opened, n == 9, "{n}");
        }
        remaining(&breaker, circuit, at(0));
    }
}

#[test]
fn invalid_trial_leaves_next_to_another_key() {
    let breaker = breaker();
    let keys = keys(2);
    open(&breaker, Known, at(0));
    let now = at(5_000);
    assert!(!end(&breaker, Known, keys[0], Health::InvalidResponse, now));
    assert_eq!(breaker.check(Known, &keys[0], now), Err(PRECEDENCE));
    assert!(!end(&breaker, Known, keys[1], Health::Answered, now));
    assert_eq!(breaker.state(Known, now), BreakerState::Closed);
}

#[test]
fn a_key_whose_trial_failed_lets_others_go_first() {
    let breaker = breaker();
    let keys = keys(2);
    open(&breaker, Known, at(0));
    let now = at(5_000);
    assert!(end(&breaker, Known, keys[0], Health::Failed, now));
    let now = now.after(remaining(&breaker, Known, now));
    assert_eq!(breaker.check(Known, &keys[0], now), Err(PRECEDENCE));
    assert_eq!(breaker.check(Known, &keys[1], now), Ok(()));
    let later = now.after(PRECEDENCE);
    assert_eq!(breaker.check(Known, &keys[0], later), Ok(()));
    assert!(!end(&breaker, Known, keys[1], Health::Answered, now));
    assert_eq!(breaker.check(Known, &keys[0], now), Ok(()));
}
