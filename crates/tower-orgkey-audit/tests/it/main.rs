//! The audit trail through the public layer: every line is checked against the published schema.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

#[path = "../../../../tests/support/mod.rs"]
mod support;

mod ends;
mod events;
mod files;
mod placement;
mod pressure;
mod privacy;
mod schema;
mod secrecy;
mod traits;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{Request, Response, StatusCode};
use serde_json::Value;
use tower::ServiceExt;
use tower_orgkey::{
    ApiKeyLayer, OrgContext, ScopeSet, Scoped, Verification, require_any_scope, require_org,
    require_scope,
};
use tower_orgkey_audit::{AuditLayer, AuditTrail, JsonLines};

use support::{Answer, Issuer, org};

/// Valid keys of two organizations, and one key of each other kind. No two have eight consecutive bytes in common.
const ONE: &str = "QwErTyUiOpAsDfGhJk";
const TWO: &str = "ZxCvBnMaSdFgHjKlQw";
const NO_ORG: &str = "PoIuYtReWqLkJhGfDs";
const USER: &str = "MnBvCxZlKjHgFdSaPo";
const DOUBTFUL: &str = "1q2w3e4r5t6y7u8i9o";
const STRANGE: &str = "9o0p8i7u6y5t4r3e2w";
const BAD: &str = "XcFvGbHnJmKlOpIuYt";

/// The deadline of a test.
const LONG: Duration = Duration::from_secs(60);

fn issuer() -> Issuer {
    let user = support::issuer::verification("org_one", &["read:reports"]).with_user_id("kp_7");
    Issuer::knowing([
        (ONE, org("org_one", &["read:reports"])),
        (TWO, org("org_two", &["read:reports", "write:reports"])),
        (NO_ORG, Answer::Valid(Verification::without_organization())),
        (USER, Answer::Valid(user)),
        (DOUBTFUL, Answer::Unavailable),
        (STRANGE, Answer::Misconfigured),
    ])
}

struct BothReports;

impl ScopeSet for BothReports {
    const ALTERNATIVES: &'static [&'static [&'static str]] =
        &[&["read:reports", "write:reports"], &["admin"]];
}

async fn whoami(org: OrgContext) -> String {
    org.org_code().to_string()
}

fn routes() -> Router {
    let open = async || "open";
    Router::new()
        .route(
            "/whoami",
            get(whoami)
                .post(whoami)
                .put(whoami)
                .patch(whoami)
                .delete(whoami)
                .options(whoami),
        )
        .route("/broken", get(async || StatusCode::INTERNAL_SERVER_ERROR))
        .route(
            "/read",
            get(open).route_layer(require_scope("read:reports")),
        )
        .route(
            "/any",
            get(open).route_layer(require_any_scope(["x", "read:reports"])),
        )
        .route(
            "/write",
            get(open).route_layer(require_scope("write:reports")),
        )
        .route("/typed", get(async |_: Scoped<BothReports>| "typed"))
        .route(
            "/orgs/{org_code}",
            get(open).route_layer(require_org("org_code")),
        )
        .route(
            "/hidden/{org_code}",
            get(open).route_layer(require_org("org_code").with_not_found()),
        )
        .route(
            "/misnamed/{org}",
            get(open).route_layer(require_org("org_code")),
        )
}

/// The output of a sink.
#[derive(Clone, Debug, Default)]
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

/// Returns the events in a text, each checked against the schema.
#[track_caller]
fn events_in(text: &str) -> Vec<Value> {
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for event in &events {
        assert_eq!(schema::faults(event), [""; 0], "{event:#}");
    }
    events
}

/// A trail whose lines a test can read.
struct Stage {
    trail: AuditTrail,
    lines: Lines,
}

impl Stage {
    fn new() -> Self {
        let lines = Lines::default();
        let trail = AuditTrail::builder()
            .sink(JsonLines::new(lines.clone()))
            .service("reports-api")
            .start()
            .unwrap();
        Self { trail, lines }
    }

    fn layer(&self) -> AuditLayer {
        AuditLayer::new(&self.trail)
    }

    /// The routes behind the layers.
    fn app(&self) -> Router {
        routes()
            .route_layer(ApiKeyLayer::new(issuer()))
            .route_layer(self.layer())
    }

    /// All events so far.
    async fn events(&self) -> Vec<Value> {
        self.trail.flush(LONG).await.unwrap();
        events_in(&self.lines.text())
    }

    /// The one event so far.
    async fn event(&self) -> Value {
        let mut events = self.events().await;
        assert_eq!(events.len(), 1, "{events:#?}");
        events.remove(0)
    }
}

fn request(method: &str, path: &str, key: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    let request = match key {
        "" => request,
        key => request.header("authorization", format!("Bearer {key}")),
    };
    request.body(Body::empty()).unwrap()
}

/// Sends a request and reads the whole response.
async fn send(app: &Router, request: Request<Body>) -> Response<String> {
    let response = app.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    Response::from_parts(parts, String::from_utf8(bytes.to_vec()).unwrap())
}
