//! The document of the example, held against its routes, against the schema of OpenAPI 3.1, and by schemathesis.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

use std::path::Path;
use std::process::Output;

use axum::Router;
use axum::routing::{any, get};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_orgkey::ApiKeyLayer;
use tower_orgkey::scope::ScopePolicy;
use tower_orgkey_openapi::{Guarded, OrgKeyScheme, operation_scopes, undocumented};
use utoipa::openapi::OpenApi;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::{Modify, OpenApi as _};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

#[path = "../examples/reports/api.rs"]
mod api;
#[path = "../../../tests/support/python.rs"]
mod python;

#[utoipa::path(get, path = "/reports", responses((status = 200, body = str)))]
async fn list() -> &'static str {
    "reports"
}

#[utoipa::path(delete, path = "/reports", responses((status = 200, body = str)))]
async fn remove() -> &'static str {
    "removed"
}

fn policy(scope: &str) -> ScopePolicy {
    ScopePolicy::new([[scope]])
}

async fn differences(router: Router, api: &OpenApi) -> Vec<String> {
    undocumented(api, |auth: ApiKeyLayer| router.route_layer(auth)).await
}

#[tokio::test]
async fn example_documents_what_it_requires() {
    let (protected, open, api) = api::routes();
    let found = undocumented(&api, |auth| protected.route_layer(auth).merge(open)).await;
    assert_eq!(found, [""; 0]);
    let document = serde_json::to_value(&api).unwrap();
    let security = |path: &str| document["paths"][path]["get"]["security"].clone();
    assert_eq!(
        security("/reports"),
        json!([{"org_key": ["admin"]}, {"org_key": ["read:reports"]}])
    );
    assert_eq!(
        security("/reports/{id}"),
        json!([{"org_key": ["get:reports_id"]}])
    );
    assert_eq!(security("/health"), Value::Null);
    let responses = document["paths"]["/reports"]["get"]["responses"]
        .as_object()
        .unwrap();
    let statuses: Vec<&String> = responses.keys().collect();
    assert_eq!(statuses, ["200", "400", "401", "403", "429", "503"]);
    assert_eq!(
        document["components"]["securitySchemes"]["org_key"]["scheme"],
        "bearer"
    );
    assert!(document["components"]["schemas"]["Problem"]["properties"]["code"].is_object());
}

#[tokio::test]
async fn undocumented_requirements_are_found() {
    // Under the layer, and documented as open.
    let (router, api) = OpenApiRouter::new().routes(routes!(list)).split_for_parts();
    let found = differences(router, &api).await;
    assert_eq!(
        found,
        ["GET /reports requires a key with [], and documents no key"]
    );

    // A guard that is not documented, beside one that is.
    let guard = || tower_orgkey::require_scope("admin");
    let (router, api) = OpenApiRouter::new()
        .routes(
            routes!(list)
                .guarded(policy("read"))
                .map(|routes| routes.route_layer(guard())),
        )
        .split_for_parts();
    let found = differences(router, &api).await;
    assert_eq!(
        found,
        ["GET /reports requires a key with [admin], and documents a key with [read]"]
    );
}

#[tokio::test]
async fn missing_guards_are_found() {
    let (_, api) = OpenApiRouter::<()>::new()
        .routes(routes!(list).guarded(policy("read")))
        .split_for_parts();
    let unguarded = Router::new().route("/reports", get(list));
    let found = differences(unguarded, &api).await;
    assert_eq!(
        found,
        ["GET /reports requires a key with [], and documents a key with [read]"]
    );
    let open = Router::new().route("/reports", get(list));
    let found = undocumented(&api, |_| open).await;
    assert_eq!(
        found,
        ["GET /reports requires no key, and documents a key with [read]"]
    );
    let found = undocumented(&api, |_| Router::new()).await;
    assert_eq!(found, ["GET /reports is not routed: 404 Not Found"]);
}

#[derive(utoipa::OpenApi)]
#[openapi(security(("org_key" = ["read"])))]
struct Secured;

#[utoipa::path(get, path = "/health", security(()))]
async fn health() {}

#[tokio::test]
async fn operations_inherit_the_security_of_the_document() {
    let (router, api) = OpenApiRouter::with_openapi(Secured::openapi())
        .routes(routes!(list))
        .split_for_parts();
    let guarded = router
        .clone()
        .route_layer(tower_orgkey::require_scope("read"));
    assert_eq!(differences(guarded, &api).await, [""; 0]);
    let found = undocumented(&api, |_| router).await;
    assert_eq!(
        found,
        ["GET /reports requires no key, and documents a key with [read]"]
    );

    // Unless they have one.
    let (router, api) = OpenApiRouter::with_openapi(Secured::openapi())
        .routes(routes!(health))
        .split_for_parts();
    assert_eq!(undocumented(&api, |_| router).await, [""; 0]);
}

#[tokio::test]
async fn operations_with_other_methods_are_called() {
    let of = |method: &str| {
        let mut api = Secured::openapi();
        let operation = Operation::builder().build();
        let mut item = PathItem::default();
        if method == "QUERY" {
            item.query = Some(operation);
        } else {
            let operations = &mut item.additional_operations;
            operations.insert(method.to_owned(), operation);
        }
        api.paths.paths.insert("/reports".to_owned(), item);
        api
    };
    let open = || Router::new().route("/reports", any(list));
    for method in ["QUERY", "SEARCH"] {
        let api = of(method);
        let found = undocumented(&api, |_| open()).await;
        assert_eq!(
            found,
            [format!(
                "{method} /reports requires no key, and documents a key with [read]"
            )]
        );
        let scopes = operation_scopes(&api).unwrap();
        let scope = format!("{}:reports", method.to_ascii_lowercase());
        assert_eq!(scopes.into_keys().collect::<Vec<_>>(), [scope]);
    }
    let api = of("no method");
    let found = undocumented(&api, |_| open()).await;
    assert_eq!(
        found,
        ["no method /reports cannot be called: this is no method"]
    );
    let error = operation_scopes(&api).unwrap_err().to_string();
    assert!(error.starts_with("`no method /reports` has no scope"));
}

#[utoipa::path(get, path = "/reports", security((), ("org_key" = ["read"])))]
async fn optional() {}

#[utoipa::path(get, path = "/reports", security(("org_key" = ["read"]), ("cookie" = [])))]
async fn either() {}

#[utoipa::path(get, path = "/reports", security(("org_key" = ["read"], "cookie" = [])))]
async fn together() {}

#[tokio::test]
async fn other_ways_in_are_found() {
    let guard = || tower_orgkey::require_scope("read");
    for (router, api) in [
        OpenApiRouter::new()
            .routes(routes!(optional))
            .split_for_parts(),
        OpenApiRouter::new()
            .routes(routes!(either))
            .split_for_parts(),
        OpenApiRouter::new()
            .routes(routes!(together))
            .split_for_parts(),
    ] {
        let found = differences(router.route_layer(guard()), &api).await;
        assert_eq!(
            found,
            [
                "GET /reports documents an alternative without `org_key`, or with another scheme beside it"
            ]
        );
    }
}

#[tokio::test]
async fn two_requirements_are_both_documented() {
    let either = ScopePolicy::new([["a"], ["b"]]);
    let (router, api) = OpenApiRouter::new()
        .routes(routes!(list).guarded(policy("c")).guarded(either))
        .split_for_parts();
    assert_eq!(differences(router, &api).await, [""; 0]);
    let document = serde_json::to_value(&api).unwrap();
    let expected = json!([{"org_key": ["a", "c"]}, {"org_key": ["b", "c"]}]);
    assert_eq!(document["paths"]["/reports"]["get"]["security"], expected);
}

#[tokio::test]
async fn each_operation_has_its_scope() {
    let nested = OpenApiRouter::new().routes(routes!(list, remove).operation_scope("/v1"));
    let (router, api) = OpenApiRouter::new().nest("/v1", nested).split_for_parts();
    assert_eq!(differences(router, &api).await, [""; 0]);
    let document = serde_json::to_value(&api).unwrap();
    let item = &document["paths"]["/v1/reports"];
    assert_eq!(
        item["get"]["security"],
        json!([{"org_key": ["get:v1_reports"]}])
    );
    assert_eq!(
        item["delete"]["security"],
        json!([{"org_key": ["delete:v1_reports"]}])
    );

    // A wrong prefix is found.
    let nested = OpenApiRouter::new().routes(routes!(list).operation_scope(""));
    let (router, api) = OpenApiRouter::new().nest("/v1", nested).split_for_parts();
    assert_eq!(differences(router, &api).await.len(), 1);
}

#[test]
#[should_panic(expected = "rejects every key")]
fn closed_route_is_not_documented_as_open() {
    let none: [[&str; 1]; 0] = [];
    let _ = routes!(list).guarded(ScopePolicy::new(none)) as UtoipaMethodRouter;
}

#[test]
fn keys_in_another_header_are_documented() {
    let mut api = OpenApi::default();
    OrgKeyScheme::header(http::HeaderName::from_static("x-api-key")).modify(&mut api);
    let document = serde_json::to_value(&api).unwrap();
    let scheme = &document["components"]["securitySchemes"]["org_key"];
    assert_eq!(
        (&scheme["type"], &scheme["in"], &scheme["name"]),
        (&"apiKey".into(), &"header".into(), &"x-api-key".into())
    );
}

async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/openapi.json", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, app).await });
    url
}

async fn schemathesis(url: &str) -> Output {
    let mut command = python::program("schemathesis");
    command
        .args([
            "run",
            url,
            "--checks",
            "all",
            "--max-examples",
            "20",
            "--seed",
            "1",
        ])
        .args(["--suppress-health-check", "all", "--no-color"])
        .args(["-H", &format!("Authorization: Bearer {}", api::KEY)])
        .current_dir(env!("CARGO_TARGET_TMPDIR"));
    python::output(command).await
}

#[tokio::test]
async fn document_is_valid_openapi() {
    let (_, _, api) = api::routes();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openapi.json");
    std::fs::write(&path, api.to_json().unwrap()).unwrap();
    let mut command = python::program("openapi-spec-validator");
    command.args(["--schema", "3.1"]).arg(&path);
    let output = python::output(command).await;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[tokio::test]
async fn schemathesis_finds_nothing_in_the_example() {
    let output = schemathesis(&serve(api::app().unwrap()).await).await;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[tokio::test]
async fn schemathesis_finds_an_opened_route() {
    let (protected, open, api) = api::routes();
    // Without the layer, `count` and `show` respond with 500, so only `list` is opened.
    drop(protected);
    let opened = Router::new().route("/reports", get(async || axum::Json(json!([]))));
    let app = opened
        .merge(open)
        .route("/openapi.json", get(async || axum::Json(api)));
    let output = schemathesis(&serve(app).await).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success());
    assert!(
        text.contains("API accepts requests without authentication"),
        "{text}"
    );
}
