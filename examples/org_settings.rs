//! Plans of organizations, loaded once, cached, and passed to handlers. A change of plan takes effect at once.
//!
//! ```sh
//! cargo run --example org_settings
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::extract::Path;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get, routing::put};
use tower::ServiceExt;
use tower_orgkey::settings::{OrgSettings, OrgSettingsLayer, SettingsError, SettingsLoader};
use tower_orgkey::{ApiKeyLayer, OrgCode, OrgContext, Verification, verifier_fn};

/// The plan of an organization.
#[derive(Debug)]
struct Plan {
    name: String,
    reports: usize,
}

/// Represents a database with the name of each organization's plan.
#[derive(Clone, Default)]
struct Database(Arc<Mutex<HashMap<OrgCode, String>>>);

impl SettingsLoader<Plan> for Database {
    async fn load(&self, org: &OrgCode) -> Result<Plan, SettingsError> {
        // If the database is down, return `SettingsError::unavailable`, which concerns every organization.
        let row = self.0.lock().ok().and_then(|rows| rows.get(org).cloned());
        // A missing row is not an error: the default plan is free.
        let name = row.unwrap_or_else(|| "free".into());
        let reports = match name.as_str() {
            "free" => 1,
            "pro" => 3,
            // An unusable row concerns this organization only.
            _ => return Err(SettingsError::broken(format!("no plan {name:?}"))),
        };
        Ok(Plan { name, reports })
    }
}

async fn reports(org: OrgContext, plan: OrgSettings<Plan>) -> String {
    format!(
        "{} has {} of its reports, by the plan {:?}",
        org.org_code(),
        plan.reports,
        plan.name
    )
}

/// Rejects reports beyond the plan.
async fn report(plan: OrgSettings<Plan>, Path(number): Path<usize>) -> Response {
    if number > plan.reports {
        return (StatusCode::PAYMENT_REQUIRED, "not in your plan").into_response();
    }
    format!("report {number}").into_response()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let verifier = verifier_fn(|key| async move {
        Ok(match key.expose_secret() {
            "k_test_acme" => Verification::of_organization(OrgCode::from_static("acme")),
            "k_test_globex" => Verification::of_organization(OrgCode::from_static("globex")),
            _ => Verification::invalid(),
        })
    });
    let auth = ApiKeyLayer::new(verifier);
    let database = Database::default();
    let plans = OrgSettingsLayer::new(&auth.handle(), database.clone());
    let handle = plans.handle();

    // For the back office, without the layer for customers' keys.
    let back_office = Router::new().route(
        "/orgs/{org}/plan/{name}",
        put(async move |Path((org, name)): Path<(String, String)>| {
            let Ok(org) = OrgCode::new(org) else {
                return StatusCode::BAD_REQUEST;
            };
            if let Ok(mut rows) = database.0.lock() {
                rows.insert(org.clone(), name);
            }
            // After the database: in the reverse order the old plan could be loaded once more.
            handle.invalidate_org(&org);
            StatusCode::NO_CONTENT
        }),
    );
    let api = Router::new()
        .route("/reports", get(reports))
        .route("/reports/{number}", get(report))
        .route_layer(plans)
        .route_layer(auth);

    for (method, path, key) in [
        ("GET", "/reports", "k_test_acme"),
        ("GET", "/reports/3", "k_test_acme"),
        ("PUT", "/orgs/acme/plan/pro", ""),
        ("GET", "/reports/3", "k_test_acme"),
        ("GET", "/reports/3", "k_test_globex"),
        ("PUT", "/orgs/acme/plan/golden", ""),
        ("GET", "/reports", "k_test_acme"),
        ("GET", "/reports", "k_test_globex"),
    ] {
        let app = if key.is_empty() { &back_office } else { &api };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {key}"))
            .body(Body::empty())?;
        let response = app.clone().oneshot(request).await?;
        let status = response.status();
        let body = to_bytes(response.into_body(), 10_000).await?;
        println!(
            "{method} {path} {key}: {status} {}",
            String::from_utf8_lossy(&body)
        );
    }
    Ok(())
}
