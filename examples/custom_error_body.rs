//! Error bodies in the format of your API, for all rejections by the layer, guards and extractors.
//!
//! ```sh
//! cargo run --example custom_error_body
//! ```

use std::error::Error;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use axum::http::header::{CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use serde_json::json;
use tower::ServiceExt;
use tower_orgkey::{
    ApiKeyLayer, OrgCode, OrgContext, Rejection, RejectionKind, Verification, VerifyError,
    require_scope, verifier_fn,
};

/// Renders a rejection. It can change the status too. The layer adds required headers that are missing: the challenge,
/// `Retry-After` and `Cache-Control`.
fn render(rejection: &Rejection) -> Response {
    let message = match rejection.kind() {
        RejectionKind::InsufficientScope => format!(
            "This key lacks a required scope: {}.",
            rejection.required_scope().unwrap_or_default()
        ),
        _ => rejection.title().to_owned(),
    };
    let body = json!({ "error": { "code": rejection.code(), "message": message } });
    (rejection.status(), Json(body)).into_response()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let verifier = verifier_fn(|key| async move {
        match key.expose_secret() {
            "k_test_0123456789" => Ok(Verification::of_organization(OrgCode::from_static("org_1"))),
            "k_test_unknown" => Ok(Verification::invalid()),
            _ => Err(VerifyError::unavailable("the database is down")),
        }
    });
    let app: Router = Router::new()
        .route("/whoami", get(whoami))
        .route(
            "/reports",
            get(whoami).route_layer(require_scope("read:reports")),
        )
        .route_layer(ApiKeyLayer::new(verifier).with_rejection_response(render));

    for (path, key) in [
        ("/whoami", "k_test_0123456789"),
        ("/reports", "k_test_0123456789"),
        ("/whoami", "k_test_unknown"),
        ("/whoami", "k_test_database_down"),
    ] {
        let request = Request::get(path)
            .header("authorization", format!("Bearer {key}"))
            .body(Body::empty())?;
        let response = app.clone().oneshot(request).await?;
        println!("GET {path} with {key}: {}", response.status());
        for name in [WWW_AUTHENTICATE, RETRY_AFTER, CACHE_CONTROL] {
            if let Some(value) = response.headers().get(&name) {
                println!("  {name}: {}", value.to_str()?);
            }
        }
        let body = to_bytes(response.into_body(), 64 * 1024).await?;
        println!("  {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

async fn whoami(org: OrgContext) -> String {
    org.org_code().to_string()
}
