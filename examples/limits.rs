//! Rate and concurrency limits by the plan of an organization.
//!
//! ```sh
//! cargo run --example limits
//! ```

use std::error::Error;

use axum::body::Body;
use axum::http::Request;
use axum::{Router, routing::get};
use tower::ServiceExt;
use tower_orgkey::{
    ApiKeyLayer, OrgCode, OrgConcurrencyLimitLayer, OrgContext, OrgRateLimitLayer, Quota,
    Verification, verifier_fn,
};

/// Returns the quota of an organization. In production the plan comes from a map, the settings, or the scopes of the key.
fn quota(org: &OrgContext) -> Option<Quota> {
    match org.org_code().as_str() {
        "org_starter" => Some(Quota::per_minute(3)),
        "org_business" => Some(Quota::per_second(100).burst(500)),
        _ => None,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let verifier = verifier_fn(|key| async move {
        let org = match key.expose_secret() {
            "k_test_starter" => "org_starter",
            "k_test_business" => "org_business",
            _ => return Ok(Verification::invalid()),
        };
        Ok(Verification::of_organization(OrgCode::from_static(org)))
    });
    let rate = OrgRateLimitLayer::builder(quota)
        .ratelimit_fields("plan")
        .build()?;
    let one_export = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(1));

    // The last `.route_layer` is the outermost.
    let app: Router = Router::new()
        .route("/reports", get(async |_: OrgContext| "reports"))
        .route(
            "/export",
            get(async |_: OrgContext| "everything").route_layer(one_export),
        )
        .route_layer(rate)
        .route_layer(ApiKeyLayer::new(verifier));

    for key in ["k_test_starter", "k_test_business", "k_test_unknown"] {
        for _ in 0..4 {
            let response = call(&app, "/reports", key).await?;
            let header = |name| {
                response
                    .headers()
                    .get(name)
                    .map_or(Ok("-"), |value| value.to_str())
            };
            println!(
                "GET /reports with {key}: {}, RateLimit: {}, Retry-After: {}",
                response.status(),
                header("ratelimit")?,
                header("retry-after")?
            );
        }
    }

    // An export counts as concurrent until its body has been read.
    let first = call(&app, "/export", "k_test_business").await?;
    let second = call(&app, "/export", "k_test_business").await?;
    println!(
        "two concurrent exports: {} and {}",
        first.status(),
        second.status()
    );
    let exported = axum::body::to_bytes(first.into_body(), usize::MAX).await?;
    let third = call(&app, "/export", "k_test_business").await?;
    println!(
        "after the {} bytes of the first were read: {}",
        exported.len(),
        third.status()
    );
    Ok(())
}

async fn call(
    app: &Router,
    path: &str,
    key: &str,
) -> Result<axum::response::Response, Box<dyn Error>> {
    let request = Request::get(path)
        .header("authorization", format!("Bearer {key}"))
        .body(Body::empty())?;
    Ok(app.clone().oneshot(request).await?)
}
