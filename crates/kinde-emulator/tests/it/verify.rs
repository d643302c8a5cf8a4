//! Verification of keys.

use kinde_emulator::{InvalidKeyReply, KeySpec, KindeEmulator, ValidKeyReply};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    Caller, assert_errors_array, assert_errors_object, assert_key_id, assert_timestamp, members,
    read,
};

const VERIFY_MEMBERS: [&str; 10] = [
    "code",
    "is_valid",
    "key_id",
    "last_verified_on",
    "message",
    "org_code",
    "scopes",
    "status",
    "user_id",
    "verification_count",
];

#[tokio::test]
async fn valid_key_has_all_members_of_the_contract() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    let key = emulator
        .issue_key(KeySpec::organization("org_1").scopes(["read:reports", "write:reports"]));
    let (status, body) = read(caller.verify(key.secret()).await).await;
    assert_eq!(status, 200);
    assert_eq!(members(&body), VERIFY_MEMBERS);
    assert_key_id(key.id());
    assert_eq!(
        body,
        json!({
            "code": "API_KEY_VERIFIED",
            "message": "API key verified",
            "is_valid": true,
            "key_id": key.id(),
            "status": "active",
            "scopes": ["read:reports", "write:reports"],
            "org_code": "org_1",
            "user_id": null,
            "last_verified_on": null,
            "verification_count": 1,
        })
    );
    let (_, again) = read(caller.verify(key.secret()).await).await;
    assert_timestamp(&again["last_verified_on"]);
    assert_eq!(again["verification_count"], 2);
}

#[tokio::test]
async fn valid_key_can_get_the_reply_of_kindes_guide() {
    const EXAMPLE: &str = r#"{ "code": "API_KEY_VERIFIED", "message": "API key verified", "scopes": ["read:users", "write:users"],
  "org_code": "org_abc123", "last_verified_on": "2024-11-18T13:32:03+11" }"#;

    let emulator = KindeEmulator::builder()
        .valid_key_reply(ValidKeyReply::GuideExample)
        .start()
        .await
        .unwrap();
    let caller = Caller::new(&emulator);
    let scopes = ["read:users", "write:users"];
    let key = emulator.issue_key(KeySpec::organization("org_abc123").scopes(scopes));
    let response = caller.verify(key.secret()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.text().await.unwrap(), EXAMPLE);

    // Whatever the key, the reply is JSON.
    for (spec, org, scopes) in [
        (KeySpec::environment(), Value::Null, json!([])),
        (
            KeySpec::organization("a\"b").scopes(["c\\"]),
            json!("a\"b"),
            json!(["c\\"]),
        ),
    ] {
        let key = emulator.issue_key(spec);
        let (_, body) = read(caller.verify(key.secret()).await).await;
        assert_eq!((&body["org_code"], &body["scopes"]), (&org, &scopes));
    }
    emulator.set_valid_key_reply(ValidKeyReply::AllFields);
    let (_, body) = read(caller.verify(key.secret()).await).await;
    assert_eq!(members(&body), VERIFY_MEMBERS);
    assert_eq!(emulator.calls().verify.ok, 4);
}

#[tokio::test]
async fn kinds_of_keys_name_organization_and_user() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    for (spec, org, user) in [
        (KeySpec::organization("org_1"), json!("org_1"), Value::Null),
        (KeySpec::user("kp_1"), Value::Null, json!("kp_1")),
        (
            KeySpec::user("kp_1").in_organization("org_1"),
            json!("org_1"),
            json!("kp_1"),
        ),
        (KeySpec::environment(), Value::Null, Value::Null),
    ] {
        let key = emulator.issue_key(spec);
        let (status, body) = read(caller.verify(key.secret()).await).await;
        assert_eq!(
            (status, &body["org_code"], &body["user_id"]),
            (200, &org, &user)
        );
        assert_eq!(body["scopes"], json!([]));
    }
}

#[tokio::test]
async fn invalid_key_gets_the_configured_reply() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    let revoked = emulator.issue_key(KeySpec::organization("org_1"));
    emulator.revoke(revoked.id());
    for reply in InvalidKeyReply::ALL {
        emulator.set_invalid_key_reply(reply);
        for secret in [revoked.secret(), "k_live_unknown"] {
            let (status, body) = read(caller.verify(secret).await).await;
            match reply {
                InvalidKeyReply::IsValidFalse => {
                    assert_eq!((status, &body), (200, &json!({ "is_valid": false })));
                }
                InvalidKeyReply::IsValidFalseWithNulls => {
                    assert_eq!(status, 200);
                    assert_eq!(members(&body), VERIFY_MEMBERS);
                    for name in VERIFY_MEMBERS {
                        let value = if name == "is_valid" {
                            json!(false)
                        } else {
                            Value::Null
                        };
                        assert_eq!(body[name], value, "{name}");
                    }
                }
                InvalidKeyReply::NotActive => {
                    assert_eq!((status, members(&body)), (200, VERIFY_MEMBERS.to_vec()));
                    assert_eq!(
                        (&body["is_valid"], &body["status"]),
                        (&json!(true), &json!("revoked"))
                    );
                }
                InvalidKeyReply::BadRequest => {
                    assert_eq!(status, 400);
                    assert_errors_array(&body);
                }
                InvalidKeyReply::Unauthorized => {
                    assert_eq!(status, 401);
                    assert_errors_array(&body);
                }
                InvalidKeyReply::RouteNotFound => {
                    assert_eq!(status, 404);
                    assert_errors_object(&body, "ROUTE_NOT_FOUND");
                }
                InvalidKeyReply::KeyNotFound => {
                    assert_eq!(status, 404);
                    assert_errors_object(&body, "API_KEY_NOT_FOUND");
                }
                other => panic!("untested: {other:?}"),
            }
        }
    }
    let verify = emulator.calls().verify;
    assert_eq!((verify.total, verify.key_invalid, verify.ok), (14, 14, 0));
}

#[tokio::test]
async fn inactive_key_can_be_activated_again() {
    let emulator = KindeEmulator::builder()
        .invalid_key_reply(InvalidKeyReply::NotActive)
        .start()
        .await
        .unwrap();
    let caller = Caller::new(&emulator);
    let key = emulator.issue_key(KeySpec::organization("org_1"));
    emulator.deactivate(key.id());
    let (_, body) = read(caller.verify(key.secret()).await).await;
    assert_eq!(
        (&body["status"], &body["verification_count"]),
        (&json!("inactive"), &json!(0))
    );
    emulator.activate(key.id());
    let (_, body) = read(caller.verify(key.secret()).await).await;
    assert_eq!(body["status"], "active");
}

#[tokio::test]
async fn verify_needs_a_json_object_with_a_string() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    for (content_type, body) in [
        ("application/json", "{}"),
        ("application/json", r#"{"api_key":null}"#),
        ("application/json", r#"{"api_key":7}"#),
        ("application/json", "[]"),
        ("application/json", "{"),
        ("text/plain", r#"{"api_key":"k_live_0"}"#),
    ] {
        let response = caller
            .request(Method::POST, "/api/v1/api_keys/verify")
            .header("content-type", content_type)
            .body(body)
            .send()
            .await
            .unwrap();
        let (status, answer) = read(response).await;
        assert_eq!(status, 400, "{content_type} {body}");
        assert_errors_array(&answer);
    }
    assert_eq!(emulator.calls().verify.bad_request, 6);
}
