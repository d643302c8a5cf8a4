//! The token endpoint, and the tokens that other endpoints need.

use std::time::Duration;

use kinde_emulator::{KeySpec, KindeEmulator, VerifyAccess};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::{Caller, assert_errors_array, members, read};

#[tokio::test]
async fn token_reply_has_all_members() {
    let emulator = KindeEmulator::start().await.unwrap();
    let mut caller = Caller::without_token(&emulator);
    let response = caller.fetch_token(&emulator).await;
    assert_eq!(response.headers()["cache-control"], "no-store");
    let (status, body) = read(response).await;
    assert_eq!(status, 200);
    assert_eq!(
        members(&body),
        ["access_token", "expires_in", "scope", "token_type"]
    );
    assert_eq!(body["expires_in"], 86_400);
    assert_eq!(
        body["scope"],
        "read:api_keys create:api_keys update:api_keys delete:api_keys \
         read:organizations read:billing_agreements create:meter_usage"
    );
    assert_eq!(body["token_type"], "bearer");
    let token = body["access_token"].as_str().unwrap();
    assert_eq!(token.split('.').count(), 3);

    let key = emulator.issue_key(KeySpec::organization("org_1"));
    assert_eq!(caller.verify(key.secret()).await.status(), 401);
    caller.token = Some(token.to_owned());
    assert_eq!(caller.verify(key.secret()).await.status(), 200);
    assert_eq!(emulator.calls().token.ok, 1);
}

#[tokio::test]
async fn token_has_the_claims_of_an_m2m_token() {
    let emulator = KindeEmulator::builder()
        .token_lifetime(Duration::from_secs(60))
        .start()
        .await
        .unwrap();
    let token = emulator.issue_token(["read:api_keys", "create:api_keys"]);
    let claims: serde_json::Value =
        serde_json::from_slice(&base64url(token.split('.').nth(1).unwrap())).unwrap();
    assert_eq!(
        members(&claims),
        [
            "aud", "azp", "exp", "gty", "iat", "iss", "jti", "scope", "scp", "v"
        ]
    );
    assert_eq!(claims["aud"], json!([emulator.audience()]));
    assert_eq!(claims["azp"], emulator.client_id());
    assert_eq!(claims["iss"], emulator.issuer_url());
    assert_eq!(claims["gty"], json!(["client_credentials"]));
    assert_eq!(claims["scope"], "read:api_keys create:api_keys");
    assert_eq!(claims["scp"], json!(["read:api_keys", "create:api_keys"]));
    assert_eq!(claims["v"], "2");
    assert_eq!(
        claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(),
        60
    );
}

/// Decodes base64url without padding.
fn base64url(text: &str) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = Vec::new();
    let (mut group, mut bits) = (0_u32, 0);
    for byte in text.bytes() {
        let value = alphabet.iter().position(|&b| b == byte).unwrap();
        group = group << 6 | u32::try_from(value).unwrap();
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(group >> bits & 0xFF).unwrap());
        }
    }
    bytes
}

#[tokio::test]
async fn token_errors_match_rfc_6749() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::without_token(&emulator);
    let (id, secret, audience) = (
        emulator.client_id(),
        emulator.client_secret(),
        emulator.audience(),
    );
    assert_eq!(audience, format!("{}/api", emulator.issuer_url()));
    let valid = [
        ("grant_type", "client_credentials"),
        ("client_id", &id),
        ("client_secret", &secret),
        ("audience", &audience),
        ("scope", ""),
    ];
    assert_eq!(caller.form(&valid).await.status(), 200);
    for (field, value, status, error) in [
        ("grant_type", "", 400, "invalid_request"),
        ("grant_type", "password", 400, "unsupported_grant_type"),
        ("client_id", "somebody", 401, "invalid_client"),
        ("client_id", "", 401, "invalid_client"),
        ("client_secret", "guess", 401, "invalid_client"),
        ("client_secret", "", 401, "invalid_client"),
        ("audience", "", 400, "invalid_request"),
        (
            "audience",
            "https://other.example/api",
            400,
            "unauthorized_client",
        ),
        ("scope", "read:users", 400, "invalid_scope"),
        ("scope", "read:api_keys+read:users", 400, "invalid_scope"),
    ] {
        let fields = valid.map(|(name, valid)| (name, if name == field { value } else { valid }));
        let (got, body) = read(caller.form(&fields).await).await;
        assert_eq!(
            (got, &body["error"]),
            (status, &json!(error)),
            "{field}={value}"
        );
        assert_eq!(members(&body), ["error", "error_description"]);
    }
    let repeated = [valid.as_slice(), &[("client_id", &id)]].concat();
    let (status, body) = read(caller.form(&repeated).await).await;
    assert_eq!((status, &body["error"]), (400, &json!("invalid_request")));

    let response = caller
        .http
        .post(format!("{}/oauth2/token", caller.url))
        .json(&json!({ "grant_type": "client_credentials", "client_id": id }))
        .send()
        .await
        .unwrap();
    let (status, body) = read(response).await;
    assert_eq!((status, &body["error"]), (400, &json!("invalid_request")));

    let calls = emulator.calls().token;
    assert_eq!(
        (
            calls.total,
            calls.ok,
            calls.token_rejected,
            calls.bad_request
        ),
        (13, 1, 4, 8)
    );
}

#[tokio::test]
async fn scopes_can_be_narrowed_or_removed() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::without_token(&emulator);
    let request = async |scope: &str| {
        let fields = [
            ("grant_type", "client_credentials"),
            ("client_id", &emulator.client_id()),
            ("client_secret", &emulator.client_secret()),
            ("audience", &emulator.audience()),
            ("scope", scope),
        ];
        read(caller.form(&fields).await).await.1
    };
    assert_eq!(request("read:api_keys").await["scope"], "read:api_keys");
    emulator.set_token_scopes(Vec::<String>::new());
    let body = request("").await;
    assert_eq!(body["scope"], "");
    let without_scopes = Caller {
        token: Some(body["access_token"].as_str().unwrap().to_owned()),
        ..Caller::without_token(&emulator)
    };
    let (status, body) = read(without_scopes.get("/api/v1/api_keys").await).await;
    assert_eq!(status, 403);
    assert_errors_array(&body);
    assert_eq!(body["errors"][0]["message"], "Scope missing");
    let (status, body) = read(without_scopes.verify("k_live_0").await).await;
    assert_eq!(status, 401);
    assert_eq!(body["errors"][0]["message"], "Scope missing");
    assert_eq!(emulator.calls().verify.token_rejected, 1);
}

#[tokio::test]
async fn each_operation_needs_its_scope() {
    let emulator = KindeEmulator::start().await.unwrap();
    let key = emulator.issue_key(KeySpec::organization("org_1"));
    let one = format!("/api/v1/api_keys/{}", key.id());
    let operations = [
        (Method::GET, "/api/v1/api_keys", "read:api_keys", 200),
        (Method::GET, &one, "read:api_keys", 200),
        (Method::POST, "/api/v1/api_keys", "create:api_keys", 400),
        (Method::PUT, &one, "update:api_keys", 201),
        (Method::DELETE, &one, "delete:api_keys", 200),
    ];
    for (method, path, needed, success) in operations {
        for scope in [
            "read:api_keys",
            "create:api_keys",
            "update:api_keys",
            "delete:api_keys",
        ] {
            if scope != needed {
                let caller = Caller::with_scopes(&emulator, [scope]);
                let response = caller.send(method.clone(), path).await;
                assert_eq!(response.status(), 403, "{method} {path} with {scope}");
            }
        }
        let caller = Caller::with_scopes(&emulator, [needed]);
        assert_eq!(
            caller.send(method.clone(), path).await.status(),
            success,
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn verify_needs_the_configured_access() {
    let emulator = KindeEmulator::start().await.unwrap();
    let key = emulator.issue_key(KeySpec::organization("org_1"));
    let full = Caller::with_scopes(&emulator, ["read:api_keys"]);
    let without_scopes = Caller::with_scopes(&emulator, [] as [&str; 0]);
    let none = Caller::without_token(&emulator);
    for (access, statuses) in [
        (VerifyAccess::TokenWithScope, [200, 401, 401]),
        (VerifyAccess::Token, [200, 200, 401]),
        (VerifyAccess::Public, [200, 200, 200]),
    ] {
        emulator.set_verify_access(access);
        for (caller, status) in [&full, &without_scopes, &none].into_iter().zip(statuses) {
            assert_eq!(
                caller.verify(key.secret()).await.status(),
                status,
                "{access:?}"
            );
        }
    }
    let open = KindeEmulator::builder()
        .verify_without_token()
        .start()
        .await
        .unwrap();
    assert_eq!(
        Caller::without_token(&open)
            .verify("k_live_0")
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn invalid_tokens_are_rejected() {
    let emulator = KindeEmulator::start().await.unwrap();
    let another = KindeEmulator::start().await.unwrap();
    let foreign = Caller {
        token: Some(another.issue_token(["read:api_keys"])),
        ..Caller::without_token(&emulator)
    };
    assert_eq!(foreign.verify("k_live_0").await.status(), 401);
    assert_eq!(foreign.get("/api/v1/api_keys").await.status(), 403);

    let caller = Caller::new(&emulator);
    assert_eq!(caller.get("/api/v1/api_keys").await.status(), 200);
    emulator.revoke_tokens();
    let (status, body) = read(caller.get("/api/v1/api_keys").await).await;
    assert_eq!(status, 403);
    assert_errors_array(&body);
    emulator.set_rejected_token_status(StatusCode::UNAUTHORIZED);
    assert_eq!(caller.get("/api/v1/api_keys").await.status(), 401);
    emulator.set_rejected_token_status(StatusCode::FORBIDDEN);
    assert_eq!(caller.verify("k_live_0").await.status(), 403);

    emulator.set_token_lifetime(Duration::ZERO);
    let late = Caller::new(&emulator);
    assert_eq!(late.get("/api/v1/api_keys").await.status(), 403);
}

#[tokio::test]
async fn new_client_secret_replaces_the_old_one() {
    let emulator = KindeEmulator::builder()
        .client_credentials("m2m", "first-secret")
        .audience("https://acme.example/api")
        .start()
        .await
        .unwrap();
    assert_eq!(emulator.client_id(), "m2m");
    assert_eq!(emulator.audience(), "https://acme.example/api");
    let caller = Caller::without_token(&emulator);
    assert_eq!(caller.fetch_token(&emulator).await.status(), 200);
    emulator.set_client_secret("second-secret");
    assert_eq!(caller.fetch_token(&emulator).await.status(), 200);
    let stale = [
        ("grant_type", "client_credentials"),
        ("client_id", "m2m"),
        ("client_secret", "first-secret"),
        ("audience", "https://acme.example/api"),
    ];
    assert_eq!(caller.form(&stale).await.status(), 401);
}
