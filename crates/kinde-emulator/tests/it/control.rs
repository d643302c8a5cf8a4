//! The control endpoints, and the clock that they move.

use kinde_emulator::{Endpoint, InvalidKeyReply, KeySpec, KindeEmulator};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::Caller;

struct Controlled {
    emulator: KindeEmulator,
    caller: Caller,
}

impl Controlled {
    async fn start() -> Self {
        let emulator = KindeEmulator::builder().control_endpoints();
        let emulator = emulator.start().await.unwrap();
        let caller = Caller::new(&emulator);
        Self { emulator, caller }
    }

    async fn try_post(&self, path: &str, body: Value) -> Response {
        self.caller
            .request(Method::POST, &format!("/_emulator{path}"))
            .json(&body)
            .send()
            .await
            .unwrap()
    }

    /// Posts a request that must succeed.
    async fn post(&self, path: &str, body: Value) -> Value {
        let response = self.try_post(path, body).await;
        let status = response.status();
        let body = response.json().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {body}");
        body
    }

    async fn get(&self, path: &str) -> Value {
        let response = self.caller.get(&format!("/_emulator{path}")).await;
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }

    async fn verify(&self, secret: &str) -> Value {
        self.caller.verify(secret).await.json().await.unwrap()
    }

    async fn is_valid(&self, secret: &str) -> bool {
        self.verify(secret).await["is_valid"] == true
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[tokio::test]
async fn control_endpoints_are_off_by_default() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    assert_eq!(caller.get("/_emulator").await.status(), 404);
    let posted = caller.request(Method::POST, "/_emulator/clock");
    let posted = posted
        .json(&json!({ "offset_s": 60 }))
        .send()
        .await
        .unwrap();
    assert_eq!(posted.status(), 404);
    assert_eq!(emulator.clock_offset(), 0);
    assert_eq!(emulator.calls().unrouted, 2);
}

#[tokio::test]
async fn settings_are_those_of_the_handle() {
    let on = Controlled::start().await;
    let settings = on.get("").await;
    assert_eq!(settings["issuer_url"], on.emulator.issuer_url());
    assert_eq!(settings["client_id"], on.emulator.client_id());
    assert_eq!(settings["client_secret"], on.emulator.client_secret());
    assert_eq!(settings["audience"], on.emulator.audience());
    assert_eq!(settings["clock_offset_s"], 0);
}

#[tokio::test]
async fn key_is_issued_as_described() {
    let on = Controlled::start().await;
    let issued = on
        .post(
            "/keys",
            json!({
                "org_code": "org_1",
                "user_id": "kp_1",
                "name": "export",
                "api_id": "api_1",
                "scopes": ["read:reports"],
                "key": "k_live_chosen",
            }),
        )
        .await;
    assert_eq!(issued["key"], "k_live_chosen");
    let reply = on.verify("k_live_chosen").await;
    assert_eq!(reply["org_code"], "org_1");
    assert_eq!(reply["user_id"], "kp_1");
    assert_eq!(reply["scopes"], json!(["read:reports"]));
    let id = text(&issued["key_id"]);
    let record: Value = on
        .caller
        .get(&format!("/api/v1/api_keys/{id}"))
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(record["api_key"]["api_ids"], json!(["api_1"]));
    assert_eq!(record["api_key"]["name"], "export");

    let again = json!({ "org_code": "org_2", "key": "k_live_chosen" });
    assert_eq!(on.try_post("/keys", again).await.status(), 400);
    let environment = on.post("/keys", json!({})).await;
    let reply = on.verify(text(&environment["key"])).await;
    assert_eq!(
        (&reply["org_code"], &reply["user_id"]),
        (&Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn key_is_changed_by_id_or_secret() {
    let on = Controlled::start().await;
    let issued = on.post("/keys", json!({ "org_code": "org_1" })).await;
    let secret = text(&issued["key"]);
    let by_id = || json!({ "key_id": issued["key_id"] });
    let by_secret = || json!({ "key": secret });

    on.post("/keys/revoke", by_id()).await;
    assert!(!on.is_valid(secret).await);
    on.post("/keys/activate", by_secret()).await;
    assert!(on.is_valid(secret).await);
    on.post("/keys/deactivate", by_secret()).await;
    assert!(!on.is_valid(secret).await);
    on.post("/keys/activate", by_id()).await;

    let scopes = json!({ "key": secret, "scopes": ["write:users"] });
    on.post("/keys/scopes", scopes).await;
    assert_eq!(on.verify(secret).await["scopes"], json!(["write:users"]));

    let rotated = on.post("/keys/rotate", by_secret()).await;
    assert_eq!(rotated["key_id"], issued["key_id"]);
    assert!(!on.is_valid(secret).await);
    assert!(on.is_valid(text(&rotated["key"])).await);

    on.post("/keys/delete", by_id()).await;
    assert!(!on.is_valid(text(&rotated["key"])).await);
    for path in ["rotate", "revoke", "activate", "deactivate", "delete"] {
        let path = format!("/keys/{path}");
        assert_eq!(on.try_post(&path, by_id()).await.status(), 404);
        assert_eq!(on.try_post(&path, by_secret()).await.status(), 404);
        assert_eq!(on.try_post(&path, json!({})).await.status(), 400);
        let both = json!({ "key_id": issued["key_id"], "key": secret });
        assert_eq!(on.try_post(&path, both).await.status(), 400);
    }
}

#[tokio::test]
async fn application_is_changed() {
    let on = Controlled::start().await;
    let change = json!({
        "scopes": ["read:applications"],
        "token_lifetime_s": 60,
        "client_secret": "another",
        "revoke_tokens": true,
    });
    on.post("/application", change).await;
    assert_eq!(on.caller.verify("k_live_0").await.status(), 401);
    assert_eq!(on.emulator.client_secret(), "another");
    let token = on.caller.fetch_token(&on.emulator).await;
    let token: Value = token.json().await.unwrap();
    assert_eq!(token["scope"], "read:applications");
    assert_eq!(token["expires_in"], 60);
}

#[tokio::test]
async fn behavior_is_changed() {
    let on = Controlled::start().await;
    for (name, how) in [
        ("is_valid_false", InvalidKeyReply::IsValidFalse),
        (
            "is_valid_false_with_nulls",
            InvalidKeyReply::IsValidFalseWithNulls,
        ),
        ("not_active", InvalidKeyReply::NotActive),
        ("bad_request", InvalidKeyReply::BadRequest),
        ("unauthorized", InvalidKeyReply::Unauthorized),
        ("route_not_found", InvalidKeyReply::RouteNotFound),
        ("key_not_found", InvalidKeyReply::KeyNotFound),
    ] {
        on.post("/behavior", json!({ "invalid_key_reply": name }))
            .await;
        let named = shape(on.caller.verify("k_live_0").await).await;
        on.emulator.set_invalid_key_reply(how);
        assert_eq!(named, shape(on.caller.verify("k_live_0").await).await);
    }
    let change = json!({ "verify_access": "public", "valid_key_reply": "guide_example" });
    on.post("/behavior", change).await;
    let key = on.emulator.issue_key(KeySpec::organization("org_1"));
    let anyone = Caller::without_token(&on.emulator);
    let reply: Value = anyone.verify(key.secret()).await.json().await.unwrap();
    assert_eq!(reply["last_verified_on"], "2024-11-18T13:32:03+11");
    let path = format!("/api/v1/api_keys/{}", key.id());
    for (name, id) in [("unwrapped", "/id"), ("wrapped", "/api_key/id")] {
        on.post("/behavior", json!({ "key_record_reply": name }))
            .await;
        let reply: Value = on.caller.get(&path).await.json().await.unwrap();
        assert_eq!(reply.pointer(id), Some(&json!(key.id())), "{name}");
    }

    let change = json!({ "verify_access": "token_with_scope", "rejected_token_status": 403 });
    on.post("/behavior", change).await;
    assert_eq!(anyone.verify(key.secret()).await.status(), 403);
}

/// The status of a reply and its body, without what is random.
async fn shape(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let mut body: Value = response.json().await.unwrap();
    if body["key_id"].is_string() {
        body["key_id"] = Value::Null;
    }
    (status, body)
}

#[tokio::test]
async fn faults_are_injected_and_cleared() {
    let on = Controlled::start().await;
    let status = async || on.caller.verify("k_live_0").await.status().as_u16();
    let fault = json!({
        "at": "verify",
        "fault": { "status": 429 },
        "headers": { "ratelimit-reset": "30" },
        "times": 1,
        "every": 2,
        "after_ms": 1,
    });
    on.post("/faults", fault).await;
    assert_eq!(status().await, 200);
    let throttled = on.caller.verify("k_live_0").await;
    assert_eq!(throttled.status(), 429);
    assert_eq!(throttled.headers()["ratelimit-reset"], "30");
    assert_eq!(status().await, 200);
    assert_eq!(status().await, 200);

    for (fault, expected) in [
        (json!("none"), 200),
        (json!("route_not_found"), 404),
        (json!("reject_token"), 401),
        (json!({ "redirect": "https://example.com/" }), 307),
        (
            json!({ "reply": { "status": 418, "content_type": "text/html", "body": "<p>" } }),
            418,
        ),
        (
            json!({ "with_member": { "name": "is_valid", "value": 1 } }),
            200,
        ),
        (json!({ "without_member": "is_valid" }), 200),
        (json!({ "trickle_ms": 0 }), 200),
    ] {
        let request = json!({ "at": ["verify", "token"], "fault": fault });
        on.post("/faults", request).await;
        assert_eq!(status().await, expected, "{fault}");
    }
    for fault in ["truncate", "reset_mid_body", "close", "reset"] {
        on.post("/faults", json!({ "at": "verify", "fault": fault }))
            .await;
        let answered = match on.caller.try_verify("k_live_0").await {
            Ok(response) => response.bytes().await.is_ok(),
            Err(_) => false,
        };
        assert!(!answered, "{fault}");
    }
    on.post(
        "/faults",
        json!({ "at": "all", "fault": { "status": 503 } }),
    )
    .await;
    on.post("/faults/clear", json!({ "at": "token" })).await;
    assert_eq!(status().await, 503);
    on.post("/faults/clear", json!({})).await;
    assert_eq!(status().await, 200);
    assert_eq!(on.get("/calls").await["verify"]["faulted"], 14);
}

#[tokio::test]
async fn held_call_is_released_by_clearing() {
    let on = Controlled::start().await;
    on.post("/faults", json!({ "at": "verify", "fault": "hold" }))
        .await;
    let held = on
        .caller
        .request(Method::POST, "/api/v1/api_keys/verify")
        .json(&json!({ "api_key": "k_live_0" }))
        .send();
    let held = tokio::spawn(held);
    on.emulator.wait_for_calls(Endpoint::Verify, 1).await;
    assert_eq!(on.get("/calls").await["verify"]["in_flight"], 1);
    on.post("/faults/clear", json!({})).await;
    assert_eq!(held.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn calls_are_counted_and_reset() {
    let on = Controlled::start().await;
    on.caller.verify("k_live_0").await;
    let calls = on.get("/calls").await;
    assert_eq!(calls["verify"]["total"], 1);
    assert_eq!(calls["verify"]["key_invalid"], 1);
    assert_eq!(calls["token"]["total"], 0);
    on.post("/calls/reset", json!({})).await;
    assert_eq!(on.get("/calls").await["verify"]["total"], 0);
    // Control requests are not calls of the issuer.
    assert_eq!(on.emulator.calls().total(), 0);
}

#[tokio::test]
async fn clock_moves_dates_and_ends_tokens() {
    let on = Controlled::start().await;
    let key = on.emulator.issue_key(KeySpec::organization("org_1"));
    let before = date(&on).await;
    let moved = on.post("/clock", json!({ "offset_s": 3_600 })).await;
    assert_eq!(moved["clock_offset_s"], 3_600);
    let ahead = date(&on).await.duration_since(before).unwrap().as_secs();
    assert!((3_600..3_900).contains(&ahead), "{ahead}");
    on.post("/clock", json!({ "advance_s": -7_200 })).await;
    assert_eq!(on.emulator.clock_offset(), -3_600);
    assert!(date(&on).await < before);

    // Tokens last a day.
    assert!(on.is_valid(key.secret()).await);
    on.post("/clock", json!({ "advance_s": 86_000 })).await;
    assert!(on.is_valid(key.secret()).await);
    on.post("/clock", json!({ "advance_s": 4_000 })).await;
    assert_eq!(on.caller.verify(key.secret()).await.status(), 401);

    let too_far = json!({ "advance_s": i32::MAX });
    assert_eq!(on.try_post("/clock", too_far).await.status(), 400);
}

async fn date(on: &Controlled) -> std::time::SystemTime {
    let response = on.caller.verify("k_live_0").await;
    let dates: Vec<_> = response.headers().get_all("date").iter().collect();
    assert_eq!(dates.len(), 1);
    httpdate::parse_http_date(dates[0].to_str().unwrap()).unwrap()
}

#[tokio::test]
async fn malformed_requests_change_nothing() {
    let on = Controlled::start().await;
    for (path, body) in [
        ("/keys", json!({ "organization": "org_1" })),
        ("/keys", json!({ "scopes": "read:reports" })),
        ("/keys", json!([])),
        ("/keys/scopes", json!({ "key": "k_live_0" })),
        ("/application", json!({ "token_lifetime_s": -1 })),
        ("/behavior", json!({ "invalid_key_reply": "teapot" })),
        ("/behavior", json!({ "rejected_token_status": 200 })),
        ("/behavior", json!({ "rejected_token_status": 1_000 })),
        (
            "/faults",
            json!({ "at": "verify", "fault": { "status": 99 } }),
        ),
        ("/faults", json!({ "at": "verify", "fault": "explode" })),
        ("/faults", json!({ "at": "everywhere", "fault": "close" })),
        (
            "/faults",
            json!({ "at": "verify", "fault": "close", "every": 0 }),
        ),
        (
            "/faults",
            json!({ "at": "verify", "fault": "none", "headers": { "a b": "" } }),
        ),
        (
            "/faults",
            json!({ "at": "verify", "fault": "none", "headers": { "a": "\n" } }),
        ),
        (
            "/faults",
            json!({ "at": "verify", "fault": { "redirect": "\n" } }),
        ),
        ("/faults/clear", json!({ "at": "everywhere" })),
        ("/clock", json!({})),
        ("/clock", json!({ "offset_s": 1, "advance_s": 1 })),
        ("/clock", json!({ "offset_s": 1e10 })),
        ("/calls/reset", json!({ "all": true })),
    ] {
        let response = on.try_post(path, body.clone()).await;
        assert_eq!(response.status(), 400, "{path} {body}");
        let reply: Value = response.json().await.unwrap();
        assert!(!text(&reply["error"]).is_empty());
    }
    assert_eq!(on.try_post("/nothing", json!({})).await.status(), 404);
    let page = on.caller.get("/api/v1/api_keys").await;
    let page: Value = page.json().await.unwrap();
    assert_eq!(page["api_keys"], json!([]));
    assert_eq!(on.emulator.calls().list_keys.faulted, 0);
    assert_eq!(on.emulator.clock_offset(), 0);
}

#[tokio::test]
async fn only_json_is_a_control_request() {
    let on = Controlled::start().await;
    for media_type in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        let mut request = on.caller.request(Method::POST, "/_emulator/clock");
        if let Some(media_type) = media_type {
            request = request.header("content-type", media_type);
        }
        let response = request.body(r#"{"offset_s":60}"#).send().await.unwrap();
        assert_eq!(response.status(), 415);
    }
    assert_eq!(on.emulator.clock_offset(), 0);
    let put = on.caller.send(Method::PUT, "/_emulator/clock").await;
    assert_eq!(put.status(), 404);
    // The prefix is a segment of the path.
    let other = on.caller.get("/_emulators").await;
    let other: Value = other.json().await.unwrap();
    assert_eq!(other["errors"]["code"], "ROUTE_NOT_FOUND");
}

#[tokio::test]
async fn other_host_names_are_rejected() {
    let on = Controlled::start().await;
    for (host, status) in [
        ("attacker.example", 403),
        ("localhost.attacker.example:80", 403),
        ("127.0.0.1.attacker.example", 403),
        ("127.0.0.1@attacker.example", 403),
        ("", 403),
        ("localhost:4000", 200),
        ("127.0.0.1", 200),
        ("[::1]:4000", 200),
    ] {
        let request = on.caller.request(Method::GET, "/_emulator");
        let response = request.header("host", host).send().await.unwrap();
        assert_eq!(response.status(), status, "{host}");
        let shows_secret = response
            .text()
            .await
            .unwrap()
            .contains(&on.emulator.client_secret());
        assert_eq!(shows_secret, status == 200, "{host}");
        let request = on.caller.request(Method::POST, "/_emulator/keys");
        let request = request
            .header("host", host)
            .json(&json!({ "org_code": "org_1" }));
        let issued = request.send().await.unwrap().status() == 201;
        assert_eq!(issued, status == 200, "{host}");
    }
}
