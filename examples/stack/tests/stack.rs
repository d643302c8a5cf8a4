//! What each layer of the example sees, with the emulated issuer.

#![allow(clippy::unwrap_used)] // A test may fail on what it did not expect.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures_util::FutureExt;
use http::{Request, Response};
use kinde_emulator::{KeySpec, KindeEmulator};
use serde_json::Value;
use tower::ServiceExt;
use tower_orgkey::OrgCode;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey_audit::{AuditTrail, JsonLines};

#[allow(dead_code)] // Its `main`.
#[path = "../src/main.rs"]
mod example;

use example::{Stack, app};

const LONG: Duration = Duration::from_secs(60);

/// What a sink or the log writes to.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log of all tests. Of the process, because a subscriber for one thread misses events whose call site another thread
/// has disabled.
fn log() -> &'static Lines {
    static LOG: OnceLock<Lines> = OnceLock::new();
    LOG.get_or_init(|| {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        lines
    })
}

struct Stage {
    emulator: KindeEmulator,
    stack: Stack,
    lines: Lines,
}

impl Stage {
    async fn new() -> Self {
        log();
        let emulator = KindeEmulator::start().await.unwrap();
        let kinde = KindeVerifier::builder(emulator.issuer_url())
            .client_credentials(emulator.client_id(), emulator.client_secret())
            .build()
            .unwrap();
        let lines = Lines::default();
        let trail = AuditTrail::start(JsonLines::new(lines.clone())).unwrap();
        Self {
            emulator,
            stack: Stack::new(kinde, trail),
            lines,
        }
    }

    fn app(&self) -> Router {
        app(&self.stack, LONG)
    }

    fn key(&self, org: &str, scopes: &[&str]) -> String {
        let spec = KeySpec::organization(org).scopes(scopes.iter().copied());
        self.emulator.issue_key(spec).secret().to_owned()
    }

    /// The codes of all requests so far.
    async fn codes(&self) -> Vec<String> {
        self.stack.trail.flush(LONG).await.unwrap();
        let events = self.lines.text();
        let code = |line| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["status_code"].as_str().unwrap().to_owned()
        };
        events.lines().map(code).collect()
    }

    /// Requests, served and rejected ones of an organization.
    fn usage(&self, org: &'static str) -> (u64, u64, u64) {
        let snapshot = self.stack.usage.handle().snapshot();
        let counts = snapshot.of_organization(&OrgCode::from_static(org));
        (counts.requests(), counts.served(), counts.rejected())
    }
}

fn request(path: &str, key: &str) -> Request<Body> {
    Request::get(path)
        .header("authorization", format!("Bearer {key}"))
        .body(Body::empty())
        .unwrap()
}

async fn send(app: &Router, request: Request<Body>) -> Response<Vec<u8>> {
    let response = app.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    Response::from_parts(parts, bytes.to_vec())
}

#[tokio::test]
async fn every_layer_sees_a_served_request() {
    let stage = Stage::new().await;
    let key = stage.key("org_large", &["read:reports"]);
    let mut request = request("/reports", &key);
    for (name, value) in [
        ("x-request-id", "request-7"),
        ("accept-encoding", "gzip"),
        ("origin", "https://acme.example"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let response = send(&stage.app(), request).await;
    assert_eq!(response.status(), 200);
    for (name, value) in [
        ("x-request-id", "request-7"),
        ("content-encoding", "gzip"),
        ("access-control-allow-origin", "*"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    assert_eq!(stage.codes().await, ["allowed"]);
    let event: Value = serde_json::from_str(&stage.lines.text()).unwrap();
    assert_eq!(event["metadata"]["correlation_uid"], "request-7");
    assert_eq!(event["actor"]["user"]["org"]["uid"], "org_large");
    assert_eq!(event["api"]["operation"], "GET /reports");
    assert_eq!(stage.usage("org_large"), (1, 1, 0));
    let text = log().text();
    let mut lines = text.lines();
    let line = lines.find(|line| line.contains("listing reports") && line.contains("request-7"));
    let line = line.unwrap();
    for field in [r#"id="request-7""#, r#"org_code="org_large""#, "key_id="] {
        assert!(line.contains(field), "{line}");
    }
    assert!(!text.contains(&key) && !stage.lines.text().contains(&key));
}

#[tokio::test]
async fn rejections_are_audited_and_not_served() {
    let stage = Stage::new().await;
    let app = stage.app();
    let key = stage.key("org_small", &["read:reports"]);
    let unscoped = stage.key("org_small", &[]);
    // The plan allows 10 requests per hour, from the first one on. A guard inside the limit rejects one of them.
    assert_eq!(
        send(&app, request("/reports", &unscoped)).await.status(),
        403
    );
    let mut expected = vec!["insufficient-scope"];
    for _ in 0..9 {
        assert_eq!(send(&app, request("/reports", &key)).await.status(), 200);
        expected.push("allowed");
    }
    assert_eq!(send(&app, request("/reports", &key)).await.status(), 429);
    let unknown = request("/reports", "k_test_unknown_0123");
    assert_eq!(send(&app, unknown).await.status(), 401);
    expected.extend(["rate-limited", "invalid-token"]);
    assert_eq!(stage.codes().await, expected);
    assert_eq!(stage.usage("org_small"), (11, 9, 2));
}

#[tokio::test]
async fn preflight_and_unknown_paths_are_not_audited() {
    let stage = Stage::new().await;
    let app = stage.app();
    let preflight = Request::options("/reports")
        .header("origin", "https://acme.example")
        .header("access-control-request-method", "GET")
        .body(Body::empty())
        .unwrap();
    let response = send(&app, preflight).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    let key = stage.key("org_small", &[]);
    let unknown = send(&app, request("/unknown", &key)).await;
    assert_eq!(unknown.status(), 404);
    assert!(unknown.headers().contains_key("x-request-id"));
    assert_eq!(stage.codes().await, [""; 0]);
    assert_eq!(stage.usage("org_small"), (0, 0, 0));
}

#[tokio::test]
async fn a_timeout_is_not_a_disconnect() {
    let stage = Stage::new().await;
    let key = stage.key("org_large", &["read:reports"]);
    // Verified now, so that the short timeout below does not apply to the verification.
    assert_eq!(
        send(&stage.app(), request("/reports", &key)).await.status(),
        200
    );
    let short = app(&stage.stack, Duration::from_millis(50));
    assert_eq!(send(&short, request("/slow", &key)).await.status(), 408);
    // A client that disconnects.
    let mut future = Box::pin(stage.app().oneshot(request("/slow", &key)));
    assert!((&mut future).now_or_never().is_none());
    drop(future);
    assert_eq!(stage.codes().await, ["allowed", "timed-out", "dropped"]);
    assert_eq!(stage.usage("org_large"), (3, 3, 0));
}
