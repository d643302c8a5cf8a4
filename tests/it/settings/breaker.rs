//! One organization's broken settings cost another nothing; a store that is down is left alone.

use tower_orgkey::BreakerState;

use super::store::Failure;
use super::{App, MINUTE, MS, SECOND, plan, settle};

fn breaker(app: &App) -> BreakerState {
    app.layer.handle().stats().upstream.unknown_breaker
}

#[tokio::test(start_paused = true)]
async fn one_organization_that_fails_whatever_the_way_keeps_the_door_open_for_others() {
    for failure in [
        Failure::Unavailable,
        Failure::Broken,
        Failure::Silent,
        Failure::Panics,
        Failure::PanicsAtOnce,
    ] {
        let app = App::new();
        app.store.fails_for("poor", failure);
        for n in 0..60 {
            assert!(app.get("poor").await.is_unavailable(), "{failure:?}");
            assert_eq!(breaker(&app), BreakerState::Closed, "{failure:?}");
            // Failures among answers, and failures alone.
            if n % 2 == 0 {
                let new = format!("org_{n}");
                assert_eq!(app.get(&new).await, plan(&new, 0), "{failure:?}");
            }
            tokio::time::advance(100 * MS).await;
        }
        for _ in 0..60 {
            assert!(app.get("poor").await.is_unavailable(), "{failure:?}");
            tokio::time::advance(SECOND).await;
        }
        assert!(app.store.failures() >= 120, "{failure:?}");
        assert_eq!(app.get("new").await, plan("new", 0), "{failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn any_number_of_organizations_with_broken_settings_say_nothing_of_the_store() {
    let app = App::new();
    for n in 0..100 {
        let org = format!("org_{n}");
        app.store.fails_for(&org, Failure::Broken);
        assert!(app.get(&org).await.is_unavailable());
    }
    assert_eq!(app.store.failures(), 100);
    assert_eq!(breaker(&app), BreakerState::Closed);
    assert_eq!(app.get("new").await, plan("new", 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_five_organizations_is_left_alone_and_what_is_held_is_served() {
    let app = App::new();
    assert_eq!(app.get("one").await, plan("one", 0));
    app.store.fails(Failure::Unavailable);
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
async fn an_organization_whose_probe_failed_does_not_keep_the_door_shut_for_others() {
    let app = App::new();
    app.store.fails_for("poor", Failure::Unavailable);
    app.store.fails(Failure::Unavailable);
    for n in 0..5 {
        assert!(app.get(&format!("org_{n}")).await.is_unavailable());
    }
    assert!(matches!(breaker(&app), BreakerState::Open { .. }));
    // The store is back, and the first to try is the one that fails for reasons of its own.
    let poor = Failure::Unavailable;
    app.store.recovers();
    app.store.fails_for("poor", poor);
    app.clock.jump(5 * SECOND);
    assert!(app.get("poor").await.is_unavailable());
    assert_eq!(app.store.calls_for("poor"), 1);
    let BreakerState::Open { remaining } = breaker(&app) else {
        panic!("not open: {:?}", breaker(&app));
    };
    // The next one is another's, however eager it is.
    app.clock.jump(remaining);
    for _ in 0..10 {
        assert!(app.get_now("poor").await.is_unavailable());
    }
    assert_eq!(app.store.calls_for("poor"), 1);
    assert_eq!(app.get("new").await, plan("new", 0));
    assert_eq!(breaker(&app), BreakerState::Closed);
    assert!(app.get("poor").await.is_unavailable());
    assert_eq!(app.get("newer").await, plan("newer", 0));
}

#[tokio::test(start_paused = true)]
async fn an_organization_that_alone_asks_tries_again_by_itself() {
    let app = App::new();
    app.store.fails(Failure::Unavailable);
    for n in 0..5 {
        assert!(app.get(&format!("org_{n}")).await.is_unavailable());
    }
    app.clock.jump(5 * SECOND);
    assert!(app.get("one").await.is_unavailable());
    assert_eq!(app.store.calls_for("one"), 1);
    app.store.recovers();
    // At most 10 s that the door stays shut, and 5 s in which others may go first.
    app.clock.jump(15 * SECOND);
    assert_eq!(app.get("one").await, plan("one", 0));
}

#[tokio::test(start_paused = true)]
async fn organizations_that_wait_for_a_silent_loader_hold_up_no_other() {
    let app = App::new();
    app.store.fails_for("poor", Failure::Silent);
    let poor: Vec<_> = (0..100).map(|_| app.begin("poor")).collect();
    settle().await;
    assert_eq!(app.store.calls_for("poor"), 1);
    for n in 0..100 {
        let org = format!("org_{n}");
        assert_eq!(app.get_now(&org).await, plan(&org, 0));
    }
    for poor in poor {
        assert!(poor.await.unwrap().is_unavailable());
    }
}
