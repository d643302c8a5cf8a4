//! The two published bounds on how old facts may be, and the refresh between them.

use std::time::Duration;

use crate::kit::{App, HARD, Mood, SOFT, millis, pass, secs};

const KNOWN: &str = "known-key";

#[tokio::test(start_paused = true)]
async fn a_revoked_key_is_accepted_at_most_two_soft_ttls_and_one_verification_however_rarely_used()
{
    const LATENCY: Duration = millis(900);
    const UNTIL: Duration = secs(2_000);

    let mut longest = Duration::ZERO;
    for interval in [1, 7, 30, 45, 59, 61, 80, 110, 119, 121, 130, 150, 300, 840].map(secs) {
        for phase in (0..60).step_by(7).map(secs) {
            let app = App::new();
            app.issuer.takes(LATENCY);
            let app = app.knowing(&[KNOWN]).await;
            let began = app.now();
            // Used at the interval for a while, so that the revocation meets entries of every age.
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
            let refused = app.issuer.logged(|call| call.at >= revoked).len();
            assert!(refused >= 1, "the issuer was never asked");
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
async fn a_refusal_ends_stale_facts_at_once_for_everybody() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.revoke(KNOWN);
    pass(SOFT).await;
    assert!(app.get_now(KNOWN).is_stale());
    pass(millis(30)).await;
    assert_eq!(app.get_now(KNOWN).status, 401);
    app.issuer.is(Mood::Fails);
    assert_eq!(app.get_now(KNOWN).status, 401);
    pass(secs(61)).await;
    app.get(KNOWN).await.is_unavailable();
}

#[tokio::test(start_paused = true)]
async fn facts_are_served_to_the_hard_ttl_and_not_a_millisecond_longer_however_the_issuer_fails() {
    for mood in Mood::OUTAGES {
        let app = App::new().knowing(&[KNOWN]).await;
        let verified = app.issuer.logged(|_| true)[0].at;
        app.issuer.is(mood);
        for minutes in 1..15 {
            app.jump_to(verified + secs(60 * minutes));
            assert_eq!(app.get(KNOWN).await.status, 200, "{mood:?}");
        }
        assert!(app.issuer.faults() >= 3, "{mood:?}");
        // A lookup that fails in the last seconds, so that the last request has to wait for none.
        app.jump_to(verified + HARD - secs(4));
        assert_eq!(app.get(KNOWN).await.status, 200, "{mood:?}");
        app.jump_to(verified + HARD - millis(1));
        let last = app.get(KNOWN).await;
        assert_eq!((last.status, last.took), (200, Duration::ZERO), "{mood:?}");
        assert_eq!(last.age(), HARD - millis(1));
        app.jump_to(verified + HARD);
        assert_eq!(app.get(KNOWN).await.status, 503, "{mood:?}");
        app.clock.jump(millis(1));
        assert_eq!(app.get(KNOWN).await.status, 503, "{mood:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_ends_past_the_hard_ttl_ends_in_503() {
    let app = App::new().knowing(&[KNOWN]).await;
    let verified = app.issuer.logged(|_| true)[0].at;
    app.issuer.is(Mood::Silent);
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
async fn facts_are_served_to_the_hard_ttl_behind_the_breaker_in_a_pause_and_with_no_room_to_ask() {
    const KEYS: usize = 400;

    for what in ["breaker", "pause", "room", "rate"] {
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
                app.issuer.is(Mood::TooMany(Some(secs(60))));
                app.jump_to(first + HARD - secs(30));
                app.get("stranger-0").await.is_unavailable();
                assert!(app.handle.upstream().paused_for.is_some());
            }
            _ => {
                app.issuer.is(Mood::Silent);
                app.jump_to(first + HARD - secs(9));
            }
        }
        if what == "room" || what == "rate" {
            // All at once: 64 calls; what the rate lets through in 2.5 s waits; the rest is served at once.
            let waiting: Vec<_> = keys.iter().map(|key| app.begin(key)).collect();
            pass(millis(1)).await;
            let upstream = app.handle.upstream();
            let expected = if what == "room" {
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
                assert_eq!(app.issuer.faults(), faults, "nothing was asked");
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
async fn one_refresh_at_a_time_stands_behind_any_number_of_hits_and_delays_none() {
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
async fn a_refresh_that_failed_is_tried_again_a_twelfth_of_the_soft_ttl_later() {
    for mood in [Mood::Fails, Mood::BadRequest] {
        let app = App::new().knowing(&[KNOWN]).await;
        app.issuer.is(mood);
        pass(SOFT).await;
        for _ in 0..40 {
            assert!(app.get_now(KNOWN).is_stale());
            pass(secs(1)).await;
        }
        let at = refreshes(&app);
        assert!(at.len() >= 5, "{mood:?}: {at:?}");
        assert!(
            at.windows(2).all(|pair| pair[1] - pair[0] >= secs(5)),
            "{mood:?}: {at:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_found_no_room_is_tried_again_a_twelfth_of_the_soft_ttl_later() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.is(Mood::TooMany(Some(secs(7))));
    pass(SOFT).await;
    for _ in 0..20 {
        assert!(app.get_now(KNOWN).is_stale());
        pass(secs(1)).await;
    }
    let at = refreshes(&app);
    // Tried after five seconds, in the pause, and after ten.
    let waited = at[1] - at[0];
    assert!(waited >= secs(10) && waited < secs(12), "{at:?}");
}

/// When the known key was asked about.
fn refreshes(app: &App) -> Vec<Duration> {
    let calls = app.issuer.logged(|call| call.known);
    calls.iter().map(|call| call.at).collect()
}

#[tokio::test(start_paused = true)]
async fn a_key_that_nobody_uses_is_not_asked_about() {
    let app = App::new().knowing(&[KNOWN]).await;
    for _ in 0..1_000 {
        pass(secs(1)).await;
    }
    assert_eq!(app.issuer.calls(), 1);
    assert_eq!(app.get(KNOWN).await.status, 200);
    assert_eq!(app.issuer.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn fault_19b_a_key_that_a_refresh_finds_expired_is_refused_from_then_on() {
    let app = App::new().knowing(&[KNOWN]).await;
    // The facts held name no expiry; the issuer now says that the key is over.
    app.issuer.change(KNOWN, |key| {
        key.expires_at = Some(std::time::SystemTime::UNIX_EPOCH);
    });
    pass(SOFT).await;
    assert_eq!(app.get_now(KNOWN).status, 200);
    pass(millis(30)).await;
    assert_eq!(app.issuer.calls(), 2);
    assert_eq!(app.get_now(KNOWN).status, 401);
    app.issuer.is(Mood::Fails);
    pass(secs(5)).await;
    app.get(KNOWN).await.is_unavailable();
}
