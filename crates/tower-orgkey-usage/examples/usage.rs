//! Prints what each organization did, minute by minute. In production, the records are pushed to a meter.
//!
//! ```text
//! cargo run --example usage
//! ```

use std::error::Error;
use std::time::Duration;

use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tower_orgkey::{ApiKey, ApiKeyLayer, KeyId, OrgCode, OrgContext, Verification, verifier_fn};
use tower_orgkey_usage::{
    PushError, SpoolFile, UsageHandle, UsageLayer, UsageRecord, UsageSink, UsageSnapshot,
};

/// Prints what a meter would bill. Replace it with `OpenMeterSink` of the feature `openmeter`.
struct Print;

impl UsageSink for Print {
    async fn push(&self, batch: &[UsageRecord]) -> Result<(), PushError> {
        for record in batch {
            let line = serde_json::to_string(record).map_err(PushError::permanent)?;
            println!("{line}");
        }
        Ok(())
    }
}

/// The application. `usage` is added last, so it is outside `auth` and counts rejected requests.
fn app(auth: ApiKeyLayer, usage: UsageLayer) -> Router {
    let handle = usage.handle();
    Router::new()
        .route("/reports/{id}", get(report))
        .route(
            "/usage",
            get(async move |org: OrgContext| mine(&handle, &org)),
        )
        .route_layer(auth)
        .route_layer(usage)
}

async fn report(org: OrgContext, Path(id): Path<u32>) -> String {
    format!("report {id} of {}\n", org.org_code())
}

/// An organization sees its own lines, and no other's.
fn mine(usage: &UsageHandle, org: &OrgContext) -> Json<serde_json::Value> {
    let snapshot: UsageSnapshot = usage.snapshot();
    let is_its = |account: Option<&OrgCode>| account == Some(org.org_code());
    let lines: Vec<_> = snapshot
        .lines()
        .iter()
        .filter(|line| is_its(line.account.organization()))
        .collect();
    Json(serde_json::json!(lines))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    const KEY: &str = "k_demo_0123456789";

    let auth = ApiKeyLayer::new(verifier_fn(|key: ApiKey| async move {
        Ok(match key.expose_secret() {
            KEY => Verification::of_organization(OrgCode::from_static("org_1"))
                .with_key_id(KeyId::from_static("api_key_1")),
            _ => Verification::invalid(),
        })
    }));
    let usage = UsageLayer::new();
    let file = SpoolFile::open(std::env::temp_dir().join("tower-orgkey-example.spool"))?;
    let mut pusher = usage.handle().pusher(Print).spool_file(file).build()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let pushing = tokio::spawn(async move {
        pusher.run_until(async { _ = stopped.await }).await;
        pusher.flush(Duration::from_secs(5)).await
    });

    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    println!("curl -H 'Authorization: Bearer {KEY}' http://127.0.0.1:3000/reports/7");
    println!("curl -H 'Authorization: Bearer {KEY}' http://127.0.0.1:3000/usage");
    println!("A minute is printed once it is over; Ctrl-C prints what there is of the last.");
    axum::serve(listener, app(auth, usage))
        .with_graceful_shutdown(async { _ = tokio::signal::ctrl_c().await })
        .await?;
    // Only now: requests that were under way have been counted.
    drop(stop);
    let report = pushing.await?;
    println!("{} records wait for the next run.", report.waiting);
    Ok(())
}
