//! Records of one account that the sink does not store: those of others are pushed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use tokio::time::sleep;
use tower_orgkey_usage::test_util::TestWallClock;
use tower_orgkey_usage::{PushError, UsageLayer, UsagePusher, UsageRecord};

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
    let errors: [fn() -> PushError; 3] = [
        || PushError::retry("status 500"),
        || PushError::not_stored("status 429").after(Duration::from_secs(300)),
        || panic!("a sink of the test's panics"),
    ];
    for (number, error) in errors.into_iter().enumerate() {
        let scratch = Scratch::new(&format!("delayed-{number}"));
        let wall = wall();
        let usage = usage(&wall).build().unwrap();
        let fails = Arc::new(AtomicBool::new(true));
        let sink = {
            let fails = Arc::clone(&fails);
            Memory::new(move |batch| {
                let has_bad = batch.iter().any(|record| is_of(record, "org_a"));
                if has_bad && fails.load(Ordering::SeqCst) {
                    return Err(error());
                }
                Ok(())
            })
        };
        let pusher = usage.handle().pusher(Arc::clone(&sink));
        let pusher = pusher.spool_file(scratch.file()).build().unwrap();
        let parked = pusher.parked();
        run_half_an_hour(&wall, &usage, &sink, pusher).await;
        assert!(sink.calls() < 2_000, "{} calls", sink.calls());
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
