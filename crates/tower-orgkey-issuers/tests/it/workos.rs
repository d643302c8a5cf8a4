//! WorkOS, with the replies of its published API description.

use serde_json::{Value, json};
use tower_orgkey::verify::VerifyErrorKind;
use tower_orgkey::{ApiKey, Verifier};
use tower_orgkey_issuers::Endpoint;
use tower_orgkey_issuers::conformance::check_verifier;
use tower_orgkey_issuers::workos::WorkOsVerifier;

use crate::stub::{Answer, Endpoint as At, Stub};
use crate::vendor::{Vendor, member, seen};

pub(crate) const PATH: &str = "/api_keys/validations";

pub(crate) fn verifier(url: String) -> WorkOsVerifier {
    let endpoint = Endpoint::builder(url).bearer_token("sk_test_secret");
    WorkOsVerifier::with_endpoint(endpoint.build().unwrap())
}

fn record(owner: &Value) -> Value {
    json!({ "api_key": {
        "object": "api_key", "id": "api_key_01", "owner": owner, "name": "CI",
        "obfuscated_value": "sk_…0001", "permissions": ["posts:read", "posts:write"],
        "last_used_at": null, "created_at": "2026-01-15T12:00:00.000Z",
        "updated_at": "2026-01-15T12:00:00.000Z",
    }})
}

fn of_organization(code: &str) -> Value {
    record(&json!({ "type": "organization", "id": code }))
}

fn of_user(organization: &str) -> Value {
    record(&json!({ "type": "user", "id": "user_01", "organization_id": organization }))
}

fn unprocessable() -> Value {
    json!({ "message": "Validation failed" })
}

/// The replies of the tests that WorkOS describes.
pub(crate) fn replies() -> Vec<(u16, Value)> {
    vec![
        (200, of_organization("org_01")),
        (200, of_user("org_01")),
        (200, json!({ "api_key": null })),
        (422, unprocessable()),
    ]
}

async fn answering(answer: Answer) -> (Stub, WorkOsVerifier) {
    let stub = Stub::start().await;
    stub.always(At::Elsewhere, answer);
    let verifier = verifier(format!("{}{PATH}", stub.url()));
    (stub, verifier)
}

fn key() -> ApiKey {
    ApiKey::parse("sk_0123456789").unwrap()
}

#[tokio::test]
async fn fault_133_workos_passes_the_kit() {
    let about = |_: &str, organization: Option<&str>| match organization {
        Some(code) => (200, of_organization(code)),
        None => (200, json!({ "api_key": null })),
    };
    // An outage that looks like a rejected request.
    let inactive = unprocessable().to_string();
    let inactive = Some((422, &*inactive));
    let mut vendor =
        Vendor::start("sk_", |request| member(request, "value"), about, inactive).await;
    let report = check_verifier(verifier(vendor.url(PATH)), &mut vendor).await;
    report.assert();
    let request = &vendor.requests()[0];
    assert_eq!((&*request.method, &*request.target), ("POST", PATH));
    assert_eq!(request.token(), Some("sk_test_secret"));
}

#[tokio::test]
async fn key_of_an_organization_is_read() {
    let reply = of_organization("org_01").to_string();
    let (_stub, verifier) = answering(Answer::json(200, &reply)).await;
    let org = seen(verifier, "sk_0123456789").await.unwrap();
    assert_eq!(org.org_code(), "org_01");
    assert_eq!(org.key_id().unwrap(), "api_key_01");
    assert!(org.scopes().contains("posts:read") && org.scopes().len() == 2);
    assert_eq!(org.user_id(), None);
}

#[tokio::test]
async fn key_of_a_user_has_a_user() {
    let reply = of_user("org_01").to_string();
    let (_stub, verifier) = answering(Answer::json(200, &reply)).await;
    let org = seen(verifier, "sk_0123456789").await.unwrap();
    assert_eq!(org.org_code(), "org_01");
    assert_eq!(org.user_id(), Some("user_01"));
}

#[tokio::test]
async fn null_is_invalid_and_401_is_not() {
    let (_stub, verifier) = answering(Answer::json(200, r#"{"api_key":null}"#)).await;
    let result = format!("{:?}", verifier.verify(&key()).await.unwrap());
    assert!(result.contains("Definitive"), "{result}");
    let (_stub, verifier) = answering(Answer::json(422, &unprocessable().to_string())).await;
    let result = format!("{:?}", verifier.verify(&key()).await.unwrap());
    assert!(result.contains("Unconfirmed"), "{result}");
    for (status, body, kind) in [
        (401, "{}", VerifyErrorKind::Misconfigured),
        (403, "{}", VerifyErrorKind::Misconfigured),
        (404, "{}", VerifyErrorKind::Unavailable),
        (200, "{}", VerifyErrorKind::InvalidResponse),
        (200, r#"{"api_key":{}}"#, VerifyErrorKind::InvalidResponse),
        (
            200,
            r#"{"api_key":false}"#,
            VerifyErrorKind::InvalidResponse,
        ),
    ] {
        let (_stub, verifier) = answering(Answer::json(status, body)).await;
        let error = verifier.verify(&key()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status} {body}");
    }
    let owner = json!({ "type": "team", "id": "x" });
    let (_stub, verifier) = answering(Answer::json(200, &record(&owner).to_string())).await;
    let error = verifier.verify(&key()).await.unwrap_err();
    assert_eq!(error.kind(), VerifyErrorKind::InvalidResponse);
}
