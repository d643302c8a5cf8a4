//! Sinks that are slow, dead, or fail; floods of rejections; and the guarantees of a flush.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use serde_json::json;
use tower_orgkey_audit::{AuditEvent, AuditEventKind, AuditSink, SinkError};

use crate::support::wire::{get as get_at, serve};
use crate::*;

/// What a test does with a batch before it is written.
struct Sink<F> {
    judge: F,
    lines: JsonLines<Lines>,
    dropped: Arc<AtomicBool>,
}

impl<F: FnMut(&[AuditEvent]) -> Result<(), SinkError> + Send + 'static> AuditSink for Sink<F> {
    fn write(&mut self, events: &[AuditEvent]) -> Result<(), SinkError> {
        (self.judge)(events)?;
        self.lines.write(events)
    }
}

impl<F> Drop for Sink<F> {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

fn judged(
    capacity: usize,
    judge: impl FnMut(&[AuditEvent]) -> Result<(), SinkError> + Send + 'static,
) -> (Stage, Arc<AtomicBool>) {
    let lines = Lines::default();
    let dropped = Arc::new(AtomicBool::new(false));
    let sink = Sink {
        judge,
        lines: JsonLines::new(lines.clone()),
        dropped: Arc::clone(&dropped),
    };
    let trail = AuditTrail::builder()
        .sink(sink)
        .capacity(capacity)
        .start()
        .unwrap();
    (Stage { trail, lines }, dropped)
}

/// A sink that blocks until the gate is dropped, and reports when it blocks.
fn blocked(capacity: usize) -> (Stage, mpsc::Sender<()>, mpsc::Receiver<()>) {
    let (gate, held) = mpsc::channel::<()>();
    let (tell, begun) = mpsc::channel();
    let (stage, _) = judged(capacity, move |_| {
        let _ = tell.send(());
        let _ = held.recv();
        Ok(())
    });
    (stage, gate, begun)
}

fn count_of(events: &[Value], class: u64) -> u64 {
    let counts = events.iter().filter(|event| event["class_uid"] == class);
    counts.filter_map(|event| event["count"].as_u64()).sum()
}

#[tokio::test]
async fn fault_52_blocked_audit_sink_costs_no_request() {
    const CAPACITY: u64 = 8;
    const REQUESTS: u64 = 30;

    let (stage, gate, begun) = blocked(8);
    let address = serve(stage.app()).await;
    // The first event is on its way to the sink, which hangs; the queue fills behind it.
    assert_eq!(get_at(address, "/whoami").key(ONE).send().await.status, 200);
    tokio::task::spawn_blocking(move || begun.recv().unwrap())
        .await
        .unwrap();
    for _ in 1..REQUESTS {
        let answer = get_at(address, "/whoami").key(ONE).send().await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "org_one"));
    }
    // The fault was injected: nothing was written, and lost events are counted.
    let stats = stage.trail.stats();
    assert_eq!((stats.written, stats.waiting), (0, 1 + CAPACITY));
    assert_eq!(stats.lost, REQUESTS - 1 - CAPACITY);
    let missing = stage
        .trail
        .flush(Duration::from_millis(10))
        .await
        .unwrap_err();
    assert_eq!(missing.missing(), 1 + CAPACITY);
    assert_eq!(stage.lines.text(), "");

    // The sink recovers: it gets the queued events and a report of the lost ones.
    drop(gate);
    let events = stage.events().await;
    assert_eq!(
        events
            .iter()
            .filter(|event| event["class_uid"] == 6003)
            .count() as u64,
        1 + CAPACITY
    );
    assert_eq!(count_of(&events, 1008), stats.lost);
    let lost = events
        .iter()
        .find(|event| event["class_uid"] == 1008)
        .unwrap();
    assert_eq!(
        (&lost["severity_id"], &lost["activity_name"]),
        (&json!(4), &json!("Lost"))
    );
    assert_eq!(stage.trail.stats().waiting, 0);
}

#[tokio::test]
async fn fault_207_unauthenticated_events_displace_no_others() {
    let (stage, gate, begun) = blocked(8);
    let auth = ApiKeyLayer::builder(issuer())
        .allow_anonymous()
        .build()
        .unwrap();
    let app = routes().route_layer(auth).route_layer(stage.layer());
    send(&app, request("GET", "/broken", "")).await;
    tokio::task::spawn_blocking(move || begun.recv().unwrap())
        .await
        .unwrap();
    for _ in 0..100 {
        send(&app, request("GET", "/broken", "")).await;
    }
    assert_eq!(stage.trail.stats().waiting, 1 + 4);
    for _ in 0..7 {
        send(&app, request("GET", "/read", ONE)).await;
    }
    stage
        .trail
        .record_operator_action("/v1/block", "org_code=org_two");
    assert_eq!(stage.trail.stats().lost, 96);
    drop(gate);
    let events = stage.events().await;
    let of_one = events
        .iter()
        .filter(|event| event["actor"]["user"]["org"]["uid"] == "org_one");
    assert_eq!(of_one.count(), 7);
    let of_operators = events
        .iter()
        .filter(|event| event["unmapped"]["target"] == "org_code=org_two");
    assert_eq!(of_operators.count(), 1);
}

#[tokio::test]
async fn fault_207b_rejected_requests_of_an_organization_displace_no_others() {
    let (stage, gate, begun) = blocked(8);
    let app = stage.app();
    send(&app, request("GET", "/write", ONE)).await;
    tokio::task::spawn_blocking(move || begun.recv().unwrap())
        .await
        .unwrap();
    for _ in 0..100 {
        send(&app, request("GET", "/write", ONE)).await;
    }
    send(&app, request("GET", "/read", TWO)).await;
    stage
        .trail
        .record_operator_action("/v1/block", "org_code=org_one");
    assert_eq!(stage.trail.stats().lost, 94);
    drop(gate);
    let events = stage.events().await;
    let allowed = |org: &str| {
        let of_org = events.iter().filter(|event| {
            event["actor"]["user"]["org"]["uid"] == org && event["status"] == "Success"
        });
        of_org.count()
    };
    assert_eq!((allowed("org_one"), allowed("org_two")), (0, 1));
    let of_operators = events
        .iter()
        .filter(|event| event["unmapped"]["target"] == "org_code=org_one");
    assert_eq!(of_operators.count(), 1);
}

#[tokio::test]
async fn suppressed_rejections_are_summarized() {
    let stage = Stage::new();
    let app = stage.app();
    for _ in 0..600 {
        send(&app, request("GET", "/whoami", "")).await;
        send(&app, request("GET", "/whoami", "short")).await;
        send(&app, request("GET", "/write", ONE)).await;
    }
    let events = stage.events().await;
    let own = |code: &str| {
        events
            .iter()
            .filter(|event| event["status_code"] == code)
            .count() as u64
    };
    // Every rejection of a known organization has an event.
    assert_eq!(own("insufficient-scope"), 600);
    // Few unauthenticated requests have an event, and the count has the others.
    let (missing, malformed) = (own("credential-missing"), own("credential-malformed"));
    let suppressed = count_of(&events, 3002);
    assert!(
        (100..1_000).contains(&(missing + malformed)),
        "{missing} {malformed}"
    );
    assert_eq!(missing + malformed + suppressed, 1_200);
    let by_code = |code: &str| -> u64 {
        let counts = events
            .iter()
            .map(|event| &event["unmapped"]["by_code"][code]);
        counts.filter_map(Value::as_u64).sum()
    };
    assert_eq!(missing + by_code("credential-missing"), 600);
    assert_eq!(malformed + by_code("credential-malformed"), 600);
    assert_eq!(stage.trail.stats().lost, 0);
}

#[tokio::test]
async fn suppressed_rejections_are_reported_in_time() {
    let stage = Stage::new();
    let app = stage.app();
    for _ in 0..150 {
        send(&app, request("GET", "/whoami", "")).await;
    }
    let told = async {
        while count_of(&events_in(&stage.lines.text()), 3002) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, told).await.unwrap();
}

#[tokio::test]
async fn a_recovering_sink_gets_every_event_once() {
    let failed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&failed);
    let (stage, _) = judged(100, move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0..3 => Err(io::Error::other("no space left").into()),
        _ => Ok(()),
    });
    let app = stage.app();
    for _ in 0..20 {
        send(&app, request("GET", "/whoami", ONE)).await;
    }
    let events = stage.events().await;
    assert!(failed.load(Ordering::SeqCst) > 3);
    let sequence: Vec<u64> = events
        .iter()
        .map(|event| event["metadata"]["sequence"].as_u64().unwrap())
        .collect();
    assert_eq!(sequence, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn permanently_failed_events_are_reported() {
    for is_panic in [false, true] {
        let mut is_first = true;
        let (stage, _) = judged(100, move |_| {
            if std::mem::take(&mut is_first) {
                assert!(!is_panic, "a sink that panics on purpose");
                return Err(SinkError::permanent("too odd"));
            }
            Ok(())
        });
        let app = stage.app();
        send(&app, request("GET", "/whoami", ONE)).await;
        // From now on, `Ok` would be wrong.
        assert_eq!(stage.trail.flush(LONG).await.unwrap_err().missing(), 1);
        send(&app, request("GET", "/whoami", TWO)).await;
        assert_eq!(stage.trail.shutdown(LONG).await.unwrap_err().missing(), 1);
        let events = events_in(&stage.lines.text());
        assert_eq!(count_of(&events, 1008), 1);
        let of_two = events
            .iter()
            .filter(|event| event["actor"]["user"]["org"]["uid"] == "org_two");
        assert_eq!(of_two.count(), 1);
        assert_eq!(stage.trail.stats().lost, 1);
    }
}

#[tokio::test]
async fn flush_waits_for_all_earlier_batches() {
    let (stage, gate, begun) = blocked(1_000);
    let app = stage.app();
    send(&app, request("GET", "/whoami", ONE)).await;
    tokio::task::spawn_blocking(move || begun.recv().unwrap())
        .await
        .unwrap();
    for _ in 1..700 {
        send(&app, request("GET", "/whoami", ONE)).await;
    }
    // Requested while the sink blocks on the first event. It then writes one batch, and blocks on the next.
    let trail = stage.trail.clone();
    let flush = tokio::spawn(async move { trail.flush(Duration::from_millis(500)).await });
    tokio::task::yield_now().await;
    gate.send(()).unwrap();
    gate.send(()).unwrap();
    assert!(flush.await.unwrap().is_err());
    drop(gate);
    assert_eq!(stage.events().await.len(), 700);
}

#[tokio::test]
async fn shutdown_writes_all_and_drops_the_sink() {
    let (stage, dropped) = judged(1_000, |_| Ok(()));
    let app = stage.app();
    for _ in 0..700 {
        send(&app, request("GET", "/whoami", ONE)).await;
    }
    stage.trail.shutdown(LONG).await.unwrap();
    assert!(dropped.load(Ordering::SeqCst));
    assert_eq!(events_in(&stage.lines.text()).len(), 700);
    // Later events are counted.
    assert_eq!(
        send(&app, request("GET", "/whoami", ONE)).await.status(),
        200
    );
    assert_eq!(stage.trail.stats().lost, 1);
    assert_eq!(events_in(&stage.lines.text()).len(), 700);
    stage.trail.shutdown(LONG).await.unwrap();
}

#[tokio::test]
async fn shutdown_of_a_slow_sink_ends_after_a_batch() {
    let (gate, held) = mpsc::channel::<()>();
    let batches = Arc::new(AtomicUsize::new(0));
    let written = Arc::clone(&batches);
    let (stage, dropped) = judged(10_000, move |_| {
        written.fetch_add(1, Ordering::SeqCst);
        // One batch after another, each when the test permits it.
        let _ = held.recv();
        Ok(())
    });
    let address = serve(stage.app()).await;
    for _ in 0..600 {
        assert_eq!(get_at(address, "/whoami").key(ONE).send().await.status, 200);
    }
    let left = stage.trail.shutdown(Duration::from_millis(50)).await;
    assert!(left.unwrap_err().missing() > 0);
    // The batch in the sink is written, and no other one begins.
    let begun = batches.load(Ordering::SeqCst);
    drop(gate);
    // Waits until the worker has ended.
    assert!(stage.trail.shutdown(LONG).await.is_err());
    assert!(dropped.load(Ordering::SeqCst));
    assert_eq!(batches.load(Ordering::SeqCst), begun);
    let stats = stage.trail.stats();
    assert_eq!((stats.written + stats.lost, stats.waiting), (600, 0));
    assert!(stats.lost > 0, "the sink was not slow");
}

#[tokio::test]
async fn later_events_do_not_complete_a_flush() {
    let (stage, gate, begun) = blocked(1_000);
    let address = serve(stage.app()).await;
    assert_eq!(get_at(address, "/whoami").key(ONE).send().await.status, 200);
    tokio::task::spawn_blocking(move || begun.recv().unwrap())
        .await
        .unwrap();
    let flush = stage.trail.flush(Duration::from_millis(50)).await;
    assert_eq!(flush.unwrap_err().missing(), 1);
    drop(gate);
    stage.trail.flush(LONG).await.unwrap();
}

#[tokio::test]
async fn shutdown_with_a_failing_sink_ends() {
    let (stage, dropped) = judged(100, |_| Err(SinkError::retry("down")));
    let app = stage.app();
    for _ in 0..5 {
        send(&app, request("GET", "/whoami", ONE)).await;
    }
    let error = stage
        .trail
        .shutdown(Duration::from_millis(200))
        .await
        .unwrap_err();
    assert_eq!(error.missing(), 5);
    assert_eq!(error.to_string(), "5 audit events are not written");
    let ended = async {
        while !dropped.load(Ordering::SeqCst) || stage.trail.stats().waiting > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, ended).await.unwrap();
    assert_eq!(stage.trail.stats().lost, 5);
    assert_eq!(stage.trail.shutdown(LONG).await.unwrap_err().missing(), 5);
}

#[tokio::test]
async fn a_dropped_trail_writes_what_it_has() {
    let (stage, dropped) = judged(1_000, |_| Ok(()));
    let app = stage.app();
    for _ in 0..300 {
        send(&app, request("GET", "/whoami", ONE)).await;
    }
    let lines = stage.lines.clone();
    drop((stage, app));
    let ended = async {
        while !dropped.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, ended).await.unwrap();
    assert_eq!(events_in(&lines.text()).len(), 300);
}

#[tokio::test]
async fn a_custom_sink_reads_events() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let (stage, _) = judged(100, move |events| {
        for event in events {
            let AuditEventKind::Request(request) = event.kind() else {
                continue;
            };
            told.lock().unwrap().push((
                request.org_code().map(ToString::to_string),
                request.code(),
                request.route().map(str::to_owned),
                request.status().map(|status| status.as_u16()),
            ));
        }
        Ok(())
    });
    send(&stage.app(), request("GET", "/orgs/org_two", ONE)).await;
    stage.trail.flush(LONG).await.unwrap();
    let route = Some("/orgs/{org_code}".to_owned());
    assert_eq!(
        *seen.lock().unwrap(),
        [(
            Some("org_one".to_owned()),
            "organization-mismatch",
            route,
            Some(403)
        )]
    );
}

#[test]
fn invalid_settings_are_named() {
    let builder = AuditTrail::builder;
    assert_eq!(
        builder().capacity(0).start().unwrap_err().field(),
        "capacity"
    );
    assert_eq!(
        builder()
            .rejections_per_second(0)
            .start()
            .unwrap_err()
            .field(),
        "rejections_per_second"
    );
    assert_eq!(
        builder().service("").start().unwrap_err().field(),
        "service"
    );
}
