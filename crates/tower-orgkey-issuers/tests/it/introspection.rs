//! What introspection replies mean.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tower_orgkey::verify::VerifyErrorKind;
use tower_orgkey::{ApiKey, Verifier};
use tower_orgkey_issuers::Endpoint;
use tower_orgkey_issuers::conformance::{CheckResult, Condition, Guarantee, check_verifier};
use tower_orgkey_issuers::introspection::{
    IntrospectionVerifier, IntrospectionVerifierBuilder, Preset,
};

use crate::nested::nested_documents;
use crate::stub::{Answer, Endpoint as At, Request, Stub};
use crate::vendor::{Vendor, seen};

const AUDIENCE: &str = "https://api.acme.example";
const CANARY: &str = "canary-0123456789";
const INACTIVE: &str = r#"{"active":false}"#;

fn token_of(request: &Request) -> String {
    let mut pairs = form_urlencoded::parse(request.body.as_bytes());
    let (_, token) = pairs.find(|(name, _)| name == "token").unwrap();
    token.into_owned()
}

/// An active token of `org_1`.
fn active() -> Value {
    json!({
        "active": true, "token_type": "Bearer", "aud": [AUDIENCE, "another"], "org": "org_1",
        "scope": "read:a write:b", "exp": 4_000_000_000_u64, "jti": "token-1",
    })
}

fn with(changes: &Value) -> Value {
    let mut reply = active();
    for (name, value) in changes.as_object().unwrap() {
        reply[name] = value.clone();
    }
    reply
}

fn without(name: &str) -> Value {
    let mut reply = active();
    reply.as_object_mut().unwrap().remove(name).unwrap();
    reply
}

fn builder(url: String) -> IntrospectionVerifierBuilder {
    let endpoint = Endpoint::builder(url).client_credentials("acme:api", "s3 cret");
    IntrospectionVerifier::builder(endpoint.build().unwrap())
        .audience(AUDIENCE)
        .organization_claim("org")
}

async fn stub(reply: &Value) -> (Stub, IntrospectionVerifierBuilder) {
    answering(Answer::json(200, &reply.to_string())).await
}

async fn answering(answer: Answer) -> (Stub, IntrospectionVerifierBuilder) {
    let stub = Stub::start().await;
    stub.always(At::Elsewhere, answer);
    let builder = builder(format!("{}/introspect", stub.url()));
    (stub, builder)
}

fn key() -> ApiKey {
    ApiKey::parse("opaque-token-1").unwrap()
}

async fn vendor() -> Vendor {
    let about = |_: &str, organization: Option<&str>| match organization {
        Some(organization) => (200, with(&json!({ "org": organization }))),
        None => (200, json!({ "active": false })),
    };
    Vendor::start("at-", token_of, about, Some((200, INACTIVE))).await
}

#[tokio::test]
async fn fault_131_introspection_passes_the_kit() {
    let mut vendor = vendor().await;
    let canary = vendor.new_key("org_of_this_service");
    let verifier = builder(vendor.url("/introspect")).canary(canary.expose_secret());
    let report = check_verifier(verifier.build().unwrap(), &mut vendor).await;
    report.assert();
    assert!(
        report.holds(Guarantee::Recovery, Condition::Inactive),
        "{report}"
    );
}

#[tokio::test]
async fn without_canary_another_key_is_needed() {
    let mut vendor = vendor().await;
    let verifier = builder(vendor.url("/introspect")).build().unwrap();
    let report = check_verifier(verifier, &mut vendor).await;
    report.assert_except(&[Guarantee::LoneRevokedKeysRejected]);
    for guarantee in [Guarantee::NewKeysUnavailable, Guarantee::Recovery] {
        let mut checks = report.checks().iter();
        let check = checks
            .find(|check| check.guarantee == guarantee && check.condition == Condition::Inactive);
        let result = &check.unwrap().result;
        assert!(matches!(result, CheckResult::Limited(_)), "{report}");
        assert!(!report.holds(guarantee, Condition::Inactive));
        assert!(report.holds(guarantee, Condition::Down));
    }
}

#[tokio::test]
async fn request_is_that_of_rfc_7662() {
    let (stub, builder) = stub(&active()).await;
    let org = seen(builder.build().unwrap(), "a+token/1=").await.unwrap();
    assert_eq!(org.org_code(), "org_1");
    assert!(org.scopes().contains("read:a") && org.scopes().contains("write:b"));
    assert_eq!(org.scopes().len(), 2);
    assert_eq!(org.key_id().unwrap(), "token-1");
    let request = &stub.requests(At::Elsewhere)[0];
    assert_eq!(
        (&*request.method, &*request.target),
        ("POST", "/introspect")
    );
    assert_eq!(
        request.headers["content-type"],
        "application/x-www-form-urlencoded"
    );
    assert_eq!(
        request.body,
        "token=a%2Btoken%2F1%3D&token_type_hint=access_token"
    );
    // The base64 of `acme%3Aapi:s3+cret` (RFC 6749 §2.3.1).
    let basic = "Basic YWNtZSUzQWFwaTpzMytjcmV0";
    assert_eq!(request.headers["authorization"], basic);
}

#[tokio::test]
async fn only_bearer_access_tokens_for_us_are_keys() {
    for (what, reply) in [
        ("refresh token of oidc-provider", without("token_type")),
        (
            "refresh token of Hydra",
            with(&json!({ "token_use": "refresh_token" })),
        ),
        (
            "refresh token of Keycloak",
            with(&json!({ "typ": "Refresh" })),
        ),
        ("ID token", with(&json!({ "typ": "ID" }))),
        ("DPoP token", with(&json!({ "token_type": "DPoP" }))),
        ("bound token", with(&json!({ "cnf": { "jkt": "x" } }))),
        ("foreign audience", with(&json!({ "aud": "another" }))),
        ("foreign audiences", with(&json!({ "aud": ["a", "b"] }))),
        ("no audience", without("aud")),
    ] {
        let (_stub, builder) = stub(&reply).await;
        let seen = seen(builder.build().unwrap(), "opaque-token-1").await;
        assert_eq!(seen.unwrap_err(), 401, "{what}");
    }
}

#[tokio::test]
async fn other_active_tokens_are_keys() {
    for reply in [
        with(&json!({ "token_type": "bearer" })),
        with(&json!({ "token_use": "access_token", "typ": "Bearer" })),
        with(&json!({ "aud": AUDIENCE, "cnf": null, "jti": null, "exp": null })),
        with(&json!({ "scope": null, "future_member": [1] })),
    ] {
        let (_stub, builder) = stub(&reply).await;
        let seen = seen(builder.build().unwrap(), "opaque-token-1").await;
        assert_eq!(seen.unwrap().org_code(), "org_1", "{reply}");
    }
}

#[tokio::test]
async fn waived_checks_are_not_made() {
    let (_stub, strict) = stub(&without("aud")).await;
    assert!(
        seen(strict.any_audience().build().unwrap(), "opaque-token-1")
            .await
            .is_ok()
    );
    let (_stub, strict) = stub(&without("token_type")).await;
    let lenient = strict.allow_missing_token_type().build().unwrap();
    assert!(seen(lenient, "opaque-token-1").await.is_ok());
}

#[tokio::test]
async fn key_itself_is_no_key_id() {
    let (_stub, builder) = stub(&with(&json!({ "jti": "opaque-token-1" }))).await;
    let org = seen(builder.build().unwrap(), "opaque-token-1")
        .await
        .unwrap();
    assert_eq!(org.key_id(), None);
}

#[tokio::test]
async fn exp_caps_the_hard_ttl() {
    let (_stub, strict) = stub(&active()).await;
    let result = strict.build().unwrap().verify(&key()).await.unwrap();
    let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    assert_eq!(result.expires_at(), Some(expected));
    let (_stub, strict) = stub(&with(&json!({ "exp": 1_700_000_000 }))).await;
    let seen = seen(strict.build().unwrap(), "opaque-token-1").await;
    assert_eq!(seen.unwrap_err(), 401, "expired, although it is active");
}

#[tokio::test]
async fn unusable_replies_concern_one_key() {
    for reply in [
        json!({}),
        json!([true]),
        json!({ "active": "true" }),
        json!({ "active": null }),
        with(&json!({ "exp": 4_000_000_000_000_u64 })),
        with(&json!({ "exp": "4000000000" })),
        with(&json!({ "exp": -1 })),
        with(&json!({ "scope": ["read:a"] })),
        with(&json!({ "aud": 1 })),
        with(&json!({ "org": "two words" })),
        with(&json!({ "org": 5 })),
        with(&json!({ "org": ["org_1"] })),
        with(&json!({ "jti": "two words" })),
        with(&json!({ "token_type": 1 })),
    ] {
        let (_stub, builder) = stub(&reply).await;
        let error = builder.build().unwrap().verify(&key()).await.unwrap_err();
        assert_eq!(error.kind(), VerifyErrorKind::InvalidResponse, "{reply}");
    }
    // Two parsers could read two values.
    let twice = r#"{"active":false,"active":true,"token_type":"Bearer"}"#;
    let organizations = active().to_string().replacen('{', r#"{"org":"org_2","#, 1);
    for answer in [
        Answer::json(200, twice),
        Answer::json(200, &organizations),
        Answer::json(400, INACTIVE),
    ] {
        let (_stub, builder) = answering(answer).await;
        let error = builder.build().unwrap().verify(&key()).await.unwrap_err();
        assert_eq!(error.kind(), VerifyErrorKind::InvalidResponse);
    }
}

#[tokio::test]
async fn statuses_say_what_failed() {
    for (status, kind) in [
        (401, VerifyErrorKind::Misconfigured),
        (403, VerifyErrorKind::Misconfigured),
        (404, VerifyErrorKind::Unavailable),
        (500, VerifyErrorKind::Unavailable),
        (307, VerifyErrorKind::Unavailable),
    ] {
        let (_stub, builder) = answering(Answer::json(status, INACTIVE)).await;
        let error = builder.build().unwrap().verify(&key()).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{status}");
    }
    let (_stub, builder) = answering(Answer::status(429).with("Retry-After", "30")).await;
    let error = builder.build().unwrap().verify(&key()).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
}

#[tokio::test]
async fn no_organization_is_no_error() {
    for reply in [
        without("org"),
        with(&json!({ "org": null })),
        with(&json!({ "org": " " })),
    ] {
        let (_stub, builder) = stub(&reply).await;
        let seen = seen(builder.build().unwrap(), "opaque-token-1").await;
        assert_eq!(seen.unwrap_err(), 403, "{reply}");
    }
}

/// Answers in turn about the key, and about the canary.
async fn in_turn(key: &'static [bool], canary: bool) -> (Stub, IntrospectionVerifier) {
    let (stub, builder) = stub(&active()).await;
    let calls = Arc::new(AtomicUsize::new(0));
    stub.on(At::Elsewhere, move |request| {
        let is_active = if token_of(request) == CANARY {
            canary
        } else {
            key[calls.fetch_add(1, Ordering::SeqCst)]
        };
        let reply = if is_active {
            active().to_string()
        } else {
            INACTIVE.to_owned()
        };
        Answer::json(200, &reply)
    });
    (stub, builder.canary(CANARY).build().unwrap())
}

#[tokio::test]
async fn fault_132_canary_confirms_that_a_key_is_inactive() {
    // Definitive, or recovered between the answer and the canary's.
    for (key_answers, canary, shown, calls) in [
        (&[false, false][..], true, "Definitive", 3),
        (&[false, true], true, "Valid", 3),
        (&[true], true, "Valid", 1),
    ] {
        let (stub, verifier) = in_turn(key_answers, canary).await;
        let result = verifier.reverify(&key()).await.unwrap();
        let text = format!("{result:?}");
        assert!(text.contains(shown), "{key_answers:?} {canary}: {text}");
        assert_eq!(stub.count(At::Elsewhere), calls, "{key_answers:?} {canary}");
    }
    // Out of order. An unconfirmed answer would be confirmed by the next one about another key.
    let (stub, verifier) = in_turn(&[false], false).await;
    let error = verifier.reverify(&key()).await.unwrap_err();
    assert_eq!(error.kind(), VerifyErrorKind::Inconclusive);
    assert_eq!(stub.count(At::Elsewhere), 2);
    // An unknown key costs one call.
    let (stub, verifier) = in_turn(&[false], true).await;
    let result = verifier.verify(&key()).await.unwrap();
    assert!(format!("{result:?}").contains("Unconfirmed"));
    assert_eq!(stub.count(At::Elsewhere), 1);
}

#[tokio::test]
async fn rejected_client_may_be_400() {
    for error in ["invalid_client", "unauthorized_client"] {
        let body = json!({ "error": error }).to_string();
        let (_stub, builder) = answering(Answer::json(400, &body)).await;
        let error = builder.build().unwrap().verify(&key()).await.unwrap_err();
        assert_eq!(error.kind(), VerifyErrorKind::Misconfigured);
    }
    let (_stub, builder) = answering(Answer::json(400, r#"{"error":"invalid_request"}"#)).await;
    let error = builder.build().unwrap().verify(&key()).await.unwrap_err();
    assert_eq!(error.kind(), VerifyErrorKind::InvalidResponse);
}

#[tokio::test]
async fn wait_of_a_429_with_a_long_page_is_read() {
    let page = "x".repeat(100_000);
    let answer = Answer::json(429, &page).with("Retry-After", "30");
    let (_stub, builder) = answering(answer).await;
    let error = builder.build().unwrap().verify(&key()).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
}

#[tokio::test]
async fn subject_that_is_no_client_is_a_user() {
    for (claims, user) in [
        (
            json!({ "sub": "user-1", "client_id": "app" }),
            Some("user-1"),
        ),
        (json!({ "sub": "user-1" }), Some("user-1")),
        (json!({ "sub": "app", "client_id": "app" }), None),
        (json!({ "client_id": "app" }), None),
        (
            json!({ "username": "jdoe", "client_id": "app" }),
            Some("jdoe"),
        ),
        (json!({ "username": "app", "client_id": "app" }), None),
        (json!({ "username": " " }), None),
        (json!({ "username": 7 }), None),
        (
            json!({ "sub": "app", "username": "service", "client_id": "app" }),
            None,
        ),
    ] {
        let (_stub, strict) = stub(&with(&claims)).await;
        let org = seen(strict.build().unwrap(), "opaque-token-1")
            .await
            .unwrap();
        assert_eq!(org.user_id(), user, "{claims}");
        let (_stub, strict) = stub(&with(&claims)).await;
        let waived = strict.service_accounts().build().unwrap();
        let org = seen(waived, "opaque-token-1").await.unwrap();
        assert_eq!(org.user_id(), None, "{claims}");
    }
}

#[tokio::test]
async fn fault_212_nested_documents_are_no_user() {
    let nested = nested_documents(60 * 1024);
    for member in ["username", "other"] {
        let reply = with(&json!({ member: 0 })).to_string();
        let reply = reply.replace(":0", &format!(":{nested}"));
        assert!(reply.len() > 50 * 1024);
        let (_stub, builder) = answering(Answer::json(200, &reply)).await;
        let org = seen(builder.build().unwrap(), "opaque-token-1").await;
        assert_eq!(org.unwrap().user_id(), None, "{member}");
    }
}

#[tokio::test]
async fn settings_are_checked() {
    let endpoint = || {
        Endpoint::builder("http://127.0.0.1:1/introspect")
            .build()
            .unwrap()
    };
    let new = || IntrospectionVerifier::builder(endpoint());
    let field = |builder: IntrospectionVerifierBuilder| builder.build().unwrap_err().field();
    assert_eq!(field(new().preset(Preset::Hydra)), "audience");
    assert_eq!(field(new().preset(Preset::Hydra).audience(" ")), "audience");
    assert_eq!(field(new().any_audience()), "organization");
    let complete = || new().any_audience().preset(Preset::Zitadel);
    assert_eq!(field(complete().canary("a b")), "canary");
    assert!(complete().build().is_ok());
    let shown = format!("{:?}", complete().canary(CANARY).build().unwrap());
    assert!(!shown.contains(CANARY), "{shown}");

    let field =
        |builder: tower_orgkey_issuers::EndpointBuilder| builder.build().unwrap_err().field();
    for url in [
        "",
        "127.0.0.1",
        "http://acme.example/x",
        "ftp://127.0.0.1/",
        "http://127.0.0.1/?a",
    ] {
        assert_eq!(field(Endpoint::builder(url)), "url", "{url}");
    }
    let at = || Endpoint::builder("http://127.0.0.1/x");
    assert_eq!(field(at().bearer_token("a b")), "bearer_token");
    assert_eq!(field(at().bearer_token("")), "bearer_token");
    assert_eq!(
        field(at().client_credentials("", "s")),
        "client_credentials"
    );
    assert_eq!(
        field(at().connect_timeout(Duration::ZERO)),
        "connect_timeout"
    );
}
