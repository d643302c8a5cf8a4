//! An issuer that answers 429.

use std::time::Duration;

use tower_orgkey::BreakerState;

use super::kit::{App, Behavior, HARD, Outcome, SOFT, millis, pass, secs};

const KNOWN: &str = "known-key";

#[tokio::test(start_paused = true)]
async fn fault_08_429_pauses_all_but_a_trickle() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.issue("new-key-0");
    app.issuer.is(Behavior::TooMany(Some(secs(30))));
    assert_eq!(app.get("new-key-0").await.is_unavailable(), 30);
    assert_eq!(app.issuer.faults(), 1, "a 429 is not worth a retry");
    let paused = app.now();
    assert_eq!(app.handle.upstream().paused_for, Some(secs(30)));

    app.issuer.is(Behavior::Answers);
    assert_eq!(app.get_now("unknown_key-0").is_unavailable(), 30);
    app.clock.jump(SOFT);
    // The pause is over by now; so is the soft TTL.
    app.issuer.is(Behavior::TooMany(Some(secs(30))));
    assert_eq!(app.get_now(KNOWN).status, 200);
    pass(millis(1)).await;
    assert_eq!(app.issuer.faults(), 2, "a refresh is answered 429 as well");
    let again = app.now();
    assert!(again - paused >= SOFT);
    let mut trickled = 0;
    while app.now() < again + secs(29) {
        assert_eq!(app.get(KNOWN).await.status, 200);
        let unknown_key = app
            .get(&format!("unknown_key-{}", app.now().as_secs()))
            .await;
        let left = (again + secs(30)).saturating_sub(app.now()).as_secs_f64();
        if app.issuer.faults() > 2 + trickled {
            trickled += 1;
        } else {
            let said = f64::from(u32::try_from(unknown_key.is_unavailable()).unwrap());
            assert!(said >= left, "{said} of {left}");
        }
        pass(secs(1)).await;
    }
    assert!((2..=3).contains(&trickled), "{trickled}");
    assert!(
        app.issuer
            .logged(|call| call.known && call.at > again)
            .is_empty(),
        "the trickle is for unknown keys"
    );
    assert_eq!(app.handle.upstream().breaker, BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn fault_08_429s_open_no_breaker() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.is(Behavior::TooMany(Some(secs(1))));
    let verified = app.now();
    while app.now() < verified + HARD - secs(10) {
        app.get(&format!("unknown_key-{}", app.now().as_secs()))
            .await
            .is_unavailable();
        assert_eq!(app.handle.upstream().breaker, BreakerState::Closed);
        assert_eq!(app.get(KNOWN).await.status, 200);
        pass(secs(1)).await;
    }
    assert!(app.issuer.faults() >= 400, "{}", app.issuer.faults());
    app.issuer.is(Behavior::Answers);
    app.issuer.issue("new-key-0");
    pass(secs(2)).await;
    assert_eq!(app.get("new-key-0").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn fault_08_paused_retry_is_not_sent() {
    let app = App::new();
    app.issuer.issue("new-key-0");
    app.issuer.is(Behavior::Fails);
    let to_be_repeated = app.begin("new-key-0");
    pass(millis(1)).await;
    app.issuer.is(Behavior::TooMany(Some(secs(30))));
    assert_eq!(app.get("unknown_key-0").await.is_unavailable(), 30);
    assert_eq!(app.issuer.faults(), 2);
    app.issuer.is(Behavior::Answers);
    assert_eq!(to_be_repeated.await.unwrap().is_unavailable(), 30);
    assert_eq!(app.issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn fault_08_retry_after_is_the_longest_wait() {
    let app = App::new();
    app.issuer.is(Behavior::TooManyAfter(millis(2), secs(1)));
    let throttled = app.begin("unknown_key-0");
    pass(millis(1)).await;
    app.issuer.is(Behavior::Fails);
    let failed: Vec<_> = (1..6)
        .map(|n| app.begin(&format!("unknown_key-{n}")))
        .collect();
    assert_eq!(throttled.await.unwrap().is_unavailable(), 1);
    let mut longest = 0;
    for caller in failed {
        longest = longest.max(caller.await.unwrap().is_unavailable());
    }
    assert_eq!(app.issuer.calls(), 6, "a retry was sent");
    // Open for 5 s, less a fifth at most, less the backoff.
    assert!((4..=5).contains(&longest), "{longest}");
}

#[tokio::test(start_paused = true)]
async fn fault_09_429_without_a_wait_backs_off() {
    for (said, pauses) in [
        (None, [1, 2, 4, 8, 16, 32, 60, 60]),
        (Some(Duration::ZERO), [1, 2, 4, 8, 16, 32, 60, 60]),
        (Some(Duration::MAX), [60; 8]),
        (Some(secs(10_000_000_000)), [60; 8]),
        (Some(secs(61)), [60; 8]),
    ] {
        let app = App::new().knowing(&[KNOWN]).await;
        app.issuer.is(Behavior::TooMany(said));
        for (n, pause) in pauses.into_iter().enumerate() {
            let unknown_key = app.get(&format!("unknown_key-{n}")).await;
            assert_eq!(unknown_key.is_unavailable(), pause, "{said:?}, {n}");
            assert_eq!(app.issuer.faults(), n + 1);
            assert_eq!(app.get(KNOWN).await.status, 200);
            app.clock.jump(secs(pause));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rate_recovers_after_a_429() {
    const LIMIT: u32 = 40;

    let app = App::with(|builder| builder.max_calls_per_second(LIMIT));
    assert_eq!(
        app.handle.upstream().calls_per_second,
        Some(f64::from(LIMIT))
    );
    let mut unknown_keys = 0;
    let mut ask = |app: &App| {
        for _ in 0..5 {
            unknown_keys += 1;
            let secret = format!("new-key-{unknown_keys:06}");
            app.issuer.issue(&secret);
            drop(app.begin(&secret));
        }
    };
    for _ in 0..50 {
        ask(&app);
        pass(millis(100)).await;
    }
    assert!(app.issuer.most_in_a_second(Duration::ZERO) <= LIMIT as usize + 1);
    app.issuer.is(Behavior::TooMany(Some(secs(2))));
    ask(&app);
    pass(millis(100)).await;
    assert!(app.issuer.faults() >= 1);
    let faults = app.issuer.faults();
    app.issuer.is(Behavior::Answers);
    assert_eq!(
        app.handle.upstream().calls_per_second,
        Some(f64::from(LIMIT) / 2.0)
    );
    pass(secs(2)).await;
    let resumed = app.now();
    let mut rates = Vec::new();
    for _ in 0..200 {
        ask(&app);
        rates.push(app.handle.upstream().calls_per_second.unwrap());
        pass(millis(100)).await;
    }
    assert_eq!(app.issuer.faults(), faults);
    assert!(rates.is_sorted(), "{rates:?}");
    assert_eq!(rates.last(), Some(&f64::from(LIMIT)));
    let first_second = app
        .issuer
        .logged(|call| call.at >= resumed && call.at < resumed + secs(1))
        .len();
    assert!(first_second <= 23, "{first_second}");
    let most = app.issuer.most_in_a_second(resumed);
    assert!(most <= LIMIT as usize + 1, "{most}");
    assert!(
        app.issuer
            .logged(|call| call.outcome == Outcome::Valid && call.at >= resumed)
            .len()
            >= 400
    );
}
