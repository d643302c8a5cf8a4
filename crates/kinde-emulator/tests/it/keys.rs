//! Management of keys.

use kinde_emulator::{IssuedKey, KeyRecordReply, KeySpec, KindeEmulator};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    Caller, assert_errors_array, assert_errors_object, assert_key_id, assert_timestamp, members,
    read,
};

#[tokio::test]
async fn created_key_shows_its_secret_once() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    let (status, body) = read(
        caller
            .create(&json!({
                "name": "export",
                "type": "organization",
                "api_id": "7ccd126599aa422a771abcb341596881",
                "scope_ids": ["read:reports"],
                "org_code": "org_1",
                "user_id": null,
            }))
            .await,
    )
    .await;
    assert_eq!(status, 201);
    assert_eq!(members(&body), ["api_key", "code", "message"]);
    assert_eq!(body["code"], "API_KEY_CREATED");
    assert_eq!(members(&body["api_key"]), ["id", "key"]);
    let (id, secret) = (
        body["api_key"]["id"].as_str().unwrap(),
        body["api_key"]["key"].as_str().unwrap(),
    );
    assert_key_id(id);
    assert!(secret.starts_with("k_live_"));
    let (_, verified) = read(caller.verify(secret).await).await;
    assert_eq!(
        (&verified["key_id"], &verified["scopes"]),
        (&json!(id), &json!(["read:reports"]))
    );

    for path in ["/api/v1/api_keys", &format!("/api/v1/api_keys/{id}")] {
        let text = caller.get(path).await.text().await.unwrap();
        assert!(
            text.contains(id) && !text.contains(secret),
            "the secret is in {path}"
        );
    }
}

#[tokio::test]
async fn invalid_create_request_gets_400() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    let valid = json!({ "name": "n", "type": "organization", "api_id": "a", "org_code": "org_1" });
    for (name, value) in [
        ("name", Value::Null),
        ("type", Value::Null),
        ("type", json!("service")),
        ("api_id", Value::Null),
        ("org_code", Value::Null),
        ("scope_ids", json!("read:reports")),
        ("scope_ids", json!([1])),
    ] {
        let mut invalid = valid.clone();
        invalid[name] = value;
        let (status, body) = read(caller.create(&invalid).await).await;
        assert_eq!(status, 400, "{invalid}");
        assert_errors_array(&body);
    }
    assert_eq!(read(caller.create(&valid).await).await.0, 201);
    let user = json!({ "name": "n", "type": "user", "api_id": "a" });
    assert_eq!(read(caller.create(&user).await).await.0, 400);
    let environment = json!({ "name": "n", "type": "environment", "api_id": "a" });
    assert_eq!(read(caller.create(&environment).await).await.0, 201);
}

#[tokio::test]
async fn key_details_have_all_members() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    let key = emulator.issue_key(
        KeySpec::organization("org_1")
            .name("export")
            .scopes(["a"])
            .api_id("api_7"),
    );
    read(caller.verify(key.secret()).await).await;
    let (status, body) = read(caller.get(&format!("/api/v1/api_keys/{}", key.id())).await).await;
    assert_eq!(status, 200);
    assert_eq!(members(&body), ["api_key", "code", "message"]);
    let got = &body["api_key"];
    assert_eq!(
        members(got),
        [
            "api_ids",
            "created_by",
            "created_on",
            "id",
            "key_prefix",
            "key_suffix",
            "last_verified_ip",
            "last_verified_on",
            "name",
            "organization_id",
            "scopes",
            "status",
            "type",
            "user_id",
            "verification_count",
        ]
    );
    assert_timestamp(&got["created_on"]);
    assert_timestamp(&got["last_verified_on"]);
    assert_eq!(got["id"], key.id());
    assert_eq!(got["name"], "export");
    assert_eq!(got["type"], "organization");
    assert_eq!(got["status"], "active");
    assert_eq!(got["key_prefix"], "k_live");
    assert_eq!(got["key_suffix"], key.secret()[key.secret().len() - 4..]);
    assert_eq!(got["last_verified_ip"], "127.0.0.1");
    assert_eq!(got["api_ids"], json!(["api_7"]));
    assert_eq!(got["scopes"], json!(["a"]));
    assert_eq!(got["organization_id"], "org_1");
    assert_eq!(got["user_id"], Value::Null);
    assert_eq!(got["verification_count"], 1);

    emulator.set_key_record_reply(KeyRecordReply::Unwrapped);
    let (status, bare) = read(caller.get(&format!("/api/v1/api_keys/{}", key.id())).await).await;
    assert_eq!((status, &bare), (200, got));

    let encoded = key.id().replace('_', "%5F");
    let (status, _) = read(caller.get(&format!("/api/v1/api_keys/{encoded}")).await).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn list_has_pages_and_no_organization() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    let issued: Vec<_> = (0..55)
        .map(|_| emulator.issue_key(KeySpec::organization("org_1")))
        .collect();
    let (status, body) = read(caller.get("/api/v1/api_keys").await).await;
    assert_eq!(status, 200);
    assert_eq!(members(&body), ["api_keys", "code", "has_more", "message"]);
    assert_eq!(
        (
            &body["has_more"],
            body["api_keys"].as_array().unwrap().len()
        ),
        (&json!(true), 50)
    );
    assert_eq!(
        members(&body["api_keys"][0]),
        [
            "api_ids",
            "created_by",
            "created_on",
            "id",
            "key_prefix",
            "key_suffix",
            "last_verified_ip",
            "last_verified_on",
            "name",
            "scopes",
            "status",
            "type",
        ]
    );

    let mut walked = Vec::new();
    let mut path = "/api/v1/api_keys?page_size=11".to_owned();
    loop {
        let (_, page) = read(caller.get(&path).await).await;
        let ids: Vec<String> = page["api_keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key["id"].as_str().unwrap().to_owned())
            .collect();
        let last = ids.last().unwrap().clone();
        walked.extend(ids);
        if page["has_more"] == false {
            break;
        }
        path = format!("/api/v1/api_keys?page_size=11&starting_after={last}");
    }
    assert!(walked.iter().eq(issued.iter().map(IssuedKey::id)));
    assert_eq!(emulator.calls().list_keys.total, 1 + 5);
}

#[tokio::test]
async fn list_filters_keys() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    let one = emulator.issue_key(KeySpec::organization("org_1"));
    let two = emulator.issue_key(KeySpec::organization("org_2"));
    let user = emulator.issue_key(KeySpec::user("kp_1"));
    emulator.issue_key(KeySpec::environment());
    emulator.revoke(two.id());
    for (query, ids) in [
        ("key_type=organization", vec![one.id(), two.id()]),
        (
            "key_type=organization&status=active&page_size=500",
            vec![one.id()],
        ),
        ("status=revoked", vec![two.id()]),
        ("status=inactive", vec![]),
        ("org_code=org_2", vec![two.id()]),
        ("user_id=kp_1", vec![user.id()]),
        ("key_type=user", vec![user.id()]),
    ] {
        let (status, body) = read(caller.get(&format!("/api/v1/api_keys?{query}")).await).await;
        let found: Vec<_> = body["api_keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key["id"].as_str().unwrap())
            .collect();
        assert_eq!((status, found), (200, ids), "{query}");
        assert_eq!(body["has_more"], false);
    }
    for query in [
        "page_size=0",
        "page_size=501",
        "page_size=ten",
        "key_type=environment",
        "status=expired",
        "starting_after=api_key_none",
    ] {
        let (status, body) = read(caller.get(&format!("/api/v1/api_keys?{query}")).await).await;
        assert_eq!(status, 400, "{query}");
        assert_errors_array(&body);
    }
}

#[tokio::test]
async fn rotation_keeps_the_id_and_ends_the_secret() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    let old = emulator.issue_key(KeySpec::organization("org_1").scopes(["a"]));
    let path = format!("/api/v1/api_keys/{}", old.id());
    let (status, body) = read(caller.send(Method::PUT, &path).await).await;
    assert_eq!((status, &body["code"]), (201, &json!("API_KEY_ROTATED")));
    assert_eq!(members(&body), ["api_key", "code", "message"]);
    assert_eq!(members(&body["api_key"]), ["id", "key"]);
    assert_eq!(body["api_key"]["id"], old.id());
    let new = body["api_key"]["key"].as_str().unwrap();
    assert_ne!(new, old.secret());
    let (_, verified) = read(caller.verify(new).await).await;
    assert_eq!(
        (
            &verified["key_id"],
            &verified["status"],
            &verified["scopes"]
        ),
        (&json!(old.id()), &json!("active"), &json!(["a"]))
    );
    let (_, old) = read(caller.verify(old.secret()).await).await;
    assert_eq!(old["is_valid"], false);
}

#[tokio::test]
async fn deleted_key_is_unknown() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    let key = emulator.issue_key(KeySpec::organization("org_1"));
    let path = format!("/api/v1/api_keys/{}", key.id());
    let (status, body) = read(caller.send(Method::DELETE, &path).await).await;
    assert_eq!(
        (status, body),
        (200, json!({ "message": "Success", "code": "OK" }))
    );
    let (_, deleted) = read(caller.verify(key.secret()).await).await;
    assert_eq!(deleted["is_valid"], false);
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let (status, body) = read(caller.send(method, &path).await).await;
        assert_eq!(status, 404);
        assert_errors_object(&body, "ROUTE_NOT_FOUND");
    }
    let calls = emulator.calls();
    assert_eq!(
        [
            calls.get_key.not_found,
            calls.rotate_key.not_found,
            calls.delete_key.not_found
        ],
        [1; 3]
    );
}

#[tokio::test]
async fn unknown_path_gets_route_not_found() {
    let emulator = KindeEmulator::start().await.unwrap();
    let caller = Caller::new(&emulator);
    let wrong = [
        (Method::GET, "/"),
        (Method::GET, "/api/v1/api_keys/a/b"),
        (Method::GET, "/api/v1/api_keys/"),
        (Method::DELETE, "/api/v1/api_keys"),
        (Method::PATCH, "/api/v1/api_keys/a"),
        (Method::POST, "/api/v1/api_keys/a"),
        (Method::GET, "/oauth2/token"),
    ];
    for (method, path) in wrong.clone() {
        let (status, body) = read(caller.send(method, path).await).await;
        assert_eq!(status, 404, "{path}");
        assert_errors_object(&body, "ROUTE_NOT_FOUND");
    }
    assert_eq!(emulator.calls().unrouted, wrong.len() as u64);
    assert_eq!(emulator.calls().total(), wrong.len() as u64);
}
