//! How requests end, and that the layer does not change it.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::{Layer, Service, service_fn};

use crate::support::wire::{get as get_at, serve};
use crate::*;

/// Frames one by one, trailers and an error among them.
struct Frames(Vec<Result<Frame<Bytes>, &'static str>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        let frames = &mut self.0;
        Poll::Ready((!frames.is_empty()).then(|| frames.remove(0)))
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_lower(3);
        hint.set_upper(9_000);
        hint
    }
}

#[allow(clippy::unnecessary_wraps)] // Used in a list with errors.
fn data(text: &'static str) -> Result<Frame<Bytes>, &'static str> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

/// A request in flight, beneath both layers.
fn behind<S>(
    stage: &Stage,
    service: S,
) -> impl Service<
    Request<Body>,
    Response = Response<tower_orgkey_audit::AuditBody<Frames>>,
    Error = S::Error,
    Future: Unpin,
> + Clone
where
    S: Service<Request<Body>, Response = Response<Frames>> + Clone,
    S::Future: Unpin,
    S::Error: std::fmt::Debug,
{
    let faced = ApiKeyLayer::new(issuer())
        .with_rejection_response(|_: &tower_orgkey::Rejection| Response::new(Frames(Vec::new())));
    stage.layer().layer(faced.layer(service))
}

#[tokio::test]
async fn the_body_passes_and_its_end_is_recorded() {
    let stage = Stage::new();
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "7".parse().unwrap())]);
    for (frames, end, bytes, error) in [
        (
            vec![
                data("abc"),
                data("de"),
                Ok(Frame::trailers(trailers.clone())),
            ],
            "ended",
            5,
            false,
        ),
        (vec![data("abc"), Err("torn"), data("x")], "failed", 3, true),
    ] {
        let frames = std::sync::Mutex::new(Some(frames));
        let frames = Arc::new(frames);
        let service = behind(
            &stage,
            service_fn(move |_| {
                let frames = frames.lock().unwrap().take().unwrap();
                std::future::ready(Ok::<_, Infallible>(Response::new(Frames(frames))))
            }),
        );
        let response = service.oneshot(request("GET", "/", ONE)).await.unwrap();
        let body = response.into_body();
        assert_eq!(
            (body.size_hint().lower(), body.size_hint().upper()),
            (3, Some(9_000))
        );
        assert!(!body.is_end_stream());
        let collected = body.collect().await;
        assert_eq!(collected.is_err(), error);
        if let Ok(collected) = collected {
            assert_eq!(collected.trailers(), Some(&trailers));
            assert_eq!(collected.to_bytes(), "abcde");
        }
        let event = stage.events().await.pop().unwrap();
        assert_eq!(event["unmapped"]["body_end"], end);
        assert_eq!(event["http_response"]["body_length"], bytes);
        assert_eq!(event["status_id"], 1);
    }
    assert_eq!(stage.events().await.len(), 2);
}

#[tokio::test]
async fn dropped_and_ended_bodies_differ() {
    let stage = Stage::new();
    // A server reads no more than the announced length.
    for (length, read, end) in [
        (None, 1, "dropped"),
        (Some("5"), 1, "dropped"),
        (Some("5"), 2, "ended"),
        (None, 0, "dropped"),
    ] {
        let service = behind(
            &stage,
            service_fn(move |_| {
                let mut response = Response::new(Frames(vec![data("abc"), data("de")]));
                if let Some(length) = length {
                    response
                        .headers_mut()
                        .insert("content-length", length.parse().unwrap());
                }
                std::future::ready(Ok::<_, Infallible>(response))
            }),
        );
        let response = service.oneshot(request("GET", "/", ONE)).await.unwrap();
        let mut body = response.into_body();
        for _ in 0..read {
            body.frame().await.unwrap().unwrap();
        }
        let before = stage.events().await.len();
        drop(body);
        let events = stage.events().await;
        assert_eq!(events.len(), before + 1);
        assert_eq!(
            events[before]["unmapped"]["body_end"], end,
            "{length:?} {read}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn head_and_body_have_durations() {
    let stage = Stage::new();
    let service = behind(
        &stage,
        service_fn(|_| {
            let answer = async {
                tokio::time::sleep(Duration::from_secs(250)).await;
                Ok::<_, Infallible>(Response::new(Frames(vec![data("abc")])))
            };
            answer.boxed()
        }),
    );
    let response = service.oneshot(request("GET", "/", ONE)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1_000)).await;
    response.into_body().collect().await.unwrap();
    let event = stage.event().await;
    let duration = event["duration"].as_u64().unwrap();
    let body = event["unmapped"]["body_duration"].as_u64().unwrap();
    assert!((250_000..400_000).contains(&duration), "{duration}");
    assert!((1_250_000..1_400_000).contains(&body), "{body}");
    assert_eq!(event["http_response"]["latency"], duration);
    let (start, end) = (
        event["start_time"].as_u64().unwrap(),
        event["end_time"].as_u64().unwrap(),
    );
    // Both are cut to whole milliseconds.
    assert!((end - start).abs_diff(duration) <= 1);
}

#[tokio::test]
async fn a_dropped_future_is_recorded() {
    let stage = Stage::new();
    let reached = Arc::new(tokio::sync::Notify::new());
    let there = Arc::clone(&reached);
    let service = behind(
        &stage,
        service_fn(move |_| {
            there.notify_one();
            std::future::pending::<Result<Response<Frames>, Infallible>>()
        }),
    );
    let mut future = Box::pin(service.oneshot(request("GET", "/", ONE)));
    tokio::select! {
        _ = &mut future => unreachable!("the handler waits for ever"),
        () = reached.notified() => {}
    }
    drop(future);
    let event = stage.event().await;
    assert_eq!(event["status_code"], "dropped");
    assert_eq!(
        (event["status_id"].as_u64(), event["action_id"].as_u64()),
        (Some(99), Some(1))
    );
    assert_eq!(event["actor"]["user"]["org"]["uid"], "org_one");
    assert!(event.get("http_response").is_none());
}

/// As tower-http's `TimeoutLayer` does it.
#[tokio::test(start_paused = true)]
async fn an_inner_timeout_is_recorded_as_such() {
    use axum::middleware::{Next, from_fn};
    use axum::response::IntoResponse;

    let stage = Stage::new();
    let timeout = from_fn(async |request, next: Next| {
        let response = tokio::time::timeout(LONG, next.run(request)).await;
        response.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
    });
    let app = Router::new()
        .route("/never", get(std::future::pending::<()>))
        .route("/upstream", get(async || StatusCode::GATEWAY_TIMEOUT))
        .route_layer(ApiKeyLayer::new(issuer()))
        .route_layer(timeout)
        .route_layer(stage.layer());
    for (path, status) in [("/never", 408), ("/upstream", 504)] {
        assert_eq!(send(&app, request("GET", path, ONE)).await.status(), status);
    }
    tokio::time::resume();
    let events = stage.events().await;
    assert_eq!(events.len(), 2);
    for (event, status) in events.iter().zip([408, 504]) {
        assert_eq!(event["status_code"], "timed-out");
        assert_eq!(
            (event["status_id"].as_u64(), event["action_id"].as_u64()),
            (Some(2), Some(1))
        );
        assert_eq!(event["http_response"]["code"], status);
        assert_eq!(event["actor"]["user"]["org"]["uid"], "org_one");
    }
}

/// Sends a request whose verification does not end, and drops it.
async fn drop_unverified(app: &Router, issuer: &Issuer) {
    let mut future = Box::pin(app.clone().oneshot(request("GET", "/whoami", ONE)));
    assert!((&mut future).now_or_never().is_none());
    while issuer.calls() == 0 {
        tokio::task::yield_now().await;
    }
}

fn assert_is_unverified(event: &Value, code: &str, status_id: u64) {
    assert_eq!(event["status_code"], code, "{event}");
    assert_eq!(event["status_id"], status_id, "{event}");
    assert_eq!(event["class_uid"], 3002);
    assert_eq!(event["action"], "Denied");
    assert_eq!(event["user"]["name"], "unknown");
}

#[tokio::test]
async fn fault_209_unverified_drops_are_recorded() {
    let stage = Stage::new();
    let issuer = issuer();
    issuer.fail(Answer::Silence);
    let app = routes()
        .route_layer(ApiKeyLayer::new(issuer.clone()))
        .route_layer(stage.layer());
    drop_unverified(&app, &issuer).await;
    let event = stage.event().await;
    assert_is_unverified(&event, "dropped", 99);
    assert!(event.get("http_response").is_none());
    // They are sampled as rejections are.
    for _ in 0..300 {
        drop_unverified(&app, &issuer).await;
    }
    let events = stage.events().await;
    let suppressed: u64 = events
        .iter()
        .filter_map(|event| event["unmapped"]["by_code"]["dropped"].as_u64())
        .sum();
    let dropped = |event: &&Value| event["status_code"] == "dropped" && event["count"].is_null();
    let recorded = events.iter().filter(dropped).count() as u64;
    assert_eq!(recorded + suppressed, 301);
    assert!((100..200).contains(&recorded), "{recorded}");
}

/// What an outer layer let through is not what the inner one verifies.
#[tokio::test]
async fn fault_209_drops_under_an_outer_layer_are_denied() {
    let stage = Stage::new();
    let issuer = issuer();
    issuer.fail(Answer::Silence);
    let outer = ApiKeyLayer::builder(issuer.clone())
        .credential_header(http::HeaderName::from_static("x-other-key"), "Key")
        .allow_anonymous();
    let app = routes()
        .route_layer(ApiKeyLayer::new(issuer.clone()))
        .route_layer(outer.build().unwrap())
        .route_layer(stage.layer());
    drop_unverified(&app, &issuer).await;
    assert_is_unverified(&stage.event().await, "dropped", 99);
}

/// The timeout is outside of `AuditLayer`, or between it and `ApiKeyLayer`.
#[tokio::test(start_paused = true)]
async fn fault_209_unverified_timeouts_are_recorded() {
    use axum::middleware::{Next, from_fn};
    use axum::response::IntoResponse;

    for (is_outside, status, code, status_id) in [
        (true, StatusCode::REQUEST_TIMEOUT, "dropped", 99),
        (true, StatusCode::GATEWAY_TIMEOUT, "dropped", 99),
        (false, StatusCode::REQUEST_TIMEOUT, "timed-out", 2),
        (false, StatusCode::GATEWAY_TIMEOUT, "timed-out", 2),
        (false, StatusCode::SERVICE_UNAVAILABLE, "dropped", 2),
    ] {
        let stage = Stage::new();
        let issuer = issuer();
        issuer.fail(Answer::Silence);
        let timeout = from_fn(move |request, next: Next| async move {
            // Less than the caller deadline of `ApiKeyLayer`.
            let limit = Duration::from_secs(1);
            let response = tokio::time::timeout(limit, next.run(request)).await;
            response.unwrap_or_else(|_| status.into_response())
        });
        let app = routes().route_layer(ApiKeyLayer::new(issuer.clone()));
        let app = if is_outside {
            app.route_layer(stage.layer()).route_layer(timeout)
        } else {
            app.route_layer(timeout).route_layer(stage.layer())
        };
        let response = send(&app, request("GET", "/whoami", ONE)).await;
        assert_eq!((response.status(), issuer.calls()), (status, 1));
        tokio::time::resume();
        let event = stage.event().await;
        assert_is_unverified(&event, code, status_id);
        let recorded = (!is_outside).then(|| status.as_u16().into());
        assert_eq!(event["http_response"]["code"].as_u64(), recorded);
        tokio::time::pause();
    }
}

#[tokio::test]
async fn a_caught_panic_is_recorded() {
    let stage = Stage::new();
    let late = routes()
        .route(
            "/panics",
            get(async |key: HeaderMap| assert!(key.is_empty(), "on purpose")),
        )
        .route_layer(ApiKeyLayer::new(issuer()))
        .route_layer(stage.layer());
    let mut future =
        Box::pin(AssertUnwindSafe(late.oneshot(request("GET", "/panics", ONE))).catch_unwind());
    assert!((&mut future).await.is_err());
    // Recorded while it unwinds, not when the future is dropped.
    let event = stage.event().await;
    drop(future);
    assert_eq!(event["status_code"], "panicked");
    assert_eq!(
        (event["status_id"].as_u64(), event["action_id"].as_u64()),
        (Some(2), Some(1))
    );
    assert_eq!(stage.events().await.len(), 1);
}

#[tokio::test]
async fn a_failed_service_is_recorded() {
    let stage = Stage::new();
    let service = behind(
        &stage,
        service_fn(|_| std::future::ready(Err::<Response<Frames>, _>("out of order"))),
    );
    assert_eq!(
        service.oneshot(request("GET", "/", ONE)).await.err(),
        Some("out of order")
    );
    assert_eq!(stage.event().await["status_code"], "failed");
}

#[tokio::test]
async fn head_requests_keep_their_length() {
    let stage = Stage::new();
    let address = serve(stage.app()).await;
    let full = get_at(address, "/whoami").key(ONE).send().await;
    let head = crate::support::wire::raw_request(address, "HEAD", "/whoami")
        .key(ONE)
        .send()
        .await;
    assert_eq!(head.header("content-length"), full.header("content-length"));
    assert_eq!(head.body, "");
    let events = stage.events().await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[0]["unmapped"]["body_end"], "ended");
    assert!(events[1]["unmapped"].get("body_end").is_none());
}

#[tokio::test]
async fn a_disconnect_during_a_stream_is_recorded() {
    let stage = Stage::new();
    let stream = async || {
        let chunks = futures_util::stream::unfold((), async |()| {
            tokio::task::yield_now().await;
            Some((Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1_000])), ()))
        });
        Body::from_stream(chunks)
    };
    let app = Router::new()
        .route("/stream", get(stream))
        .route_layer(ApiKeyLayer::new(issuer()))
        .route_layer(stage.layer());
    let address = serve(app).await;
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket
        .write_all(&get_at(address, "/stream").key(ONE).bytes())
        .await
        .unwrap();
    socket.read_exact(&mut [0; 5_000]).await.unwrap();
    assert_eq!(stage.events().await.len(), 0);
    drop(socket);
    let told = async {
        loop {
            if let Some(event) = stage.events().await.pop() {
                return event;
            }
            tokio::task::yield_now().await;
        }
    };
    let event = tokio::time::timeout(LONG, told).await.unwrap();
    assert_eq!(event["unmapped"]["body_end"], "dropped");
    assert_eq!(event["status_code"], "allowed");
}
