//! Adds the organization and the key to the spans of tower-http's `TraceLayer`.
//!
//! ```sh
//! cargo run --example trace
//! ```

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::Request;
use tower::{ServiceBuilder, ServiceExt};
use tower_http::trace::TraceLayer;
use tower_orgkey::observer::ObserverLayer;
use tower_orgkey::{ApiKeyLayer, KeyId, OrgCode, OrgContext, Verification, verifier_fn};
use tracing::field::Empty;
use tracing::{Span, info, info_span};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().init();

    let auth = ApiKeyLayer::new(verifier_fn(|key| async move {
        Ok(match key.expose_secret() {
            "k_test_0123456789" => Verification::of_organization(OrgCode::from_static("org_1"))
                .with_key_id(KeyId::from_static("api_key_0001")),
            _ => Verification::invalid(),
        })
    }));
    let trace = TraceLayer::new_for_http().make_span_with(|request: &Request<Body>| {
        info_span!(
            "request",
            path = request.uri().path(),
            org_code = Empty,
            key_id = Empty
        )
    });
    let fields = ObserverLayer::on_authenticated(|org: &OrgContext| {
        Span::current().record("org_code", org.org_code().as_str());
        Span::current().record("key_id", org.key_id().map(KeyId::as_str));
    });

    let app = Router::new()
        .route("/reports", get(reports))
        .route_layer(auth)
        // From the outside in: the span, then the function that records on it.
        .layer(ServiceBuilder::new().layer(trace).layer(fields));

    for key in ["k_test_0123456789", "k_test_unknown_00"] {
        let request = Request::get("/reports")
            .header("authorization", format!("Bearer {key}"))
            .body(Body::empty())?;
        let response = app.clone().oneshot(request).await?;
        println!("{}", response.status());
    }
    Ok(())
}

async fn reports(org: OrgContext) -> String {
    // This event has `org_code` and `key_id` through its span.
    info!("listing reports");
    format!("reports of {}", org.org_code())
}
