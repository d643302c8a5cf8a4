//! The contents of events.

use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use http::HeaderName;
use serde_json::json;
use tower::{Layer, service_fn};
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{RequestHead, require_org_with};

use crate::support::wire::{raw_request, serve};
use crate::*;

#[tokio::test]
async fn every_answer_is_one_event() {
    let stage = Stage::new();
    let address = serve(stage.app()).await;
    // method, path, key, code, class, organization
    let table = [
        ("GET", "/whoami", ONE, "allowed", 6003, "org_one"),
        ("POST", "/whoami", TWO, "allowed", 6003, "org_two"),
        ("GET", "/broken", ONE, "allowed", 6003, "org_one"),
        ("GET", "/whoami", "", "credential-missing", 3002, ""),
        ("GET", "/whoami", "short", "credential-malformed", 3002, ""),
        ("GET", "/whoami", BAD, "invalid-token", 3002, ""),
        ("GET", "/whoami", NO_ORG, "organization-required", 3002, ""),
        ("GET", "/whoami", USER, "organization-required", 3002, ""),
        ("GET", "/whoami", DOUBTFUL, "verifier-unavailable", 3002, ""),
        (
            "GET",
            "/whoami",
            STRANGE,
            "verifier-misconfigured",
            3002,
            "",
        ),
        ("GET", "/write", ONE, "insufficient-scope", 6003, "org_one"),
        ("GET", "/typed", ONE, "insufficient-scope", 6003, "org_one"),
        (
            "GET",
            "/orgs/org_two",
            ONE,
            "organization-mismatch",
            6003,
            "org_one",
        ),
        ("GET", "/hidden/org_two", ONE, "not-found", 6003, "org_one"),
        ("GET", "/misnamed/org_one", ONE, "internal", 6003, "org_one"),
    ];
    for (at, (method, path, key, code, class, org)) in table.into_iter().enumerate() {
        let mut request = raw_request(address, method, path).header("x-request-id", at.to_string());
        if !key.is_empty() {
            request = request.key(key);
        }
        let answer = request.send().await;
        let events = stage.events().await;
        assert_eq!(events.len(), at + 1, "{code}");
        let event = &events[at];
        assert_eq!(event["status_code"], code);
        assert_eq!(event["class_uid"], class, "{code}");
        assert_eq!(event["http_response"]["code"], answer.status, "{code}");
        assert_eq!(event["metadata"]["correlation_uid"], at.to_string());
        assert_eq!(event["metadata"]["sequence"], at);
        let is_allowed = code == "allowed";
        assert_eq!(event["action_id"], if is_allowed { 1 } else { 2 }, "{code}");
        let is_success = answer.status < 400;
        assert_eq!(event["status_id"], if is_success { 1 } else { 2 }, "{code}");
        let user = match class {
            6003 => &event["actor"]["user"],
            _ => &event["user"],
        };
        if org.is_empty() {
            assert_eq!(
                *user,
                json!({"name": "unknown", "type_id": 0, "type": "Unknown"})
            );
        } else {
            assert_eq!(user["org"]["uid"], org);
            assert_eq!(user["uid"], format!("id_of_{org}"));
        }
    }
}

#[tokio::test]
async fn an_allowed_request_is_recorded_in_full() {
    let stage = Stage::new();
    let app = stage.app();
    let mut request = request("DELETE", "/whoami?secret=of-the-query", ONE);
    request
        .headers_mut()
        .insert("x-request-id", "r-1".parse().unwrap());
    send(&app, request).await;
    let mut event = stage.event().await;
    for timed in ["time", "start_time", "end_time", "duration"] {
        assert!(
            event
                .as_object_mut()
                .unwrap()
                .remove(timed)
                .unwrap()
                .is_u64()
        );
    }
    assert!(
        event["http_response"]
            .as_object_mut()
            .unwrap()
            .remove("latency")
            .unwrap()
            .is_u64()
    );
    assert!(
        event["unmapped"]
            .as_object_mut()
            .unwrap()
            .remove("body_duration")
            .unwrap()
            .is_u64()
    );
    let uid = event["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("uid")
        .unwrap();
    assert!(uid.as_str().unwrap().ends_with("-0"));
    let expected = json!({
        "activity_id": 4, "activity_name": "Delete",
        "category_uid": 6, "category_name": "Application Activity",
        "class_uid": 6003, "class_name": "API Activity",
        "type_uid": 600_304, "type_name": "API Activity: Delete",
        "severity_id": 1, "severity": "Informational",
        "status_id": 1, "status": "Success", "status_code": "allowed",
        "action_id": 1, "action": "Allowed",
        "metadata": {
            "version": "1.8.0", "profiles": ["security_control"], "log_name": "audit",
            "product": {
                "name": "tower-orgkey", "vendor_name": "tower-orgkey",
                "version": env!("CARGO_PKG_VERSION"),
            },
            "sequence": 0, "correlation_uid": "r-1",
        },
        "actor": {"user": {
            "uid": "id_of_org_one", "type_id": 4, "type": "Service", "org": {"uid": "org_one"},
            "programmatic_credentials": [{"uid": "id_of_org_one", "type": "API Key"}],
        }},
        "api": {
            "operation": "DELETE /whoami", "service": {"name": "reports-api"},
            "request": {"uid": "r-1"}, "response": {"code": 200},
        },
        "src_endpoint": {"name": "unknown"},
        "http_request": {"http_method": "DELETE", "uid": "r-1"},
        "http_response": {"code": 200, "body_length": 7},
        "unmapped": {"cached": false, "stale": false, "body_end": "ended"},
    });
    assert_eq!(event, expected, "{event:#}");
}

#[tokio::test]
async fn names_are_escaped() {
    const NAME: &str = "a \"name\", with\\ and \n, é";

    let lines = Lines::default();
    let trail = AuditTrail::builder()
        .sink(JsonLines::new(lines.clone()))
        .service(NAME)
        .start()
        .unwrap();
    let layer = AuditLayer::new(&trail).route(|_: RequestHead<'_>| Some(NAME.to_owned()));
    let app = routes()
        .route_layer(ApiKeyLayer::new(issuer()))
        .route_layer(layer);
    for key in [ONE, ""] {
        send(&app, request("GET", "/whoami", key)).await;
    }
    trail.flush(LONG).await.unwrap();
    let events = events_in(&lines.text());
    let operation = format!("GET {NAME}");
    let of = |class: u64| {
        let mut events = events.iter();
        events.find(|event| event["class_uid"] == class).unwrap()
    };
    assert_eq!(of(6003)["api"]["operation"], operation);
    assert_eq!(of(6003)["api"]["service"]["name"], NAME);
    assert_eq!(of(3002)["unmapped"]["operation"], operation);
    assert_eq!(of(3002)["service"]["name"], NAME);
}

#[tokio::test]
async fn required_scopes_are_recorded() {
    let stage = Stage::new();
    let app = stage.app();
    let asked = |decision: &str, name: &str, any_of: Value| {
        json!([{"decision": decision,
            "policy": {"type": "Scope", "name": name, "data": {"any_of": any_of}}}])
    };
    let typed = json!([["read:reports", "write:reports"], ["admin"]]);
    for (path, key, expected) in [
        (
            "/read",
            ONE,
            asked("allowed", "read:reports", json!([["read:reports"]])),
        ),
        (
            "/write",
            ONE,
            asked("denied", "write:reports", json!([["write:reports"]])),
        ),
        (
            "/any",
            ONE,
            asked(
                "allowed",
                "x | read:reports",
                json!([["x"], ["read:reports"]]),
            ),
        ),
        (
            "/typed",
            ONE,
            asked(
                "denied",
                "read:reports write:reports | admin",
                typed.clone(),
            ),
        ),
        (
            "/typed",
            TWO,
            asked("allowed", "read:reports write:reports | admin", typed),
        ),
        ("/whoami", ONE, Value::Null),
    ] {
        send(&app, request("GET", path, key)).await;
        let event = stage.events().await.pop().unwrap();
        assert_eq!(event["authorizations"], expected, "{path}");
    }
}

#[tokio::test]
async fn every_method_is_an_activity() {
    let stage = Stage::new();
    let app = stage.app();
    for (method, id, name) in [
        ("GET", 2, "Read"),
        ("HEAD", 2, "Read"),
        ("POST", 1, "Create"),
        ("PUT", 3, "Update"),
        ("PATCH", 3, "Update"),
        ("DELETE", 4, "Delete"),
        ("OPTIONS", 99, "OPTIONS"),
    ] {
        send(&app, request(method, "/whoami", ONE)).await;
        let event = stage.events().await.pop().unwrap();
        assert_eq!(
            (&event["activity_id"], &event["activity_name"]),
            (&json!(id), &json!(name))
        );
        assert_eq!(event["api"]["operation"], format!("{method} /whoami"));
    }
}

#[tokio::test]
async fn undecided_requests_have_no_event() {
    let stage = Stage::new();
    let app = Router::new()
        .route("/open", get(async || "open"))
        .merge(routes().route_layer(ApiKeyLayer::new(issuer())))
        .layer(stage.layer());
    assert_eq!(
        send(&app, request("GET", "/nowhere", ONE)).await.status(),
        404
    );
    assert_eq!(send(&app, request("GET", "/open", ONE)).await.status(), 200);
    assert_eq!(stage.events().await, [Value::Null; 0]);
    // The layer was called.
    send(&app, request("GET", "/whoami", ONE)).await;
    assert_eq!(stage.event().await["status_code"], "allowed");

    let app = Router::new()
        .route("/open", get(async || "open"))
        .merge(routes().route_layer(ApiKeyLayer::new(issuer())))
        .layer(stage.layer().record_undecided(true));
    send(&app, request("GET", "/open", ONE)).await;
    send(&app, request("GET", "/whoami", ONE)).await;
    let events = stage.events().await;
    let codes: Vec<_> = events.iter().map(|event| &event["status_code"]).collect();
    assert_eq!(codes, ["allowed", "anonymous", "allowed"]);
    assert_eq!(events[1]["actor"]["user"]["name"], "anonymous");
    assert!(!events[1].to_string().contains(&ONE[..8]));
}

#[tokio::test]
async fn the_request_id_is_the_headers() {
    let stage = Stage::new();
    let app = routes()
        .route_layer(ApiKeyLayer::new(issuer()))
        .route_layer(
            stage
                .layer()
                .request_id_header(HeaderName::from_static("trace-id")),
        );
    for (sent, recorded) in [
        (None, Value::Null),
        (Some("r\"7"), json!("r\"7")),
        (Some("two words"), Value::Null),
    ] {
        let mut request = request("GET", "/whoami", ONE);
        if let Some(sent) = sent {
            request
                .headers_mut()
                .insert("trace-id", sent.parse().unwrap());
        }
        send(&app, request).await;
        let event = stage.events().await.pop().unwrap();
        assert_eq!(event["metadata"]["correlation_uid"], recorded);
        assert_eq!(event["http_request"]["uid"], recorded);
        assert_eq!(event["api"]["request"]["uid"], recorded);
    }
}

#[test]
#[should_panic(expected = "carries credentials")]
fn credential_headers_hold_no_request_id() {
    let _ = Stage::new()
        .layer()
        .request_id_header(http::header::AUTHORIZATION);
}

#[tokio::test]
async fn peer_and_path_are_optional() {
    let stage = Stage::new();
    let layer = stage
        .layer()
        .record_path(true)
        .peer(|head: RequestHead<'_>| {
            head.extensions
                .get::<ConnectInfo<SocketAddr>>()
                .map(|at| at.0)
        });
    let app = Router::new()
        .nest("/v1", routes())
        .route_layer(ApiKeyLayer::new(issuer()))
        .route_layer(layer);
    for (peer, ip) in [
        ("192.0.2.7:443", "192.0.2.7"),
        ("[::ffff:192.0.2.8]:443", "192.0.2.8"),
        ("[2001:db8::1]:443", "2001:db8::1"),
    ] {
        let mut request = request("GET", "/v1/orgs/org_one?q=1", ONE);
        let peer: SocketAddr = peer.parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        send(&app, request).await;
        let event = stage.events().await.pop().unwrap();
        assert_eq!(event["src_endpoint"], json!({"ip": ip, "port": 443}));
        assert_eq!(event["api"]["operation"], "GET /v1/orgs/{org_code}");
        assert_eq!(
            event["http_request"]["url"],
            json!({"path": "/v1/orgs/org_one"})
        );
    }
}

#[tokio::test]
async fn cached_and_stale_results_are_recorded() {
    let stage = Stage::new();
    let clock = TestClock::new();
    let issuer = issuer();
    let auth = ApiKeyLayer::builder(issuer.clone())
        .test_clock(clock.clone())
        .build()
        .unwrap();
    let app = routes().route_layer(auth).route_layer(stage.layer());
    let told = async || {
        send(&app, request("GET", "/whoami", ONE)).await;
        let event = stage.events().await.pop().unwrap();
        (
            event["unmapped"]["cached"] == true,
            event["unmapped"]["stale"] == true,
        )
    };
    assert_eq!(told().await, (false, false));
    assert_eq!(told().await, (true, false));
    issuer.fail(Answer::Silence);
    clock.jump(Duration::from_secs(70));
    assert_eq!(told().await, (true, true));
}

#[tokio::test]
async fn passed_credentials_are_recorded_without_them() {
    let stage = Stage::new();
    let auth = ApiKeyLayer::builder(issuer())
        .only_prefix("k_live_")
        .pass_other_credentials_to_inner_auth()
        .build()
        .unwrap();
    let open = axum::Router::new().route("/login", axum::routing::get(async || "open"));
    let app = routes()
        .merge(open)
        .route_layer(auth)
        .route_layer(stage.layer());
    send(&app, request("GET", "/login", ONE)).await;
    send(&app, request("GET", "/whoami", ONE)).await;
    let events = stage.events().await;
    let codes: Vec<_> = events.iter().map(|event| &event["status_code"]).collect();
    // `whoami` takes an organization, which no other authentication can give.
    assert_eq!(codes, ["other-credential", "invalid-token"]);
    for event in &events {
        assert!(!event.to_string().contains(&ONE[..8]), "{event}");
        assert!(!event.to_string().contains(r#""org":"#), "{event}");
    }
}

#[tokio::test]
async fn anonymous_requests_and_users_are_recorded() {
    let stage = Stage::new();
    let auth = ApiKeyLayer::builder(issuer())
        .allow_anonymous()
        .allow_user_keys()
        .build()
        .unwrap();
    let app = routes().route_layer(auth).route_layer(stage.layer());
    let of = async |path, key| {
        send(&app, request("GET", path, key)).await;
        stage.events().await.pop().unwrap()
    };
    let event = of("/broken", "").await;
    assert_eq!(event["status_code"], "anonymous");
    assert_eq!(event["action_id"], 1);
    assert_eq!(event["actor"]["user"]["name"], "anonymous");
    // A guard requires a key.
    let event = of("/read", "").await;
    assert_eq!(event["status_code"], "credential-missing");
    assert_eq!(event["user"]["name"], "anonymous");
    let event = of("/whoami", USER).await;
    assert_eq!(event["actor"]["user"]["uid"], "kp_7");
    assert_eq!(event["actor"]["user"]["type_id"], 1);
    assert_eq!(
        event["actor"]["user"]["programmatic_credentials"][0]["uid"],
        "id_of_org_one"
    );
}

#[tokio::test]
async fn the_inner_of_two_layers_is_recorded() {
    let stage = Stage::new();
    let outer = ApiKeyLayer::builder(issuer())
        .allow_anonymous()
        .build()
        .unwrap();
    let inner = Issuer::knowing([(ONE, org("org_inner", &[]))]);
    let app = routes()
        .route_layer(
            ApiKeyLayer::builder(inner)
                .credential_header(HeaderName::from_static("x-api-key"), "ApiKey")
                .build()
                .unwrap(),
        )
        .route_layer(outer)
        .route_layer(stage.layer());
    let mut request = request("GET", "/whoami", "");
    request
        .headers_mut()
        .insert("x-api-key", ONE.parse().unwrap());
    assert_eq!(send(&app, request).await.body(), "org_inner");
    assert_eq!(
        stage.event().await["actor"]["user"]["org"]["uid"],
        "org_inner"
    );
}

#[tokio::test]
async fn plain_services_name_their_routes() {
    let stage = Stage::new();
    let handler = service_fn(async |_: Request<()>| {
        Ok::<_, std::convert::Infallible>(Response::new(
            http_body_util::Full::<bytes::Bytes>::from("done"),
        ))
    });
    let guard = require_org_with(|head: RequestHead<'_>| Some(head.uri.path()[1..].to_owned()));
    let layer = stage
        .layer()
        .route(|_: RequestHead<'_>| Some("/{org}".to_owned()));
    let service = layer.layer(ApiKeyLayer::new(issuer()).layer(guard.layer(handler)));
    for (path, code, bytes) in [
        ("/org_one", "allowed", 4),
        ("/org_two", "organization-mismatch", 0),
    ] {
        let request = Request::get(path)
            .header("authorization", format!("Bearer {ONE}"))
            .body(())
            .unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        let body = http_body_util::BodyExt::collect(response.into_body())
            .await
            .unwrap();
        let event = stage.events().await.pop().unwrap();
        assert_eq!(event["status_code"], code);
        assert_eq!(event["api"]["operation"], "GET /{org}");
        assert_eq!(event["actor"]["user"]["org"]["uid"], "org_one");
        let length = event["http_response"]["body_length"].as_u64().unwrap();
        assert_eq!(length, body.to_bytes().len() as u64);
        assert!(length >= bytes);
    }
}

#[tokio::test]
async fn operator_actions_are_recorded() {
    let stage = Stage::new();
    let target = format!("org_code={}", "x".repeat(2_000));
    stage.trail.record_operator_action("/v1/block", &target);
    let event = stage.event().await;
    assert_eq!(event["class_uid"], 6003);
    assert_eq!(event["actor"]["user"]["name"], "operator");
    assert_eq!(event["api"]["operation"], "POST /v1/block");
    assert_eq!(event["status_code"], "allowed");
    assert_eq!(event["unmapped"]["target"], target[..1_024]);
}
