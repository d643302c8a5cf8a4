//! Routes with `max_age`.

use std::time::Duration;

use crate::support::app::{App, SOFT, millis, pass, secs};
use crate::support::issuer::Behavior;

const KNOWN: &str = "known-key";

#[tokio::test(start_paused = true)]
async fn max_age_zero_verifies_every_request() {
    let app = App::new();
    app.issuer.latency(Duration::ZERO);
    let app = app.knowing(&[KNOWN]).await;
    let strict = app.max_age(Duration::ZERO);
    for n in 0..5 {
        assert!(strict.try_now(KNOWN).is_none(), "in the same instant too");
        pass(millis(1)).await;
        let calls = app.issuer.calls();
        let answer = strict.get(KNOWN).await;
        assert_eq!((answer.status, answer.age()), (200, Duration::ZERO));
        assert_eq!(app.issuer.calls(), calls + 1, "request {n}");
    }
    assert_eq!(
        app.get_now(KNOWN).age(),
        Duration::ZERO,
        "other routes profit"
    );
}

#[tokio::test(start_paused = true)]
async fn results_within_max_age_are_used() {
    let app = App::new().knowing(&[KNOWN]).await;
    let strict = app.max_age(secs(10));
    let verified = app.issuer.logged(|_| true)[0].at;
    app.jump_to(verified + secs(10) - Duration::from_nanos(1));
    assert_eq!(strict.get_now(KNOWN).status, 200);
    assert_eq!(app.issuer.calls(), 1);
    app.jump_to(verified + secs(10));
    assert_eq!(strict.get(KNOWN).await.status, 200);
    assert_eq!(app.issuer.calls(), 2);
    // Above the soft TTL it has no effect.
    let loose = app.max_age(secs(3_600));
    pass(2 * SOFT).await;
    assert!(loose.try_now(KNOWN).is_none());
}

#[tokio::test(start_paused = true)]
async fn failed_forced_verification_keeps_the_entry() {
    for behavior in Behavior::OUTAGES {
        let app = App::new().knowing(&[KNOWN]).await;
        app.issuer.is(behavior);
        for max_age in [Duration::ZERO, secs(10)] {
            let strict = app.max_age(max_age);
            pass(secs(11)).await;
            let reached = strict.reached();
            assert_eq!(strict.get(KNOWN).await.status, 503, "{behavior:?}");
            assert_eq!(strict.reached(), reached);
            assert_eq!(app.get_now(KNOWN).status, 200, "{behavior:?}");
        }
        assert!(app.issuer.faults() >= 1, "{behavior:?}");
        assert_eq!(app.handle.stats().entries, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn forced_invalid_answer_applies_to_all_routes() {
    let app = App::new().knowing(&[KNOWN]).await;
    app.issuer.revoke(KNOWN);
    assert_eq!(app.get_now(KNOWN).status, 200);
    assert_eq!(app.max_age(Duration::ZERO).get(KNOWN).await.status, 401);
    assert_eq!(app.get_now(KNOWN).status, 401);
    assert_eq!(app.handle.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn earlier_call_is_joined_only_within_max_age() {
    let app = App::new();
    app.issuer.issue("new-key-0");
    app.issuer.latency(millis(500));
    let first = app.begin("new-key-0");
    pass(millis(100)).await;
    // Revoked after the first call was answered.
    app.issuer.revoke("new-key-0");
    let young_enough = app.max_age(millis(200)).begin("new-key-0");
    pass(millis(1)).await;
    assert_eq!(app.issuer.calls(), 1);
    let strict = app.max_age(Duration::ZERO).begin("new-key-0");
    let also_strict = app.max_age(Duration::ZERO).begin("new-key-0");
    pass(millis(1)).await;
    assert_eq!(app.issuer.calls(), 2, "one for both that came at once");
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(young_enough.await.unwrap().status, 200);
    assert_eq!(strict.await.unwrap().status, 401);
    assert_eq!(also_strict.await.unwrap().status, 401);
    assert_eq!(
        app.get_now("new-key-0").status,
        401,
        "the younger answer stands"
    );
}

#[tokio::test(start_paused = true)]
async fn older_late_answer_restores_no_revoked_key() {
    let app = App::new();
    app.issuer.issue("new-key-0");
    app.issuer.latency(millis(800));
    let slow = app.begin("new-key-0");
    pass(millis(100)).await;
    app.issuer.revoke("new-key-0");
    app.issuer.latency(millis(50));
    assert_eq!(
        app.max_age(Duration::ZERO).get("new-key-0").await.status,
        401
    );
    // The newer invalid answer cancels the slow lookup, and its caller starts another one.
    assert_eq!(slow.await.unwrap().status, 401);
    pass(secs(1)).await;
    assert_eq!(app.get_now("new-key-0").status, 401);
}

#[tokio::test(start_paused = true)]
async fn fault_78b_forcing_leaves_others_their_turns() {
    for calls in [4_u32, 20, 60] {
        let app = App::with(|builder| builder.max_calls_per_second(calls));
        let forced: Vec<_> = (0..50).map(|n| format!("forced-{n:04}")).collect();
        for key in &forced {
            app.issuer.issue_as(key, "org_forced", key);
            assert_eq!(app.get(key).await.status, 200);
        }
        let (strict, other) = (app.max_age(Duration::ZERO), "of-another");
        app.issuer.issue_as(other, "org_other", other);
        assert_eq!(app.get(other).await.status, 200);
        let began = app.now();
        for n in 0..12_000 {
            drop(strict.begin(&forced[n % forced.len()]));
            pass(millis(5)).await;
            if n % 200 == 199 {
                let (asked, new) = (strict.begin(other), format!("new-key-{n}"));
                app.issuer.issue_as(&new, "org_new", &new);
                assert_eq!(app.get(&new).await.status, 200, "{calls}, {n}");
                assert_eq!(asked.await.unwrap().status, 200, "{calls}, {n}");
            }
        }
        let seconds = (app.now() - began).as_secs_f64();
        let made = app
            .issuer
            .logged(|call| call.at >= began && call.key.starts_with("forced"));
        let made = f64::from(u32::try_from(made.len()).unwrap()) / seconds;
        let share = f64::from(calls) / 4.0;
        assert!(
            (share * 0.9..share * 1.05).contains(&made),
            "{made} of {calls}"
        );
    }
}
