//! Unkey, with the replies of its published API description.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tower_orgkey::verify::VerifyErrorKind;
use tower_orgkey::{ApiKey, Verifier};
use tower_orgkey_issuers::Endpoint;
use tower_orgkey_issuers::conformance::{Guarantee, Report, check_verifier};
use tower_orgkey_issuers::unkey::UnkeyVerifier;

use crate::stub::{Answer, Endpoint as At, Stub};
use crate::vendor::{About, Vendor, member, seen};

pub(crate) const PATH: &str = "/v2/keys.verifyKey";

pub(crate) fn verifier(url: String) -> UnkeyVerifier {
    let endpoint = Endpoint::builder(url).bearer_token("unkey_secret");
    UnkeyVerifier::with_endpoint(endpoint.build().unwrap())
}

fn reply(data: &Value) -> Value {
    json!({ "meta": { "requestId": "req_1" }, "data": data })
}

fn valid(organization: &str) -> Value {
    reply(&json!({
        "valid": true, "code": "VALID", "keyId": "key_1", "name": "CI", "enabled": true,
        "meta": { "tenant": "org_of_meta" }, "expires": 4_000_000_000_000_u64, "credits": 5,
        "permissions": ["documents.read"], "roles": ["editor"],
        "identity": { "id": "id_1", "externalId": organization, "meta": {}, "ratelimits": [] },
        "ratelimits": [],
    }))
}

fn invalid(code: &str) -> Value {
    reply(&json!({ "valid": false, "code": code }))
}

fn problem(status: u16) -> Value {
    let error = json!({
        "title": "Error", "detail": "It failed.", "status": status,
        "type": "https://unkey.com/docs/errors/unkey/error",
    });
    json!({ "meta": { "requestId": "req_1" }, "error": error })
}

/// The replies of the tests that Unkey describes.
pub(crate) fn replies() -> Vec<(u16, Value)> {
    let mut bad_request = problem(400);
    bad_request["error"]["errors"] = json!([]);
    let codes = [
        "NOT_FOUND",
        "FORBIDDEN",
        "INSUFFICIENT_PERMISSIONS",
        "USAGE_EXCEEDED",
        "RATE_LIMITED",
        "DISABLED",
        "EXPIRED",
    ];
    let mut replies = vec![(200, valid("org_1")), (400, bad_request)];
    replies.extend(codes.map(|code| (200, invalid(code))));
    replies.extend([401, 403, 429, 500].map(|status| (status, problem(status))));
    replies
}

async fn answering(status: u16, body: &Value) -> (Stub, UnkeyVerifier) {
    let stub = Stub::start().await;
    stub.always(At::Elsewhere, Answer::json(status, &body.to_string()));
    let verifier = verifier(format!("{}{PATH}", stub.url()));
    (stub, verifier)
}

fn key() -> ApiKey {
    ApiKey::parse("sk_0123456789").unwrap()
}

async fn check(about: About) -> Report {
    // As if the root key lost the permission to verify keys of the API.
    let inactive = invalid("NOT_FOUND").to_string();
    let inactive = Some((200, &*inactive));
    let mut vendor = Vendor::start("sk_", |request| member(request, "key"), about, inactive).await;
    check_verifier(verifier(vendor.url(PATH)), &mut vendor).await
}

#[tokio::test]
async fn fault_134_unkey_passes_the_kit() {
    let report = check(|_, organization| match organization {
        Some(code) => (200, valid(code)),
        None => (200, invalid("DISABLED")),
    });
    report.await.assert();
}

#[tokio::test]
async fn deleted_key_needs_the_yes_of_another() {
    let report = check(|_, organization| match organization {
        Some(code) => (200, valid(code)),
        None => (200, invalid("NOT_FOUND")),
    });
    let report = report.await;
    report.assert_except(&[Guarantee::LoneRevokedKeysRejected]);
}

#[tokio::test]
async fn fault_135_verifying_spends_nothing() {
    let (stub, verifier) = answering(200, &valid("org_1")).await;
    verifier.verify(&key()).await.unwrap();
    let request = &stub.requests(At::Elsewhere)[0];
    let body: Value = serde_json::from_str(&request.body).unwrap();
    let expected = json!({ "key": "sk_0123456789", "credits": { "cost": 0 } });
    assert_eq!(body, expected, "no permissions, no rate limits");
    assert_eq!(request.token(), Some("unkey_secret"));
}

#[tokio::test]
async fn valid_key_is_read() {
    let (_stub, verifier) = answering(200, &valid("org_1")).await;
    let result = verifier.verify(&key()).await.unwrap();
    let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    assert_eq!(result.expires_at(), Some(expected), "milliseconds");
    let org = seen(verifier.clone(), "sk_0123456789").await.unwrap();
    assert_eq!(org.org_code(), "org_1");
    assert_eq!(org.key_id().unwrap(), "key_1");
    assert!(org.scopes().contains("documents.read") && org.scopes().len() == 1);
    let of_meta = verifier.organization_in_meta("tenant");
    let org = seen(of_meta, "sk_0123456789").await.unwrap();
    assert_eq!(org.org_code(), "org_of_meta");
}

#[tokio::test]
async fn organization_in_meta_is_read_strictly() {
    let reply = valid("org_1").to_string();
    let member = r#""tenant":"org_of_meta""#;
    assert!(reply.contains(member));
    for other in [
        r#""tenant":5"#.to_owned(),
        format!(r#"{member},"tenant":"org_2""#),
    ] {
        let stub = Stub::start().await;
        let reply = Answer::json(200, &reply.replace(member, &other));
        stub.always(At::Elsewhere, reply);
        let verifier = verifier(stub.url()).organization_in_meta("tenant");
        let error = verifier.verify(&key()).await.unwrap_err();
        assert_eq!(error.kind(), VerifyErrorKind::InvalidResponse, "{other}");
    }
}

#[tokio::test]
async fn fault_136_limits_of_a_key_are_no_rejection() {
    for code in ["RATE_LIMITED", "USAGE_EXCEEDED"] {
        let (_stub, verifier) = answering(200, &invalid(code)).await;
        let error = verifier.verify(&key()).await.unwrap_err();
        // Throttled would pause the verification of all keys.
        assert_eq!(error.kind(), VerifyErrorKind::Inconclusive, "{code}");
        assert_eq!(seen(verifier, "sk_0123456789").await.unwrap_err(), 503);
    }
}

#[tokio::test]
async fn not_found_is_unconfirmed() {
    for (code, shown) in [
        ("NOT_FOUND", "Unconfirmed"),
        ("DISABLED", "Definitive"),
        ("EXPIRED", "Definitive"),
    ] {
        let (_stub, verifier) = answering(200, &invalid(code)).await;
        let result = format!("{:?}", verifier.verify(&key()).await.unwrap());
        assert!(result.contains(shown), "{code}: {result}");
    }
}

#[tokio::test]
async fn other_answers_cannot_tell() {
    let seconds = |mut reply: Value| {
        reply["data"]["expires"] = json!(1_800_000_000);
        reply
    };
    let untrue = |mut reply: Value| {
        reply["data"]["code"] = json!("NOT_FOUND");
        reply
    };
    for (status, body, kind) in [
        (200, invalid("FORBIDDEN"), VerifyErrorKind::Misconfigured),
        (
            200,
            invalid("INSUFFICIENT_PERMISSIONS"),
            VerifyErrorKind::InvalidResponse,
        ),
        (200, invalid("VALID"), VerifyErrorKind::InvalidResponse),
        (200, invalid("NEW_CODE"), VerifyErrorKind::InvalidResponse),
        (
            200,
            untrue(valid("org_1")),
            VerifyErrorKind::InvalidResponse,
        ),
        (
            200,
            seconds(valid("org_1")),
            VerifyErrorKind::InvalidResponse,
        ),
        (200, json!({}), VerifyErrorKind::InvalidResponse),
        (400, problem(400), VerifyErrorKind::InvalidResponse),
        (401, problem(401), VerifyErrorKind::Misconfigured),
        (403, problem(403), VerifyErrorKind::Misconfigured),
        (
            429,
            problem(429),
            VerifyErrorKind::Throttled { retry_after: None },
        ),
        (500, problem(500), VerifyErrorKind::Unavailable),
    ] {
        let (_stub, verifier) = answering(status, &body).await;
        let error = verifier.verify(&key()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status} {body}");
    }
}
