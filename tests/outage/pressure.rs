//! Bounds on what the issuer is asked: at once, in a second, while it fails.

use std::time::Duration;

use tower_orgkey::BreakerState;

use crate::kit::{App, Mood, Peer, SOFT, millis, pass, secs};

#[tokio::test(start_paused = true)]
async fn sixty_four_calls_at_once_a_quarter_for_known_keys() {
    let known: Vec<_> = (0..30).map(|n| format!("known-{n:04}")).collect();
    let known: Vec<_> = known.iter().map(String::as_str).collect();
    let app = App::new().knowing(&known).await;
    pass(SOFT).await;
    app.issuer.takes(millis(900));
    let strangers: Vec<_> = (0..400)
        .map(|n| {
            let secret = format!("new-key-{n}");
            app.issuer.issue(&secret);
            app.begin(&secret)
        })
        .collect();
    pass(millis(1)).await;
    let upstream = app.handle.upstream();
    assert_eq!((upstream.in_flight, upstream.waiting), (48, 352));
    assert_eq!(app.issuer.under_way(), 48);
    for key in &known {
        assert_eq!(app.get_now(key).status, 200);
    }
    pass(millis(1)).await;
    let upstream = app.handle.upstream();
    assert_eq!((upstream.in_flight, upstream.waiting), (64, 352 + 14));
    assert_eq!(app.issuer.under_way(), 64);

    for stranger in strangers {
        let answer = stranger.await.unwrap();
        assert!(answer.took <= millis(2_500));
        assert!(answer.status == 200 || answer.is_unavailable() >= 1);
    }
    pass(secs(10)).await;
    assert_eq!(app.issuer.most_under_way(), 64);
    let upstream = app.handle.upstream();
    assert_eq!((upstream.in_flight, upstream.waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn known_keys_get_their_reserve_while_strangers_hang() {
    let app = App::new().knowing(&["known-key"]).await;
    app.issuer.takes(millis(900));
    pass(2 * SOFT).await;
    for n in 0..300 {
        drop(app.begin_from(&format!("stranger-{n}"), Some(Peer(n))));
    }
    pass(millis(1)).await;
    assert_eq!(app.issuer.under_way(), 48);
    let known = app.begin("known-key");
    pass(millis(1)).await;
    assert_eq!(app.issuer.under_way(), 49);
    let known = known.await.unwrap();
    assert_eq!((known.status, known.took), (200, millis(900)));
    assert!(!known.is_stale());
}

#[tokio::test(start_paused = true)]
async fn breaker_probes_go_one_at_a_time_however_many_ask() {
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
        // The probe may be answered at once or hang; 300 ask at the same time.
        app.issuer.is(if round % 2 == 0 {
            Mood::Silent
        } else {
            Mood::Fails
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
async fn a_503_says_when_to_come_back_for_each_reason() {
    // The issuer fails: a second, for want of anything better.
    let app = App::new();
    app.issuer.is(Mood::Fails);
    assert_eq!(app.get("stranger-x").await.is_unavailable(), 1);

    // The breaker is open: what remains of it.
    app.open_breaker().await;
    let BreakerState::Open { remaining } = app.handle.upstream().unknown_breaker else {
        panic!("not open")
    };
    assert_eq!(
        app.get_now("stranger-x").is_unavailable(),
        (remaining + Duration::from_nanos(999_999_999)).as_secs()
    );
    app.clock.jump(remaining);

    // Its probe is under way: soon.
    app.issuer.is(Mood::Silent);
    let probe = app.begin("stranger-y");
    pass(millis(1)).await;
    assert_eq!(app.issuer.under_way(), 1);
    assert_eq!(app.get_now("stranger-x").is_unavailable(), 1);
    probe.await.unwrap().is_unavailable();

    // A pause: what remains of it.
    let app = App::new();
    app.issuer.is(Mood::TooMany(Some(secs(42))));
    assert_eq!(app.get("stranger-x").await.is_unavailable(), 42);
    app.clock.jump(millis(1_500));
    assert_eq!(app.get_now("stranger-x").is_unavailable(), 41);

    // Those who waited when it began hear of it.
    let app = App::with(|builder| builder.max_calls_per_second(1));
    app.issuer.is(Mood::TooMany(Some(secs(42))));
    let waiting: Vec<_> = (0..2)
        .map(|n| app.begin(&format!("stranger-{n}")))
        .collect();
    for waiting in waiting {
        let answer = waiting.await.unwrap();
        assert_eq!((answer.is_unavailable(), answer.took), (42, Duration::ZERO));
    }
    assert_eq!(app.issuer.faults(), 1);

    // Our own credentials are refused: an operator has to act.
    let app = App::new();
    app.issuer.is(Mood::Misconfigured);
    let answer = app.get("stranger-x").await;
    assert_eq!(
        (answer.code, answer.retry_after),
        (Some("verifier-misconfigured"), Some(10))
    );
    assert_eq!(app.issuer.faults(), 1);

    // Calls take long, and many wait: as long as those in front take.
    let app = App::new();
    app.issuer.takes(millis(900));
    let first: Vec<_> = (0..48)
        .map(|n| app.begin(&format!("stranger-{n}")))
        .collect();
    for first in first {
        assert_eq!(first.await.unwrap().status, 401);
    }
    for n in 48..96 + 200 {
        drop(app.begin(&format!("stranger-{n}")));
    }
    pass(millis(1)).await;
    let waiting = app.handle.upstream().waiting;
    assert!((120..150).contains(&waiting), "{waiting}");
    assert_eq!(app.get_now("stranger-x").is_unavailable(), 3);

    // The calls in a second are few, and many wait: as long as those in front take.
    let app = App::with(|builder| builder.max_calls_per_second(10));
    for n in 0..257 {
        drop(app.begin(&format!("stranger-{n}")));
    }
    pass(millis(1)).await;
    assert_eq!(app.handle.upstream().waiting, 24);
    assert_eq!(app.get_now("stranger-x").is_unavailable(), 3);
}

#[tokio::test(start_paused = true)]
async fn no_second_has_more_calls_than_were_set_whoever_asks() {
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
        // The known among them are asked about again and again.
        drop(app.try_now(&format!("new-key-{}", n / 2)));
        pass(millis(10)).await;
    }
    let most = app.issuer.most_in_a_second(Duration::ZERO);
    assert!(most <= LIMIT as usize + 1, "{most}");
    assert!(app.issuer.calls() >= 990, "{}", app.issuer.calls());
}

#[tokio::test(start_paused = true)]
async fn known_keys_that_want_more_refreshes_than_the_rate_allows_do_not_keep_unknown_ones_out() {
    const LIMIT: u32 = 20;
    const KNOWN: usize = 2_000;

    let app = App::with(|builder| builder.max_calls_per_second(LIMIT).hard_ttl(secs(3_600)));
    let known: Vec<_> = (0..KNOWN).map(|n| format!("known-{n:06}")).collect();
    for key in &known {
        app.issuer.issue(key);
        pass(millis(50)).await;
        assert_eq!(app.get(key).await.status, 200);
    }
    // From the second minute on, all of them are past both soft TTLs: 2,000 want a call, and 20 a second get one.
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
async fn retries_count_against_the_calls_in_a_second() {
    const LIMIT: u32 = 20;

    let app = App::with(|builder| builder.max_calls_per_second(LIMIT));
    app.issuer.is(Mood::Flaps(3));
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
async fn a_retry_for_which_the_rate_has_no_room_is_not_sent() {
    let app = App::with(|builder| builder.max_calls_per_second(1));
    app.issuer.is(Mood::Fails);
    assert_eq!(app.get("stranger-0").await.is_unavailable(), 1);
    assert_eq!(app.issuer.faults(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_wait_has_an_end() {
    // One call a second, and far more askers than that: a caller waits 2.5 s, a flight 10 s, and no longer.
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
async fn the_state_can_be_read_for_a_readiness_probe() {
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
    app.issuer.is(Mood::Answers);
    assert_eq!(app.get("stranger-0").await.status, 401);
    assert_eq!(app.handle.upstream().unknown_breaker, BreakerState::Closed);
}
