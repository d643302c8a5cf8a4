//! An issuer that fails, hangs, flaps or is slow.

use std::collections::HashSet;
use std::time::Duration;

use tower_orgkey::BreakerState;

use crate::kit::{App, HARD, Mood, Outcome, SOFT, millis, pass, secs};

const KNOWN: &str = "known-key";

#[tokio::test(start_paused = true)]
async fn fault_01_refused_connections_leave_known_keys_alone_and_strangers_get_503() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.issue("new-key-0");
    app.issuer.is(Mood::Fails);

    assert!(!app.get_now(KNOWN).is_stale());
    let retry_after = app.get("new-key-0").await.is_unavailable();
    assert!(retry_after >= 1);
    assert_eq!(
        app.issuer.faults(),
        2,
        "an unknown key is worth one second call"
    );

    pass(SOFT + secs(10)).await;
    assert!(app.get_now(KNOWN).is_stale());
    pass(SOFT).await;
    assert_eq!(app.get(KNOWN).await.status, 200, "past both soft TTLs");
    assert!(app.issuer.faults() >= 4);
    let reached = app.reached();
    app.get("new-key-0").await.is_unavailable();
    app.get("junk-junk").await.is_unavailable();
    assert_eq!(app.reached(), reached);
}

#[tokio::test(start_paused = true)]
async fn fault_02_a_silent_issuer_delays_no_known_key_in_both_soft_ttls_nor_behind_the_breaker() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.is(Mood::Silent);

    assert_eq!(app.get_now(KNOWN).status, 200);
    pass(SOFT + secs(1)).await;
    for _ in 0..100 {
        assert_eq!(app.get_now(KNOWN).status, 200);
    }
    pass(millis(1)).await;
    assert_eq!(app.issuer.under_way(), 1, "one refresh");
    assert_eq!(app.get_now(KNOWN).status, 200);

    let strangers: Vec<_> = (0..5)
        .map(|n| app.begin(&format!("stranger-{n}")))
        .collect();
    for stranger in strangers {
        let answer = stranger.await.unwrap();
        answer.is_unavailable();
        assert!(answer.took <= millis(2_500), "{:?}", answer.took);
    }
    assert!(app.issuer.faults() >= 6);
    assert!(matches!(
        app.handle.upstream().unknown_breaker,
        BreakerState::Open { .. }
    ));
    pass(SOFT - secs(2)).await;
    // The first request past both soft TTLs waits for a lookup. Once that has failed, the next ones do not.
    let probe = app.begin(KNOWN);
    pass(millis(1)).await;
    assert_eq!(app.issuer.under_way(), 1);
    assert_eq!(probe.await.unwrap().status, 200);
    assert!(app.get_now(KNOWN).age() > 2 * SOFT);
    app.get("stranger-9").await.is_unavailable();
}

#[tokio::test(start_paused = true)]
async fn fault_02_callers_of_a_silent_issuer_leave_no_tasks_behind() {
    let app = App::new();
    app.issuer.is(Mood::Silent);
    let before = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    for second in 0..60 {
        for n in 0..500 {
            let app = app.clone();
            let secret = format!("stranger-{second}-{n}");
            drop(app.try_now(&secret));
        }
        pass(secs(1)).await;
        let alive = tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks();
        // Those of one second, and the timer of the queue.
        assert!(alive - before <= 500 + 1, "{alive} tasks");
    }
    assert!(app.issuer.faults() > 48);
    assert!(app.issuer.most_under_way() <= 48);
    pass(secs(10)).await;
    let alive = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    assert_eq!(alive, before);
    let upstream = app.handle.upstream();
    assert_eq!((upstream.in_flight, upstream.waiting), (0, 0));
    assert_eq!(app.issuer.under_way(), 0);
}

#[tokio::test(start_paused = true)]
async fn fault_05_failures_open_the_breaker_and_are_remembered_against_no_key() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.issue("new-key-0");
    app.issuer.is(Mood::Fails);
    app.get("new-key-0").await.is_unavailable();
    app.open_breaker().await;
    let faults = app.issuer.faults();
    assert!(
        (5..=10).contains(&faults),
        "five keys in a row, each with its retry if the budget allowed one: {faults}"
    );
    let retry_after = app.get_now("new-key-0").is_unavailable();
    assert!((4..=5).contains(&retry_after));
    assert_eq!(app.get_now(KNOWN).status, 200);
    assert_eq!(
        app.issuer.faults(),
        faults,
        "nothing is asked while it is open"
    );

    app.issuer.is(Mood::Answers);
    pass(secs(5)).await;
    assert_eq!(app.get("new-key-0").await.status, 200);
    assert_eq!(app.handle.upstream().breaker, BreakerState::Closed);
    assert_eq!(app.handle.stats().refusals, 0);
}

#[tokio::test(start_paused = true)]
async fn fault_06_an_hour_without_the_issuer_costs_known_keys_nothing_and_its_return_brings_no_herd()
 {
    const KEYS: usize = 300;
    const CALLS_PER_SECOND: u32 = 30;

    let app = App::with(|builder| {
        builder
            .hard_ttl(secs(2 * 3_600))
            .max_calls_per_second(CALLS_PER_SECOND)
    });
    let keys: Vec<_> = (0..KEYS).map(|n| format!("known-{n:04}")).collect();
    for key in &keys {
        app.issuer.issue(key);
        assert_eq!(app.get(key).await.status, 200);
    }

    app.issuer.is(Mood::Fails);
    let died = app.now();
    let mut probes = 0;
    while app.now() < died + secs(3_600) {
        for (n, key) in keys.iter().enumerate() {
            // Most requests are polled once, as a server would; some are waited for.
            let answer = match app.try_now(key) {
                Some(answer) => answer,
                None => app.get(key).await,
            };
            assert_eq!(answer.status, 200, "key {n}");
        }
        probes = app.issuer.faults();
        pass(secs(1)).await;
    }
    // The breaker settles at one probe in 48 to 60 s; before it opened, up to 64 calls were under way.
    assert!((60..=64 + 3_600 / 48 + 10).contains(&probes), "{probes}");

    app.issuer.is(Mood::Answers);
    let back = app.now();
    let mut first_success = None;
    let mut all_fresh = None;
    while app.now() < back + secs(120) && all_fresh.is_none() {
        let mut fresh = 0;
        let answers: Vec<_> = keys.iter().map(|key| app.begin(key)).collect();
        for answer in answers {
            let answer = answer.await.unwrap();
            assert_eq!(answer.status, 200);
            fresh += usize::from(!answer.is_stale());
        }
        first_success = app
            .issuer
            .logged(|call| call.at >= back && call.outcome == Outcome::Yes)
            .first()
            .map(|call| call.at);
        if fresh == KEYS {
            all_fresh = Some(app.now());
        }
        pass(millis(500)).await;
    }
    let first_success = first_success.unwrap();
    assert!(
        first_success - back <= secs(61),
        "{:?}",
        first_success - back
    );
    // 300 refreshes at 30 a second.
    let recovery = all_fresh.unwrap() - first_success;
    assert!(recovery < secs(14), "{recovery:?}");
    let herd = app.issuer.most_in_a_second(back);
    assert!(herd <= CALLS_PER_SECOND as usize + 1, "{herd} in a second");
}

#[tokio::test(start_paused = true)]
async fn fault_06_unknown_keys_are_verified_within_ten_seconds_of_the_first_probe_that_succeeds() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.open_breaker().await;
    for _ in 0..3_600 {
        pass(secs(1)).await;
        drop(app.try_now("stranger-0"));
    }
    assert!(app.issuer.faults() >= 50);
    app.issuer.is(Mood::Answers);
    let faults = app.issuer.faults();
    let first = loop {
        pass(secs(1)).await;
        app.get("stranger-0").await;
        if let [first, ..] = &app.issuer.logged(|call| call.outcome == Outcome::No)[..] {
            break first.at;
        }
    };
    assert_eq!(app.issuer.faults(), faults);
    let keys: Vec<_> = (0..200).map(|n| format!("new-key-{n:04}")).collect();
    let answers: Vec<_> = keys
        .iter()
        .map(|key| {
            app.issuer.issue(key);
            app.begin(key)
        })
        .collect();
    for answer in answers {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert!(app.now() - first < secs(10));
}

#[tokio::test(start_paused = true)]
async fn fault_07_past_the_hard_ttl_a_key_gets_503_and_not_401() {
    let app = App::new().knowing(&[KNOWN]).await;
    let verified = app.issuer.logged(|_| true)[0].at;
    app.issuer.is(Mood::Fails);
    app.jump_to(verified + HARD - Duration::from_nanos(1));
    assert_eq!(app.get(KNOWN).await.status, 200);
    app.jump_to(verified + HARD);
    app.get(KNOWN).await.is_unavailable();
    app.clock.jump(secs(3_600));
    app.get(KNOWN).await.is_unavailable();
    assert!(app.issuer.faults() >= 4);
    app.issuer.is(Mood::Answers);
    app.clock.jump(secs(5));
    assert_eq!(
        app.get(KNOWN).await.status,
        200,
        "nothing was remembered against it"
    );
}

#[tokio::test(start_paused = true)]
async fn fault_11_a_flapping_issuer_costs_one_retry_and_most_strangers_pass() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.is(Mood::Flaps(2));
    let mut passed = 0;
    for n in 0..200 {
        let secret = format!("new-key-{n}");
        app.issuer.issue(&secret);
        passed += usize::from(app.get(&secret).await.status == 200);
        assert!(
            app.issuer.calls_for(&secret) <= 2,
            "one retry and no second one"
        );
        assert_eq!(app.get(KNOWN).await.status, 200);
        pass(millis(1_500)).await;
    }
    assert!(app.issuer.faults() >= 80, "{}", app.issuer.faults());
    assert!(passed >= 190, "{passed} of 200");
}

#[tokio::test(start_paused = true)]
async fn fault_11_retries_are_at_most_a_tenth_of_the_calls_and_one_a_second() {
    const SECONDS: usize = 60;

    // Half of the calls failing opens the breaker, so that it is the breaker that limits them; a third does not.
    for mood in [Mood::Flaps(2), Mood::Flaps(3)] {
        let app = App::new().knowing(&[KNOWN]).await;
        app.issuer.is(mood);
        let mut strangers = 0;
        for _ in 0..SECONDS {
            for _ in 0..40 {
                let secret = format!("new-key-{strangers}");
                app.issuer.issue(&secret);
                drop(app.begin(&secret));
                strangers += 1;
                pass(millis(25)).await;
                assert_eq!(app.get(KNOWN).await.status, 200);
            }
        }
        pass(secs(10)).await;
        let of_strangers = app.issuer.logged(|call| call.key != KNOWN);
        let first: HashSet<_> = of_strangers.iter().map(|call| call.key.as_str()).collect();
        let retries = of_strangers.len() - first.len();
        assert!(app.issuer.faults() >= 40, "{}", app.issuer.faults());
        assert!(retries >= 5, "{retries} retries");
        assert!(
            retries <= first.len() / 10 + SECONDS + 10,
            "{retries} retries of {} calls, {mood:?}",
            first.len()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn known_keys_are_never_retried_and_said_to_be_known() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.is(Mood::Fails);
    pass(SOFT).await;
    assert_eq!(app.get_now(KNOWN).status, 200);
    pass(secs(2)).await;
    let refresh = app.issuer.logged(|call| call.outcome == Outcome::Fault);
    assert_eq!((refresh.len(), refresh[0].known), (1, true));
    pass(SOFT).await;
    assert_eq!(app.get(KNOWN).await.status, 200);
    pass(secs(2)).await;
    let calls = app.issuer.logged(|call| call.outcome == Outcome::Fault);
    assert_eq!(
        (calls.len(), calls[1].known),
        (2, true),
        "a caller waited, and still no retry"
    );
}

#[tokio::test(start_paused = true)]
async fn fault_12_a_slow_issuer_delays_no_hit() {
    let app = App::new();
    app.issuer.takes(millis(900));
    let app = app.knowing(&[KNOWN]).await;
    let keys: Vec<_> = (0..100).map(|n| format!("new-key-{n}")).collect();
    let began = app.now();
    for key in &keys {
        app.issuer.issue(key);
        drop(app.begin(key));
    }
    while app.now() < began + 2 * SOFT - secs(20) {
        assert_eq!(app.get_now(KNOWN).status, 200);
        pass(millis(100)).await;
    }
    assert_eq!(app.issuer.logged(|call| call.known).len(), 1, "one refresh");
    assert!(app.issuer.most_under_way() == 48);
}

#[tokio::test(start_paused = true)]
async fn fault_12_callers_less_patient_than_the_issuer_do_not_start_over() {
    let app = App::new();
    app.issuer.issue(KNOWN);
    app.issuer.takes(millis(900));
    let began = app.now();
    for _ in 0..8 {
        let callers = (0..5).map(|_| tokio::time::timeout(millis(100), app.get(KNOWN)));
        for caller in callers {
            assert!(caller.await.is_err(), "the caller gave up");
        }
        if app.now() - began > millis(400) {
            break;
        }
    }
    pass(millis(500)).await;
    assert_eq!(app.get_now(KNOWN).status, 200);
    assert_eq!(app.issuer.calls(), 1);
    assert!(app.issuer.logged(|_| true)[0].outcome == Outcome::Yes);
}

#[tokio::test(start_paused = true)]
async fn fault_36_a_flight_outlives_the_callers_who_gave_up_on_it() {
    let app = App::with(|builder| {
        builder
            .attempt_deadline(secs(4))
            .caller_deadline(secs(4))
            .flight_deadline(secs(10))
    });
    app.issuer.issue("new-key-0");
    app.issuer.is(Mood::Silent);
    let early = app.begin("new-key-0");
    pass(secs(3)).await;
    // Comes three seconds later, and waits for its own four.
    let late = app.begin("new-key-0");
    app.issuer.is(Mood::Answers);
    app.issuer.takes(millis(1_500));
    let early = early.await.unwrap();
    early.is_unavailable();
    assert_eq!(early.took, secs(4));
    // The first call timed out; its retry, begun just after four seconds, takes another 1.5 s.
    let late = late.await.unwrap();
    assert_eq!(late.status, 200);
    assert!(
        late.took > millis(2_500) && late.took < millis(2_700),
        "{late:?}"
    );
    assert_eq!((app.issuer.calls(), app.issuer.faults()), (2, 1));
    assert_eq!(app.get_now("new-key-0").status, 200);
}
