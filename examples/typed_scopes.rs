//! Required scopes in the type of a handler, independent of the order of calls on the router.
//!
//! ```sh
//! cargo run --example typed_scopes
//! ```

use std::error::Error;

use axum::body::Body;
use axum::http::Request;
use axum::{Router, routing::get};
use tower::ServiceExt;
use tower_orgkey::{
    ApiKeyLayer, OrgCode, ScopeSet, Scoped, Scopes, Verification, require_scope, verifier_fn,
};

struct ReadReports;

impl ScopeSet for ReadReports {
    const ALTERNATIVES: &'static [&'static [&'static str]] = &[&["read:reports"]];
}

/// `write:reports` and `read:reports` together, or `admin` alone. A name that is not a scope does not compile.
struct WriteReports;

impl ScopeSet for WriteReports {
    const ALTERNATIVES: &'static [&'static [&'static str]] =
        &[&["write:reports", "read:reports"], &["admin"]];
}

/// `Scoped` dereferences to `OrgContext`.
async fn list(org: Scoped<ReadReports>) -> String {
    format!("reports of {}", org.org_code())
}

async fn create(org: Scoped<WriteReports>) -> String {
    format!("a new report of {}", org.org_code())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let verifier = verifier_fn(|key| async move {
        let scopes = match key.expose_secret() {
            "k_test_reader" => vec!["read:reports"],
            "k_test_writer" => vec!["read:reports", "write:reports"],
            "k_test_admin" => vec!["admin"],
            _ => return Ok(Verification::invalid()),
        };
        let org = OrgCode::from_static("org_1");
        Ok(Verification::of_organization(org).with_scopes(Scopes::from_names(scopes)))
    });
    let app: Router = Router::new()
        // `post` is added after the guard and is not behind it; its handler requires the scopes.
        .route(
            "/reports",
            get(list)
                .route_layer(require_scope("read:reports"))
                .post(create),
        )
        .route_layer(ApiKeyLayer::new(verifier));

    for key in ["k_test_reader", "k_test_writer", "k_test_admin"] {
        for method in ["GET", "POST"] {
            let request = Request::builder()
                .method(method)
                .uri("/reports")
                .header("authorization", format!("Bearer {key}"))
                .body(Body::empty())?;
            let response = app.clone().oneshot(request).await?;
            let challenge = response.headers().get("www-authenticate");
            println!(
                "{method:<4} /reports with {key}: {} {}",
                response.status(),
                challenge.map_or(Ok(""), |value| value.to_str())?
            );
        }
    }
    Ok(())
}
