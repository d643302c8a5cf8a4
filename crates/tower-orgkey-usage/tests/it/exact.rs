//! Sums are exact: with eviction, threads, and other organizations.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use proptest::prelude::*;
use tower::ServiceExt;
use tower_orgkey_usage::telemetry;
use tower_orgkey_usage::{UsageLayer, UsageLine};

use crate::kit::{Memory, app, next_minute, of_org, read, read_times, request, sums, usage, wall};

#[tokio::test(start_paused = true)]
async fn merging_many_keys_loses_no_request() {
    const KEYS: u64 = 200_000;
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let wall = wall();
    let usage = usage(&wall)
        .capacity(1_000)
        .organizations(100)
        .build()
        .unwrap();
    let handle = usage.handle();
    let sink = Memory::new(|_| Ok(()));
    let mut pusher = handle.pusher(Arc::clone(&sink)).build().unwrap();
    let app = app(&usage);
    for n in 0..KEYS {
        read(&app, &format!("key.org_{}.k{n}", n % 7)).await;
        if n % 50_000 == 49_999 {
            next_minute(&wall);
            pusher.push_closed().await;
        }
    }
    let stats = handle.stats();
    assert!(stats.rows <= 2 * (1_000 + 100 + 3 * 64), "{stats:?}");
    assert!(stats.merged > KEYS / 2, "{stats:?}");
    let told = snapshotter.snapshot().into_vec();
    let folded = told
        .iter()
        .find(|(key, ..)| key.key().name() == telemetry::USAGE_ROWS_MERGED);
    assert_eq!(folded.unwrap().3, DebugValue::Counter(stats.merged));
    let snapshot = handle.snapshot();
    let billed = sink.sums();
    for org in 0..7 {
        let expected = (0..KEYS).filter(|n| n % 7 == org).count() as u64;
        let name = format!("org_{org}");
        assert_eq!(of_org(&snapshot, &name), expected);
        assert_eq!(
            billed[&name], expected,
            "what is pushed is folded, and whole"
        );
    }
    assert_eq!(snapshot.total().requests(), KEYS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_counting_and_closing_is_exact() {
    const TASKS: u64 = 4;
    const EACH: u64 = 20_000;
    let wall = wall();
    let usage = usage(&wall).capacity(64).organizations(8).build().unwrap();
    let handle = usage.handle();
    let sink = Memory::new(|_| Ok(()));
    let mut pusher = handle.pusher(Arc::clone(&sink)).build().unwrap();
    let app = app(&usage);
    // Every key is verified before the threads start.
    for n in 0..500 {
        read(&app, &format!("key.org_{}.k{n}", n % 5)).await;
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let closing = {
        let (handle, is_over) = (handle.clone(), Arc::clone(&is_over));
        tokio::spawn(async move {
            let mut last = 0;
            loop {
                let was_over = is_over.load(Ordering::SeqCst);
                next_minute(&wall);
                pusher.push_closed().await;
                let total = handle.snapshot().total().requests();
                assert!(total >= last, "the total went from {last} to {total}");
                last = total;
                if was_over {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
    };
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let app = app.clone();
            tokio::spawn(async move {
                for n in 0..EACH {
                    let n = (n * 7 + task * 131) % 500;
                    assert_eq!(read(&app, &format!("key.org_{}.k{n}", n % 5)).await, 200);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    is_over.store(true, Ordering::SeqCst);
    closing.await.unwrap();
    assert!(handle.stats().merged > 0, "nothing raced");
    let expected = (TASKS * EACH + 500) / 5;
    let snapshot = handle.snapshot();
    let each = ["org_0", "org_1", "org_2", "org_3", "org_4"].map(|org| (org, expected));
    assert_eq!(sink.sums(), sums(&each));
    for (org, expected) in each {
        assert_eq!(of_org(&snapshot, org), expected);
    }
}

/// What one request does.
#[derive(Clone, Debug)]
struct Step {
    org: usize,
    key: usize,
    path: &'static str,
    starts_minute: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let path = prop_oneof![
        Just("/reports/1"),
        Just("/guarded"),
        Just("/upload"),
        Just("/nowhere")
    ];
    (0..4_usize, 0..6_usize, path, prop::bool::weighted(0.1)).prop_map(
        |(org, key, path, starts_minute)| Step {
            org,
            key,
            path,
            starts_minute,
        },
    )
}

/// The lines of an organization, in the totals and in what is pushed, without the numbers of records.
async fn books_of(org: usize, steps: &[Step], alone: bool, rows: usize) -> Vec<String> {
    let wall = wall();
    let usage: UsageLayer = usage(&wall).capacity(rows).build().unwrap();
    let sink = Memory::new(|_| Ok(()));
    let handle = usage.handle();
    let mut pusher = handle.pusher(Arc::clone(&sink)).build().unwrap();
    let app: Router = app(&usage);
    for step in steps {
        if step.starts_minute {
            next_minute(&wall);
            pusher.push_closed().await;
        }
        if alone && step.org != org {
            continue;
        }
        let key = format!("key.org_{}.k{}", step.org, step.key);
        let request = request("GET", step.path, Some(&key));
        app.clone().oneshot(request).await.unwrap();
    }
    let name = format!("org_{org}");
    let is_its = |line: &&UsageLine| line.account.organization().is_some_and(|org| *org == *name);
    if rows < 100 {
        // Which keys are evicted depends on the others; the sums do not.
        let org = tower_orgkey::OrgCode::new(&*name).unwrap();
        return vec![format!("{:?}", handle.snapshot().of_organization(&org))];
    }
    next_minute(&wall);
    pusher.push_closed().await;
    let snapshot = handle.snapshot();
    let totals = snapshot
        .lines()
        .iter()
        .filter(is_its)
        .map(|line| format!("{line:?}"));
    let taken = sink.taken();
    let minutes = taken
        .iter()
        .filter(|record| {
            record
                .account
                .organization()
                .is_some_and(|org| *org == *name)
        })
        .map(|record| {
            format!(
                "{} {:?} {:?} {:?}",
                record.minute, record.key, record.route, record.counts
            )
        });
    totals.chain(minutes).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn organizations_do_not_affect_each_other(
        steps in prop::collection::vec(step(), 1..60),
        org in 0..4_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        for rows in [1_000, 3] {
            let among_others = runtime.block_on(books_of(org, &steps, false, rows));
            let alone = runtime.block_on(books_of(org, &steps, true, rows));
            prop_assert_eq!(among_others, alone);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn since_returns_the_difference() {
    let usage = usage(&wall()).capacity(4).organizations(4).build().unwrap();
    let app = app(&usage);
    read_times(&app, 3, "key.org_1.k1").await;
    read_times(&app, 2, "key.org_2.k2").await;
    let mark = usage.handle().snapshot();
    assert_eq!(usage.handle().snapshot().since(&mark).lines(), []);
    for n in 0..20 {
        read_times(&app, 1, &format!("key.org_1.j{n}")).await;
    }
    read_times(&app, 4, "key.org_2.k2").await;
    let since = usage.handle().snapshot().since(&mark);
    assert_eq!((of_org(&since, "org_1"), of_org(&since, "org_2")), (20, 4));
    assert_eq!(since.total().requests(), 24);
    let another = UsageLayer::new().handle().snapshot();
    assert_eq!(
        usage.handle().snapshot().since(&another),
        usage.handle().snapshot()
    );
}
