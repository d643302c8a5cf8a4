//! The audit trail: one line of JSON for each request that was decided on, in a file that rotates every day.
//!
//! ```sh
//! cargo run --example audit
//! ```

use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tower_orgkey::{
    ApiKeyLayer, KeyId, OrgCode, OrgContext, Scopes, Verification, require_scope, verifier_fn,
};
use tower_orgkey_audit::{AuditLayer, AuditTrail, JsonLines};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let verifier = verifier_fn(|key| async move {
        Ok(match key.expose_secret() {
            "k_test_0123456789" => Verification::of_organization(OrgCode::from_static("org_1"))
                .with_key_id(KeyId::from_static("api_key_0001"))
                .with_scopes(Scopes::from_names(["read:reports"])),
            _ => Verification::invalid(),
        })
    });

    // Not the appender's `non_blocking`: the trail has a thread and a bounded queue of its own, and counts what it drops.
    let folder = std::env::temp_dir().join(format!("orgkey-audit-example-{}", std::process::id()));
    let file = tracing_appender::rolling::daily(&folder, "audit.jsonl");
    let trail = AuditTrail::builder()
        .sink(JsonLines::resume(file))
        .service("reports-api")
        .start()?;

    let app = Router::new()
        .route(
            "/reports/{id}",
            get(async |org: OrgContext| format!("a report of {}", org.org_code()))
                .route_layer(require_scope("read:reports")),
        )
        .route(
            "/users",
            get(async || "users").route_layer(require_scope("read:users")),
        )
        .route_layer(ApiKeyLayer::new(verifier))
        // The last one is the outermost: it sees rejections too.
        .route_layer(AuditLayer::new(&trail));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });

    let http = reqwest::Client::builder().no_proxy().build()?;
    for (path, key) in [
        ("/reports/7", "k_test_0123456789"),
        ("/users", "k_test_0123456789"),
        ("/users", "k_test_of_nobody"),
    ] {
        let response = http
            .get(format!("{url}{path}"))
            .bearer_auth(key)
            .send()
            .await?;
        println!("GET {path}: {}", response.status());
        response.bytes().await?;
    }

    // When the connections are drained: after this not one event is missing.
    trail.shutdown(Duration::from_secs(5)).await?;
    for file in std::fs::read_dir(&folder)? {
        let path = file?.path();
        println!("\n{}:", path.display());
        print!("{}", std::fs::read_to_string(path)?);
    }
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
