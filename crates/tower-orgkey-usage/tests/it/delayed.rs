//! Records of one account that the sink does not store: those of others are pushed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use tokio::time::sleep;
use tower_orgkey_usage::test_util::TestWallClock;
use tower_orgkey_usage::{PushError, UsageLayer, UsagePusher, UsageRecord, UsageSink};

use crate::kit::{MINUTE, Memory, Scratch, app, read_times, start, sums, usage, wall};

fn is_of(record: &UsageRecord, org: &str) -> bool {
    let account = record.account.organization();
    account.is_some_and(|account| account.as_str() == org)
}

/// Requests of `org_a` with 20 keys, and of `org_b` with one key.
async fn read_both(app: &Router) {
    for key in 0..20 {
        read_times(app, 1, &format!("key.org_a.k{key}")).await;
    }
    read_times(app, 1, "key.org_b.k1").await;
}

/// Runs the pusher for 30 minutes. `org_b` has one request a minute, and is never more than two minutes behind.
async fn run_half_an_hour(
    wall: &TestWallClock,
    usage: &UsageLayer,
    sink: &Memory,
    pusher: UsagePusher<Arc<Memory>>,
) {
    let app = app(usage);
    let pushing = tokio::spawn(pusher.run());
    for minute in 0..30_u32 {
        read_both(&app).await;
        for second in 1..=60 {
            sleep(Duration::from_secs(1)).await;
            wall.set(start() + minute * MINUTE + Duration::from_secs(second));
        }
        let billed = sink.sums().get("org_b").copied().unwrap_or_default();
        assert!(billed + 2 > minute.into(), "{billed} of {minute} minutes");
    }
    pushing.abort();
    assert!(pushing.await.unwrap_err().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn fault_215_permanent_errors_delay_no_other() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let sink = Memory::new(|batch| {
        if batch.iter().any(|record| is_of(record, "org_a")) {
            return Err(PushError::permanent("unknown customer"));
        }
        Ok(())
    });
    let pusher = usage.handle().pusher(Arc::clone(&sink));
    let pusher = pusher.max_waiting(100).build().unwrap();
    run_half_an_hour(&wall, &usage, &sink, pusher).await;
    let taken = sink.taken();
    assert!(taken.iter().all(|record| is_of(record, "org_b")));
    let minutes: Vec<u64> = taken.iter().map(|record| record.minute).collect();
    assert!(minutes.is_sorted(), "{minutes:?}");
}

#[tokio::test(start_paused = true)]
async fn fault_215_failures_of_one_account_delay_no_other() {
    let errors: [(fn() -> PushError, usize); 3] = [
        (|| PushError::retry("status 500"), 300),
        // In 30 minutes.
        (
            || PushError::not_stored("status 429").after(Duration::from_secs(300)),
            9,
        ),
        (|| panic!("a sink of the test's panics"), 300),
    ];
    for (number, (error, most)) in errors.into_iter().enumerate() {
        let scratch = Scratch::new(&format!("delayed-{number}"));
        let wall = wall();
        let usage = usage(&wall).build().unwrap();
        let fails = Arc::new(AtomicBool::new(true));
        let failed = Arc::new(AtomicUsize::new(0));
        let mixed = Arc::new(AtomicUsize::new(0));
        let sink = {
            let fails = Arc::clone(&fails);
            let (failed, mixed) = (Arc::clone(&failed), Arc::clone(&mixed));
            Memory::new(move |batch| {
                let has = |org| batch.iter().any(|record| is_of(record, org));
                if has("org_a") && fails.load(Ordering::SeqCst) {
                    failed.fetch_add(1, Ordering::SeqCst);
                    mixed.fetch_add(usize::from(has("org_b")), Ordering::SeqCst);
                    return Err(error());
                }
                Ok(())
            })
        };
        let pusher = usage.handle().pusher(Arc::clone(&sink));
        let pusher = pusher.spool_file(scratch.file()).build().unwrap();
        let parked = pusher.parked();
        run_half_an_hour(&wall, &usage, &sink, pusher).await;
        let failed = failed.load(Ordering::SeqCst);
        assert!(failed <= most, "{failed} failures");
        // Once it is known which account fails, others are not in its batches.
        assert_eq!(mixed.load(Ordering::SeqCst), 1);
        let parked_number = parked.list().len() as u64;
        drop(parked);

        // The next process has the records that wait, in the order of their minutes.
        fails.store(false, Ordering::SeqCst);
        let usage = crate::kit::usage(&wall).build().unwrap();
        let pusher = usage.handle().pusher(Arc::clone(&sink));
        let mut pusher = pusher.spool_file(scratch.file()).build().unwrap();
        assert_eq!(pusher.push_closed().await.waiting, 0);
        drop(pusher);
        // The last minute may have been in the aggregator.
        let billed = sink.sums();
        let all = 20 * billed["org_b"];
        assert!(billed["org_b"] >= 29, "{billed:?}");
        assert_eq!(billed["org_a"] + parked_number, all);
        let taken = sink.taken();
        let of_a = taken.iter().filter(|record| is_of(record, "org_a"));
        let minutes: Vec<u64> = of_a.map(|record| record.minute).collect();
        assert!(minutes.is_sorted(), "{minutes:?}");
    }
}

/// Stores one record per minute, while others are counted.
struct Behind {
    app: Router,
    wall: TestWallClock,
    calls: AtomicUsize,
    /// The call that stored a record of `org_a`, whose first push fails.
    stored: AtomicUsize,
}

impl UsageSink for Behind {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if call == 0 {
            assert!(is_of(&batch[0], "org_a"));
            return Err(PushError::not_stored("status 429"));
        }
        if is_of(&batch[0], "org_a") {
            self.stored.store(call, Ordering::SeqCst);
        }
        if call < 20 {
            read_times(&self.app, 1, "key.org_b.k1").await;
            read_times(&self.app, 1, "key.org_c.k1").await;
            self.wall.set(self.wall.now() + MINUTE);
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn deferred_records_get_a_turn_among_others() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let app = app(&usage);
    let sink = Arc::new(Behind {
        app: app.clone(),
        wall: wall.clone(),
        calls: AtomicUsize::new(0),
        stored: AtomicUsize::new(0),
    });
    let pusher = usage.handle().pusher(Arc::clone(&sink)).batch_size(1);
    let mut pusher = pusher.build().unwrap();
    for org in ["org_a", "org_b", "org_c"] {
        read_times(&app, 1, &format!("key.{org}.k1")).await;
    }
    wall.set(wall.now() + MINUTE);
    assert_eq!(pusher.push_closed().await.waiting, 0);
    let stored = sink.stored.load(Ordering::SeqCst);
    assert!((1..10).contains(&stored), "call {stored}");
}

#[tokio::test(start_paused = true)]
async fn fault_216_a_slow_meter_gets_smaller_batches() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let sink = Memory::new(|batch| {
        if batch.len() > 100 {
            return Err(PushError::retry("the push timed out"));
        }
        Ok(())
    });
    let mut pusher = usage.handle().pusher(Arc::clone(&sink)).build().unwrap();
    let app = app(&usage);
    for key in 0..600 {
        read_times(&app, 1, &format!("key.org_{}.k{key}", key % 3)).await;
    }
    wall.set(start() + MINUTE);
    let report = pusher.push_closed().await;
    assert_eq!((report.pushed, report.waiting), (600, 0), "{report:?}");
    assert!(sink.calls() < 100, "{} calls", sink.calls());
    let all = [("org_0", 200), ("org_1", 200), ("org_2", 200)];
    assert_eq!(sink.sums(), sums(&all));
}

#[tokio::test(start_paused = true)]
async fn fault_216_a_meter_that_is_down_is_not_flooded() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let down = Arc::new(AtomicBool::new(true));
    let sink = {
        let down = Arc::clone(&down);
        Memory::new(move |_| {
            if down.load(Ordering::SeqCst) {
                return Err(PushError::retry("status 503"));
            }
            Ok(())
        })
    };
    let mut pusher = usage.handle().pusher(Arc::clone(&sink)).build().unwrap();
    let app = app(&usage);
    for org in 0..100 {
        read_times(&app, 1, &format!("key.org_{org}.k1")).await;
    }
    wall.set(start() + MINUTE);
    pusher.push_closed().await;
    // A batch, one record of each of ten accounts, and then one a pause.
    assert_eq!(sink.calls(), 11);
    pusher.run_until(sleep(60 * MINUTE)).await;
    let calls = sink.calls() - 11;
    assert!((60..=140).contains(&calls), "{calls} calls in an hour");
    down.store(false, Ordering::SeqCst);
    assert_eq!(pusher.flush(MINUTE).await.waiting, 0);
    assert_eq!(sink.sums().values().sum::<u64>(), 100);
}
