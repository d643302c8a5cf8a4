//! Each part of the example, with a real PostgreSQL.

#![allow(clippy::unwrap_used)]

#[path = "../../../crates/tower-orgkey-sqlx/tests/it/cluster.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod cluster;

use std::sync::Arc;

use axum::body::Body;
use example_isolation::{databases, objects, rows};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio_postgres::NoTls;
use tower::ServiceExt;
use tower_orgkey::test_util::OrgContextBuilder;
use tower_orgkey::{ApiKeyLayer, OrgCode, OrgContext, Verification, verifier_fn};

use crate::cluster::Database;

fn org(code: &str) -> OrgContext {
    OrgContextBuilder::new(code).build()
}

#[tokio::test]
async fn tokio_postgres_sees_rows_of_one_organization() {
    let database = Database::new(&["org_1", "org_2"]).await;
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(Database::addr().port())
        .user("app")
        .dbname(database.name());
    let (mut client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(rows::check(&mut client).await.unwrap().findings(), []);

    for code in ["org_1", "org_2"] {
        let transaction = rows::begin(&mut client, &org(code)).await.unwrap().unwrap();
        let seen = transaction
            .query("select org from notes", &[])
            .await
            .unwrap();
        let seen: Vec<&str> = seen.iter().map(|row| row.get(0)).collect();
        assert_eq!(seen, [code; 2]);
        // Dropped, it is rolled back.
        drop(transaction);
        assert!(
            client
                .query("select org from notes", &[])
                .await
                .unwrap()
                .is_empty()
        );
    }
    let grant = "grant truncate on notes to app";
    sqlx::query(grant)
        .execute(&mut database.admin().await)
        .await
        .unwrap();
    assert_eq!(rows::check(&mut client).await.unwrap().findings().len(), 1);
}

#[tokio::test]
async fn each_organization_has_its_database() {
    let databases = [
        Database::new(&["org_1"]).await,
        Database::new(&["org_2"]).await,
    ];
    let options = databases
        .each_ref()
        .map(|database| database.options(Database::addr(), "postgres"));
    let auth = ApiKeyLayer::new(verifier_fn(|key| async move {
        let org = key
            .expose_secret()
            .rsplit('-')
            .next()
            .unwrap_or_default()
            .to_owned();
        Ok(Verification::of_organization(OrgCode::new(org).unwrap()))
    }));
    let app = databases::app(auth, move |org| match org.as_str() {
        "org_1" => Some(options[0].clone()),
        "org_2" => Some(options[1].clone()),
        _ => None,
    });
    for (code, expected) in [
        ("org_1", (StatusCode::OK, "org_1 org_1")),
        ("org_2", (StatusCode::OK, "org_2 org_2")),
        ("org_3", (StatusCode::SERVICE_UNAVAILABLE, "")),
    ] {
        let request = Request::get("/notes")
            .header(header::AUTHORIZATION, format!("Bearer secret-key-{code}"));
        let response = app
            .clone()
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), expected.0);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(!expected.0.is_success() || body == expected.1, "{body:?}");
    }
}

#[tokio::test]
async fn objects_of_one_organization_only() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let codes = ["a", "a/b", "..", "a%2Fb", "b"];
    // As a path, the first of `a` would be the second of `a/b`.
    let names = [Path::from("b/report"), Path::from("report")];
    for code in codes {
        let objects = objects::objects(Arc::clone(&store), &org(code));
        for name in &names {
            assert!(
                objects.get(name).await.is_err(),
                "{code} sees another's object"
            );
            objects.put(name, code.to_owned().into()).await.unwrap();
        }
    }
    for code in codes {
        let objects = objects::objects(Arc::clone(&store), &org(code));
        for name in &names {
            let bytes = objects.get(name).await.unwrap().bytes().await.unwrap();
            assert_eq!(bytes, code);
        }
        let listed = objects.list_with_delimiter(None).await.unwrap();
        assert_eq!((listed.common_prefixes.len(), listed.objects.len()), (1, 1));
    }
}
