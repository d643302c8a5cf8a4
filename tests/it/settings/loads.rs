//! Loads: coalescing, staleness, failures and bounds.

use futures_util::FutureExt;

use tower_orgkey::settings::{OrgSettingsLayer, SettingsError, settings_fn};

use super::store::{Fault, Plan};
use super::{App, MINUTE, MS, Outcome, SECOND, auth, plan, settle};

#[tokio::test(start_paused = true)]
async fn first_requests_share_one_load() {
    let app = App::new();
    app.store.latency(200 * MS);
    let waiting: Vec<_> = (0..1_000).map(|_| app.begin("one")).collect();
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), plan("one", 0));
    }
    assert_eq!((app.store.calls(), app.store.finished()), (1, 1));
    assert_eq!(app.get_now("one").await, plan("one", 0));
    assert_eq!(app.get("two").await, plan("two", 0));
    assert_eq!(app.store.calls(), 2);
    let stats = app.layer.handle().stats();
    assert_eq!((stats.entries, stats.hits, stats.misses), (2, 1, 1_001));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn first_requests_of_four_threads_share_one_load() {
    let app = App::new();
    let gate = app.store.hold();
    let waiting: Vec<_> = (0..1_000).map(|_| app.begin("one")).collect();
    // A second load would wait for a permit forever.
    gate.add_permits(1);
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), plan("one", 0));
    }
    assert_eq!(app.store.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn dropped_leader_does_not_fail_waiters() {
    let app = App::new();
    app.store.latency(200 * MS);
    let mut first = Box::pin(app.get("one"));
    assert!(first.as_mut().now_or_never().is_none());
    tokio::time::sleep(MS).await;
    assert!(first.as_mut().now_or_never().is_none());
    settle().await;
    assert_eq!(app.store.calls(), 1);
    let second = app.begin("one");
    settle().await;
    drop(first);
    assert_eq!(second.await.unwrap(), plan("one", 0));
    assert_eq!((app.store.calls(), app.store.finished()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn settings_are_fresh_then_stale_then_loaded() {
    let app = App::new();
    assert_eq!(app.get("one").await, plan("one", 0));
    app.store.change("one");
    app.clock.jump(50 * SECOND);
    assert_eq!(app.get_now("one").await, plan("one", 0));
    assert_eq!(app.store.calls(), 1);

    // Past the soft TTL: served without waiting, while one load is in flight.
    app.clock.jump(11 * SECOND);
    let gate = app.store.hold();
    for _ in 0..10 {
        assert_eq!(app.get_now("one").await, plan("one", 0));
    }
    settle().await;
    assert_eq!(app.store.calls(), 2);
    gate.add_permits(1);
    settle().await;
    assert_eq!(app.get_now("one").await, plan("one", 1));
    assert_eq!(app.layer.handle().stats().stale_hits, 10);

    // Past twice the soft TTL: the request waits for a load.
    app.store.change("one");
    app.clock.jump(2 * MINUTE);
    gate.add_permits(10);
    assert_eq!(app.get("one").await, plan("one", 2));
    assert_eq!(app.store.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn cached_settings_are_served_to_the_hard_ttl() {
    for fault in [
        Fault::Unavailable,
        Fault::Broken,
        Fault::Silent,
        Fault::Panics,
    ] {
        let app = App::new();
        assert_eq!(app.get("one").await, plan("one", 0));
        let loaded_at = app.clock.elapsed();
        app.store.change("one");
        app.store.fails(fault);
        // A load that begins now and times out ends shortly before the hard TTL.
        while app.clock.elapsed() < loaded_at + 14 * MINUTE {
            assert_eq!(app.get("one").await, plan("one", 0), "{fault:?}");
            tokio::time::advance(20 * SECOND).await;
        }
        app.clock
            .jump(loaded_at + 15 * MINUTE - 2_600 * MS - app.clock.elapsed());
        assert_eq!(app.get("one").await, plan("one", 0), "{fault:?}");
        assert!(app.store.failures() > 3, "nothing was injected");
        app.clock
            .jump((loaded_at + 15 * MINUTE).saturating_sub(app.clock.elapsed()));
        assert!(app.get("one").await.is_unavailable(), "{fault:?}");
        app.store.recovers();
        app.clock.jump(2 * MINUTE);
        assert_eq!(app.get("one").await, plan("one", 1), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn failed_loads_are_not_cached() {
    for (fault, calls) in [
        // One retry, because no settings are cached.
        (Fault::Unavailable, 2),
        (Fault::Broken, 1),
        (Fault::Silent, 2),
        (Fault::Panics, 1),
        (Fault::PanicsAtOnce, 1),
    ] {
        let app = App::new();
        app.store.fails_for("one", fault);
        let before = app.clock.elapsed();
        let waiting: Vec<_> = (0..100).map(|_| app.begin("one")).collect();
        for waiting in waiting {
            assert!(waiting.await.unwrap().is_unavailable(), "{fault:?}");
        }
        assert!(app.clock.elapsed() - before <= 2_500 * MS, "{fault:?}");
        assert_eq!(app.store.failures(), calls, "{fault:?}");
        app.store.recovers();
        assert_eq!(app.get("one").await, plan("one", 0), "{fault:?}");
        assert_eq!(app.store.calls(), calls + 1, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn broken_settings_have_a_longer_retry_after() {
    let app = App::new();
    app.store.fails_for("one", Fault::Broken);
    app.store.fails_for("two", Fault::Unavailable);
    assert_eq!(app.get("one").await, Outcome::Unavailable(10));
    assert_eq!(app.get("two").await, Outcome::Unavailable(1));
}

#[tokio::test(start_paused = true)]
async fn a_throttling_loader_is_paused() {
    let app = App::new();
    assert_eq!(app.get("one").await, plan("one", 0));
    app.store.fails(Fault::Throttled);
    assert_eq!(app.get("two").await, Outcome::Unavailable(30));
    app.store.recovers();
    assert_eq!(app.get_now("two").await, Outcome::Unavailable(30));
    assert_eq!(app.store.calls_for("two"), 1);
    assert_eq!(app.get_now("one").await, plan("one", 0));
    app.clock.jump(30 * SECOND);
    assert_eq!(app.get("two").await, plan("two", 0));
}

#[tokio::test(start_paused = true)]
async fn a_default_is_used_and_not_cached() {
    let usual = Plan::of("default", 0);
    let app = App::with(|builder| builder.default_on_error(usual.clone()));
    app.store.fails(Fault::Unavailable);
    assert_eq!(app.get("one").await, Outcome::Default(usual.clone()));
    app.store.recovers();
    assert_eq!(app.get("one").await, plan("one", 0));
    // Cached settings take precedence over the default.
    app.store.fails(Fault::Unavailable);
    tokio::time::advance(5 * MINUTE).await;
    assert_eq!(app.get("one").await, plan("one", 0));
    app.clock.jump(10 * MINUTE);
    assert_eq!(app.get("one").await, Outcome::Default(usual.clone()));
    app.store.fails(Fault::PanicsAtOnce);
    assert_eq!(app.get("two").await, Outcome::Default(usual));
    app.store.recovers();
    app.clock.jump(2 * MINUTE);
    assert_eq!(app.get("one").await, plan("one", 0));
}

#[tokio::test(start_paused = true)]
async fn capacity_bounds_the_cached_settings() {
    let app = App::with(|builder| builder.capacity(100));
    for n in 0..2_000 {
        let org = format!("org_{n}");
        assert_eq!(app.get(&org).await, plan(&org, 0));
    }
    let stats = app.layer.handle().stats();
    assert!(stats.evictions >= 1_000, "{stats:?}");
    assert!(stats.entries as u64 + stats.evictions <= 2_000, "{stats:?}");
    // Evicted settings are loaded again.
    for n in 0..2_000 {
        let org = format!("org_{n}");
        assert_eq!(app.get(&org).await, plan(&org, 0));
    }
    assert!(app.store.calls() >= 3_000, "{}", app.store.calls());
}

#[tokio::test(start_paused = true)]
async fn the_builder_sets_the_bounds() {
    let app = App::with(|builder| {
        builder
            .soft_ttl(5 * SECOND)
            .hard_ttl(20 * SECOND)
            .attempt_deadline(100 * MS)
            .caller_deadline(300 * MS)
            .lookup_deadline(SECOND)
            .max_calls_per_second(1_000)
            .capacity(10)
    });
    assert_eq!(app.get("one").await, plan("one", 0));
    app.clock.jump(6 * SECOND);
    assert_eq!(app.get_now("one").await, plan("one", 0));
    settle().await;
    assert_eq!(app.store.calls(), 2);
    app.store.fails(Fault::Silent);
    let before = app.clock.elapsed();
    assert!(app.get("two").await.is_unavailable());
    let took = app.clock.elapsed() - before;
    assert!(took >= 100 * MS && took <= 300 * MS, "{took:?}");
    app.clock.jump(20 * SECOND);
    assert!(app.get("one").await.is_unavailable());
    assert!(app.layer.handle().stats().upstream.calls_per_second == Some(1_000.0));
}

#[test]
fn contradictory_bounds_are_a_config_error() {
    let (auth, _) = {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let _guard = runtime.enter();
        auth()
    };
    let builder = || {
        let loader = settings_fn(|_| async { Ok::<_, SettingsError>(Plan::of("one", 0)) });
        OrgSettingsLayer::builder(&auth.handle(), loader)
    };
    let error = builder().soft_ttl(10 * MINUTE).hard_ttl(MINUTE).build();
    assert_eq!(error.unwrap_err().field(), "hard_ttl");
    let error = builder().capacity(0).build().unwrap_err();
    assert_eq!(error.field(), "capacity");
    let error = builder().attempt_deadline(3 * SECOND).build().unwrap_err();
    assert_eq!(error.field(), "caller_deadline");
    let error = builder().max_calls_per_second(0).build().unwrap_err();
    assert_eq!(error.field(), "max_calls_per_second");
    let _ = builder().build().unwrap();
}
