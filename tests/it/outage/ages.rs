//! The two published bounds on the age of a result, and the refresh between them.

use std::time::Duration;

use super::kit::{App, Behavior, HARD, SOFT, millis, pass, secs};

const KNOWN: &str = "known-key";

#[tokio::test(start_paused = true)]
async fn revoked_key_is_accepted_for_two_soft_ttls() {
    const LATENCY: Duration = millis(900);
    const UNTIL: Duration = secs(2_000);

    let mut longest = Duration::ZERO;
    for interval in [1, 7, 30, 45, 59, 61, 80, 110, 119, 121, 130, 150, 300, 840].map(secs) {
        for phase in (0..60).step_by(7).map(secs) {
            let app = App::new();
            app.issuer.takes(LATENCY);
            let app = app.knowing(&[KNOWN]).await;
            let began = app.now();
            // Requests arrive at the interval for a while, so that entries of all ages are revoked.
            while app.now() < began + secs(300) + phase {
                assert_eq!(app.get(KNOWN).await.status, 200);
                pass(interval.min(began + secs(300) + phase - app.now())).await;
            }
            app.issuer.revoke(KNOWN);
            let revoked = app.now();
            let mut accepted = revoked;
            while app.now() < revoked + UNTIL {
                pass(interval).await;
                let asked = app.now();
                match app.get(KNOWN).await.status {
                    200 => accepted = asked,
                    status => assert_eq!(status, 401),
                }
            }
            let rejected = app.issuer.logged(|call| call.at >= revoked).len();
            assert!(rejected >= 1, "no call was invalid");
            let bound = 2 * SOFT + LATENCY;
            assert!(
                accepted - revoked <= bound,
                "{:?}, used every {interval:?}",
                accepted - revoked
            );
            longest = longest.max(accepted - revoked);
        }
    }
    assert!(
        longest > SOFT,
        "the test never comes near the bound: {longest:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn invalid_answer_removes_a_stale_result() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.revoke(KNOWN);
    pass(SOFT).await;
    assert!(app.get_now(KNOWN).is_stale());
    pass(millis(30)).await;
    assert_eq!(app.get_now(KNOWN).status, 401);
    app.issuer.is(Behavior::Fails);
    assert_eq!(app.get_now(KNOWN).status, 401);
    pass(secs(61)).await;
    app.get(KNOWN).await.is_unavailable();
}

#[tokio::test(start_paused = true)]
async fn results_are_served_exactly_to_the_hard_ttl() {
    for behavior in Behavior::OUTAGES {
        let app = App::new().knowing(&[KNOWN]).await;
        let verified = app.issuer.logged(|_| true)[0].at;
        app.issuer.is(behavior);
        for minutes in 1..15 {
            app.jump_to(verified + secs(60 * minutes));
            assert_eq!(app.get(KNOWN).await.status, 200, "{behavior:?}");
        }
        assert!(app.issuer.faults() >= 3, "{behavior:?}");
        // A lookup that fails in the last seconds, so that the last request does not wait for one.
        app.jump_to(verified + HARD - secs(4));
        assert_eq!(app.get(KNOWN).await.status, 200, "{behavior:?}");
        app.jump_to(verified + HARD - millis(1));
        let last = app.get(KNOWN).await;
        assert_eq!(
            (last.status, last.took),
            (200, Duration::ZERO),
            "{behavior:?}"
        );
        assert_eq!(last.age(), HARD - millis(1));
        app.jump_to(verified + HARD);
        assert_eq!(app.get(KNOWN).await.status, 503, "{behavior:?}");
        app.clock.jump(millis(1));
        assert_eq!(app.get(KNOWN).await.status, 503, "{behavior:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn wait_past_the_hard_ttl_is_503() {
    let app = App::new().knowing(&[KNOWN]).await;
    let verified = app.issuer.logged(|_| true)[0].at;
    app.issuer.is(Behavior::Silent);
    app.jump_to(verified + HARD - millis(500));
    let answer = app.get(KNOWN).await;
    answer.is_unavailable();
    assert_eq!(
        answer.took,
        secs(1),
        "it waited for the call that was to save it"
    );
    assert_eq!(app.issuer.faults(), 1);
}

#[tokio::test(start_paused = true)]
async fn hard_ttl_holds_while_no_call_is_permitted() {
    const KEYS: usize = 400;

    for what in ["breaker", "pause", "queue", "rate"] {
        let app = App::with(|builder| match what {
            "rate" => builder.max_calls_per_second(100),
            _ => builder,
        });
        let keys: Vec<_> = (0..KEYS).map(|n| format!("known-{n:04}")).collect();
        for batch in keys.chunks(100) {
            let loads: Vec<_> = batch
                .iter()
                .map(|key| {
                    app.issuer.issue(key);
                    app.begin(key)
                })
                .collect();
            for load in loads {
                assert_eq!(load.await.unwrap().status, 200);
            }
        }
        let calls = app.issuer.logged(|_| true);
        let (first, last) = (calls[0].at, calls[KEYS - 1].at);
        match what {
            "breaker" => {
                app.jump_to(first + HARD - secs(2));
                app.open_breaker_by(&keys[..6]).await;
            }
            "pause" => {
                app.issuer.is(Behavior::TooMany(Some(secs(60))));
                app.jump_to(first + HARD - secs(30));
                app.get("unknown_key-0").await.is_unavailable();
                assert!(app.handle.upstream().paused_for.is_some());
            }
            _ => {
                app.issuer.is(Behavior::Silent);
                app.jump_to(first + HARD - secs(9));
            }
        }
        if what == "queue" || what == "rate" {
            // All at once: 64 calls; what the rate lets through in 2.5 s waits; the rest is served at once.
            let waiting: Vec<_> = keys.iter().map(|key| app.begin(key)).collect();
            pass(millis(1)).await;
            let upstream = app.handle.upstream();
            let expected = if what == "queue" {
                (64, KEYS - 64)
            } else {
                (1, 249)
            };
            assert_eq!((upstream.in_flight, upstream.waiting), expected, "{what}");
            let at_once = waiting.iter().filter(|answer| answer.is_finished()).count();
            assert_eq!(at_once, KEYS - upstream.waiting - upstream.in_flight);
            for answer in waiting {
                let answer = answer.await.unwrap();
                assert_eq!(answer.status, 200, "{what}");
                assert!(answer.took <= millis(2_500));
            }
        }
        app.jump_to(first + HARD - millis(1));
        let faults = app.issuer.faults();
        assert!(faults >= 1, "{what}");
        match what {
            "breaker" | "pause" => {
                for key in &keys {
                    let answer = app.get_now(key);
                    assert_eq!(answer.status, 200, "{what}");
                }
                assert_eq!(app.issuer.faults(), faults, "a call was made");
            }
            _ => assert!(
                keys.iter()
                    .filter_map(|key| app.try_now(key))
                    .all(|answer| answer.status == 200)
            ),
        }
        app.jump_to(last + HARD);
        for key in &keys {
            assert_eq!(app.get(key).await.status, 503, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stale_hits_share_one_refresh_and_do_not_wait() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.takes(millis(900));
    pass(SOFT).await;
    for _ in 0..1_000 {
        assert!(app.get_now(KNOWN).is_stale());
    }
    for _ in 0..8 {
        pass(millis(100)).await;
        for _ in 0..100 {
            assert!(app.get_now(KNOWN).is_stale());
        }
    }
    assert_eq!(app.issuer.calls(), 2);
    pass(millis(200)).await;
    assert!(!app.get_now(KNOWN).is_stale());
    assert_eq!(app.get_now(KNOWN).age(), millis(1_000));
    assert_eq!(app.issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn failed_refresh_waits_a_twelfth() {
    for behavior in [Behavior::Fails, Behavior::BadRequest] {
        let app = App::new().knowing(&[KNOWN]).await;
        app.issuer.is(behavior);
        pass(SOFT).await;
        for _ in 0..40 {
            assert!(app.get_now(KNOWN).is_stale());
            pass(secs(1)).await;
        }
        let at = refreshes(&app);
        assert!(at.len() >= 5, "{behavior:?}: {at:?}");
        assert!(
            at.windows(2).all(|pair| pair[1] - pair[0] >= secs(5)),
            "{behavior:?}: {at:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn rejected_refresh_waits_a_twelfth_as_well() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.is(Behavior::TooMany(Some(secs(7))));
    pass(SOFT).await;
    for _ in 0..20 {
        assert!(app.get_now(KNOWN).is_stale());
        pass(secs(1)).await;
    }
    let at = refreshes(&app);
    // Tried after five seconds, during the pause, and after ten.
    let waited = at[1] - at[0];
    assert!(waited >= secs(10) && waited < secs(12), "{at:?}");
}

/// The times of the calls about the known key.
fn refreshes(app: &App) -> Vec<Duration> {
    let calls = app.issuer.logged(|call| call.known);
    calls.iter().map(|call| call.at).collect()
}

#[tokio::test(start_paused = true)]
async fn unused_key_is_not_refreshed() {
    let app = App::new().knowing(&[KNOWN]).await;
    for _ in 0..1_000 {
        pass(secs(1)).await;
    }
    assert_eq!(app.issuer.calls(), 1);
    assert_eq!(app.get(KNOWN).await.status, 200);
    assert_eq!(app.issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn fault_19b_refreshed_expiry_takes_effect() {
    let app = App::new().knowing(&[KNOWN]).await;
    // The cached result has no expiry; the next answer has one that is past.
    app.issuer.change(KNOWN, |key| {
        key.expires_at = Some(std::time::SystemTime::UNIX_EPOCH);
    });
    pass(SOFT).await;
    assert_eq!(app.get_now(KNOWN).status, 200);
    pass(millis(30)).await;
    assert_eq!(app.issuer.calls(), 2);
    assert_eq!(app.get_now(KNOWN).status, 401);
    app.issuer.is(Behavior::Fails);
    pass(secs(5)).await;
    app.get(KNOWN).await.is_unavailable();
}
