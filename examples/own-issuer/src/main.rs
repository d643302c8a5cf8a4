//! An API with an issuer of its own.
//!
//! `cargo run -p example-own-issuer` issues a key in `keys.sqlite`, and serves on port 3000.

use axum::Router;
use axum::routing::get;
use example_own_issuer::{Issuer, is_key};
use tower_orgkey::{ApiKeyLayer, OrgCode, OrgContext, require_scope};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let issuer = Issuer::open("keys.sqlite")?;
    let key = issuer.issue(&OrgCode::from_static("org_acme"), &["read:reports"], None)?;
    // A text that is no key of this issuer costs no query.
    let auth = ApiKeyLayer::builder(issuer).only_matching(is_key).build()?;
    let reports = get(|org: OrgContext| async move { format!("reports of {}\n", org.org_code()) });
    let app = Router::new()
        .route(
            "/reports",
            reports.route_layer(require_scope("read:reports")),
        )
        .route_layer(auth);
    println!(
        "curl -H 'Authorization: Bearer {}' http://127.0.0.1:3000/reports",
        key.secret.expose_secret()
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    Ok(axum::serve(listener, app).await?)
}
