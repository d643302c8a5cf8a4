//! Records of one account that the sink does not store: those of others are pushed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceExt;
use tower_orgkey_usage::test_util::TestWallClock;
use tower_orgkey_usage::{PushError, UsageLayer, UsagePusher, UsageRecord, UsageSink};

use crate::kit::{MINUTE, Memory, Scratch, app, read_times, request, start, sums, usage, wall};
use crate::log::Log;

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
    let errors: [(fn() -> PushError, usize); 4] = [
        (|| PushError::retry("status 500"), 60),
        (|| PushError::park("of no record", []), 60),
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
            sleep(Duration::from_secs(2)).await;
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

/// Moves the clock with the time of the runtime.
async fn keep_time(wall: TestWallClock) {
    let begin = Instant::now();
    loop {
        sleep(Duration::from_secs(1)).await;
        wall.set(start() + begin.elapsed());
    }
}

/// Runs the pusher for an hour. Each minute these requests are made, and one without a key.
async fn run_for_an_hour(
    wall: &TestWallClock,
    usage: &UsageLayer,
    pusher: UsagePusher<Arc<Memory>>,
    keys: &[String],
) {
    let app = app(usage);
    let time = tokio::spawn(keep_time(wall.clone()));
    let pushing = tokio::spawn(pusher.run());
    for _ in 0..60 {
        for key in keys {
            read_times(&app, 1, key).await;
        }
        app.clone()
            .oneshot(request("GET", "/reports/1", None))
            .await
            .unwrap();
        sleep(MINUTE).await;
    }
    pushing.abort();
    time.abort();
}

/// As the sinks of meters, which send only records of organizations.
fn sends(batch: &[UsageRecord]) -> bool {
    batch
        .iter()
        .any(|record| record.account.organization().is_some())
}

#[tokio::test(start_paused = true)]
async fn fault_216_skipped_records_do_not_hide_a_failure() {
    let (log, _guard) = Log::capture();
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let sink = {
        let calls = Arc::clone(&calls);
        Memory::new(move |batch| {
            if sends(batch) {
                calls.fetch_add(1, Ordering::SeqCst);
                return Err(PushError::retry("status 503"));
            }
            Ok(())
        })
    };
    let pusher = usage.handle().pusher(sink).build().unwrap();
    let keys: Vec<String> = (0..9).map(|org| format!("key.org_{org}.k1")).collect();
    run_for_an_hour(&wall, &usage, pusher, &keys).await;
    let calls = calls.load(Ordering::SeqCst);
    assert!((60..400).contains(&calls), "{calls} calls");
    assert!(
        log.lines("INFO", "usage push recovered").len() <= 1,
        "{}",
        log.text()
    );
}

#[tokio::test(start_paused = true)]
async fn fault_216_skipped_records_drop_no_others() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let sink = Memory::new(|batch| {
        if sends(batch) {
            return Err(PushError::permanent("status 400"));
        }
        Ok(())
    });
    let pusher = usage.handle().pusher(sink).build().unwrap();
    let key = |n| format!("key.org_{}.k{n}", n % 5);
    let keys: Vec<String> = (0..20).map(key).collect();
    run_for_an_hour(&wall, &usage, pusher, &keys).await;
    let undeliverable = usage.handle().stats().undeliverable;
    assert!((60..150).contains(&undeliverable), "{undeliverable}");
}

/// Times out for `org_0` to `org_5`.
struct TimesOut(AtomicUsize);

impl UsageSink for TimesOut {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        if batch.iter().any(|record| !is_of(record, "org_good")) {
            sleep(MINUTE).await;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn accounts_that_time_out_rest() {
    let (log, _guard) = Log::capture();
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let app = app(&usage);
    let sink = Arc::new(TimesOut(AtomicUsize::new(0)));
    let mut pusher = usage.handle().pusher(sink).build().unwrap();
    for org in 0..6 {
        read_times(&app, 1, &format!("key.org_{org}.k1")).await;
    }
    read_times(&app, 1, "key.org_good.k1").await;
    wall.set(start() + MINUTE);
    tokio::spawn(async move {
        let begin = Instant::now();
        for minute in 1.. {
            read_times(&app, 1, "key.org_good.k1").await;
            sleep(MINUTE).await;
            wall.set(start() + MINUTE + begin.elapsed());
            assert!(minute < 100);
        }
    });
    let report = timeout(10 * MINUTE, pusher.push_closed()).await.unwrap();
    assert!(
        (6..=7).contains(&report.waiting) && report.pushed > 0,
        "{report:?}"
    );
    assert_eq!(
        log.lines("WARN", "usage push failed").len(),
        1,
        "{}",
        log.text()
    );
    assert_eq!(log.lines("INFO", "usage push recovered").len(), 0);
}

#[tokio::test]
async fn an_account_with_many_bad_records_delays_no_other() {
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let app = app(&usage);
    let calls = Arc::new(AtomicUsize::new(0));
    let stored = Arc::new(AtomicUsize::new(usize::MAX));
    let sink = {
        let (calls, stored) = (Arc::clone(&calls), Arc::clone(&stored));
        Memory::new(move |batch| {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            let is_bad =
                |record: &UsageRecord| is_of(record, "org_a") && record.counts.requests() == 2;
            if batch.iter().any(is_bad) {
                return Err(PushError::permanent("status 400"));
            }
            if batch.iter().any(|record| is_of(record, "org_g")) {
                stored.store(call, Ordering::SeqCst);
            }
            Ok(())
        })
    };
    let mut pusher = usage.handle().pusher(sink).build().unwrap();
    for key in 0..1_000 {
        read_times(&app, 1 + (key + 1) % 2, &format!("key.org_a.k{key:04}")).await;
    }
    read_times(&app, 1, "key.org_g.k1").await;
    wall.set(start() + MINUTE);
    pusher.push_closed().await;
    let call = stored.load(Ordering::SeqCst);
    assert!(call < 60, "call {call}");
}

#[tokio::test(start_paused = true)]
async fn accounts_that_rest_keep_their_order() {
    let scratch = Scratch::new("order");
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let app = app(&usage);
    let sink = Memory::new(|batch| {
        let error = PushError::not_stored("status 429");
        if batch.iter().any(|record| is_of(record, "org_a")) {
            return Err(error.after(Duration::from_secs(300)));
        }
        Err(error)
    });
    let pusher = usage.handle().pusher(Arc::clone(&sink));
    let mut pusher = pusher.spool_file(scratch.file()).build().unwrap();
    for key in 0..20 {
        read_times(&app, 1, &format!("key.org_a.k{key}")).await;
    }
    read_times(&app, 1, "key.org_b.k1").await;
    wall.set(start() + MINUTE);
    pusher.push_closed().await;
    pusher.run_until(sleep(Duration::from_secs(5))).await;
    let len = || std::fs::metadata(scratch.path()).unwrap().len();
    let (before, calls) = (len(), sink.calls());
    pusher.run_until(sleep(Duration::from_secs(240))).await;
    assert!(sink.calls() >= calls + 3, "{} calls", sink.calls());
    assert_eq!(
        len(),
        before,
        "this sink forgets no ids, so no push is noted"
    );
}
