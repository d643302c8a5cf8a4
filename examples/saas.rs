//! An API with eleven routes: public, optional and required keys, scopes in guards, types and handlers, organizations in
//! paths, a route that verifies again, and rejections by resource.
//!
//! ```sh
//! cargo run --example saas        # prints a table: who may call what
//! cargo test --example saas       # the same table, checked
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use kinde_emulator::{KeySpec, KindeEmulator};
use serde_json::{Value, json};
use tower::ServiceExt;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::{
    ApiKeyLayer, OrgCode, OrgContext, Rejection, ScopeSet, Scoped, require_org, require_scope,
};

/// Reports by organization. The code comes from an `OrgContext`, never from the request.
#[derive(Clone, Default)]
struct Reports(Arc<Mutex<BTreeMap<(OrgCode, u32), String>>>);

impl Reports {
    const PER_ORGANIZATION: usize = 2;

    fn with<T>(&self, read: impl FnOnce(&mut BTreeMap<(OrgCode, u32), String>) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct WriteReports;

impl ScopeSet for WriteReports {
    const ALTERNATIVES: &'static [&'static [&'static str]] =
        &[&["read:reports", "write:reports"], &["admin"]];
}

fn app(auth: &ApiKeyLayer) -> Router {
    let reports = Router::new()
        .route(
            "/reports",
            get(list).route_layer(require_scope("read:reports")),
        )
        // The scopes are in the type of this handler.
        .route("/reports", post(create))
        .route("/reports/{id}", get(read))
        .route("/reports/{id}/publish", post(publish))
        .route(
            "/whoami",
            get(async |org: OrgContext| org.org_code().to_string()),
        )
        .route(
            "/orgs/{org_code}/members",
            get(members).route_layer(require_org("org_code")),
        )
        .route(
            "/orgs/{org_code}/settings",
            get(members).route_layer(require_org("org_code").with_not_found()),
        )
        .route("/export", get(list).route_layer(require_scope("export")))
        .route_layer(auth.clone());
    // Deletes only after a verification that began after the request arrived.
    let strict = Router::new()
        .route("/reports/{id}", delete(remove))
        .route_layer(auth.clone().max_age(Duration::ZERO));
    let open = Router::new()
        .route("/health", get(async || "ok"))
        .route("/templates", get(async || "templates"));
    reports
        .merge(strict)
        .merge(open)
        .with_state(Reports::default())
}

async fn list(org: OrgContext, State(reports): State<Reports>) -> Json<Value> {
    let own =
        |((owner, id), _): (&(OrgCode, u32), &String)| (owner == org.org_code()).then_some(*id);
    let ids: Vec<u32> = reports.with(|reports| reports.iter().filter_map(own).collect());
    Json(json!(ids))
}

async fn create(
    org: Scoped<WriteReports>,
    State(reports): State<Reports>,
    title: String,
) -> Result<(StatusCode, Json<Value>), Rejection> {
    let owner = org.org_code().clone();
    reports.with(|reports| {
        let ids: Vec<u32> = reports
            .keys()
            .filter(|key| key.0 == owner)
            .map(|key| key.1)
            .collect();
        if ids.len() >= Reports::PER_ORGANIZATION {
            return Err(Rejection::custom(
                StatusCode::CONFLICT,
                "no-report-left",
                "The plan permits two reports. Delete one, or choose a larger plan.",
            ));
        }
        let id = ids.last().map_or(1, |last| last + 1);
        reports.insert((owner, id), title);
        Ok((StatusCode::CREATED, Json(json!({ "id": id }))))
    })
}

/// A report of another organization is not found, as one that does not exist.
async fn read(
    org: OrgContext,
    Path(id): Path<u32>,
    State(reports): State<Reports>,
) -> Result<String, Rejection> {
    let key = (org.org_code().clone(), id);
    reports
        .with(|reports| reports.get(&key).cloned())
        .ok_or_else(Rejection::not_found)
}

/// Decides by resource: a report with a long title needs another scope.
async fn publish(
    org: OrgContext,
    Path(id): Path<u32>,
    State(reports): State<Reports>,
) -> Result<String, Rejection> {
    let title = read(org.clone(), Path(id), State(reports)).await?;
    let scope = if title.len() > 20 {
        "admin"
    } else {
        "write:reports"
    };
    if !org.scopes().contains(scope) {
        return Err(Rejection::insufficient_scope([scope]));
    }
    Ok(format!("published: {title}"))
}

async fn remove(
    org: Scoped<WriteReports>,
    Path(id): Path<u32>,
    State(reports): State<Reports>,
) -> Result<StatusCode, Rejection> {
    let key = (org.org_code().clone(), id);
    let removed = reports.with(|reports| reports.remove(&key));
    removed
        .map(|_| StatusCode::NO_CONTENT)
        .ok_or_else(Rejection::not_found)
}

async fn members(org: OrgContext) -> Json<Value> {
    Json(json!({ "org_code": org.org_code().as_str(), "members": ["user_1"] }))
}

/// A request, and the status for: no key, a key of `org_1` that reads, one that writes, and a key of `org_2` that writes.
type Row = (&'static str, &'static str, [u16; 4]);

const TABLE: [Row; 16] = [
    ("GET", "/health", [200, 200, 200, 200]),
    ("GET", "/templates", [200, 200, 200, 200]),
    ("GET", "/whoami", [401, 200, 200, 200]),
    ("GET", "/reports", [401, 200, 200, 200]),
    ("POST", "/reports", [401, 403, 201, 201]),
    ("GET", "/reports/1", [401, 200, 200, 200]),
    ("GET", "/reports/9", [401, 404, 404, 404]),
    ("POST", "/reports/1/publish", [401, 403, 200, 200]),
    ("GET", "/orgs/org_1/members", [401, 200, 200, 403]),
    ("GET", "/orgs/org_1/settings", [401, 200, 200, 404]),
    ("GET", "/export", [401, 403, 403, 403]),
    ("POST", "/reports", [401, 403, 201, 201]),
    ("POST", "/reports", [401, 403, 409, 409]),
    ("DELETE", "/reports/2", [401, 403, 204, 204]),
    ("DELETE", "/reports/2", [401, 403, 404, 404]),
    ("GET", "/reports/2", [401, 404, 404, 404]),
];

/// Runs the table against a new application, and returns what each request led to.
async fn run() -> Result<Vec<[u16; 4]>, Box<dyn Error>> {
    let emulator = KindeEmulator::start().await?;
    let kinde = KindeVerifier::builder(emulator.issuer_url())
        .client_credentials(emulator.client_id(), emulator.client_secret())
        .build()?;
    let app = app(&ApiKeyLayer::new(kinde));
    let issue = |org, scopes: &[&str]| {
        let spec = KeySpec::organization(org).scopes(scopes.iter().copied());
        emulator.issue_key(spec)
    };
    let keys = [
        issue("org_1", &["read:reports"]),
        issue("org_1", &["read:reports", "write:reports"]),
        issue("org_2", &["read:reports", "write:reports"]),
    ];
    let mut statuses = Vec::new();
    for (method, path, _) in TABLE {
        let mut row = [0; 4];
        // Writers first, so that a reader finds what they wrote.
        for caller in [0_usize, 3, 2, 1] {
            let mut request = Request::builder().method(method).uri(path);
            if let Some(key) = caller.checked_sub(1).map(|at| keys[at].secret()) {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            let request = request.body(Body::from("a report"))?;
            row[caller] = app.clone().oneshot(request).await?.status().as_u16();
        }
        statuses.push(row);
    }
    Ok(statuses)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("{:28} no key, reader, writer, writer of org_2", "");
    for ((method, path, _), statuses) in TABLE.iter().zip(run().await?) {
        println!("{:28} {statuses:?}", format!("{method} {path}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_caller_gets_what_the_table_says() {
        for ((method, path, expected), statuses) in TABLE.iter().zip(run().await.unwrap()) {
            assert_eq!(statuses, *expected, "{method} {path}");
        }
    }
}
