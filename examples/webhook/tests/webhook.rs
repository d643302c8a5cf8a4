//! The example's webhook, over sockets. Any request to the webhook causes at most one verification per key.

#![allow(clippy::unwrap_used)] // A test may fail on what it did not expect.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use jiff::Timestamp;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_orgkey::{ApiKey, ApiKeyLayer, OrgCode, OrgContext, Verification, verifier_fn};

#[allow(dead_code)] // Its `main`.
#[path = "../src/main.rs"]
mod example;

const KEY: &str = "k_test_of_org_a";
const KID: &str = "kid_1";

/// A signer, with its private half.
struct Signer(rcgen::KeyPair);

impl Signer {
    fn new() -> Self {
        Self(rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap())
    }

    fn key(&self) -> EncodingKey {
        EncodingKey::from_rsa_pem(self.0.serialize_pem().as_bytes()).unwrap()
    }

    fn jwk(&self, kid: &str) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.key(), Algorithm::RS256).unwrap();
        jwk.common.key_id = Some(kid.to_owned());
        jwk
    }

    fn sign(&self, algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
        let mut header = Header::new(algorithm);
        header.kid = kid.map(str::to_owned);
        jsonwebtoken::encode(&header, claims, &self.key()).unwrap()
    }

    /// As Kinde signs.
    fn token(&self, claims: &Value) -> String {
        self.sign(Algorithm::RS256, Some(KID), claims)
    }
}

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

struct Stage {
    signer: Signer,
    app: SocketAddr,
    verifications: Arc<AtomicU64>,
    is_deleted: Arc<AtomicBool>,
    fetches: Arc<AtomicU64>,
}

impl Stage {
    /// An application with a webhook and one cached key.
    async fn set() -> Self {
        let signer = Signer::new();
        let keys = JwkSet {
            keys: vec![signer.jwk(KID)],
        };
        let fetches = Arc::new(AtomicU64::new(0));
        let issuer = {
            let fetches = Arc::clone(&fetches);
            let jwks = move || async move {
                fetches.fetch_add(1, Ordering::SeqCst);
                Json(keys)
            };
            serve(Router::new().route("/.well-known/jwks", get(jwks))).await
        };
        let verifications = Arc::new(AtomicU64::new(0));
        let is_deleted = Arc::new(AtomicBool::new(false));
        let auth = {
            let (verifications, is_deleted) = (verifications.clone(), is_deleted.clone());
            ApiKeyLayer::new(verifier_fn(move |key: ApiKey| {
                verifications.fetch_add(1, Ordering::SeqCst);
                let is_good = key.expose_secret() == KEY && !is_deleted.load(Ordering::SeqCst);
                async move {
                    Ok(if is_good {
                        Verification::of_organization(OrgCode::from_static("org_a"))
                    } else {
                        Verification::invalid()
                    })
                }
            }))
        };
        let webhook = example::webhook(&format!("http://{issuer}"), auth.handle()).unwrap();
        let app = Router::new()
            .route("/", get(|_: OrgContext| async {}))
            .route_layer(auth)
            .merge(webhook);
        let stage = Self {
            signer,
            app: serve(app).await,
            verifications,
            is_deleted,
            fetches,
        };
        assert_eq!(stage.get().await, StatusCode::OK);
        stage
    }

    async fn get(&self) -> StatusCode {
        let request = client()
            .get(format!("http://{}/", self.app))
            .bearer_auth(KEY);
        request.send().await.unwrap().status()
    }

    async fn post(&self, content_type: &str, id: &str, body: impl Into<reqwest::Body>) -> u16 {
        let request = client()
            .post(format!("http://{}/webhooks/kinde", self.app))
            .header("content-type", content_type)
            .header("webhook-id", id)
            .body(body);
        request.send().await.unwrap().status().as_u16()
    }

    async fn deliver(&self, id: &str, token: String) -> u16 {
        self.post("application/jwt", id, token).await
    }

    /// Returns how many verifications the next request causes. The key stays valid.
    async fn costs(&self) -> u64 {
        let before = self.verifications.load(Ordering::SeqCst);
        assert_eq!(self.get().await, StatusCode::OK);
        self.verifications.load(Ordering::SeqCst) - before
    }
}

/// The event, this long ago.
fn deleted(event_id: &str, ago: Duration) -> Value {
    json!({
        "type": "organization.deleted",
        "source": "api",
        "event_id": event_id,
        "timestamp": (Timestamp::now() - ago).to_string(),
        "data": { "organization": { "code": "org_a", "name": "A" } },
    })
}

const NOW: Duration = Duration::ZERO;

#[tokio::test]
async fn webhook_invalidates_the_keys_of_its_organization() {
    let stage = Stage::set().await;
    let other = json!({ "organization": { "code": "org_b" } });
    let mut others = deleted("event_0", NOW);
    others["data"] = other;
    assert_eq!(
        stage.deliver("id_0", stage.signer.token(&others)).await,
        200
    );
    assert_eq!(stage.costs().await, 0);

    stage.is_deleted.store(true, Ordering::SeqCst);
    assert_eq!(stage.get().await, StatusCode::OK, "the fault is not there");
    let token = stage.signer.token(&deleted("event_1", NOW));
    assert_eq!(stage.deliver("id_1", token).await, 200);
    assert_eq!(stage.get().await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn all_published_formats_of_times_are_read() {
    let stage = Stage::set().await;
    // Offsets of hours only, full offsets and fractions all occur in what Kinde publishes.
    let zoned = |offset: &str, shift: i64| {
        let local = Timestamp::now() + jiff::SignedDuration::from_hours(shift);
        format!("{}{offset}", local.to_string().trim_end_matches('Z'))
    };
    for (n, (member, time)) in [
        ("timestamp", zoned("Z", 0)),
        ("timestamp", zoned("+10:00", 10)),
        ("timestamp", zoned("+11", 11)),
        ("event_timestamp", zoned("+00:00", 0)),
    ]
    .into_iter()
    .enumerate()
    {
        let mut claims = deleted(&format!("event_{n}"), NOW);
        claims.as_object_mut().unwrap().remove("timestamp");
        claims[member] = time.clone().into();
        let token = stage.signer.token(&claims);
        assert_eq!(
            stage.deliver(&format!("id_{n}"), token).await,
            200,
            "{time}"
        );
        assert_eq!(stage.costs().await, 1, "{time}");
    }
}

#[tokio::test]
async fn fault_59_replayed_webhook_costs_one_verification() {
    let stage = Stage::set().await;
    let token = stage.signer.token(&deleted("event_1", NOW));
    assert_eq!(stage.deliver("id_1", token.clone()).await, 200);
    assert_eq!(stage.costs().await, 1);
    for n in 0..10 {
        // Unchanged, and with another id in the header, which is not signed.
        assert_eq!(stage.deliver("id_1", token.clone()).await, 200);
        assert_eq!(
            stage.deliver(&format!("id_of_{n}"), token.clone()).await,
            200
        );
        assert_eq!(stage.costs().await, 0);
    }
    // Another event causes another verification.
    let token = stage.signer.token(&deleted("event_2", NOW));
    assert_eq!(stage.deliver("id_2", token).await, 200);
    assert_eq!(stage.costs().await, 1);
}

#[tokio::test]
async fn fault_59_webhooks_of_other_times_change_nothing() {
    let stage = Stage::set().await;
    let hours = |hours: u64| Duration::from_secs(hours * 60 * 60);
    let token = stage.signer.token(&deleted("event_1", hours(41)));
    assert_eq!(stage.deliver("id_1", token).await, 400);
    let mut early = deleted("event_2", NOW);
    early["timestamp"] = (Timestamp::now() + hours(1)).to_string().into();
    assert_eq!(stage.deliver("id_2", stage.signer.token(&early)).await, 400);
    let mut expired = deleted("event_3", NOW);
    expired["exp"] = json!(1_000_000_000);
    assert_eq!(
        stage.deliver("id_3", stage.signer.token(&expired)).await,
        401
    );
    let mut timeless = deleted("event_4", NOW);
    timeless.as_object_mut().unwrap().remove("timestamp");
    assert_eq!(
        stage.deliver("id_4", stage.signer.token(&timeless)).await,
        401
    );
    assert_eq!(stage.costs().await, 0);
    // Kinde repeats a webhook for the last time after 36 h.
    let token = stage.signer.token(&deleted("event_5", hours(37)));
    assert_eq!(stage.deliver("id_5", token).await, 200);
    assert_eq!(stage.costs().await, 1);
}

#[tokio::test]
async fn fault_59_forged_webhook_changes_nothing() {
    let stage = Stage::set().await;
    let claims = deleted("event_1", NOW);
    let genuine = stage.signer.token(&claims);
    let thief = Signer::new();
    let public_pem = stage.signer.0.public_key_pem();
    let modulus = serde_json::to_value(stage.signer.jwk(KID)).unwrap()["n"].clone();
    let hmac = |secret: &[u8]| {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(KID.to_owned());
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(secret)).unwrap()
    };
    let mut with_own_key = Header::new(Algorithm::RS256);
    with_own_key.kid = Some(KID.to_owned());
    with_own_key.jwk = Some(thief.jwk(KID));
    with_own_key.jku = Some("http://127.0.0.1:9/jwks".to_owned());
    let parts: Vec<&str> = genuine.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    // {"alg":"none","kid":"kid_1"}
    let none = "eyJhbGciOiJub25lIiwia2lkIjoia2lkXzEifQ";
    let other_claims = thief.token(&deleted("event_2", NOW));
    let other_payload = other_claims.split('.').nth(1).unwrap();
    for (what, token) in [
        ("another's key", thief.token(&claims)),
        (
            "another kid",
            stage.signer.sign(Algorithm::RS256, Some("kid_2"), &claims),
        ),
        ("no kid", stage.signer.sign(Algorithm::RS256, None, &claims)),
        (
            "RS512",
            stage.signer.sign(Algorithm::RS512, Some(KID), &claims),
        ),
        (
            "PS256",
            stage.signer.sign(Algorithm::PS256, Some(KID), &claims),
        ),
        (
            "the public key as HMAC's secret",
            hmac(public_pem.as_bytes()),
        ),
        (
            "the modulus as HMAC's secret",
            hmac(modulus.as_str().unwrap().as_bytes()),
        ),
        (
            "a header that brings its own key",
            jsonwebtoken::encode(&with_own_key, &claims, &thief.key()).unwrap(),
        ),
        ("no algorithm", format!("{none}.{payload}.")),
        (
            "no algorithm, a signature",
            format!("{none}.{payload}.{signature}"),
        ),
        ("no signature", format!("{header}.{payload}.")),
        (
            "another payload",
            format!("{header}.{other_payload}.{signature}"),
        ),
        ("two parts", format!("{header}.{payload}")),
        ("four parts", format!("{genuine}.{signature}")),
        ("nothing", String::new()),
        ("no token", "{}".to_owned()),
    ] {
        assert_eq!(stage.deliver("id_1", token).await, 401, "{what}");
        assert_eq!(stage.costs().await, 0, "{what}");
    }
    for content_type in [
        "application/json",
        "text/plain",
        "application/jwtx",
        "x/y; application/jwt",
    ] {
        let status = stage.post(content_type, "id_1", genuine.clone()).await;
        assert_eq!(status, 415, "{content_type}");
    }
    assert_eq!(stage.deliver("", genuine.clone()).await, 400);
    assert_eq!(stage.deliver(&"x".repeat(200), genuine.clone()).await, 400);
    let huge = format!("{genuine}{}", "A".repeat(1 << 20));
    assert_eq!(stage.deliver("id_1", huge).await, 413);
    assert_eq!(stage.costs().await, 0);
    // None of them counts as a delivery of the event: the authentic webhook still takes effect.
    assert_eq!(stage.deliver("id_1", genuine).await, 200);
    assert_eq!(stage.costs().await, 1);
}

#[tokio::test]
async fn fault_59_unknown_signers_share_one_key_fetch() {
    let stage = Stage::set().await;
    let thief = Signer::new();
    // A signature with another algorithm than Kinde's causes no fetch of keys.
    let ps256 = thief.sign(
        Algorithm::PS256,
        Some("kid_of_nobody"),
        &deleted("event_1", NOW),
    );
    assert_eq!(stage.deliver("id_1", ps256).await, 401);
    assert_eq!(stage.fetches.load(Ordering::SeqCst), 0);
    for n in 0..50 {
        let kid = format!("kid_of_nobody_{n}");
        let token = thief.sign(Algorithm::RS256, Some(&kid), &deleted("event_1", NOW));
        assert_eq!(stage.deliver("id_1", token).await, 401);
    }
    assert_eq!(stage.fetches.load(Ordering::SeqCst), 1);
    // The fetched keys verify the authentic webhook.
    let token = stage.signer.token(&deleted("event_2", NOW));
    assert_eq!(stage.deliver("id_2", token).await, 200);
    assert_eq!(stage.fetches.load(Ordering::SeqCst), 1);
    assert_eq!(stage.costs().await, 1);
}

#[tokio::test]
async fn other_events_change_nothing() {
    let stage = Stage::set().await;
    for (n, (kind, data)) in [
        (
            "organization.updated",
            json!({ "organization": { "code": "org_a" } }),
        ),
        (
            "organization.deleted",
            json!({ "organization": { "code": "" } }),
        ),
        ("organization.deleted", json!({ "organization": null })),
        ("organization.deleted", json!([])),
    ]
    .into_iter()
    .enumerate()
    {
        let mut claims = deleted(&format!("event_{n}"), NOW);
        claims["type"] = kind.into();
        claims["data"] = data;
        let token = stage.signer.token(&claims);
        assert_eq!(stage.deliver(&format!("id_{n}"), token).await, 200);
        assert_eq!(stage.costs().await, 0);
    }
}
