//! What operators see and change.

use http_body_util::Full;
use serde_json::{Value, json};

use crate::checks::ROUTES;
use crate::support::{ADMIN_TOKEN, Reply, World, request, send, until_line};

fn token() -> String {
    format!("Bearer {ADMIN_TOKEN}")
}

async fn get(world: &World, path: &str, headers: &[(&str, &str)]) -> Reply {
    send(world.admin, request("GET", path, headers)).await
}

async fn post(world: &World, path: &str, body: &str) -> Reply {
    let token = token();
    let request = request("POST", path, &[("authorization", &token)]);
    send(world.admin, request.map(|_| Full::from(body.to_owned()))).await
}

async fn status_of(world: &World, key: &str) -> u16 {
    let bearer = format!("Bearer {key}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-original-method", "GET"),
        ("x-original-uri", "/reports/1"),
    ];
    send(world.checks, request("GET", "/v1/nginx", &headers))
        .await
        .status
        .as_u16()
}

#[tokio::test]
async fn fault_125_admin_token_is_wrong() {
    let world = World::start(ROUTES).await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(get(&world, path, &[]).await.status, 200, "{path}");
    }
    for path in [
        "/metrics",
        "/",
        "/v1/block",
        "/v1/nginx",
        "/livez/",
        "/unknown",
    ] {
        let reply = get(&world, path, &[]).await;
        assert_eq!(reply.status, 401, "{path}");
        assert!(
            reply.header("www-authenticate").unwrap().contains("Basic"),
            "{path}"
        );
    }
    let query = format!("/metrics?token={ADMIN_TOKEN}");
    assert_eq!(get(&world, &query, &[]).await.status, 401);
    assert_eq!(
        get(
            &world,
            "/metrics",
            &[("authorization", "Bearer wrong-but-long-enough")]
        )
        .await
        .status,
        401
    );
    assert_eq!(
        send(world.admin, request("POST", "/v1/invalidate", &[]))
            .await
            .status,
        401
    );
}

#[tokio::test]
async fn health_does_not_depend_on_the_issuer() {
    let world = World::start(ROUTES).await;
    world.emulator.set_outage(true);
    assert_eq!(status_of(&world, "never-seen-key").await, 503);
    assert_eq!(get(&world, "/readyz", &[]).await.status, 200);
}

#[tokio::test]
async fn metrics_name_dialect_and_outcome() {
    let world = World::start(ROUTES).await;
    assert_eq!(status_of(&world, "never-seen-key").await, 401);
    let reply = get(&world, "/metrics", &[("authorization", &token())]).await;
    assert_eq!(reply.status, 200);
    let line = r#"orgkey_gateway_checks_total{dialect="nginx",outcome="invalid-token"}"#;
    assert!(reply.text().contains(line), "{}", reply.text());
    assert!(reply.text().contains("orgkey_requests_total"));
    assert!(!reply.text().contains("never-seen-key"));
}

#[tokio::test]
async fn blocks_reject_until_they_are_removed() {
    let world = World::start(ROUTES).await;
    let key = world.key("org_1", &["read:reports"]);
    for target in [json!({ "key": key }), json!({ "org_code": "org_1" })] {
        assert_eq!(status_of(&world, &key).await, 200);
        let blocked = post(&world, "/v1/block", &target.to_string()).await;
        assert_eq!(blocked.status, 200);
        assert!(blocked.text().contains("does not survive a restart"));
        assert!(!blocked.text().contains(&key));
        assert_eq!(status_of(&world, &key).await, 401);
        let removed = post(&world, "/v1/unblock", &target.to_string()).await;
        let removed: Value = serde_json::from_slice(&removed.body).unwrap();
        assert_eq!(removed, json!({ "was_blocked": true }));
    }
    assert_eq!(status_of(&world, &key).await, 200);
}

#[tokio::test]
async fn invalidated_keys_are_verified_again() {
    let world = World::start(ROUTES).await;
    let key = world.key("org_1", &["read:reports"]);
    assert_eq!(status_of(&world, &key).await, 200);
    for target in [
        json!({ "all": true }),
        json!({ "org_code": "org_1" }),
        json!({ "key": key }),
    ] {
        let before = world.emulator.calls().verify.total;
        assert_eq!(
            post(&world, "/v1/invalidate", &target.to_string())
                .await
                .status,
            200
        );
        assert_eq!(status_of(&world, &key).await, 200);
        assert_eq!(world.emulator.calls().verify.total, before + 1, "{target}");
    }
}

#[tokio::test]
async fn bad_bodies_change_nothing() {
    let world = World::start(ROUTES).await;
    let key = world.key("org_1", &["read:reports"]);
    assert_eq!(status_of(&world, &key).await, 200);
    let both = json!({ "key": key, "org_code": "org_1" }).to_string();
    for body in [
        "",
        "null",
        "{}",
        "[]",
        "\"all\"",
        r#"{"all": false}"#,
        r#"{"org_code": 1}"#,
        r#"{"key": "a b"}"#,
        r#"{"org_code": ""}"#,
        &both,
    ] {
        for action in ["block", "unblock", "invalidate"] {
            let reply = post(&world, &format!("/v1/{action}"), body).await;
            assert_eq!(reply.status, 400, "{action} {body}");
            assert!(!reply.text().contains(&key));
        }
    }
    for action in ["block", "unblock"] {
        assert_eq!(
            post(&world, &format!("/v1/{action}"), r#"{"all": true}"#)
                .await
                .status,
            400
        );
    }
    assert_eq!(
        post(&world, "/v1/other", r#"{"all": true}"#).await.status,
        404
    );
    assert_eq!(
        post(&world, "/v1/block", &"x".repeat(100_000)).await.status,
        413
    );
    assert_eq!(status_of(&world, &key).await, 200);
    assert_eq!(world.emulator.calls().verify.total, 1);
}

#[tokio::test]
async fn revocations_are_recorded() {
    let world = World::start(&format!("{ROUTES}[audit]\nfile = 'DIR/audit.jsonl'\n")).await;
    let file = world.files.path("audit.jsonl");
    assert_eq!(
        post(&world, "/v1/block", r#"{"all": true}"#).await.status,
        400
    );
    for (action, body, target) in [
        ("block", r#"{"org_code": "org_1"}"#, "org_code=org_1"),
        ("unblock", r#"{"key_id": "id_1"}"#, "key_id=id_1"),
        ("invalidate", r#"{"key": "a-secret-key"}"#, "key"),
    ] {
        assert_eq!(
            post(&world, &format!("/v1/{action}"), body).await.status,
            200
        );
        let line = until_line(&file, |line| line.contains(&format!("/v1/{action}"))).await;
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["unmapped"]["target"], target, "{line}");
        assert_eq!(event["actor"]["user"]["name"], "operator");
    }
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(written.lines().count(), 3);
    assert!(!written.contains("a-secret-key"));
}
