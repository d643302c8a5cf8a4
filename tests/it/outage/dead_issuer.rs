//! An issuer that fails, hangs, flaps or is slow.

use std::collections::HashSet;
use std::time::Duration;

use tower_orgkey::BreakerState;

use crate::support::app::{App, HARD, SOFT, millis, pass, secs};
use crate::support::issuer::{Behavior, CallOutcome};

const KNOWN: &str = "known-key";

#[tokio::test(start_paused = true)]
async fn fault_01_refused_connections_cost_no_known_key() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.issue("new-key-0");
    app.issuer.is(Behavior::Fails);

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
    app.get("none-none").await.is_unavailable();
    assert_eq!(app.reached(), reached);
}

#[tokio::test(start_paused = true)]
async fn fault_02_silent_issuer_delays_no_known_key() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.is(Behavior::Silent);

    assert_eq!(app.get_now(KNOWN).status, 200);
    pass(SOFT + secs(1)).await;
    for _ in 0..100 {
        assert_eq!(app.get_now(KNOWN).status, 200);
    }
    pass(millis(1)).await;
    assert_eq!(app.issuer.in_flight(), 1, "one refresh");
    assert_eq!(app.get_now(KNOWN).status, 200);

    let unknown_keys: Vec<_> = (0..5)
        .map(|n| app.begin(&format!("unknown_key-{n}")))
        .collect();
    for unknown_key in unknown_keys {
        let answer = unknown_key.await.unwrap();
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
    assert_eq!(app.issuer.in_flight(), 1);
    assert_eq!(probe.await.unwrap().status, 200);
    assert!(app.get_now(KNOWN).age() > 2 * SOFT);
    app.get("unknown_key-9").await.is_unavailable();
}

#[tokio::test(start_paused = true)]
async fn fault_02_silent_issuer_leaves_no_tasks() {
    let app = App::new();
    app.issuer.is(Behavior::Silent);
    let before = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    for second in 0..60 {
        for n in 0..500 {
            let app = app.clone();
            let secret = format!("unknown_key-{second}-{n}");
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
    assert!(app.issuer.max_in_flight() <= 48);
    pass(secs(10)).await;
    let alive = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    assert_eq!(alive, before);
    let upstream = app.handle.upstream();
    assert_eq!((upstream.in_flight, upstream.waiting), (0, 0));
    assert_eq!(app.issuer.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn fault_05_failures_open_the_breaker_only() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.issue("new-key-0");
    app.issuer.is(Behavior::Fails);
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
    assert_eq!(app.issuer.faults(), faults, "a call while it was open");

    app.issuer.is(Behavior::Answers);
    pass(secs(5)).await;
    assert_eq!(app.get("new-key-0").await.status, 200);
    assert_eq!(app.handle.upstream().breaker, BreakerState::Closed);
    assert_eq!(app.handle.stats().invalid_hits, 0);
}

#[tokio::test(start_paused = true)]
async fn fault_06_recovery_after_an_hour_has_no_herd() {
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

    app.issuer.is(Behavior::Fails);
    let died = app.now();
    let mut probes = 0;
    while app.now() < died + secs(3_600) {
        for (n, key) in keys.iter().enumerate() {
            // Most requests are polled once, as a server does; some are awaited.
            let answer = match app.try_now(key) {
                Some(answer) => answer,
                None => app.get(key).await,
            };
            assert_eq!(answer.status, 200, "key {n}");
        }
        probes = app.issuer.faults();
        pass(secs(1)).await;
    }
    // In the end the breaker lets one call through per 48 to 60 s; before it opened, up to 64 calls were in flight.
    assert!((60..=64 + 3_600 / 48 + 10).contains(&probes), "{probes}");

    app.issuer.is(Behavior::Answers);
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
            .logged(|call| call.at >= back && call.outcome == CallOutcome::Valid)
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
async fn fault_06_unknown_keys_recover_in_ten_seconds() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.open_breaker().await;
    for _ in 0..3_600 {
        pass(secs(1)).await;
        drop(app.try_now("unknown_key-0"));
    }
    assert!(app.issuer.faults() >= 50);
    app.issuer.is(Behavior::Answers);
    let faults = app.issuer.faults();
    let first = loop {
        pass(secs(1)).await;
        app.get("unknown_key-0").await;
        if let [first, ..] = &app
            .issuer
            .logged(|call| call.outcome == CallOutcome::Invalid)[..]
        {
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
async fn fault_07_past_the_hard_ttl_is_503() {
    let app = App::new().knowing(&[KNOWN]).await;
    let verified = app.issuer.logged(|_| true)[0].at;
    app.issuer.is(Behavior::Fails);
    app.jump_to(verified + HARD - Duration::from_nanos(1));
    assert_eq!(app.get(KNOWN).await.status, 200);
    app.jump_to(verified + HARD);
    app.get(KNOWN).await.is_unavailable();
    app.clock.jump(secs(3_600));
    app.get(KNOWN).await.is_unavailable();
    assert!(app.issuer.faults() >= 4);
    app.issuer.is(Behavior::Answers);
    app.clock.jump(secs(5));
    assert_eq!(
        app.get(KNOWN).await.status,
        200,
        "nothing was remembered against it"
    );
}

#[tokio::test(start_paused = true)]
async fn fault_11_flapping_issuer_costs_one_retry() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.is(Behavior::FailsOneOf(2));
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
async fn fault_11_retries_are_bounded() {
    const SECONDS: usize = 60;

    // Half of the calls failing opens the breaker, so that it is the breaker that limits them; a third does not.
    for behavior in [Behavior::FailsOneOf(2), Behavior::FailsOneOf(3)] {
        let app = App::new().knowing(&[KNOWN]).await;
        app.issuer.is(behavior);
        let mut unknown_keys = 0;
        for _ in 0..SECONDS {
            for _ in 0..40 {
                let secret = format!("new-key-{unknown_keys}");
                app.issuer.issue(&secret);
                drop(app.begin(&secret));
                unknown_keys += 1;
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
            "{retries} retries of {} calls, {behavior:?}",
            first.len()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn known_keys_are_reverified_without_retries() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.is(Behavior::Fails);
    pass(SOFT).await;
    assert_eq!(app.get_now(KNOWN).status, 200);
    pass(secs(2)).await;
    let refresh = app.issuer.logged(|call| call.outcome == CallOutcome::Fault);
    assert_eq!((refresh.len(), refresh[0].known), (1, true));
    pass(SOFT).await;
    assert_eq!(app.get(KNOWN).await.status, 200);
    pass(secs(2)).await;
    let calls = app.issuer.logged(|call| call.outcome == CallOutcome::Fault);
    assert_eq!(
        (calls.len(), calls[1].known),
        (2, true),
        "a caller waited, and still no retry"
    );
}

#[tokio::test(start_paused = true)]
async fn fault_12_slow_issuer_delays_no_hit() {
    let app = App::new();
    app.issuer.latency(millis(900));
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
    assert!(app.issuer.max_in_flight() == 48);
}

#[tokio::test(start_paused = true)]
async fn fault_12_impatient_callers_share_one_lookup() {
    let app = App::new();
    app.issuer.issue(KNOWN);
    app.issuer.latency(millis(900));
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
    assert!(app.issuer.logged(|_| true)[0].outcome == CallOutcome::Valid);
}

#[tokio::test(start_paused = true)]
async fn fault_36_lookup_outlives_its_callers() {
    let app = App::with(|builder| {
        builder
            .attempt_deadline(secs(4))
            .caller_deadline(secs(4))
            .lookup_deadline(secs(10))
    });
    app.issuer.issue("new-key-0");
    app.issuer.is(Behavior::Silent);
    let early = app.begin("new-key-0");
    pass(secs(3)).await;
    // Comes three seconds later, and waits for its own four.
    let late = app.begin("new-key-0");
    app.issuer.is(Behavior::Answers);
    app.issuer.latency(millis(1_500));
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
