//! Over sockets: a meter that fails, hangs, resets and responds too late.

use std::sync::Arc;
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tower_orgkey_usage::telemetry;
use tower_orgkey_usage::{OpenMeterSink, UsageHandle, UsagePusher, UsagePusherBuilder};

use crate::collector::{Collector, Does};
use crate::kit::{
    Counting, Scratch, app, next_minute, of_org, read, read_times, sums, usage, wall,
};

/// Long enough for a collector that responds.
const PATIENT: Duration = Duration::from_secs(30);
/// For a collector that does not respond.
const IMPATIENT: Duration = Duration::from_millis(250);

fn sink(collector: &Collector) -> OpenMeterSink {
    OpenMeterSink::builder(collector.url())
        .token("secret_token_0123")
        .source("acme-api")
        .build()
        .unwrap()
}

fn pusher(handle: &UsageHandle, collector: &Collector) -> UsagePusherBuilder<OpenMeterSink> {
    handle
        .pusher(sink(collector))
        .push_timeout(PATIENT)
        .batch_size(3)
}

/// Pushes until nothing waits. Pauses are for the pusher's own schedule, not for a test.
async fn push_all(pusher: &mut UsagePusher<OpenMeterSink>) {
    for _ in 0..200 {
        if pusher.push_closed().await.waiting == 0 {
            return;
        }
    }
    panic!("the collector takes nothing");
}

#[tokio::test]
async fn events_are_cloud_events() {
    let collector = Collector::start().await;
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let mut pusher = pusher(&usage.handle(), &collector).build().unwrap();
    let app = app(&usage);
    read_times(&app, 2, "key.org_1.k1").await;
    read(&app, "bad.key.0123").await;
    next_minute(&wall);
    assert_eq!(pusher.push_closed().await.waiting, 0);

    let call = collector.calls().remove(0);
    assert!(
        call.head.starts_with("post /api/v1/events http/1.1"),
        "{}",
        call.head
    );
    for header in [
        "content-type: application/cloudevents-batch+json",
        "authorization: bearer secret_token_0123",
    ] {
        assert!(call.head.contains(header), "{}", call.head);
    }
    let mut event = collector.taken().remove(0);
    let id = event["id"].take();
    let id = id.as_str().unwrap();
    assert!(
        id.len() <= 100 && id.bytes().all(|byte| byte.is_ascii_graphic()),
        "{id}"
    );
    let expected = serde_json::json!({
        "specversion": "1.0",
        "id": null,
        "source": "acme-api",
        "type": "tower-orgkey.usage",
        "time": "2026-07-10T00:00:00Z",
        "subject": "org_1",
        "datacontenttype": "application/json",
        "data": {
            "key": "k1", "route": "/reports/{id}", "requests": 2, "served": 2, "rejected": 0, "rejections": {}, "failed": 0,
            "dropped": 0, "panicked": 0, "request_bytes": 0, "response_bytes": 10,
            "duration_seconds": event["data"]["duration_seconds"],
        },
    });
    assert_eq!(event, expected);
    assert_eq!(
        collector.taken().len(),
        1,
        "unauthenticated requests are not billed"
    );
    let text = format!("{:?} {:?}", sink(&collector), pusher);
    assert!(!text.contains("secret_token"), "{text}");
}

#[tokio::test]
async fn sums_agree_with_a_failing_meter() {
    let collector = Collector::start().await;
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let handle = usage.handle();
    let mut pusher = pusher(&handle, &collector)
        .push_timeout(IMPATIENT)
        .build()
        .unwrap();
    let app = app(&usage);
    collector.then([
        Does::Say(500, ""),
        Does::Say(429, "retry-after: 3600\r\n"),
        Does::TakeTooLate,
        Does::Reset,
        Does::TakeTooLate,
        Does::Take,
        Does::Hang,
        Does::Say(401, ""),
        Does::TakeTooLate,
    ]);
    for minute in 1..=5 {
        read_times(&app, minute, "key.org_1.k1").await;
        read_times(&app, 2, "key.org_1.k2").await;
        read_times(&app, 3, "key.org_2.k3").await;
        next_minute(&wall);
        pusher.push_closed().await;
    }
    push_all(&mut pusher).await;

    assert!(
        collector.taken().len() > collector.events().len(),
        "nothing came twice"
    );
    for done in ["say", "take too late", "reset", "hang", "take"] {
        assert!(collector.done().contains(&done), "{:?}", collector.done());
    }
    assert_eq!(collector.bill(), sums(&[("org_1", 25), ("org_2", 15)]));
    let snapshot = handle.snapshot();
    assert_eq!(
        (of_org(&snapshot, "org_1"), of_org(&snapshot, "org_2")),
        (25, 15)
    );
    let stats = handle.stats();
    assert_eq!(
        (stats.waiting, stats.undeliverable, stats.dropped),
        (0, 0, 0)
    );
    assert_eq!(stats.pushed, collector.events().len() as u64);
}

#[tokio::test]
async fn sums_agree_across_restarts() {
    let scratch = Scratch::new("restarts");
    let collector = Collector::start().await;
    let wall = wall();
    let mut expected = 0;
    for run in 1..=4_u64 {
        // Everything is new but the file and the wall clock, which is in the minute in which the last run ended.
        let usage = usage(&wall).build().unwrap();
        let handle = usage.handle();
        let mut pusher = pusher(&handle, &collector)
            .push_timeout(IMPATIENT)
            .spool_file(scratch.file())
            .build()
            .unwrap();
        let app = app(&usage);
        collector.then([Does::TakeTooLate, Does::Say(503, "")]);
        collector.then([Does::TakeTooLate, Does::TakeTooLate]);
        for key in 0..5 {
            read_times(&app, run, &format!("key.org_1.k{key}")).await;
        }
        next_minute(&wall);
        // Stored without a response.
        assert!(pusher.push_closed().await.waiting > 0);
        for key in 0..5 {
            read_times(&app, 1, &format!("key.org_1.k{key}")).await;
        }
        let report = pusher.flush(Duration::ZERO).await;
        assert!(report.waiting > 0, "{report:?}");
        // With a deadline of zero, the next call closes what is in flight.
        assert!(pusher.push_closed().await.waiting > 0);
        expected += 5 * run + 5;
    }
    let usage = usage(&wall).build().unwrap();
    let mut pusher = pusher(&usage.handle(), &collector)
        .spool_file(scratch.file())
        .build()
        .unwrap();
    push_all(&mut pusher).await;
    assert!(
        collector.taken().len() > collector.events().len(),
        "nothing came twice"
    );
    assert_eq!(collector.bill(), sums(&[("org_1", expected)]));
    drop(pusher);
    assert!(scratch.file().is_empty(), "what was taken is not kept");
}

#[tokio::test]
async fn an_undeliverable_record_is_isolated() {
    let collector = Collector::start().await;
    collector.usually(Does::Refuse("poison".to_owned()));
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let handle = usage.handle();
    let mut pusher = pusher(&handle, &collector).batch_size(64).build().unwrap();
    let app = app(&usage);
    for n in 0..40 {
        read_times(&app, 1, &format!("key.org_1.k{n}")).await;
    }
    read_times(&app, 7, "key.org_1.poison").await;
    next_minute(&wall);
    let report = pusher.push_closed().await;
    assert_eq!(
        (report.pushed, report.undeliverable, report.waiting),
        (40, 1, 0)
    );
    assert_eq!(collector.bill(), sums(&[("org_1", 40)]));
    assert_eq!(
        of_org(&handle.snapshot(), "org_1"),
        47,
        "it is in the books"
    );
}

#[tokio::test]
async fn fault_52_a_failing_meter_costs_no_request() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let collector = Collector::start().await;
    collector.usually(Does::TakeTooLate);
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let handle = usage.handle();
    let mut pusher = pusher(&handle, &collector)
        .push_timeout(IMPATIENT)
        .max_waiting(4)
        .build()
        .unwrap();
    let app = app(&usage);
    for minute in 1..=7 {
        // 200 while a push hangs: it is in flight until the push times out.
        let pushing = pusher.push_closed();
        let ((), report) =
            futures_util::future::join(read_times(&app, minute, "key.org_1.k1"), pushing).await;
        assert!(minute == 1 || report.waiting > 0);
        next_minute(&wall);
    }
    assert!(collector.done().iter().all(|done| *done == "take too late"));
    pusher.push_closed().await;
    let stats = handle.stats();
    assert_eq!(
        (stats.waiting, stats.dropped),
        (4, 3),
        "the oldest go, counted"
    );
    collector.usually(Does::Take);
    push_all(&mut pusher).await;
    // Records may have been stored without a response. Nothing is billed twice.
    assert_eq!(
        collector.bill().values().sum::<u64>(),
        1 + 4 + 5 + 6 + 7 + 2 + 3
    );
    assert_eq!(of_org(&handle.snapshot(), "org_1"), 28);

    let mut told = std::collections::BTreeMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let labels: Vec<_> = key
            .key()
            .labels()
            .map(|label| label.value().to_owned())
            .collect();
        let value = match value {
            DebugValue::Counter(count) => count.to_string(),
            DebugValue::Gauge(value) => value.to_string(),
            DebugValue::Histogram(_) => continue,
        };
        told.insert((key.key().name().to_owned(), labels.join(",")), value);
    }
    let of = |name: &str, label: &str| told[&(name.to_owned(), label.to_owned())].clone();
    assert_eq!(of(telemetry::USAGE_RECORDS, "dropped"), "3");
    assert_eq!(of(telemetry::USAGE_RECORDS, "pushed"), "4");
    assert_eq!(of(telemetry::USAGE_WAITING, ""), "0");
    assert_ne!(of(telemetry::USAGE_PUSHES, "retry"), "0");
}

#[tokio::test]
async fn a_refused_connection_stores_nothing() {
    // The port was free a moment ago.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let sink = OpenMeterSink::builder(url)
        .remembers(Some(Duration::from_secs(3_600)))
        .build()
        .unwrap();
    let mut pusher = usage.handle().pusher(sink).build().unwrap();
    read_times(&app(&usage), 1, "key.org_1.k1").await;
    for _ in 0..3 {
        wall.set(wall.now() + Duration::from_secs(3_600));
        let report = pusher.push_closed().await;
        assert_eq!((report.waiting, report.parked), (1, 0));
    }
}

#[tokio::test]
async fn a_refused_connection_is_not_tried_for_each_account() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let sink = Counting::new(OpenMeterSink::builder(url).build().unwrap());
    let pusher = usage.handle().pusher(Arc::clone(&sink));
    let mut pusher = pusher.build().unwrap();
    for org in 0..5 {
        read_times(&app(&usage), 1, &format!("key.org_{org}.k1")).await;
    }
    next_minute(&wall);
    for calls in 1..4 {
        assert_eq!(pusher.push_closed().await.waiting, 5);
        assert_eq!(sink.calls(), calls);
    }
}

#[tokio::test]
async fn a_meter_without_memory_gets_a_record_once() {
    let collector = Collector::start().await;
    let wall = wall();
    let usage = usage(&wall).build().unwrap();
    let sink = OpenMeterSink::builder(collector.url())
        .remembers(Some(Duration::ZERO))
        .build()
        .unwrap();
    let mut pusher = usage.handle().pusher(sink).build().unwrap();
    read_times(&app(&usage), 1, "key.org_1.k1").await;
    next_minute(&wall);
    collector.then([Does::Say(429, ""), Does::Say(500, "")]);
    assert_eq!(pusher.push_closed().await.waiting, 1);
    assert_eq!(pusher.push_closed().await.waiting, 1);
    assert_eq!(pusher.push_closed().await.parked, 1);
    assert_eq!(collector.done(), ["say", "say"]);
}

#[test]
fn an_invalid_sink_is_not_built() {
    let builder = || OpenMeterSink::builder("https://openmeter.cloud");
    let zero = Duration::ZERO;
    for (field, built) in [
        ("origin", OpenMeterSink::builder("openmeter.cloud").build()),
        (
            "origin",
            OpenMeterSink::builder("http://openmeter.cloud").build(),
        ),
        (
            "origin",
            OpenMeterSink::builder("https://openmeter.cloud/api").build(),
        ),
        ("token", builder().token("").build()),
        ("token", builder().token("a\r\nb").build()),
        ("source", builder().source(" ").build()),
        ("event_type", builder().event_type("").build()),
        (
            "unattributed_subject",
            builder().unattributed_subject("").build(),
        ),
        ("path", builder().path("api/v1/events").build()),
        ("path", builder().path("/api?a=b").build()),
        ("timeout", builder().timeout(zero).build()),
        ("connect_timeout", builder().connect_timeout(zero).build()),
        (
            "add_root_certificate_pem",
            builder().add_root_certificate_pem("no certificate").build(),
        ),
    ] {
        assert_eq!(built.unwrap_err().field(), field);
    }
    assert!(builder().build().is_ok());
}
