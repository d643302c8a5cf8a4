//! Stripe: sessions, unknown customers, duplicates, and clocks that step back.

use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::Barrier;
use tower_orgkey::OrgCode;
use tower_orgkey_usage::test_util::TestWallClock;
use tower_orgkey_usage::{
    Account, ParkReason, ParkedRecord, StripeCustomer, StripeSink, StripeSinkBuilder, UsagePusher,
    UsageSink,
};

use crate::collector::{Reply, serve_on_loopback};
use crate::kit::{MINUTE, Scratch, Sums, app, next_minute, read_times, start, sums, usage, wall};
use crate::meters::{Fault, Kind, Meter, forward};
use crate::sums::{lago, open_meter, stripe};

async fn push_all<S: UsageSink>(pusher: &mut UsagePusher<S>) {
    for _ in 0..20 {
        if pusher.push_closed().await.waiting == 0 {
            return;
        }
    }
    panic!("the meter takes nothing");
}

/// Pushes five records that the meter has stored without an answer.
async fn push_known<S: UsageSink>(kind: Kind, sink: impl Fn(&Meter, &TestWallClock) -> S) {
    let wall = wall();
    let meter = Meter::start(kind, &wall).await;
    let usage = usage(&wall).build().unwrap();
    let handle = usage.handle();
    for n in 0..5 {
        read_times(&app(&usage), 1, &format!("key.org_1.k{n}")).await;
    }
    next_minute(&wall);
    meter.then([Fault::TakesAndResets]);
    let mut pusher = handle.pusher(sink(&meter, &wall)).build().unwrap();
    push_all(&mut pusher).await;
    let stats = handle.stats();
    assert_eq!((stats.pushed, stats.undeliverable), (5, 0));
    assert_eq!(meter.bill(), sums(&[("org_1", 5)]));
    assert_eq!(meter.injected(), [Fault::TakesAndResets]);
}

#[tokio::test]
async fn fault_163_a_known_record_is_stored() {
    push_known(Kind::StripeV1, |meter, wall| stripe(meter, wall, true)).await;
    push_known(Kind::Lago, |meter, _| lago(meter)).await;
}

#[tokio::test]
async fn a_cut_error_is_pushed_again() {
    // It could say that the event exists.
    let address = serve_on_loopback(|_| Reply::Cut("400 Said\r\n".to_owned())).await;
    let wall = wall();
    let mut meter = Meter::start(Kind::StripeV1, &wall).await;
    meter.url = format!("http://{address}");
    let usage = usage(&wall).build().unwrap();
    let mut pusher = usage
        .handle()
        .pusher(stripe(&meter, &wall, true))
        .build()
        .unwrap();
    read_times(&app(&usage), 1, "key.org_1.k1").await;
    next_minute(&wall);
    let report = pusher.push_closed().await;
    assert_eq!(
        (report.waiting, report.undeliverable, report.parked),
        (1, 0, 0)
    );
}

#[tokio::test]
async fn fault_164_an_expired_session_is_renewed() {
    let wall = wall();
    let meter = Meter::start(Kind::StripeStream, &wall).await;
    let usage = usage(&wall).build().unwrap();
    let sink = stripe(&meter, &wall, false);
    let mut pusher = usage.handle().pusher(sink).build().unwrap();
    for (minutes, sessions) in [(1, 1), (1, 1), (16, 2), (1, 2)] {
        read_times(&app(&usage), 1, "key.org_1.k1").await;
        forward(&wall, Duration::from_secs(minutes * 60));
        let report = pusher.push_closed().await;
        assert_eq!((report.pushed, report.waiting), (1, 0), "{report:?}");
        assert_eq!(meter.sessions(), sessions);
    }
    assert_eq!(meter.bill(), sums(&[("org_1", 4)]));

    // A session is not used until it expires, by the sink's own clock.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(14 * 60)).await;
    tokio::time::resume();
    read_times(&app(&usage), 1, "key.org_1.k1").await;
    next_minute(&wall);
    let calls = meter.calls().len();
    assert_eq!(pusher.push_closed().await.pushed, 1);
    assert_eq!((meter.calls().len(), meter.sessions()), (calls + 2, 3));

    // Another 401 is not an expired session.
    meter.then([Fault::Says(401)]);
    read_times(&app(&usage), 1, "key.org_1.k1").await;
    next_minute(&wall);
    let calls = meter.calls().len();
    assert_eq!(pusher.push_closed().await.waiting, 1);
    assert_eq!((meter.calls().len(), meter.sessions()), (calls + 1, 3));
    let text = format!("{:?} {:?}", stripe(&meter, &wall, false), pusher);
    assert!(!text.contains("sk_test"), "{text}");
}

#[tokio::test]
async fn fault_165_an_unknown_customer_blocks_no_other() {
    for is_v1 in [false, true] {
        let wall = wall();
        let kind = if is_v1 {
            Kind::StripeV1
        } else {
            Kind::StripeStream
        };
        let meter = Meter::start(kind, &wall).await;
        let usage = usage(&wall).build().unwrap();
        let sink = stripe(&meter, &wall, is_v1);
        let mut pusher = usage.handle().pusher(sink).build().unwrap();
        for org in ["1", "unknown", "free", "2"] {
            read_times(&app(&usage), 3, &format!("key.org_{org}.k1")).await;
        }
        next_minute(&wall);
        // Without an answer: the one that was never sent is not in doubt.
        meter.then([Fault::TakesAndResets]);
        pusher.push_closed().await;
        push_all(&mut pusher).await;
        assert_eq!(meter.bill(), sums(&[("org_1", 3), ("org_2", 3)]));
        let list = pusher.parked().list();
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].reason, ParkReason::Held);
        assert_eq!(
            list[0].record.account.organization().unwrap(),
            "org_unknown"
        );
    }
}

#[tokio::test]
async fn a_failed_lookup_sends_nothing() {
    let wall = wall();
    let meter = Meter::start(Kind::StripeStream, &wall).await;
    let usage = usage(&wall).build().unwrap();
    let lookups = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lookups);
    let customer = move |_: OrgCode| {
        let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if is_first {
                Err("the database is down")
            } else {
                Ok(StripeCustomer::Id("cus_1".to_owned()))
            }
        }
    };
    let sink = StripeSink::builder("sk_test_0123", "api_requests", customer)
        .api_origin(&meter.url)
        .stream_origin(&meter.url)
        .measure(|counts| 7 * counts.requests())
        .build()
        .unwrap();
    let mut pusher = usage.handle().pusher(sink).build().unwrap();
    read_times(&app(&usage), 3, "key.org_1.k1").await;
    next_minute(&wall);
    assert_eq!(pusher.push_closed().await.waiting, 1);
    assert_eq!(meter.calls().len(), 0);
    // Nothing was sent, so nothing is in doubt after a day.
    forward(&wall, Duration::from_secs(25 * 3_600));
    push_all(&mut pusher).await;
    assert_eq!(meter.bill(), Sums::from([("1".to_owned(), 21)]));
}

fn sink_with<F>(
    meter: &Meter,
    customer: impl Fn(OrgCode) -> F + Send + Sync + 'static,
) -> StripeSinkBuilder
where
    F: Future<Output = Result<StripeCustomer, &'static str>> + Send + 'static,
{
    StripeSink::builder("sk_test_0123", "api_requests", customer)
        .api_origin(&meter.url)
        .stream_origin(&meter.url)
}

fn id_of(org: &OrgCode) -> StripeCustomer {
    StripeCustomer::Id(format!("cus_{org}"))
}

#[tokio::test]
async fn customers_are_found_together_and_kept() {
    let wall = wall();
    let meter = Meter::start(Kind::StripeStream, &wall).await;
    let usage = usage(&wall).build().unwrap();
    let lookups = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lookups);
    // No look-up ends before all have begun.
    let all = Arc::new(Barrier::new(20));
    let sink = sink_with(&meter, move |org| {
        counted.fetch_add(1, Ordering::SeqCst);
        let all = Arc::clone(&all);
        async move {
            all.wait().await;
            Ok(id_of(&org))
        }
    });
    let mut pusher = usage
        .handle()
        .pusher(sink.build().unwrap())
        .build()
        .unwrap();
    for _ in 0..2 {
        for org in 0..20 {
            read_times(&app(&usage), 1, &format!("key.org_{org}.k1")).await;
        }
        next_minute(&wall);
        assert_eq!(pusher.push_closed().await.pushed, 20);
    }
    assert_eq!(lookups.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn fault_165b_a_failed_lookup_delays_no_other() {
    for is_v1 in [false, true] {
        let wall = wall();
        let kind = if is_v1 {
            Kind::StripeV1
        } else {
            Kind::StripeStream
        };
        let meter = Meter::start(kind, &wall).await;
        let scratch = Scratch::new(if is_v1 { "defer-v1" } else { "defer" });
        let lookups = Arc::new(AtomicUsize::new(0));
        let sink = || {
            let lookups = Arc::clone(&lookups);
            let sink = sink_with(&meter, move |org: OrgCode| {
                let fails = org.as_str() == "org_1" && lookups.fetch_add(1, Ordering::SeqCst) < 5;
                async move {
                    if fails {
                        Err("a row that cannot be read")
                    } else {
                        Ok(id_of(&org))
                    }
                }
            });
            let sink = if is_v1 { sink.v1() } else { sink };
            sink.build().unwrap()
        };
        let usage = usage(&wall).build().unwrap();
        let pusher = usage.handle().pusher(sink()).spool_file(scratch.file());
        let mut pusher = pusher.build().unwrap();
        // More than a batch.
        for key in 0..120 {
            read_times(&app(&usage), 1, &format!("key.org_1.k{key}")).await;
        }
        next_minute(&wall);
        for minute in 1..3 {
            for org in 2..4 {
                read_times(&app(&usage), 1, &format!("key.org_{org}.k1")).await;
            }
            read_times(&app(&usage), 1, "key.org_1.k1").await;
            next_minute(&wall);
            let report = pusher.push_closed().await;
            assert_eq!(report.waiting as u64, 120 + minute);
            let others = sums(&[("org_2", minute), ("org_3", minute)]);
            assert_eq!(meter.bill(), others, "they do not wait");
        }
        drop(pusher);
        let usage = crate::kit::usage(&wall).build().unwrap();
        let pusher = usage.handle().pusher(sink()).spool_file(scratch.file());
        push_all(&mut pusher.build().unwrap()).await;
        let all = sums(&[("org_1", 122), ("org_2", 2), ("org_3", 2)]);
        assert_eq!(meter.bill(), all);
    }
}

#[tokio::test]
async fn fault_165b_a_lookup_that_panics_delays_no_other() {
    let wall = wall();
    let meter = Meter::start(Kind::StripeStream, &wall).await;
    let usage = usage(&wall).build().unwrap();
    let sink = sink_with(&meter, |org: OrgCode| {
        // Before there is a future.
        assert!(org.as_str() != "org_1", "a look-up of the test's panics");
        async move { Ok::<_, &str>(id_of(&org)) }
    });
    let sink = sink.build().unwrap();
    let mut pusher = usage.handle().pusher(sink).build().unwrap();
    for org in ["org_1", "org_2"] {
        read_times(&app(&usage), 1, &format!("key.{org}.k1")).await;
    }
    next_minute(&wall);
    let report = pusher.push_closed().await;
    assert_eq!((report.pushed, report.waiting, report.parked), (1, 1, 0));
    assert_eq!(meter.bill(), sums(&[("org_2", 1)]));
}

#[tokio::test]
async fn lookups_that_fail_for_an_hour_park() {
    let wall = wall();
    let meter = Meter::start(Kind::StripeStream, &wall).await;
    let usage = usage(&wall).build().unwrap();
    let lookups = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lookups);
    let sink = sink_with(&meter, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err("the database is down") }
    });
    let sink = sink.build().unwrap();
    let mut pusher = usage.handle().pusher(sink).batch_size(1).build().unwrap();
    for org in 0..30 {
        read_times(&app(&usage), 1, &format!("key.org_{org}.k1")).await;
    }
    next_minute(&wall);
    // A round ends after some organizations, and the next one begins with others.
    for round in 1..4 {
        assert_eq!(pusher.push_closed().await.waiting, 30);
        assert_eq!(lookups.load(Ordering::SeqCst), 10 * round);
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3_600)).await;
    tokio::time::resume();
    push_all(&mut pusher).await;
    let list = pusher.parked().list();
    assert_eq!(list.len(), 30);
    assert!(list.iter().all(|parked| parked.reason == ParkReason::Held));
}

#[tokio::test(start_paused = true)]
async fn a_slow_lookup_leaves_nothing_in_doubt() {
    let wall = wall();
    let meter = Meter::start(Kind::StripeStream, &wall).await;
    let usage = usage(&wall).build().unwrap();
    let sink = sink_with(&meter, async |_| pending().await);
    let mut pusher = usage
        .handle()
        .pusher(sink.build().unwrap())
        .build()
        .unwrap();
    read_times(&app(&usage), 1, "key.org_1.k1").await;
    for _ in 0..2 {
        forward(&wall, Duration::from_secs(25 * 3_600));
        let report = pusher.push_closed().await;
        assert_eq!((report.waiting, report.parked), (1, 0), "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_session_leaves_nothing_in_doubt() {
    let wall = wall();
    let meter = Meter::start(Kind::StripeStream, &wall).await;
    let usage = usage(&wall).build().unwrap();
    let sessions = serve_on_loopback(|_| Reply::TooLate).await;
    // Only the deadline of the session ends before the pusher's.
    let minute = Duration::from_secs(60);
    let sink = sink_with(&meter, async |org| Ok(id_of(&org)))
        .api_origin(format!("http://{sessions}"))
        .connect_timeout(minute)
        .timeout(minute);
    let mut pusher = usage
        .handle()
        .pusher(sink.build().unwrap())
        .build()
        .unwrap();
    read_times(&app(&usage), 1, "key.org_1.k1").await;
    for _ in 0..2 {
        forward(&wall, Duration::from_secs(25 * 3_600));
        let report = pusher.push_closed().await;
        assert_eq!((report.waiting, report.parked), (1, 0), "{report:?}");
    }
}

#[tokio::test]
async fn merged_organizations_are_held() {
    async fn push<S: UsageSink>(kind: Kind, sink: impl Fn(&Meter, &TestWallClock) -> S) {
        let wall = wall();
        let meter = Meter::start(kind, &wall).await;
        let usage = usage(&wall).capacity(4).organizations(4).build().unwrap();
        let mut pusher = usage.handle().pusher(sink(&meter, &wall)).build().unwrap();
        for org in 0..100 {
            read_times(&app(&usage), 1, &format!("key.org_{org}.k1")).await;
        }
        next_minute(&wall);
        push_all(&mut pusher).await;
        let list = pusher.parked().list();
        assert!(!list.is_empty(), "no row was merged");
        let is_merged = |parked: &ParkedRecord| {
            parked.reason == ParkReason::Held
                && parked.record.account == Account::OtherOrganizations
        };
        assert!(list.iter().all(is_merged), "{list:?}");
        let parked: u64 = list
            .iter()
            .map(|parked| parked.record.counts.served())
            .sum();
        let billed: u64 = meter.bill().values().sum();
        assert_eq!(parked + billed, 100);
    }
    push(Kind::StripeStream, |meter, wall| stripe(meter, wall, false)).await;
    push(Kind::StripeV1, |meter, wall| stripe(meter, wall, true)).await;
    push(Kind::OpenMeter, |meter, _| open_meter(meter)).await;
    push(Kind::Lago, |meter, _| lago(meter)).await;
}

#[tokio::test]
async fn without_a_session_nothing_is_in_doubt() {
    let wall = wall();
    let meter = Meter::start(Kind::StripeStream, &wall).await;
    let usage = usage(&wall).build().unwrap();
    for status in [200, 400, 401, 500] {
        let sessions =
            serve_on_loopback(move |_| Reply::json(status, &serde_json::json!({}))).await;
        let customer =
            async |_: OrgCode| Ok::<_, std::io::Error>(StripeCustomer::Id("cus_1".to_owned()));
        let sink = StripeSink::builder("sk_test_0123", "api_requests", customer)
            .api_origin(format!("http://{sessions}"))
            .stream_origin(&meter.url)
            .build()
            .unwrap();
        let mut pusher = usage.handle().pusher(sink).build().unwrap();
        read_times(&app(&usage), 1, "key.org_1.k1").await;
        for _ in 0..2 {
            forward(&wall, Duration::from_secs(25 * 3_600));
            let report = pusher.push_closed().await;
            assert_eq!(
                (report.waiting, report.parked, report.undeliverable),
                (1, 0, 0)
            );
        }
    }
    assert_eq!(meter.calls().len(), 0);
}

#[tokio::test]
async fn no_event_is_in_the_future() {
    let wall = wall();
    let meter = Meter::start(Kind::StripeStream, &wall).await;
    let usage = usage(&wall).build().unwrap();
    let sink = stripe(&meter, &wall, false);
    let mut pusher = usage.handle().pusher(sink).build().unwrap();
    read_times(&app(&usage), 1, "key.org_1.k1").await;
    next_minute(&wall);
    // The clock was ahead, and is corrected.
    wall.set(start() - Duration::from_secs(3_600));
    let report = pusher.flush(Duration::from_secs(60)).await;
    assert_eq!((report.pushed, report.undeliverable), (1, 0), "{report:?}");
}

#[tokio::test]
async fn fault_217_a_clock_ahead_of_stripe_loses_no_usage() {
    for is_v1 in [false, true] {
        for right_first in [false, true] {
            let kind = if is_v1 {
                Kind::StripeV1
            } else {
                Kind::StripeStream
            };
            let (host, stripes) = (wall(), wall());
            let meter = Meter::start(kind, &stripes).await;
            meter.shows_date();
            let usage = usage(&host).build().unwrap();
            let sink = stripe(&meter, &host, is_v1);
            let mut pusher = usage.handle().pusher(sink).build().unwrap();
            for minute in 0..6 {
                // Ten minutes ahead for three minutes, and then corrected.
                if minute == u32::from(right_first) {
                    forward(&host, Duration::from_secs(600));
                }
                if minute == u32::from(right_first) + 3 {
                    host.set(stripes.now());
                }
                read_times(&app(&usage), 1, "key.org_1.k1").await;
                read_times(&app(&usage), 2, "key.org_2.k1").await;
                next_minute(&host);
                next_minute(&stripes);
                pusher.push_closed().await;
            }
            push_all(&mut pusher).await;
            let stats = usage.handle().stats();
            assert_eq!((stats.undeliverable, stats.parked), (0, 0));
            assert_eq!(meter.bill(), sums(&[("org_1", 6), ("org_2", 12)]));
        }
    }
}

#[tokio::test]
async fn fault_217_usage_after_a_suspend_is_of_its_minute() {
    for is_v1 in [false, true] {
        let kind = if is_v1 {
            Kind::StripeV1
        } else {
            Kind::StripeStream
        };
        let wall = wall();
        let meter = Meter::start(kind, &wall).await;
        meter.shows_date();
        let usage = usage(&wall).build().unwrap();
        let sink = stripe(&meter, &wall, is_v1);
        let mut pusher = usage.handle().pusher(sink).build().unwrap();
        let mut minute = 0;
        // The monotonic clock stops meanwhile.
        for hours in [0, 8] {
            wall.set(wall.now() + hours * 60 * MINUTE);
            minute = wall.now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            read_times(&app(&usage), 1, "key.org_1.k1").await;
            next_minute(&wall);
            assert_eq!(pusher.push_closed().await.pushed, 1);
        }
        assert_eq!(meter.times().last(), Some(&minute));
    }
}

#[test]
fn an_invalid_stripe_sink_is_not_built() {
    let builder = |key: &str, name: &str| {
        let unknown = async |_: OrgCode| Ok::<_, std::io::Error>(StripeCustomer::Unknown);
        StripeSink::builder(key, name, unknown)
    };
    let good = || builder("sk_test_0123", "api_requests");
    let zero = Duration::ZERO;
    for (field, built) in [
        ("key", builder("", "api_requests").build()),
        ("key", builder("a\r\nb", "api_requests").v1().build()),
        ("event_name", builder("sk_test_0123", " ").build()),
        (
            "event_name",
            builder("sk_test_0123", &"n".repeat(101)).build(),
        ),
        (
            "api_origin",
            good().api_origin("http://api.stripe.com").build(),
        ),
        (
            "stream_origin",
            good().stream_origin("https://a.example/b").build(),
        ),
        ("timeout", good().timeout(zero).build()),
        ("connect_timeout", good().connect_timeout(zero).build()),
    ] {
        assert_eq!(built.unwrap_err().field(), field);
    }
    assert!(good().build().is_ok());
    let text = format!("{:?}", good());
    assert!(!text.contains("sk_test"), "{text}");
}
