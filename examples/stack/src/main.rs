//! The whole stack in one order: what each layer sees, and why it is where it is.
//!
//! ```sh
//! cargo run -p example-stack
//! ```

use std::error::Error;
use std::future::pending;
use std::io;
use std::iter::once;
use std::time::Duration;

use axum::body::Body;
use axum::routing::get;
use axum::{Router, serve};
use http::header::AUTHORIZATION;
use http::{Request, StatusCode};
use kinde_emulator::{KeySpec, KindeEmulator};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::settings::{OrgSettingsLayer, SettingsError, settings_fn};
use tower_orgkey::{
    ApiKeyLayer, KeyId, ObserverLayer, OrgCode, OrgConcurrencyLimitLayer, OrgContext,
    OrgRateLimitLayer, OrgSettings, Quota, require_scope,
};
use tower_orgkey_audit::{AuditLayer, AuditTrail, JsonLines};
use tower_orgkey_usage::UsageLayer;
use tracing::field::Empty;
use tracing::{Span, info_span};

/// The plan of an organization. In production a row in a database.
pub(crate) struct Plan {
    pub(crate) requests_per_hour: u32,
    pub(crate) concurrent_requests: usize,
}

/// The layers with state. Clones of them share it.
pub(crate) struct Stack {
    pub(crate) auth: ApiKeyLayer,
    pub(crate) plans: OrgSettingsLayer<Plan>,
    pub(crate) trail: AuditTrail,
    pub(crate) usage: UsageLayer,
}

impl Stack {
    pub(crate) fn new(kinde: KindeVerifier, trail: AuditTrail) -> Self {
        let auth = ApiKeyLayer::new(kinde);
        let load = settings_fn(async |org: OrgCode| {
            let requests_per_hour = if org == "org_large" { 1_000 } else { 10 };
            Ok::<_, SettingsError>(Plan {
                requests_per_hour,
                concurrent_requests: 5,
            })
        });
        Self {
            plans: OrgSettingsLayer::new(&auth.handle(), load),
            auth,
            trail,
            usage: UsageLayer::new(),
        }
    }
}

/// The application. On a `Router`, a layer that is added later is further out; a `ServiceBuilder` lists layers from the outside
/// in.
pub(crate) fn app(stack: &Stack, timeout: Duration) -> Router {
    let rate = OrgRateLimitLayer::from_settings(|_: &OrgContext, plan: &Plan| {
        Some(Quota::per_hour(plan.requests_per_hour))
    });
    let concurrency = OrgConcurrencyLimitLayer::from_settings(|_: &OrgContext, plan: &Plan| {
        Some(plan.concurrent_requests)
    });

    Router::new()
        // Innermost: guards, by route.
        .route(
            "/reports",
            get(reports).route_layer(require_scope("read:reports")),
        )
        .route("/slow", get(pending::<()>))
        .route_layer(
            ServiceBuilder::new()
                // They see every request of a route, rejected or not, and the response of the timeout.
                .layer(AuditLayer::new(&stack.trail))
                .layer(stack.usage.clone())
                // Inside audit and usage: outside, a timeout would look as if the client had disconnected.
                .layer(TimeoutLayer::with_status_code(
                    StatusCode::REQUEST_TIMEOUT,
                    timeout,
                ))
                .layer(stack.auth.clone())
                // They need the organization, and the limits need its plan.
                .layer(stack.plans.clone())
                .layer(rate)
                .layer(concurrency),
        )
        // Outermost. These also apply to 404 responses.
        .layer(
            ServiceBuilder::new()
                .layer(SetSensitiveRequestHeadersLayer::new(once(AUTHORIZATION)))
                // Before the span and the audit trail, which have the id.
                .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
                .layer(TraceLayer::new_for_http().make_span_with(span))
                .layer(ObserverLayer::on_authenticated(|org: &OrgContext| {
                    Span::current().record("org_code", org.org_code().as_str());
                    Span::current().record("key_id", org.key_id().map(KeyId::as_str));
                }))
                .layer(PropagateRequestIdLayer::x_request_id())
                .layer(CompressionLayer::new())
                // A preflight request has no key.
                .layer(CorsLayer::permissive()),
        )
}

fn span(request: &Request<Body>) -> Span {
    let id = request.headers().get("x-request-id");
    let id = id.and_then(|id| id.to_str().ok());
    info_span!(
        "request",
        id,
        path = request.uri().path(),
        org_code = Empty,
        key_id = Empty
    )
}

async fn reports(org: OrgContext, plan: OrgSettings<Plan>) -> String {
    tracing::info!("listing reports");
    format!(
        "{} may list its reports {} times per hour\n",
        org.org_code(),
        plan.requests_per_hour
    )
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let emulator = KindeEmulator::start().await?;
    let key = emulator.issue_key(KeySpec::organization("org_large").scopes(["read:reports"]));
    let kinde = KindeVerifier::builder(emulator.issuer_url())
        .client_credentials(emulator.client_id(), emulator.client_secret())
        .build()?;
    let trail = AuditTrail::builder()
        .sink(JsonLines::new(io::stdout()))
        .service("reports-api")
        .start()?;
    let stack = Stack::new(kinde, trail);

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!(
        "curl -i -H 'Authorization: Bearer {}' {url}/reports",
        key.secret()
    );
    serve(listener, app(&stack, Duration::from_secs(10)))
        .with_graceful_shutdown(async {
            // Without signals, the process is killed instead.
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    stack.trail.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}
