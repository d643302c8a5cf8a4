//! What a handler sees, and that only the layer can provide it.

use axum::middleware::from_fn;
use axum::routing::get as route;
use tower_orgkey::test_util::OrgContextBuilder;
use tower_orgkey::{ApiKeyLayer, ScopeSet, Scoped};

use super::*;
use crate::support::wire::{get, serve};

struct ReadReports;

impl ScopeSet for ReadReports {
    const ALTERNATIVES: &'static [&'static [&'static str]] = &[&["admin"], &["read:reports"]];
}

#[tokio::test]
async fn handlers_see_the_context_on_miss_and_hit() {
    let issuer = issuer();
    let app = axum::Router::new()
        .route(
            "/",
            route(
                async |org: OrgContext, again: Option<OrgContext>, typed: Scoped<ReadReports>| {
                    let scopes: Vec<&str> = org
                        .scopes()
                        .iter()
                        .map(tower_orgkey::Scope::as_str)
                        .collect();
                    assert_eq!(again.unwrap().org_code(), org.org_code());
                    assert_eq!(typed.org_code(), org.org_code());
                    assert_eq!(typed.into_inner().key_id(), org.key_id());
                    format!(
                        "{} {} {scopes:?} {:?} {}",
                        org.org_code(),
                        org.key_id().unwrap(),
                        org.user_id(),
                        org.is_stale()
                    )
                },
            ),
        )
        .route_layer(ApiKeyLayer::new(issuer.clone()));
    let address = serve(app).await;
    for _ in 0..2 {
        assert_eq!(
            get(address, "/").key(TWO).send().await.body,
            r#"org_two id_of_org_two ["read:reports", "write:reports"] None false"#
        );
    }
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test]
async fn fault_50_earlier_context_is_replaced() {
    let issuer = issuer();
    let anonymous = ApiKeyLayer::builder(issuer.clone())
        .allow_anonymous()
        .build()
        .unwrap();
    let optional = async |org: Option<OrgContext>| match org {
        Some(org) => org.org_code().to_string(),
        None => "nobody".into(),
    };
    // What a Tower service finds.
    let raw = async |request: axum::extract::Request| {
        let org = request.extensions().get::<OrgContext>();
        org.map_or("nobody".into(), |org| org.org_code().to_string())
    };
    let app = axum::Router::new()
        .route(
            "/strict",
            route(whoami).route_layer(ApiKeyLayer::new(issuer.clone())),
        )
        .route("/lax", route(optional).route_layer(anonymous.clone()))
        .route("/lax/raw", route(raw).route_layer(anonymous))
        // The injected context: accepted without the layer.
        .route("/none", route(whoami))
        .layer(from_fn(
            async |mut request: axum::extract::Request, next: axum::middleware::Next| {
                let spoofed = OrgContextBuilder::new("org_spoofed")
                    .scopes(["admin"])
                    .build();
                request.extensions_mut().insert(spoofed);
                next.run(request).await
            },
        ));
    let address = serve(app).await;
    let request = |path: &str| {
        get(address, path)
            .header("x-org-id", "org_spoofed")
            .header("x-org-code", "org_spoofed")
    };
    assert_eq!(request("/none").send().await.body, "org_spoofed");
    for _ in 0..2 {
        assert_eq!(request("/strict").key(ONE).send().await.body, "org_one");
        assert_eq!(request("/lax").key(ONE).send().await.body, "org_one");
        assert_eq!(request("/lax").send().await.body, "nobody");
        assert_eq!(request("/lax/raw").key(ONE).send().await.body, "org_one");
        assert_eq!(request("/lax/raw").send().await.body, "nobody");
        assert_eq!(request("/strict").send().await.status, 401);
        assert_eq!(request("/strict").key(NOBODY).send().await.status, 403);
        assert_eq!(request("/lax").key(NOBODY).send().await.status, 403);
        assert_eq!(request("/lax").key(BAD).send().await.status, 401);
        assert_eq!(request("/lax").key(DOUBTFUL).send().await.status, 503);
    }
}

#[tokio::test]
async fn handler_may_replace_an_extractors_rejection() {
    let app = axum::Router::new()
        .route(
            "/",
            route(
                async |org: Result<Scoped<BothReports>, tower_orgkey::Rejection>| match org {
                    Ok(_) => "in".to_owned(),
                    Err(rejection) => format!("out: {rejection}"),
                },
            ),
        )
        .route_layer(ApiKeyLayer::new(issuer()));
    let address = serve(app).await;
    let answer = get(address, "/").key(ONE).send().await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "out: The API key lacks a scope")
    );
    assert_eq!(get(address, "/").key(TWO).send().await.body, "in");
}
