//! When minutes are closed, in which order they are pushed, and records that the sink does not store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tower_orgkey_usage::{PushError, PushErrorKind, UsageLayer};

use crate::kit::{MINUTE, Memory, app, next_minute, of_org, read_times, start, sums, usage, wall};

#[tokio::test(start_paused = true)]
async fn closed_minutes_stay_closed_if_the_clock_steps() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let handle = usage.handle();
    let sink = Memory::new(|_| Ok(()));
    let mut pusher = handle.pusher(Arc::clone(&sink)).build().unwrap();
    let app = app(&usage);
    let read = |times| read_times(&app, times, "key.org_1.k1");

    read(1).await;
    assert_eq!(
        pusher.push_closed().await.pushed,
        0,
        "the minute is not over"
    );
    next_minute(&wall);
    assert_eq!(pusher.push_closed().await.pushed, 1);
    // Back into the minute that is closed, before anything was counted in the next.
    wall.set(start() + Duration::from_secs(5));
    read(2).await;
    assert_eq!(pusher.push_closed().await.pushed, 0);
    // Closed early, twice in one minute, and used in between.
    assert_eq!(pusher.flush(MINUTE).await.pushed, 1);
    read(4).await;
    assert_eq!(pusher.flush(MINUTE).await.pushed, 1);
    assert_eq!(
        pusher.flush(MINUTE).await.pushed,
        0,
        "there is nothing to close"
    );
    read(8).await;
    wall.set(start() + 10 * MINUTE);
    read(16).await;
    wall.set(start() + 2 * MINUTE);
    read(32).await;
    assert_eq!(pusher.flush(MINUTE).await.pushed, 2);

    let taken = sink.taken();
    let minutes: Vec<u64> = taken
        .iter()
        .map(|record| (record.minute - taken[0].minute) / 60)
        .collect();
    // No minute is after the clock when it was closed.
    assert_eq!(minutes, [0, 0, 0, 1, 2]);
    let requests: Vec<u64> = taken
        .iter()
        .map(|record| record.counts.requests())
        .collect();
    assert_eq!(requests, [1, 2, 4, 8, 48]);
    // No id is repeated.
    assert_eq!(sink.sums(), sums(&[("org_1", 63)]));
    assert_eq!(of_org(&handle.snapshot(), "org_1"), 63);
}

#[tokio::test(start_paused = true)]
async fn a_running_pusher_closes_every_minute() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let handle = usage.handle();
    let failures = Arc::new(AtomicUsize::new(0));
    let sink = {
        let failures = Arc::clone(&failures);
        // Two of three pushes fail, one of them by a panic.
        Memory::new(move |_| match failures.fetch_add(1, Ordering::SeqCst) % 3 {
            0 => Err(PushError::retry("busy").after(Duration::from_secs(20))),
            1 => panic!("a sink of the test's panics"),
            _ => Ok(()),
        })
    };
    let mut pusher = handle.pusher(Arc::clone(&sink)).build().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let pushing = tokio::spawn(async move {
        pusher.run_until(async { _ = stopped.await }).await;
        pusher.flush(MINUTE).await
    });
    let app = app(&usage);
    for second in 0..600 {
        wall.set(start() + Duration::from_secs(second));
        read_times(&app, 1, "key.org_1.k1").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        // A minute and a half: a minute, 2 s, and the pauses of a sink that fails twice.
        let least = second.saturating_sub(150);
        let billed: u64 = sink.sums().values().sum();
        assert!(billed >= least, "{billed} of {second} pushed");
    }
    drop(stop);
    let report = pushing.await.unwrap();
    assert_eq!(report.waiting, 0, "{report:?}");
    assert_eq!(sink.sums(), sums(&[("org_1", 600)]));
    let minutes: Vec<u64> = sink.taken().iter().map(|record| record.minute).collect();
    assert!(minutes.is_sorted() && minutes.len() == 10, "{minutes:?}");
    assert!(failures.load(Ordering::SeqCst) >= 30);
}

#[tokio::test(start_paused = true)]
async fn permanent_errors_in_a_row_pause_the_push() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let handle = usage.handle();
    let refuses = Arc::new(AtomicUsize::new(1));
    let sink = {
        let refuses = Arc::clone(&refuses);
        Memory::new(move |_| match refuses.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(PushError::permanent("wrong meter")),
        })
    };
    let mut pusher = handle
        .pusher(Arc::clone(&sink))
        .batch_size(16)
        .build()
        .unwrap();
    let app = app(&usage);
    for n in 0..100 {
        read_times(&app, 1, &format!("key.org_1.k{n}")).await;
    }
    next_minute(&wall);
    let report = pusher.push_closed().await;
    assert_eq!((report.undeliverable, report.waiting), (10, 90));
    let report = pusher.push_closed().await;
    assert_eq!(
        (report.undeliverable, report.waiting),
        (1, 89),
        "one a turn from then on"
    );
    refuses.store(0, Ordering::SeqCst);
    let report = pusher.push_closed().await;
    assert_eq!((report.pushed, report.waiting), (89, 0));
    assert_eq!(handle.stats().undeliverable, 11);
}

#[tokio::test(start_paused = true)]
async fn an_idle_pusher_sleeps_after_a_pause() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let handle = usage.handle();
    let sink = Memory::new(|_| Err(PushError::permanent("wrong meter")));
    let mut pusher = handle.pusher(sink).build().unwrap();
    let app = app(&usage);
    for n in 0..12 {
        read_times(&app, 1, &format!("key.org_1.k{n}")).await;
    }
    next_minute(&wall);
    // Ends only if the pusher sleeps: nothing else moves the clock.
    let stop = tokio::time::sleep(Duration::from_secs(3_600));
    pusher.run_until(stop).await;
    assert_eq!(
        (handle.stats().undeliverable, handle.stats().waiting),
        (12, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn unfetched_minutes_are_bounded() {
    let wall = wall();
    let usage = usage(&wall).capacity(64).build().unwrap();
    let handle = usage.handle();
    let sink = Memory::new(|_| Ok(()));
    let pusher = handle
        .pusher(Arc::clone(&sink))
        .max_waiting(20)
        .build()
        .unwrap();
    assert_eq!(
        handle
            .pusher(Arc::clone(&sink))
            .build()
            .unwrap_err()
            .field(),
        "pusher"
    );
    let app = app(&usage);
    for _ in 0..50 {
        read_times(&app, 1, "key.org_1.k1").await;
        next_minute(&wall);
    }
    let dropped = handle.stats().dropped;
    assert!((30..50).contains(&dropped), "{dropped}");
    drop(pusher);
    let stats = handle.stats();
    assert_eq!(stats.dropped, 49, "the last minute is not over");
    assert_eq!(of_org(&handle.snapshot(), "org_1"), 50);

    // Without a pusher nothing is queued or dropped; a new pusher starts empty.
    read_times(&app, 5, "key.org_1.k1").await;
    next_minute(&wall);
    read_times(&app, 7, "key.org_1.k1").await;
    let mut pusher = handle.pusher(Arc::clone(&sink)).build().unwrap();
    next_minute(&wall);
    pusher.push_closed().await;
    assert_eq!(sink.sums(), sums(&[("org_1", 7)]));
    assert_eq!(handle.stats().dropped, 49);
}

#[tokio::test(start_paused = true)]
async fn a_requested_pause_is_respected() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let asked = tokio::time::Instant::now();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let sink = Memory::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        if asked.elapsed() < Duration::from_secs(200) {
            Err(PushError::retry("busy").after(Duration::from_secs(200)))
        } else {
            Ok(())
        }
    });
    let mut pusher = usage.handle().pusher(Arc::clone(&sink)).build().unwrap();
    read_times(&app(&usage), 1, "key.org_1.k1").await;
    let report = pusher.flush(Duration::from_secs(199)).await;
    assert_eq!((report.pushed, report.waiting), (0, 1));
    let report = pusher.flush(Duration::from_secs(300)).await;
    assert_eq!((report.pushed, report.waiting), (1, 0));
    // Each flush tries at once, and then only after the pause.
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let passed = asked.elapsed().as_secs();
    assert!((200..=300).contains(&passed), "{passed} s");
    let error = PushError::permanent("no").after(Duration::from_secs(1));
    assert_eq!(error.kind(), PushErrorKind::Permanent);
}

#[test]
fn invalid_settings_are_not_built() {
    let field = |built: Result<UsageLayer, tower_orgkey::ConfigError>| built.unwrap_err().field();
    assert_eq!(field(UsageLayer::builder().capacity(0).build()), "capacity");
    assert_eq!(
        field(UsageLayer::builder().organizations(0).build()),
        "organizations"
    );
    assert_eq!(
        field(UsageLayer::builder().routes(2_000_000).build()),
        "routes"
    );
    let handle = UsageLayer::new().handle();
    let pusher = || handle.pusher(Memory::new(|_| Ok(())));
    assert_eq!(
        pusher().batch_size(0).build().unwrap_err().field(),
        "batch_size"
    );
    assert_eq!(
        pusher().max_waiting(0).build().unwrap_err().field(),
        "max_waiting"
    );
    let zero = Duration::ZERO;
    assert_eq!(
        pusher().push_timeout(zero).build().unwrap_err().field(),
        "push_timeout"
    );
    assert!(pusher().build().is_ok());
}
