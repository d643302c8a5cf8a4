//! The circuit breaker of loads: failures of one organization do not open it, those of several do.

use tower_orgkey::BreakerState;

use super::store::Fault;
use super::{App, MINUTE, MS, SECOND, plan, settle};

fn breaker(app: &App) -> BreakerState {
    app.layer.handle().stats().upstream.unknown_breaker
}

#[tokio::test(start_paused = true)]
async fn one_failing_org_does_not_open_the_breaker() {
    for fault in [
        Fault::Unavailable,
        Fault::Broken,
        Fault::Silent,
        Fault::Panics,
        Fault::PanicsAtOnce,
    ] {
        let app = App::new();
        app.store.fails_for("failing", fault);
        for n in 0..60 {
            assert!(app.get("failing").await.is_unavailable(), "{fault:?}");
            assert_eq!(breaker(&app), BreakerState::Closed, "{fault:?}");
            // With and without successful loads in between.
            if n % 2 == 0 {
                let new = format!("org_{n}");
                assert_eq!(app.get(&new).await, plan(&new, 0), "{fault:?}");
            }
            tokio::time::advance(100 * MS).await;
        }
        for _ in 0..60 {
            assert!(app.get("failing").await.is_unavailable(), "{fault:?}");
            tokio::time::advance(SECOND).await;
        }
        assert!(app.store.failures() >= 120, "{fault:?}");
        assert_eq!(app.get("new").await, plan("new", 0), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn broken_settings_do_not_open_the_breaker() {
    let app = App::new();
    for n in 0..100 {
        let org = format!("org_{n}");
        app.store.fails_for(&org, Fault::Broken);
        assert!(app.get(&org).await.is_unavailable());
    }
    assert_eq!(app.store.failures(), 100);
    assert_eq!(breaker(&app), BreakerState::Closed);
    assert_eq!(app.get("new").await, plan("new", 0));
}

#[tokio::test(start_paused = true)]
async fn five_failing_orgs_open_the_breaker() {
    let app = App::new();
    assert_eq!(app.get("one").await, plan("one", 0));
    app.store.fails(Fault::Unavailable);
    for n in 0..5 {
        assert_eq!(breaker(&app), BreakerState::Closed, "{n}");
        assert!(app.get(&format!("org_{n}")).await.is_unavailable());
    }
    assert!(matches!(breaker(&app), BreakerState::Open { .. }));
    let failures = app.store.failures();
    assert!(app.get_now("new").await.is_unavailable());
    app.clock.jump(2 * MINUTE);
    assert!(app.get("org_0").await.is_unavailable());
    assert!(
        app.store.failures() > failures,
        "one load tries whether it is back"
    );
    assert_eq!(app.get_now("one").await, plan("one", 0));
    app.store.recovers();
    app.clock.jump(MINUTE);
    assert_eq!(app.get("new").await, plan("new", 0));
    assert_eq!(breaker(&app), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_failed_half_open_load_lets_others_go_first() {
    let app = App::new();
    app.store.fails_for("failing", Fault::Unavailable);
    app.store.fails(Fault::Unavailable);
    for n in 0..5 {
        assert!(app.get(&format!("org_{n}")).await.is_unavailable());
    }
    assert!(matches!(breaker(&app), BreakerState::Open { .. }));
    // The store recovers, and the half-open load belongs to an organization that still fails.
    let failing = Fault::Unavailable;
    app.store.recovers();
    app.store.fails_for("failing", failing);
    app.clock.jump(5 * SECOND);
    assert!(app.get("failing").await.is_unavailable());
    assert_eq!(app.store.calls_for("failing"), 1);
    let BreakerState::Open { remaining } = breaker(&app) else {
        panic!("not open: {:?}", breaker(&app));
    };
    // The next half-open load belongs to another organization.
    app.clock.jump(remaining);
    for _ in 0..10 {
        assert!(app.get_now("failing").await.is_unavailable());
    }
    assert_eq!(app.store.calls_for("failing"), 1);
    assert_eq!(app.get("new").await, plan("new", 0));
    assert_eq!(breaker(&app), BreakerState::Closed);
    assert!(app.get("failing").await.is_unavailable());
    assert_eq!(app.get("newer").await, plan("newer", 0));
}

#[tokio::test(start_paused = true)]
async fn a_single_org_gets_the_half_open_load() {
    let app = App::new();
    app.store.fails(Fault::Unavailable);
    for n in 0..5 {
        assert!(app.get(&format!("org_{n}")).await.is_unavailable());
    }
    app.clock.jump(5 * SECOND);
    assert!(app.get("one").await.is_unavailable());
    assert_eq!(app.store.calls_for("one"), 1);
    app.store.recovers();
    // The breaker is open for at most 10 s, and other organizations go first for 5 s.
    app.clock.jump(15 * SECOND);
    assert_eq!(app.get("one").await, plan("one", 0));
}

#[tokio::test(start_paused = true)]
async fn a_silent_load_does_not_delay_other_orgs() {
    let app = App::new();
    app.store.fails_for("failing", Fault::Silent);
    let failing: Vec<_> = (0..100).map(|_| app.begin("failing")).collect();
    settle().await;
    assert_eq!(app.store.calls_for("failing"), 1);
    for n in 0..100 {
        let org = format!("org_{n}");
        assert_eq!(app.get_now(&org).await, plan(&org, 0));
    }
    for failing in failing {
        assert!(failing.await.unwrap().is_unavailable());
    }
}
