//! Row 55: a runtime that ends while lookups are in flight, and a layer that outlives it.

use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::kit::{App, Behavior, SOFT, millis, pass, secs};

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

/// Fails a test that hangs, instead of hanging with it.
fn watched(test: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        done.send(()).unwrap();
    });
    let is_done = is_done.recv_timeout(Duration::from_secs(60));
    assert!(
        thread.is_finished() || is_done.is_ok(),
        "the shutdown hangs"
    );
    thread.join().unwrap();
}

#[test]
fn fault_55_runtime_ends_during_a_refresh() {
    watched(|| {
        let first = runtime();
        let app = first.block_on(async {
            let app = App::new().knowing(&["known-key"]).await;
            app.issuer.is(Behavior::Silent);
            app.clock.jump(SOFT);
            assert!(app.get_now("known-key").is_stale());
            drop(app.begin("new-key-0"));
            pass(millis(1)).await;
            assert_eq!((app.issuer.in_flight(), app.issuer.faults()), (2, 2));
            app
        });
        drop(first);
        assert_eq!(app.issuer.in_flight(), 0);
        let upstream = app.handle.upstream();
        assert_eq!((upstream.in_flight, upstream.waiting), (0, 0));

        runtime().block_on(async {
            app.issuer.is(Behavior::Answers);
            app.issuer.issue("new-key-0");
            // Each runtime has its own paused clock; this one may lag behind.
            app.clock.jump(secs(10));
            assert_eq!(app.get("new-key-0").await.status, 200);
            assert_eq!(app.get_now("known-key").status, 200);
            pass(millis(100)).await;
            assert!(!app.get_now("known-key").is_stale(), "a refresh went out");
        });
    });
}

#[test]
fn fault_55_unstarted_lookup_starts_later() {
    watched(|| {
        let first = runtime();
        let app = first.block_on(async {
            let app = App::new().knowing(&["known-key"]).await;
            app.clock.jump(SOFT);
            // Nothing else runs between these and the end of the runtime.
            assert!(app.get_now("known-key").is_stale());
            app.issuer.issue("new-key-0");
            assert!(app.try_now("new-key-0").is_none());
            app
        });
        assert_eq!(app.issuer.calls(), 1, "no task has had its turn");
        drop(first);
        assert_eq!(app.handle.upstream().in_flight, 0);

        runtime().block_on(async {
            app.clock.jump(secs(10));
            let answer = app.get("new-key-0").await;
            assert_eq!((answer.status, answer.took), (200, millis(20)));
            assert_eq!(app.get_now("known-key").status, 200);
            pass(millis(100)).await;
            assert!(!app.get_now("known-key").is_stale(), "a refresh went out");
        });
    });
}

#[test]
fn fault_55_runtime_ends_with_a_full_queue() {
    watched(|| {
        for (limit, callers) in [(1, 100), (50, 300), (1_000, 400)] {
            let first = runtime();
            let app = first.block_on(async {
                let app = App::with(|builder| builder.max_calls_per_second(limit));
                app.issuer.takes(millis(900));
                let mut n = 0;
                for _ in 0..10 {
                    for _ in 0..callers / 10 {
                        n += 1;
                        drop(app.begin(&format!("unknown_key-{n}")));
                    }
                    pass(millis(10)).await;
                }
                let upstream = app.handle.upstream();
                assert!(
                    upstream.in_flight >= 1 && upstream.waiting >= 1,
                    "{upstream:?}"
                );
                app
            });
            drop(first);
            let upstream = app.handle.upstream();
            assert_eq!((upstream.in_flight, upstream.waiting), (0, 0), "{limit}");

            runtime().block_on(async {
                app.issuer.takes(millis(20));
                app.issuer.issue("new-key-0");
                app.issuer.issue("new-key-1");
                app.clock.jump(secs(10));
                assert_eq!(app.get("new-key-0").await.status, 200);
                // Waits for time to pass, so that the clock advances.
                assert_eq!(app.get("new-key-1").await.status, 200);
            });
        }
    });
}

#[test]
fn fault_55_multi_thread_runtime_ends_at_once() {
    watched(|| {
        let first = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .unwrap();
        let app = first.block_on(async {
            let app = App::with(|builder| builder.max_calls_per_second(50));
            app.issuer.is(Behavior::Silent);
            for n in 0..300 {
                drop(app.begin(&format!("unknown_key-{n}")));
            }
            while app.issuer.faults() == 0 {
                tokio::task::yield_now().await;
            }
            app
        });
        drop(first);
        let upstream = app.handle.upstream();
        assert_eq!((upstream.in_flight, upstream.waiting), (0, 0));
        runtime().block_on(async {
            app.issuer.is(Behavior::Answers);
            app.issuer.issue("new-key-0");
            app.clock.jump(secs(60));
            assert_eq!(app.get("new-key-0").await.status, 200);
        });
    });
}
