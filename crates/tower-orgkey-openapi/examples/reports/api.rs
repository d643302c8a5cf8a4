//! The routes and the document.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tower_orgkey::scope::ScopePolicy;
use tower_orgkey::{
    ApiKeyLayer, OrgCode, OrgContext, Rejection, ScopeSet, Scoped, Scopes, Verification,
    verifier_fn,
};
use tower_orgkey_openapi::{Guarded, OperationScopeError, OrgKeyScheme, operation_scopes};
use utoipa::openapi::OpenApi;
use utoipa::{Modify, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// A key with all scopes.
pub(crate) const KEY: &str = "k_test_0123456789";

#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct Report {
    title: String,
}

pub(crate) struct WriteReports;

impl ScopeSet for WriteReports {
    const ALTERNATIVES: &'static [&'static [&'static str]] =
        &[&["read:reports", "write:reports"], &["admin"]];
}

/// Lists the reports of the organization.
#[utoipa::path(get, path = "/reports", responses((status = 200, description = "Found.", body = [Report])))]
async fn list(org: OrgContext) -> Json<Vec<Report>> {
    Json(vec![Report {
        title: format!("sales of {}", org.org_code()),
    }])
}

/// Counts the reports.
#[utoipa::path(get, path = "/reports/count", responses((status = 200, description = "Found.", body = usize, content_type = "application/json")))]
async fn count(_: Scoped<WriteReports>) -> Json<usize> {
    Json(1)
}

/// Shows one report.
#[utoipa::path(
    get,
    path = "/reports/{id}",
    params(("id" = String, Path)),
    responses((status = 200, description = "Found.", body = Report), (status = 404, description = "There is no such report.", content_type = "application/problem+json"))
)]
async fn show(
    org: OrgContext,
    // axum's own rejection of a path that is not UTF-8 is not a problem document.
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Report>, Rejection> {
    let Path(id) = id.map_err(|_| Rejection::not_found())?;
    match id.as_str() {
        "sales" => Ok(Json(Report {
            title: format!("sales of {}", org.org_code()),
        })),
        _ => Err(Rejection::not_found()),
    }
}

/// Says whether the service works.
#[utoipa::path(get, path = "/health", responses((status = 204, description = "It works.")))]
async fn health() -> StatusCode {
    StatusCode::NO_CONTENT
}

/// The routes that need a key, and all that is documented.
pub(crate) fn routes() -> (Router, Router, OpenApi) {
    let (protected, mut api) = OpenApiRouter::new()
        .routes(routes!(list).guarded(ScopePolicy::new([["read:reports"], ["admin"]])))
        .routes(routes!(count).scoped::<WriteReports>())
        .routes(routes!(show).operation_scope(""))
        .split_for_parts();
    let (open, open_api) = OpenApiRouter::new()
        .routes(routes!(health))
        .split_for_parts();
    api.merge(open_api);
    OrgKeyScheme::bearer().modify(&mut api);
    (protected, open, api)
}

/// The application.
#[allow(dead_code, reason = "a test builds it from `routes`")]
pub(crate) fn app() -> Result<Router, OperationScopeError> {
    let (protected, open, api) = routes();
    for scope in operation_scopes(&api)?.keys() {
        println!("Kinde derives {scope}");
    }
    let auth = ApiKeyLayer::new(verifier_fn(|key| async move {
        let scopes = ["read:reports", "write:reports", "get:reports_id"];
        Ok(match key.expose_secret() {
            KEY => Verification::of_organization(OrgCode::from_static("org_1"))
                .with_scopes(Scopes::from_names(scopes)),
            _ => Verification::invalid(),
        })
    }));
    let document = get(async || Json(api));
    Ok(protected
        .route_layer(auth)
        .merge(open)
        .route("/openapi.json", document))
}
