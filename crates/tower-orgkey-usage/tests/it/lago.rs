//! The sink of `examples/lago.rs`.

use serde_json::{Value, json};
use tower_orgkey_usage::{PushErrorKind, PushReport, UsageLayer, UsageSink};

use crate::collector::{Reply, serve_on_loopback};
use crate::kit::{Memory, app, next_minute, read_times, sums, usage, wall};
use crate::lago_example::LagoSink;
use crate::meters::{Fault, Kind, Meter};
use crate::sums::lago;

#[tokio::test]
async fn lago_gets_a_batch_without_known_records() {
    let wall = wall();
    let meter = Meter::start(Kind::Lago, &wall).await;
    let usage = usage(&wall).build().unwrap();
    let memory = Memory::new(|_| Ok(()));
    let mut pusher = usage.handle().pusher(memory.clone()).build().unwrap();
    for (org, keys) in [(1, 2), (2, 4)] {
        for key in 0..keys {
            read_times(&app(&usage), 1, &format!("key.org_{org}.k{key}")).await;
        }
        next_minute(&wall);
        pusher.push_closed().await;
    }
    let records = memory.taken();
    let sink = lago(&meter);
    // Stored without an answer, so that the next batch has two known records and two new ones. The call without the known ones is
    // throttled.
    meter.then([Fault::TakesAndResets, Fault::Works, Fault::Says(429)]);
    let error = sink.push(&records[..2]).await.unwrap_err();
    assert_eq!(error.kind(), PushErrorKind::Retry { after: None });
    let error = sink.push(&records[..4]).await.unwrap_err();
    assert_eq!(error.kind(), PushErrorKind::NotStored { after: None });
    sink.push(&records[..4]).await.unwrap();
    sink.push(&records[4..]).await.unwrap();
    assert_eq!(meter.bill(), sums(&[("org_1", 2), ("org_2", 4)]));
    let sizes = meter.calls().into_iter();
    let sizes = sizes.map(|call| call.json()["events"].as_array().unwrap().len());
    assert_eq!(sizes.collect::<Vec<_>>(), [2, 4, 2, 4, 2, 2]);
}

#[tokio::test]
async fn lago_positions_skip_unbilled_records() {
    let wall = wall();
    let meter = Meter::start(Kind::Lago, &wall).await;
    let usage = usage(&wall).build().unwrap();
    let subscription =
        |org: &tower_orgkey::OrgCode| (org != "org_free").then(|| format!("sub_{org}"));
    let sink = LagoSink::new(&meter.url, "a-key", subscription).unwrap();
    let memory = Memory::new(|_| Ok(()));
    let mut pusher = usage.handle().pusher(memory.clone()).build().unwrap();
    for org in ["free", "1", "2"] {
        read_times(&app(&usage), 1, &format!("key.org_{org}.k1")).await;
        next_minute(&wall);
        pusher.push_closed().await;
    }
    let batch = memory.taken();
    sink.push(&batch[..1]).await.unwrap();
    assert_eq!(meter.calls().len(), 0, "an empty batch was sent");
    // A known record between an unbilled one and a new one.
    sink.push(&batch[1..2]).await.unwrap();
    sink.push(&batch).await.unwrap();
    assert_eq!(meter.bill(), sums(&[("org_1", 1), ("org_2", 1)]));
    // The whole batch is known.
    sink.push(&batch).await.unwrap();
    assert_eq!(meter.bill(), sums(&[("org_1", 1), ("org_2", 1)]));
    assert_eq!(meter.calls().len(), 4);
}

/// Pushes one record to a Lago that always replies like this.
async fn push_one(reply: impl Fn() -> Reply + Send + Sync + 'static) -> PushReport {
    let wall = wall();
    let usage: UsageLayer = usage(&wall).build().unwrap();
    let address = serve_on_loopback(move |_| reply()).await;
    let subscription = |_: &_| Some("sub_1".to_owned());
    let sink = LagoSink::new(&format!("http://{address}"), "a-key", subscription).unwrap();
    let mut pusher = usage.handle().pusher(sink).build().unwrap();
    read_times(&app(&usage), 1, "key.org_1.k1").await;
    next_minute(&wall);
    pusher.push_closed().await
}

#[tokio::test]
async fn lago_replies_do_not_loop_or_lose() {
    let problem = |at: &str, problem: &str| json!({ "error_details": { at: { "transaction_id": [problem] } } });
    let known = move |at: &str| problem(at, "value_already_exist");
    let mut long = known("0");
    long["padding"] = "x".repeat(100_000).into();
    let text: Value = "not the form of Lago".into();
    for body in [known("7"), problem("0", "value_is_invalid"), long, text] {
        let report = push_one(move || Reply::json(422, &body)).await;
        assert_eq!((report.pushed, report.undeliverable), (0, 1));
    }
    for status in [401, 403, 404, 405, 408, 425, 429, 500, 502, 503] {
        let report = push_one(move || Reply::json(status, &json!({}))).await;
        assert_eq!((report.pushed, report.waiting), (0, 1), "status {status}");
    }
    // It could say that the record is known.
    let report = push_one(|| Reply::Cut("422 Said\r\n".to_owned())).await;
    assert_eq!((report.pushed, report.waiting), (0, 1));
    let report = push_one(move || Reply::json(422, &known("0"))).await;
    assert_eq!((report.pushed, report.waiting), (1, 0));
}
