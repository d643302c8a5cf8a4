//! Per organization and to the unit: served = billed + parked, whatever the meter does and however often the process restarts.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt;
use proptest::prelude::*;
use tower_orgkey::OrgCode;
use tower_orgkey_usage::test_util::TestWallClock;
use tower_orgkey_usage::{
    OpenMeterSink, ParkReason, ParkedRecord, Settlement, StripeCustomer, StripeSink, UsageLayer,
    UsagePusher, UsageSink,
};

use crate::kit::{MINUTE, Scratch, Sums, app, next_minute, read_times, usage, wall};
use crate::lago_example::LagoSink;
use crate::meters::{Fault, Kind, Meter, forward};

#[derive(Clone, Debug)]
enum Step {
    Requests {
        org: usize,
        key: usize,
        times: u64,
    },
    /// Closes the minute, and pushes.
    Push,
    /// Closes the minute, begins a push, and drops it after so many polls.
    Cancel(usize),
    Fault(Fault),
    Restart,
    Pass(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    let hours = prop_oneof![1..48_u64, 600..900_u64];
    prop_oneof![
        4 => (0..3_usize, 0..3_usize, 1..4_u64)
            .prop_map(|(org, key, times)| Step::Requests { org, key, times }),
        4 => Just(Step::Push),
        1 => (1..12_usize).prop_map(Step::Cancel),
        4 => prop_oneof![
            Just(Fault::Says(429)),
            Just(Fault::Says(503)),
            Just(Fault::Resets),
            Just(Fault::TakesAndResets),
            Just(Fault::TakesAndSays(500)),
        ].prop_map(Step::Fault),
        1 => Just(Step::Restart),
        2 => hours.prop_map(|hours| Step::Pass(Duration::from_secs(hours * 3_600))),
    ]
}

pub(crate) fn stripe(meter: &Meter, clock: &TestWallClock, is_v1: bool) -> StripeSink {
    let customer = async |org: OrgCode| {
        Ok::<_, std::io::Error>(match org.as_str() {
            "org_unknown" => StripeCustomer::Unknown,
            "org_free" => StripeCustomer::NotBilled,
            org => StripeCustomer::Id(format!("cus_{org}")),
        })
    };
    let builder = StripeSink::builder("sk_test_0123", "api_requests", customer)
        .api_origin(&meter.url)
        .stream_origin(&meter.url)
        .test_wall_clock(clock.clone());
    let builder = if is_v1 { builder.v1() } else { builder };
    builder.build().unwrap()
}

pub(crate) fn lago(meter: &Meter) -> LagoSink {
    LagoSink::new(&meter.url, "a-key", |org| Some(format!("sub_{org}"))).unwrap()
}

pub(crate) fn open_meter(meter: &Meter) -> OpenMeterSink {
    let builder = OpenMeterSink::builder(&meter.url);
    builder.path("/api/v3/openmeter/events").build().unwrap()
}

/// A process: a layer, its application, and its pusher.
struct Process<S> {
    app: Router,
    pusher: UsagePusher<S>,
}

impl<S: UsageSink> Process<S> {
    fn start(wall: &TestWallClock, scratch: &Scratch, sink: S) -> Self {
        let usage: UsageLayer = usage(wall).build().unwrap();
        let pusher = usage.handle().pusher(sink).batch_size(3);
        Self {
            app: app(&usage),
            pusher: pusher.spool_file(scratch.file()).build().unwrap(),
        }
    }
}

/// Runs the steps, and then repairs the meter and settles what is parked. Returns what was served, billed, and too old.
async fn run<S: UsageSink>(
    steps: &[Step],
    meter: &Meter,
    wall: &TestWallClock,
    sink: impl Fn() -> S,
) -> (Sums, Sums, Sums) {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    let scratch = Scratch::new(&format!("sums-{number}"));
    let mut served = Sums::new();
    let mut process = Process::start(wall, &scratch, sink());
    for step in steps {
        match step {
            Step::Requests { org, key, times } => {
                let key = format!("key.org_{org}.k{key}");
                read_times(&process.app, *times, &key).await;
                *served.entry(format!("org_{org}")).or_default() += times;
            }
            Step::Push => {
                next_minute(wall);
                process.pusher.push_closed().await;
            }
            Step::Cancel(polls) => {
                next_minute(wall);
                poll_times(process.pusher.push_closed(), *polls).await;
                // Else the meter could get it after the clock has moved by days.
                meter.arrived().await;
            }
            Step::Fault(fault) => meter.then([*fault]),
            Step::Restart => {
                next_minute(wall);
                process.pusher.push_closed().await;
                drop(process);
                process = Process::start(wall, &scratch, sink());
            }
            Step::Pass(time) => forward(wall, *time),
        }
    }
    meter.works();
    next_minute(wall);
    let mut pusher = process.pusher;
    push_all(&mut pusher, wall).await;

    // Nothing is lost, and nothing is billed twice.
    let unbilled = parked(&pusher, |parked| !meter.has(&parked.record.id));
    assert_eq!(add(&meter.bill(), &unbilled), served, "{steps:?}");

    // What the meter has is billed; the rest is pushed again, unless it is too old.
    let settle = pusher.parked();
    let billed = |parked: &ParkedRecord| meter.has(&parked.record.id);
    settle.settle(Settlement::Billed, billed).await.unwrap();
    let doubtful = |parked: &ParkedRecord| parked.reason != ParkReason::TooOld;
    settle
        .settle(Settlement::PushAgain, doubtful)
        .await
        .unwrap();
    push_all(&mut pusher, wall).await;
    assert!(
        settle
            .list()
            .iter()
            .all(|parked| parked.reason == ParkReason::TooOld)
    );
    (served, meter.bill(), parked(&pusher, |_| true))
}

async fn poll_times(future: impl Future, times: usize) {
    let mut future = pin!(future);
    for _ in 0..times {
        if future.as_mut().now_or_never().is_some() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn push_all<S: UsageSink>(pusher: &mut UsagePusher<S>, wall: &TestWallClock) {
    for _ in 0..20 {
        if pusher.push_closed().await.waiting == 0 {
            return;
        }
        forward(wall, MINUTE);
    }
    panic!("the meter takes nothing");
}

fn parked<S: UsageSink>(pusher: &UsagePusher<S>, select: impl Fn(&ParkedRecord) -> bool) -> Sums {
    let mut sums = Sums::new();
    for parked in pusher
        .parked()
        .list()
        .iter()
        .filter(|parked| select(parked))
    {
        let org = parked.record.account.organization().unwrap().to_string();
        *sums.entry(org).or_default() += parked.record.counts.served();
    }
    sums
}

fn add(a: &Sums, b: &Sums) -> Sums {
    let mut sums = a.clone();
    for (org, count) in b {
        *sums.entry(org.clone()).or_default() += count;
    }
    sums
}

fn check(kind: Kind, steps: &[Step]) -> BTreeMap<&'static str, u64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (served, billed, too_old) = runtime.block_on(async {
        let wall = wall();
        let meter = Meter::start(kind, &wall).await;
        match kind {
            Kind::OpenMeter => run(steps, &meter, &wall, || open_meter(&meter)).await,
            Kind::StripeStream => run(steps, &meter, &wall, || stripe(&meter, &wall, false)).await,
            Kind::StripeV1 => run(steps, &meter, &wall, || stripe(&meter, &wall, true)).await,
            Kind::Lago => run(steps, &meter, &wall, || lago(&meter)).await,
        }
    });
    assert_eq!(add(&billed, &too_old), served, "{kind:?} {steps:?}");
    let sum = |sums: &Sums| sums.values().sum();
    BTreeMap::from([("billed", sum(&billed)), ("too old", sum(&too_old))])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn fault_166_property_sums_agree(steps in prop::collection::vec(step(), 1..40)) {
        for kind in [Kind::OpenMeter, Kind::StripeStream, Kind::StripeV1, Kind::Lago] {
            check(kind, &steps);
        }
    }
}

#[test]
fn each_meter_bills_once_after_a_long_outage() {
    let requests = |org| Step::Requests {
        org,
        key: 0,
        times: 2,
    };
    let hours = |hours: u64| Step::Pass(Duration::from_secs(hours * 3_600));
    let steps = [
        requests(0),
        Step::Fault(Fault::TakesAndResets),
        Step::Push,
        requests(1),
        Step::Fault(Fault::Resets),
        Step::Restart,
        hours(900),
        requests(2),
        Step::Push,
    ];
    for kind in [
        Kind::OpenMeter,
        Kind::StripeStream,
        Kind::StripeV1,
        Kind::Lago,
    ] {
        let sums = check(kind, &steps);
        assert_eq!(sums["billed"] + sums["too old"], 6);
    }
}
