//! Bounds on the calls to the issuer: in flight, per second, and while it fails.

use std::time::Duration;

use tower_orgkey::BreakerState;

use super::kit::{App, Behavior, Peer, SOFT, millis, pass, secs};

#[tokio::test(start_paused = true)]
async fn at_most_64_calls_a_quarter_for_known_keys() {
    let known: Vec<_> = (0..30).map(|n| format!("known-{n:04}")).collect();
    let known: Vec<_> = known.iter().map(String::as_str).collect();
    let app = App::new().knowing(&known).await;
    pass(SOFT).await;
    app.issuer.takes(millis(900));
    let unknown_keys: Vec<_> = (0..400)
        .map(|n| {
            let secret = format!("new-key-{n}");
            app.issuer.issue(&secret);
            app.begin(&secret)
        })
        .collect();
    pass(millis(1)).await;
    let upstream = app.handle.upstream();
    assert_eq!((upstream.in_flight, upstream.waiting), (48, 352));
    assert_eq!(app.issuer.in_flight(), 48);
    for key in &known {
        assert_eq!(app.get_now(key).status, 200);
    }
    pass(millis(1)).await;
    let upstream = app.handle.upstream();
    assert_eq!((upstream.in_flight, upstream.waiting), (64, 352 + 14));
    assert_eq!(app.issuer.in_flight(), 64);

    for unknown_key in unknown_keys {
        let answer = unknown_key.await.unwrap();
        assert!(answer.took <= millis(2_500));
        assert!(answer.status == 200 || answer.is_unavailable() >= 1);
    }
    pass(secs(10)).await;
    assert_eq!(app.issuer.max_in_flight(), 64);
    let upstream = app.handle.upstream();
    assert_eq!((upstream.in_flight, upstream.waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn known_keys_have_a_reserve_of_calls() {
    let app = App::new().knowing(&["known-key"]).await;
    app.issuer.takes(millis(900));
    pass(2 * SOFT).await;
    for n in 0..300 {
        drop(app.begin_from(&format!("unknown_key-{n}"), Some(Peer(n))));
    }
    pass(millis(1)).await;
    assert_eq!(app.issuer.in_flight(), 48);
    let known = app.begin("known-key");
    pass(millis(1)).await;
    assert_eq!(app.issuer.in_flight(), 49);
    let known = known.await.unwrap();
    assert_eq!((known.status, known.took), (200, millis(900)));
    assert!(!known.is_stale());
}

#[tokio::test(start_paused = true)]
async fn half_open_breaker_permits_one_call() {
    let app = App::new();
    for n in 0..300 {
        app.issuer.issue(&format!("new-key-{n}"));
    }
    app.open_breaker().await;
    let mut round = 0;
    let mut waits = Vec::new();
    while waits.len() < 6 {
        let BreakerState::Open { remaining } = app.handle.upstream().unknown_breaker else {
            panic!("not open")
        };
        waits.push(remaining);
        let faults = app.issuer.faults();
        pass(remaining.checked_sub(millis(2)).unwrap()).await;
        app.get_now("new-key-0").is_unavailable();
        assert_eq!(app.issuer.faults(), faults);
        pass(millis(3)).await;
        assert_eq!(
            app.handle.upstream().unknown_breaker,
            BreakerState::HalfOpen
        );
        // The half-open call may be answered at once or hang; 300 requests arrive at the same time.
        app.issuer.is(if round % 2 == 0 {
            Behavior::Silent
        } else {
            Behavior::Fails
        });
        round += 1;
        let callers: Vec<_> = (0..300)
            .map(|n| app.begin(&format!("new-key-{n}")))
            .collect();
        for caller in callers {
            caller.await.unwrap().is_unavailable();
        }
        assert_eq!(app.issuer.faults(), faults + 1, "round {round}");
    }
    for (wait, longest) in waits.iter().zip([5, 10, 20, 40, 60, 60].map(secs)) {
        assert!(*wait <= longest && *wait >= longest * 7 / 10, "{waits:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_503_has_its_retry_after() {
    // The issuer fails: the default of one second.
    let app = App::new();
    app.issuer.is(Behavior::Fails);
    assert_eq!(app.get("unknown_key-x").await.is_unavailable(), 1);

    // The breaker is open: its remaining time.
    app.open_breaker().await;
    let BreakerState::Open { remaining } = app.handle.upstream().unknown_breaker else {
        panic!("not open")
    };
    assert_eq!(
        app.get_now("unknown_key-x").is_unavailable(),
        (remaining + Duration::from_nanos(999_999_999)).as_secs()
    );
    app.clock.jump(remaining);

    // The half-open call is in flight: one second.
    app.issuer.is(Behavior::Silent);
    let probe = app.begin("unknown_key-y");
    pass(millis(1)).await;
    assert_eq!(app.issuer.in_flight(), 1);
    assert_eq!(app.get_now("unknown_key-x").is_unavailable(), 1);
    probe.await.unwrap().is_unavailable();

    // A pause: its remaining time.
    let app = App::new();
    app.issuer.is(Behavior::TooMany(Some(secs(42))));
    assert_eq!(app.get("unknown_key-x").await.is_unavailable(), 42);
    app.clock.jump(millis(1_500));
    assert_eq!(app.get_now("unknown_key-x").is_unavailable(), 41);

    // Requests that waited when it began are rejected with it.
    let app = App::with(|builder| builder.max_calls_per_second(1));
    app.issuer.is(Behavior::TooMany(Some(secs(42))));
    let waiting: Vec<_> = (0..2)
        .map(|n| app.begin(&format!("unknown_key-{n}")))
        .collect();
    for waiting in waiting {
        let answer = waiting.await.unwrap();
        assert_eq!((answer.is_unavailable(), answer.took), (42, Duration::ZERO));
    }
    assert_eq!(app.issuer.faults(), 1);

    // The credentials are rejected: an operator has to act.
    let app = App::new();
    app.issuer.is(Behavior::Misconfigured);
    let answer = app.get("unknown_key-x").await;
    assert_eq!(
        (answer.code, answer.retry_after),
        (Some("verifier-misconfigured"), Some(10))
    );
    assert_eq!(app.issuer.faults(), 1);

    // Slow calls and a long queue: the expected wait.
    let app = App::new();
    app.issuer.takes(millis(900));
    let first: Vec<_> = (0..48)
        .map(|n| app.begin(&format!("unknown_key-{n}")))
        .collect();
    for first in first {
        assert_eq!(first.await.unwrap().status, 401);
    }
    for n in 48..96 + 200 {
        drop(app.begin(&format!("unknown_key-{n}")));
    }
    pass(millis(1)).await;
    let waiting = app.handle.upstream().waiting;
    assert!((120..150).contains(&waiting), "{waiting}");
    assert_eq!(app.get_now("unknown_key-x").is_unavailable(), 3);

    // A low rate and a long queue: the expected wait.
    let app = App::with(|builder| builder.max_calls_per_second(10));
    for n in 0..257 {
        drop(app.begin(&format!("unknown_key-{n}")));
    }
    pass(millis(1)).await;
    assert_eq!(app.handle.upstream().waiting, 24);
    assert_eq!(app.get_now("unknown_key-x").is_unavailable(), 3);
}

#[tokio::test(start_paused = true)]
async fn calls_per_second_never_exceed_the_rate() {
    const LIMIT: u32 = 100;

    let app = App::with(|builder| builder.max_calls_per_second(LIMIT));
    let mut n = 0;
    for _ in 0..1_000 {
        for _ in 0..5 {
            n += 1;
            let secret = format!("new-key-{n}");
            app.issuer.issue(&secret);
            drop(app.begin(&secret));
        }
        // The known keys are refreshed again and again.
        drop(app.try_now(&format!("new-key-{}", n / 2)));
        pass(millis(10)).await;
    }
    let most = app.issuer.most_in_a_second(Duration::ZERO);
    assert!(most <= LIMIT as usize + 1, "{most}");
    assert!(app.issuer.calls() >= 990, "{}", app.issuer.calls());
}

#[tokio::test(start_paused = true)]
async fn refreshes_above_the_rate_admit_unknown_keys() {
    const LIMIT: u32 = 20;
    const KNOWN: usize = 2_000;

    let app = App::with(|builder| builder.max_calls_per_second(LIMIT).hard_ttl(secs(3_600)));
    let known: Vec<_> = (0..KNOWN).map(|n| format!("known-{n:06}")).collect();
    for key in &known {
        app.issuer.issue(key);
        pass(millis(50)).await;
        assert_eq!(app.get(key).await.status, 200);
    }
    // From the second minute on, all are past both soft TTLs: 2,000 need a call, and 20 per second get one.
    pass(2 * SOFT).await;
    let began = app.now();
    let mut new = Vec::new();
    for n in 0..600 {
        for key in &known {
            drop(app.try_now(key));
        }
        if n % 2 == 0 {
            let secret = format!("new-key-{n}");
            app.issuer.issue(&secret);
            new.push(app.begin(&secret));
        }
        pass(millis(100)).await;
    }
    assert!(app.handle.upstream().waiting >= 40);
    let mut passed = 0;
    for new in new {
        passed += usize::from(new.await.unwrap().status == 200);
    }
    assert!(passed >= 290, "{passed} of 300 new keys, five a second");
    let refreshed = app
        .issuer
        .logged(|call| call.at >= began && call.known)
        .len();
    assert!(
        refreshed >= 800,
        "{refreshed} refreshes, of 20 calls a second"
    );
    let most = app.issuer.most_in_a_second(began);
    assert!(most <= LIMIT as usize + 1, "{most}");
}

#[tokio::test(start_paused = true)]
async fn retries_count_against_the_rate() {
    const LIMIT: u32 = 20;

    let app = App::with(|builder| builder.max_calls_per_second(LIMIT));
    app.issuer.is(Behavior::Flaps(3));
    for n in 0..600 {
        let secret = format!("new-key-{n}");
        app.issuer.issue(&secret);
        drop(app.begin(&secret));
        pass(millis(40)).await;
    }
    assert!(app.issuer.faults() >= 20);
    let most = app.issuer.most_in_a_second(Duration::ZERO);
    assert!(most <= LIMIT as usize + 1, "{most}");
}

#[tokio::test(start_paused = true)]
async fn retry_above_the_rate_is_not_sent() {
    let app = App::with(|builder| builder.max_calls_per_second(1));
    app.issuer.is(Behavior::Fails);
    assert_eq!(app.get("unknown_key-0").await.is_unavailable(), 1);
    assert_eq!(app.issuer.faults(), 1);
}

#[tokio::test(start_paused = true)]
async fn waits_are_bounded() {
    // One call per second, and far more requests: a caller waits at most 2.5 s, a lookup at most 10 s.
    let app = App::with(|builder| builder.max_calls_per_second(1));
    let callers: Vec<_> = (0..200)
        .map(|n| {
            let secret = format!("new-key-{n}");
            app.issuer.issue(&secret);
            app.begin(&secret)
        })
        .collect();
    let mut passed = 0;
    for caller in callers {
        let answer = caller.await.unwrap();
        assert!(answer.took <= millis(2_500), "{:?}", answer.took);
        passed += usize::from(answer.status == 200);
    }
    assert_eq!(passed, 3);
    pass(secs(8)).await;
    let upstream = app.handle.upstream();
    assert_eq!((upstream.in_flight, upstream.waiting), (0, 0));
    assert_eq!(
        app.handle.stats().entries,
        3,
        "only what was admitted is verified"
    );
}

#[tokio::test(start_paused = true)]
async fn state_is_readable_for_a_readiness_probe() {
    let app = App::new();
    let upstream = app.handle.upstream();
    assert_eq!(upstream.unknown_breaker, BreakerState::Closed);
    assert_eq!(
        (upstream.paused_for, upstream.calls_per_second),
        (None, None)
    );
    assert_eq!((upstream.in_flight, upstream.waiting), (0, 0));
    app.open_breaker().await;
    let BreakerState::Open { remaining } = app.handle.upstream().unknown_breaker else {
        panic!("not open")
    };
    app.clock.jump(remaining);
    assert_eq!(
        app.handle.upstream().unknown_breaker,
        BreakerState::HalfOpen
    );
    app.issuer.is(Behavior::Answers);
    assert_eq!(app.get("unknown_key-0").await.status, 401);
    assert_eq!(app.handle.upstream().unknown_breaker, BreakerState::Closed);
}
