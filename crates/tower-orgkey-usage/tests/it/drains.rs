//! What is closed, written to the spool file and pushed while the pusher drains, is blocked, or runs by a wrong clock.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use tokio::sync::Notify;
use tower_orgkey_usage::test_util::TestWallClock;
use tower_orgkey_usage::{KeyName, ParkReason, PushError, Settlement, UsageRecord, UsageSink};

use crate::kit::{MINUTE, Memory, Scratch, app, next_minute, read_times, start, sums, usage, wall};

/// A sink of one record per call. While it stores the first record, a request is served and two minutes pass.
struct Slow {
    app: Router,
    wall: TestWallClock,
    calls: AtomicUsize,
    /// Before that, the look-up of an account fails.
    defers: bool,
    /// Later calls do not end.
    blocks: Option<Arc<Notify>>,
}

impl Slow {
    fn new(app: &Router, wall: &TestWallClock) -> Self {
        Self {
            app: app.clone(),
            wall: wall.clone(),
            calls: AtomicUsize::new(0),
            defers: false,
            blocks: None,
        }
    }
}

impl UsageSink for Slow {
    async fn push(&self, _: &[UsageRecord]) -> Result<(), PushError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if self.defers && call == 0 {
            return Err(PushError::defer("a look-up of the test's fails", [0]));
        }
        if call == usize::from(self.defers) {
            read_times(&self.app, 1, "key.org_late.k1").await;
            // The first rest is shorter.
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            self.wall.set(self.wall.now() + 2 * MINUTE);
        } else if let Some(blocks) = &self.blocks {
            blocks.notify_one();
            pending::<()>().await;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn fault_201_minutes_are_saved_while_draining() {
    let scratch = Scratch::new("drains");
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let app = app(&usage);
    let blocks = Arc::<Notify>::default();
    let sink = Slow {
        blocks: Some(Arc::clone(&blocks)),
        ..Slow::new(&app, &wall)
    };
    let pusher = usage.handle().pusher(sink).batch_size(1);
    let pusher = pusher.spool_file(scratch.file()).build().unwrap();
    read_times(&app, 1, "key.org_1.k1").await;
    read_times(&app, 1, "key.org_2.k1").await;
    next_minute(&wall);
    let pushing = tokio::spawn(pusher.run());
    blocks.notified().await;
    // As a kill would leave it.
    pushing.abort();
    assert!(pushing.await.unwrap_err().is_cancelled());

    let sink = Memory::new(|_| Ok(()));
    let usage = crate::kit::usage(&wall).build().unwrap();
    let pusher = usage.handle().pusher(Arc::clone(&sink));
    let mut pusher = pusher.spool_file(scratch.file()).build().unwrap();
    pusher.push_closed().await;
    assert_eq!(sink.sums(), sums(&[("org_2", 1), ("org_late", 1)]));
}

#[tokio::test(start_paused = true)]
async fn deferred_records_are_tried_again_every_minute() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let app = app(&usage);
    let sink = Slow {
        defers: true,
        ..Slow::new(&app, &wall)
    };
    let pusher = usage.handle().pusher(sink).batch_size(1);
    let mut pusher = pusher.build().unwrap();
    read_times(&app, 1, "key.org_1.k1").await;
    read_times(&app, 1, "key.org_2.k1").await;
    next_minute(&wall);
    // With the record of the minute that ended meanwhile.
    let report = pusher.push_closed().await;
    assert_eq!((report.pushed, report.waiting), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn fault_202_a_clock_that_was_ahead_bills() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let sink = Memory::new(|_| Ok(()));
    let mut pusher = usage.handle().pusher(Arc::clone(&sink)).build().unwrap();
    let app = app(&usage);
    // Two hours ahead, until the clock is set.
    wall.set(start() + 120 * MINUTE);
    read_times(&app, 1, "key.org_1.k1").await;
    pusher.push_closed().await;
    wall.set(start());
    for minute in 0..10 {
        read_times(&app, 1, "key.org_1.k1").await;
        next_minute(&wall);
        pusher.push_closed().await;
        assert_eq!(sink.sums()["org_1"], minute + 2);
        // Once per minute.
        read_times(&app, 1, "key.org_2.k1").await;
        assert_eq!(pusher.push_closed().await.pushed, 0);
    }
    assert_eq!(sink.calls(), 10);
    let now = wall.now();
    let is_past = |record: &UsageRecord| record.begins_at() <= now;
    assert!(sink.taken().iter().all(is_past), "in the future");
    // The clock passes the latest minute.
    wall.set(start() + 121 * MINUTE);
    read_times(&app, 1, "key.org_1.k1").await;
    next_minute(&wall);
    pusher.push_closed().await;
    assert_eq!(sink.sums(), sums(&[("org_1", 12), ("org_2", 10)]));
}

#[tokio::test(start_paused = true)]
async fn fault_203_a_panic_for_one_record_blocks_no_other() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let is_bad =
        |record: &UsageRecord| matches!(&record.key, KeyName::Id(id) if id.as_str() == "bad");
    let sink = Memory::new(move |batch| {
        assert!(!batch.iter().any(is_bad), "a sink of the test's panics");
        Ok(())
    });
    let mut pusher = usage.handle().pusher(Arc::clone(&sink)).build().unwrap();
    let app = app(&usage);
    for n in 0..20 {
        read_times(&app, 1, &format!("key.org_1.k{n}")).await;
        read_times(&app, 1, &format!("key.org_2.k{n}")).await;
    }
    read_times(&app, 7, "key.org_1.bad").await;
    next_minute(&wall);
    for _ in 0..10 {
        pusher.push_closed().await;
    }
    assert_eq!(sink.sums(), sums(&[("org_1", 20), ("org_2", 20)]));
    let parked = pusher.parked().list();
    assert_eq!(parked.len(), 1, "{parked:?}");
    assert!(is_bad(&parked[0].record));
    assert!(matches!(parked[0].reason, ParkReason::MaybeStored { .. }));
}

#[tokio::test(start_paused = true)]
async fn fault_203b_panics_count_for_their_own_record() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let mut calls = [0, 0];
    let sink = Memory::new(move |batch| {
        let is_first = batch[0].account.organization().unwrap().as_str() == "org_1";
        let calls = &mut calls[usize::from(!is_first)];
        *calls += 1;
        match (is_first, *calls) {
            (true, 3) => Err(PushError::defer("a look-up of the test's fails", [0])),
            (_, 1..=2) => panic!("a sink of the test's panics"),
            _ => Ok(()),
        }
    });
    let pusher = usage.handle().pusher(Arc::clone(&sink)).batch_size(1);
    let mut pusher = pusher.build().unwrap();
    let app = app(&usage);
    for org in ["org_1", "org_2"] {
        read_times(&app, 1, &format!("key.{org}.k1")).await;
        next_minute(&wall);
        pusher.push_closed().await;
    }
    // Two panics on the first record, which is then deferred, and two on the second.
    for _ in 0..3 {
        pusher.push_closed().await;
    }
    assert!(sink.calls() >= 6, "{}", sink.calls());
    assert_eq!(pusher.parked().list().len(), 0);
    assert_eq!(sink.sums(), sums(&[("org_1", 1), ("org_2", 1)]));
}

/// An organization with many keys fills the queue of a meter that is down.
#[tokio::test(start_paused = true)]
async fn fault_208_an_account_displaces_its_own_records() {
    let scratch = Scratch::new("displaces");
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let app = app(&usage);
    let down = Memory::new(|_| Err(PushError::retry("down")));
    let pusher = usage.handle().pusher(down).max_waiting(20);
    let mut pusher = pusher.spool_file(scratch.file()).build().unwrap();
    for minute in 0..6 {
        read_times(&app, 1, "key.org_1.k1").await;
        for key in 0..15 {
            read_times(&app, 1, &format!("key.org_many.k{key}_{minute}")).await;
        }
        next_minute(&wall);
        pusher.push_closed().await;
    }
    let stats = usage.handle().stats();
    assert_eq!((stats.waiting, stats.dropped), (20, 6 * 16 - 20));
    drop(pusher);

    // The next process has the same records.
    let sink = Memory::new(|_| Ok(()));
    let usage = crate::kit::usage(&wall).build().unwrap();
    let pusher = usage.handle().pusher(Arc::clone(&sink));
    let mut pusher = pusher.spool_file(scratch.file()).build().unwrap();
    pusher.push_closed().await;
    assert_eq!(sink.sums(), sums(&[("org_1", 6), ("org_many", 14)]));
    let many = sink.taken().into_iter().filter(|record| {
        let org = record.account.organization();
        org.is_some_and(|org| org.as_str() == "org_many")
    });
    let minutes: Vec<u64> = many.map(|record| record.minute).collect();
    let last = *minutes.last().unwrap();
    assert!(minutes.iter().all(|minute| *minute == last), "{minutes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_always_panics_parks_slowly() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let panics = Arc::new(AtomicBool::new(true));
    let sink = {
        let panics = Arc::clone(&panics);
        Memory::new(move |_| {
            assert!(
                !panics.load(Ordering::SeqCst),
                "a sink of the test's panics"
            );
            Ok(())
        })
    };
    let mut pusher = usage.handle().pusher(Arc::clone(&sink)).build().unwrap();
    let app = app(&usage);
    for n in 0..100 {
        read_times(&app, 1, &format!("key.org_1.k{n}")).await;
    }
    next_minute(&wall);
    // An hour.
    pusher.run_until(tokio::time::sleep(60 * MINUTE)).await;
    let parked = pusher.parked();
    let number = parked.list().len();
    assert!((10..60).contains(&number), "{number}");
    panics.store(false, Ordering::SeqCst);
    parked
        .settle(Settlement::PushAgain, |_| true)
        .await
        .unwrap();
    assert_eq!(pusher.flush(MINUTE).await.waiting, 0);
    assert_eq!(sink.sums(), sums(&[("org_1", 100)]));
}
