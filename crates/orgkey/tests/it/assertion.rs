//! The signed identity.

use std::process::Command;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::HeaderName;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use kinde_emulator::KindeEmulator;
use orgkey::gateway::{Config, Gateway};
use serde_json::Value;
use tower::ServiceExt;
use tower_orgkey::assertion::AssertionVerifier;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKeyLayer, OrgContext, require_scope};

use crate::checks::ROUTES;
use crate::support::{Files, Reply, request, send};

const IDENTITY: &str =
    "[identity]\nassertion_audience = 'reports-api'\nassertion_key_file = 'DIR/key.pem'\n";

/// Returns an Ed25519 key as OpenSSL writes it.
fn private_key() -> String {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).unwrap();
    let prefix = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
    let der = BASE64_STANDARD.encode([&prefix[..], &seed].concat());
    format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n")
}

fn key_set(files: &Files) -> JwkSet {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orgkey"));
    let output = command
        .args(["gateway", "jwks", "--config"])
        .arg(files.path("gateway.toml"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn claims(keys: &JwkSet, token: &str, audience: &str) -> jsonwebtoken::errors::Result<Value> {
    let id = decode_header(token)?.kid.unwrap();
    let key = DecodingKey::from_jwk(keys.find(&id).unwrap())?;
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[audience]);
    validation.set_issuer(&["orgkey"]);
    Ok(decode::<Value>(token, &key, &validation)?.claims)
}

#[tokio::test]
async fn key_set_verifies_assertions() {
    let emulator = KindeEmulator::start().await.unwrap();
    let files = Files::new(&emulator);
    std::fs::write(files.path("key.pem"), private_key()).unwrap();
    let route = "[[route]]\nmatch = 'GET /billing'\nassertion_audience = 'billing-api'\n";
    let text = files.config(&emulator, &format!("{ROUTES}{route}{IDENTITY}"));
    std::fs::write(files.path("gateway.toml"), &text).unwrap();
    let gateway = Gateway::start(Config::parse(&text).unwrap()).await.unwrap();
    let address = gateway.checks_address().to_string().parse().unwrap();
    tokio::spawn(gateway.run(std::future::pending()));

    let spec = kinde_emulator::KeySpec::organization("org_1").scopes(["read:reports", "a"]);
    let bearer = format!("Bearer {}", emulator.issue_key(spec).secret());
    let ask = async |target: &str| -> Reply {
        let headers = [
            ("authorization", bearer.as_str()),
            ("x-original-method", "GET"),
            ("x-original-uri", target),
            ("x-org-assertion", "forged"),
        ];
        send(address, request("GET", "/v1/nginx", &headers)).await
    };
    let first = ask("/reports/1").await;
    let token = first.header("x-org-assertion").unwrap();
    let keys = key_set(&files);
    let said = claims(&keys, &token, "reports-api").unwrap();
    assert_eq!(
        (&said["org_code"], &said["sub"]),
        (&"org_1".into(), &"org_1".into())
    );
    assert_eq!(said["scope"], "a read:reports");
    assert_eq!(
        said["key_id"].as_str().map(str::to_owned),
        first.header("x-org-key-id")
    );
    assert_eq!(
        said["exp"].as_u64().unwrap() - said["iat"].as_u64().unwrap(),
        60
    );
    assert_eq!(said.get("jti"), None);

    // Another request of the same caller gets the same one, a route with its own audience another.
    assert_eq!(
        ask("/reports/2").await.header("x-org-assertion"),
        Some(token.clone())
    );
    let other = ask("/billing").await.header("x-org-assertion").unwrap();
    assert!(claims(&keys, &other, "billing-api").is_ok());
    assert!(claims(&keys, &other, "reports-api").is_err());
    assert_eq!(ask("/health").await.header("x-org-assertion"), None);

    std::fs::write(files.path("key.pem"), private_key()).unwrap();
    assert!(
        key_set(&files)
            .find(&decode_header(&token).unwrap().kid.unwrap())
            .is_none()
    );
}

#[tokio::test]
async fn layer_behind_the_gateway_accepts_assertions() {
    let emulator = KindeEmulator::start().await.unwrap();
    let files = Files::new(&emulator);
    std::fs::write(files.path("key.pem"), private_key()).unwrap();
    let text = files.config(&emulator, &format!("{ROUTES}{IDENTITY}"));
    std::fs::write(files.path("gateway.toml"), &text).unwrap();
    let gateway = Gateway::start(Config::parse(&text).unwrap()).await.unwrap();
    let address = gateway.checks_address().to_string().parse().unwrap();
    tokio::spawn(gateway.run(std::future::pending()));
    let spec = kinde_emulator::KeySpec::organization("org_1").scopes(["read:reports"]);
    let bearer = format!("Bearer {}", emulator.issue_key(spec).secret());
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-original-method", "GET"),
        ("x-original-uri", "/reports/1"),
    ];
    let reply = send(address, request("GET", "/v1/nginx", &headers)).await;
    let token = reply.header("x-org-assertion").unwrap();

    let set = serde_json::to_string(&key_set(&files)).unwrap();
    let clock = TestClock::new();
    let service = |issuer: &str, audience: &str| {
        let verifier = AssertionVerifier::new(&set, issuer, audience).unwrap();
        let auth = ApiKeyLayer::builder(verifier)
            .credential_header(HeaderName::from_static("x-org-assertion"), "Assertion")
            .max_key_len(8_192)
            .test_clock(clock.clone())
            .build()
            .unwrap();
        let whoami = async |org: OrgContext| format!("{} {:?}", org.org_code(), org.key_id());
        let guard = require_scope("read:reports");
        axum::Router::new()
            .route("/", axum::routing::get(whoami).route_layer(guard))
            .route_layer(auth)
    };
    let call = async |app: &axum::Router, token: &str| {
        let request = http::Request::get("/").header("x-org-assertion", token);
        let request = request.body(axum::body::Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 65_536)
            .await
            .unwrap();
        (status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    };
    let app = service("orgkey", "reports-api");
    let (status, body) = call(&app, &token).await;
    assert_eq!(
        (status, body.starts_with("org_1 Some")),
        (200, true),
        "{body}"
    );
    for (issuer, audience) in [("other", "reports-api"), ("orgkey", "billing-api")] {
        assert_eq!(call(&service(issuer, audience), &token).await.0, 401);
    }
    // Another signature, another algorithm, and a claim that was changed.
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, payload) = signed.split_once('.').unwrap();
    let other = if payload.starts_with('e') { "f" } else { "e" };
    let none = BASE64_URL_SAFE_NO_PAD.encode(br#"{"alg":"none","typ":"JWT"}"#);
    for forged in [
        format!("{signed}.{}", signature.chars().rev().collect::<String>()),
        format!("{none}.{payload}."),
        format!("{header}.{other}{}.{signature}", &payload[1..]),
    ] {
        assert_ne!(call(&app, &forged).await.0, 200, "{forged}");
    }
    // At most 60 s after it was signed, and the leeway.
    clock.jump(std::time::Duration::from_secs(66));
    assert_ne!(call(&app, &token).await.0, 200);
}

#[test]
fn only_ed25519_key_sets_are_accepted() {
    let error = |set: &str| {
        AssertionVerifier::new(set, "orgkey", "api")
            .err()
            .map(|e| e.field())
    };
    for set in [
        "",
        "{}",
        r#"{"keys":[]}"#,
        r#"{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"1"}]}"#,
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
    ] {
        assert_eq!(error(set), Some("key_set"), "{set}");
    }
    let one = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    assert_eq!(error(one), None);
}

#[tokio::test]
async fn fault_126_signing_key_is_unusable() {
    let emulator = KindeEmulator::start().await.unwrap();
    let files = Files::new(&emulator);
    let config = Config::parse(&files.config(&emulator, IDENTITY)).unwrap();
    for pem in [
        "",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "not PEM",
    ] {
        std::fs::write(files.path("key.pem"), pem).unwrap();
        let error = Gateway::start(config.clone()).await.unwrap_err();
        assert!(error.to_string().contains("Ed25519"), "{error}");
    }
    std::fs::remove_file(files.path("key.pem")).unwrap();
    let error = Gateway::start(config).await.unwrap_err().to_string();
    assert!(
        error.contains("assertion_key_file") && error.contains("key.pem"),
        "{error}"
    );
}

#[tokio::test]
async fn rotation_rejects_no_assertion() {
    let emulator = KindeEmulator::start().await.unwrap();
    let files = Files::new(&emulator);
    let names = ["key.pem", "other.pem"];
    for name in names {
        std::fs::write(files.path(name), private_key()).unwrap();
    }
    let with = |first: &str, others: &str| {
        let signing = IDENTITY.replace("key.pem", first);
        let others = format!("assertion_other_key_files = [{others}]\n");
        files.config(&emulator, &format!("{ROUTES}{signing}{others}"))
    };
    let spec = kinde_emulator::KeySpec::organization("org_1").scopes(["read:reports"]);
    let bearer = format!("Bearer {}", emulator.issue_key(spec).secret());
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-original-method", "GET"),
        ("x-original-uri", "/reports/1"),
    ];
    let mut ids = Vec::new();
    for (first, other) in [("key.pem", "other.pem"), ("other.pem", "key.pem")] {
        let text = with(first, &format!("'DIR/{other}'"));
        std::fs::write(files.path("gateway.toml"), &text).unwrap();
        let gateway = Gateway::start(Config::parse(&text).unwrap()).await.unwrap();
        let address = gateway.checks_address().to_string().parse().unwrap();
        tokio::spawn(gateway.run(std::future::pending()));
        let reply = send(address, request("GET", "/v1/nginx", &headers)).await;
        let token = reply.header("x-org-assertion").unwrap();
        let keys = key_set(&files);
        assert!(claims(&keys, &token, "reports-api").is_ok());
        assert_eq!(keys.keys.len(), 2);
        // The first of the set signs.
        ids.push(decode_header(&token).unwrap().kid.unwrap());
        assert_eq!(keys.keys[0].common.key_id.as_ref(), ids.last());
        let set = serde_json::to_string(&keys).unwrap();
        assert!(!set.contains("\"d\""), "{set}");
        assert!(AssertionVerifier::new(&set, "orgkey", "reports-api").is_ok());
    }
    assert_ne!(ids[0], ids[1]);

    // A key twice, and a file that is not there.
    for (others, said) in [("'DIR/key.pem'", "already"), ("'DIR/none.pem'", "none.pem")] {
        let config = Config::parse(&with("key.pem", others)).unwrap();
        let error = Gateway::start(config).await.unwrap_err().to_string();
        assert!(
            error.contains("assertion_other_key_files") && error.contains(said),
            "{error}"
        );
    }
}
