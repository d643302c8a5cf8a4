//! Keys of another API of the same tenant.

use crate::support::kinde::{GOOD, Stage, VALID_REPLY, invalid_reply, valid_reply};
use crate::support::stub::{Answer, Endpoint};

const NEW: &str = "k_live_good_0002";

async fn stage() -> Stage {
    let stage = Stage::with(|builder| builder.api_id("api_ours")).await;
    stage.stub.always(Endpoint::Key, record(OURS));
    stage
}

const OURS: &str = r#""organization_id":"org_1","api_ids":["api_other","api_ours"]"#;

/// A key's record with these fields.
fn record(fields: &str) -> Answer {
    let key = format!(r#"{{"id":"api_key_0001","name":"n","status":"active",{fields}}}"#);
    Answer::json(
        200,
        &format!(r#"{{"code":"OK","message":"Success","api_key":{key}}}"#),
    )
}

fn served() -> (u16, String) {
    (200, "org_1".into())
}

#[tokio::test]
async fn record_is_looked_up_once_per_hour() {
    let stage = stage().await;
    assert_eq!(stage.get(GOOD).await, served());
    let looked_up = stage.stub.requests(Endpoint::Key).remove(0);
    assert_eq!(looked_up.target, "/api/v1/api_keys/api_key_0001");
    assert_eq!(looked_up.token(), Some("token-1"));
    for _ in 0..20 {
        stage.jump(170);
        assert_eq!(stage.get(GOOD).await, served());
    }
    assert_eq!(stage.count(Endpoint::Verify), 21);
    assert_eq!(stage.count(Endpoint::Key), 1);
    stage.jump(300);
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Key), 2);
}

#[tokio::test]
async fn record_may_be_wrapped() {
    let stage = stage().await;
    let bare = format!(r#"{{"id":"api_key_0001",{OURS}}}"#);
    stage.stub.always(Endpoint::Key, Answer::json(200, &bare));
    assert_eq!(stage.get(GOOD).await, served());
}

#[tokio::test]
async fn record_need_not_have_an_id() {
    let stage = stage().await;
    let wrapped = format!(r#"{{"api_key":{{{OURS}}}}}"#);
    stage
        .stub
        .always(Endpoint::Key, Answer::json(200, &wrapped));
    assert_eq!(stage.get(GOOD).await, served());
    assert_eq!(stage.count(Endpoint::Key), 1);
}

#[tokio::test]
async fn key_and_record_may_have_no_organization() {
    let stage = stage().await;
    let nobodys = VALID_REPLY.replace(r#""org_1""#, "null");
    stage
        .stub
        .always(Endpoint::Verify, Answer::json(200, &nobodys));
    for none in ["", r#","organization_id":null"#] {
        let fields = format!(r#""api_ids":["api_ours"]{none}"#);
        stage.stub.always(Endpoint::Key, record(&fields));
        assert!(stage.verify(GOOD).await.unwrap().is_valid());
        stage.jump(3_700);
    }
    assert_eq!(stage.count(Endpoint::Key), 2);
}

#[tokio::test]
async fn key_of_another_api_is_invalid() {
    for fields in [
        r#""organization_id":"org_1","api_ids":["api_other"]"#,
        r#""organization_id":"org_1","api_ids":[]"#,
        r#""organization_id":"org_1","api_ids":["API_OURS","api_ours2","api_our"]"#,
        r#""organization_id":"org_2","api_ids":["api_ours"]"#,
        r#""organization_id":"ORG_1","api_ids":["api_ours"]"#,
    ] {
        let stage = stage().await;
        stage.stub.always(Endpoint::Key, record(fields));
        let rejected = (401, "invalid-token".to_owned());
        assert_eq!(stage.get(GOOD).await, rejected, "{fields}");
        assert_eq!(stage.count(Endpoint::Key), 1);
    }
    let stage = stage().await;
    let revoked = record(OURS);
    let Answer::Reply { body, .. } = revoked else {
        unreachable!("it is a reply")
    };
    let revoked = String::from_utf8(body)
        .unwrap()
        .replace("active", "revoked");
    stage
        .stub
        .always(Endpoint::Key, Answer::json(200, &revoked));
    assert_eq!(stage.get(GOOD).await.0, 401);
}

#[tokio::test]
async fn record_of_another_api_is_looked_up_once_per_hour() {
    let other = record(r#""organization_id":"org_1","api_ids":["api_other"]"#);
    let Answer::Reply { body, .. } = record(OURS) else {
        unreachable!("it is a reply")
    };
    let inactive = String::from_utf8(body).unwrap().replace("active", "off");
    for (answer, look_ups) in [
        (other, 1),
        // These may change.
        (Answer::json(200, &inactive), 58),
        (
            record(r#""organization_id":"org_2","api_ids":["api_ours"]"#),
            58,
        ),
    ] {
        let stage = stage().await;
        stage.stub.always(Endpoint::Key, answer);
        for _ in 0..58 {
            assert_eq!(stage.get(GOOD).await.0, 401);
            stage.jump(62);
        }
        assert_eq!(stage.count(Endpoint::Verify), 58);
        assert_eq!(stage.count(Endpoint::Key), look_ups);
        stage.stub.always(Endpoint::Key, record(OURS));
        stage.jump(62);
        assert_eq!(stage.get(GOOD).await, served());
        assert_eq!(stage.count(Endpoint::Key), look_ups + 1);
    }
}

#[tokio::test]
async fn invalid_record_decides_nothing() {
    for answer in [
        record(r#""organization_id":"org_1""#),
        record(r#""organization_id":"org_1","api_ids":null"#),
        record(r#""organization_id":"org_1","api_ids":"api_ours""#),
        record(r#""organization_id":"org_1","api_ids":["api_ours",7]"#),
        record(r#""organization_id":7,"api_ids":["api_ours"]"#),
        record(r#""organization_id":null,"api_ids":["api_ours"]"#),
        record(r#""api_ids":["api_ours"]"#),
        record(r#""organization_id":"org_1","api_ids":["api_ours"],"api_ids":["api_ours"]"#),
        record(r#""organization_id":"org_1","api_ids":["api_ours"],"id":"api_key_0002""#),
        Answer::json(
            200,
            r#"{"api_key":{"id":"api_key_0002","organization_id":"org_1","api_ids":["api_ours"]}}"#,
        ),
        Answer::json(200, &format!(r#"{{"api_key":null,{OURS}}}"#)),
        Answer::json(200, &format!(r#"{{"api_key":{{"id":null,{OURS}}}}}"#)),
        Answer::json(200, r#"{"api_key":[]}"#),
        Answer::json(200, "[]"),
        Answer::json(200, "<html>"),
        record(OURS).with("Content-Type", "text/html"),
        Answer::status(400),
        Answer::status(429),
        Answer::status(500),
        Answer::status(302),
        Answer::json(
            404,
            r#"{"errors":{"code":"ROUTE_NOT_FOUND","message":"m"}}"#,
        ),
        Answer::Endless,
        Answer::Bytes(Vec::new()),
    ] {
        let what = format!("{answer:.300?}");
        let stage = stage().await;
        assert_eq!(stage.get(GOOD).await, served(), "{what}");
        stage.stub.always(Endpoint::Key, answer);
        // After an hour, when neither the record nor the key is cached.
        stage.jump(3_700);
        let (status, code) = stage.get(GOOD).await;
        assert_eq!((status, &*code), (503, "verifier-unavailable"), "{what}");
        assert!(stage.count(Endpoint::Key) > 1, "{what}");
    }
}

#[tokio::test]
async fn unknown_key_without_a_record_is_invalid() {
    let stage = stage().await;
    let none = Answer::json(404, r#"{"errors":[{"code":"API_KEY_NOT_FOUND"}]}"#);
    stage.stub.always(Endpoint::Key, none);
    assert_eq!(stage.get(GOOD).await.0, 401);
}

#[tokio::test]
async fn key_without_an_id_cannot_be_checked() {
    for key_id in ["null", r#""""#, r#"".""#, r#""..""#] {
        let stage = stage().await;
        let body = crate::support::kinde::VALID_REPLY.replace(r#""api_key_0001""#, key_id);
        stage
            .stub
            .always(Endpoint::Verify, Answer::json(200, &body));
        let (status, code) = stage.get(GOOD).await;
        assert_eq!((status, &*code), (503, "verifier-unavailable"), "{key_id}");
        assert_eq!(stage.count(Endpoint::Key), 0);
        assert_eq!(stage.count(Endpoint::Elsewhere), 0);
    }
}

#[tokio::test]
async fn key_id_is_one_path_segment() {
    let stage = stage().await;
    let body = crate::support::kinde::VALID_REPLY.replace("api_key_0001", "../x?y#z/%2e%2e");
    stage
        .stub
        .always(Endpoint::Verify, Answer::json(200, &body));
    assert_eq!(stage.get(GOOD).await.0, 503);
    let looked_up = stage.stub.requests(Endpoint::Key).remove(0);
    assert_eq!(
        looked_up.target,
        "/api/v1/api_keys/..%2Fx%3Fy%23z%2F%252e%252e"
    );
}

#[tokio::test]
async fn invalid_key_is_not_looked_up() {
    let stage = stage().await;
    stage.stub.always(Endpoint::Verify, invalid_reply());
    assert_eq!(stage.get(GOOD).await.0, 401);
    assert_eq!(stage.count(Endpoint::Key), 0);
}

#[tokio::test]
async fn changed_organization_is_looked_up_again() {
    let stage = stage().await;
    assert_eq!(stage.get(GOOD).await, served());
    let moved = crate::support::kinde::VALID_REPLY.replace("org_1", "org_2");
    stage
        .stub
        .always(Endpoint::Verify, Answer::json(200, &moved));
    assert_eq!(stage.get(NEW).await.0, 401);
    assert_eq!(stage.count(Endpoint::Key), 2);
}

/// Verify accepts a token without scopes, but the look-up does not.
#[tokio::test]
async fn token_without_scope_is_renewed_with_backoff() {
    for status in [401, 403] {
        let stage = stage().await;
        stage.stub.always(Endpoint::Verify, valid_reply());
        stage.stub.on(Endpoint::Key, move |request| {
            if request.token() == Some("token-1") {
                Answer::status(status)
            } else {
                record(OURS)
            }
        });
        assert_eq!(stage.get(GOOD).await, served());
        assert_eq!(stage.count(Endpoint::Token), 2);

        let stage = super::own_api::stage().await;
        stage.stub.always(Endpoint::Key, Answer::status(status));
        let misconfigured = (503, "verifier-misconfigured".to_owned());
        for n in 0..10 {
            let key = format!("k_live_good_{n:04}");
            assert_eq!(stage.get(&key).await, misconfigured);
        }
        assert_eq!(stage.count(Endpoint::Token), 2);
        stage.jump(5);
        assert_eq!(stage.get(GOOD).await, misconfigured);
        assert_eq!(stage.get(NEW).await, misconfigured);
        assert_eq!(stage.count(Endpoint::Token), 3);
    }
}
