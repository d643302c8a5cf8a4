//! The listener for operators: health, metrics, the status page, revocations.

mod chart;
mod revoke;
mod status;
mod token;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{CACHE_CONTROL, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tower_orgkey_audit::AuditTrail;
use tower_orgkey_fleet::Fleet;

pub(super) use self::token::AdminToken;
use super::checks::Checks;
use super::readiness::Readiness;

/// The most bytes of the body of a revocation.
const MAX_BODY_LEN: usize = 16 * 1_024;

/// What operators see and change.
pub(super) struct Admin {
    pub(super) token: Option<AdminToken>,
    pub(super) checks: Arc<Checks>,
    /// Where revocations are recorded.
    pub(super) trail: Option<AuditTrail>,
    /// The other gateways, which revocations reach.
    pub(super) fleet: Option<Fleet>,
    /// How many gateways the fleet has. 0 if that is not known.
    pub(super) expected_nodes: usize,
    /// The revocations that are carried out, also those of clients that have hung up.
    pub(super) revocations: TaskTracker,
    pub(super) readiness: watch::Receiver<Readiness>,
    pub(super) metrics: PrometheusHandle,
    /// How long a request may take.
    pub(super) timeout: Duration,
}

impl Admin {
    /// Returns the routes. All but the health checks need the token.
    pub(super) fn router(self) -> Router {
        let admin = Arc::new(self);
        let open = Router::new()
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(ready));
        Router::new()
            .route("/", get(status::status))
            .route("/metrics", get(metrics))
            .route("/v1/{action}", post(revoke::revoke))
            .fallback(async || StatusCode::NOT_FOUND)
            .layer(DefaultBodyLimit::max(MAX_BODY_LEN))
            .layer(from_fn_with_state(Arc::clone(&admin), authorize))
            .merge(open)
            .with_state(admin)
    }
}

async fn ready(State(admin): State<Arc<Admin>>) -> (StatusCode, &'static str) {
    match *admin.readiness.borrow() {
        Readiness::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Readiness::Ready => (StatusCode::OK, "ready\n"),
        Readiness::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let format = "text/plain; version=0.0.4; charset=utf-8";
    ([("content-type", format)], admin.metrics.render())
}

/// Rejects a request without the token, before anything else of it is read.
async fn authorize(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let is_allowed = match &admin.token {
        Some(token) => token.is_presented(request.headers()),
        None => false,
    };
    let mut response = if is_allowed && is_of_a_page(&request) {
        (StatusCode::FORBIDDEN, "a page may not change anything\n").into_response()
    } else if is_allowed {
        let response = tokio::time::timeout(admin.timeout, next.run(request)).await;
        response.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
    } else {
        let mut response =
            (StatusCode::UNAUTHORIZED, "the admin token is required\n").into_response();
        for challenge in [
            "Bearer realm=\"orgkey admin\"",
            "Basic realm=\"orgkey admin\", charset=\"UTF-8\"",
        ] {
            let challenge = HeaderValue::from_static(challenge);
            response.headers_mut().append(WWW_AUTHENTICATE, challenge);
        }
        response
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Whether a page in a browser sends a request that changes something. The status page sends none, and a browser that knows the
/// password would send it along with those of other pages.
fn is_of_a_page(request: &Request) -> bool {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    !is_read && request.headers().contains_key(ORIGIN)
}
