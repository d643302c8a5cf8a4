//! What a sink that calls a meter over HTTP learns from a reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderValue;
use serde_json::{Value, json};
use tower_orgkey_usage::{HttpMeter, OpenMeterSink, PushError, PushErrorKind};

use crate::collector::{Reply, serve_on_loopback};
use crate::kit::{app, next_minute, read_times, usage, wall};

/// A meter that always replies like this.
async fn meter(reply: impl Fn() -> Reply + Send + Sync + 'static) -> HttpMeter {
    let address = serve_on_loopback(move |request| {
        assert!(
            request.head.starts_with("post /v1/ingest http/1.1\r\n"),
            "{}",
            request.head
        );
        assert!(request.head.contains("authorization: bearer a-token\r\n"));
        assert!(request.head.contains("content-type: application/json"));
        assert_eq!(request.json(), json!([1]));
        reply()
    })
    .await;
    let meter = HttpMeter::builder(format!("http://{address}"), "/v1/ingest").token("a-token");
    meter.build().unwrap()
}

async fn body(
    reply: impl Fn() -> Reply + Send + Sync + 'static,
) -> Result<Option<Value>, PushError> {
    meter(reply).await.post_json(&[1]).await?.json().await
}

#[tokio::test]
async fn bodies_are_bounded_and_may_be_cut() {
    let small = json!({ "inserted": 1 });
    let reply = small.clone();
    assert_eq!(
        body(move || Reply::json(200, &reply)).await.unwrap(),
        Some(small)
    );
    let large = json!("x".repeat(70_000));
    assert_eq!(body(move || Reply::json(200, &large)).await.unwrap(), None);
    let broken = || Reply::Respond("400 Said\r\n".to_owned(), "{".to_owned());
    assert_eq!(body(broken).await.unwrap(), None);
    let not_stored = PushErrorKind::NotStored { after: None };
    let retry = PushErrorKind::Retry { after: None };
    for (status, kind) in [
        (200, retry),
        (400, not_stored),
        (408, retry),
        (422, not_stored),
        (500, retry),
    ] {
        let error = body(move || Reply::Cut(format!("{status} Said\r\n")))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{status}");
    }
}

#[tokio::test]
async fn calls_without_a_reply_are_told_apart() {
    let error = meter(|| Reply::Reset)
        .await
        .post_json(&[1])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), PushErrorKind::Retry { after: None });
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let closed = HttpMeter::builder(origin, "/v1/ingest").build().unwrap();
    let json = HeaderValue::from_static("application/json");
    let error = closed.post(json, "[1]").await.unwrap_err();
    assert_eq!(error.kind(), PushErrorKind::NotStored { after: None });
}

#[tokio::test]
async fn a_meter_that_asks_to_wait_is_called_once() {
    for head in [
        "429 Said\r\nretry-after: 30\r\n",
        "429 Said\r\n",
        "503 Said\r\nretry-after: 30\r\n",
    ] {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let address = serve_on_loopback(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            Reply::Respond(head.to_owned(), String::new())
        })
        .await;
        let sink = OpenMeterSink::builder(format!("http://{address}"));
        let sink = sink.build().unwrap();
        let wall = wall();
        let usage = usage(&wall).build().unwrap();
        let mut pusher = usage.handle().pusher(sink).build().unwrap();
        for org in 0..100 {
            read_times(&app(&usage), 1, &format!("key.org_{org}.k1")).await;
        }
        next_minute(&wall);
        assert_eq!(pusher.push_closed().await.waiting, 100);
        assert_eq!(calls.load(Ordering::SeqCst), 1, "{head}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let builder = HttpMeter::builder("http://127.0.0.1:9", "/v1/ingest").token("secret_0123");
    let text = format!("{builder:?}");
    let text = format!("{text} {:?}", builder.build().unwrap());
    assert!(!text.contains("secret"), "{text}");
    for path in ["ingest", "/ingest?key=secret_0123", "/ingest#secret_0123"] {
        let error = HttpMeter::builder("http://127.0.0.1:9", path)
            .build()
            .unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
