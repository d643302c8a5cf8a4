//! `OrgTx` as an argument of a handler.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_orgkey::{ApiKeyLayer, OrgCode, Verification, verifier_fn};
use tower_orgkey_sqlx::{OrgPool, OrgTx};

use crate::cluster::Database;
use crate::kit::orgs_seen;

fn app(pool: OrgPool) -> Router {
    // The last part of the key is the organization.
    let auth = ApiKeyLayer::new(verifier_fn(|key| async move {
        let org = key
            .expose_secret()
            .rsplit('-')
            .next()
            .unwrap_or_default()
            .to_owned();
        Ok(Verification::of_organization(OrgCode::new(org).unwrap()))
    }));
    Router::new()
        .route(
            "/",
            get(async |mut tx: OrgTx| orgs_seen(&mut tx).await.join(" ")),
        )
        .route_layer(auth)
        .with_state(pool)
}

async fn call(app: &Router, key: Option<&str>) -> (StatusCode, String) {
    let mut request = Request::get("/");
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    let response = app
        .clone()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn handler_sees_rows_of_the_key() {
    let database = Database::new(&["org_1", "org_2"]).await;
    let pool = database.pool(1).await;
    let app = app(OrgPool::unchecked(pool.clone()));
    for org in ["org_1", "org_2", "org_1"] {
        let (status, body) = call(&app, Some(&format!("secret-key-{org}"))).await;
        assert_eq!((status, body), (StatusCode::OK, [org; 3].join(" ")));
    }
    assert_eq!(call(&app, None).await.0, StatusCode::UNAUTHORIZED);

    pool.close().await;
    let (status, body) = call(&app, Some("secret-key-org_1")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        body.contains("database-unavailable") && !body.contains("pool"),
        "{body}"
    );
}
