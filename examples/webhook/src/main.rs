//! A receiver for Kinde's webhook: when an organization is deleted at Kinde, its keys are invalidated here at once.
//!
//! Kinde has no event for a key that is rotated or deleted; use `KeyReconciler` for those. A webhook only causes its keys to be
//! verified again. A forged or replayed webhook, if it were accepted, would cost at most one verification of each key of
//! one organization.
//!
//! ```text
//! KINDE_ISSUER_URL=https://acme.kinde.com KINDE_CLIENT_ID=… KINDE_CLIENT_SECRET=… cargo run -p example-webhook
//! ```
//!
//! In Kinde, add under Settings > Webhooks an endpoint `https://<your host>/webhooks/kinde` for `organization.deleted`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::error::Error;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::{ApiKeyHandle, ApiKeyLayer, OrgCode, OrgContext};

/// The maximum size of a webhook and of the key set.
const LONGEST_BODY: usize = 64 * 1024;
/// The accepted age of an event in seconds. Kinde repeats a delivery for up to 36 h, and its clock may be ahead.
const TIMELY: RangeInclusive<i64> = -5 * 60..=40 * 60 * 60;
/// The number of deliveries that are remembered. An older one that is replayed costs a verification.
const REMEMBERED: usize = 10_000;
/// Kinde's ids are not longer than this.
const LONGEST_ID: usize = 128;
/// The minimum time between two fetches of Kinde's keys, even if tokens name unknown ones.
const BETWEEN_FETCHES: Duration = Duration::from_secs(30);

/// `POST /webhooks/kinde`, outside the layer, because Kinde calls it without an API key.
pub(crate) fn webhook(issuer: &str, keys: ApiKeyHandle) -> Result<Router, Box<dyn Error>> {
    let webhook = Webhook {
        keys,
        signers: Signers::new(format!("{issuer}/.well-known/jwks"))?,
        seen: Mutex::default(),
    };
    Ok(Router::new()
        .route("/webhooks/kinde", post(receive))
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .with_state(Arc::new(webhook)))
}

struct Webhook {
    keys: ApiKeyHandle,
    signers: Signers,
    seen: Mutex<Seen>,
}

/// The claims of the token. It has no standard issuer, audience or expiry.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "event_id")]
    id: String,
    #[serde(alias = "event_timestamp")]
    timestamp: Timestamp,
    data: serde_json::Value,
}

/// Responds with 200 to every authentic delivery, also a repeated one: Kinde repeats deliveries that get another status.
async fn receive(
    State(webhook): State<Arc<Webhook>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    if !is_jwt(&headers) {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE;
    }
    let Some(delivery) = delivery_id(&headers) else {
        return StatusCode::BAD_REQUEST;
    };
    let Some(event) = webhook.signers.verify(&body).await else {
        return StatusCode::UNAUTHORIZED;
    };
    let age = Timestamp::now().as_second() - event.timestamp.as_second();
    if !TIMELY.contains(&age) || event.id.len() > LONGEST_ID {
        return StatusCode::BAD_REQUEST;
    }
    {
        let mut seen = webhook.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // The event's id is signed, the header is not, so a replay can change it. The event's id is checked first, so
        // that a replay cannot use up the id of a later delivery.
        let is_new = seen.is_new(format!("event {}", event.id))
            && seen.is_new(format!("delivery {delivery}"));
        if !is_new {
            return StatusCode::OK;
        }
    }
    if event.kind == "organization.deleted"
        && let Some(code) = event.data["organization"]["code"].as_str()
        && let Ok(org) = OrgCode::new(code)
    {
        webhook.keys.invalidate_org(&org);
    }
    StatusCode::OK
}

fn is_jwt(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let essence = value.as_bytes().split(|&b| b == b';').next();
    essence.is_some_and(|essence| {
        essence
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/jwt")
    })
}

/// Kinde's id of the delivery, which is the same for its repetitions.
fn delivery_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get("webhook-id")?.to_str().ok()?;
    (1..=LONGEST_ID).contains(&id.len()).then_some(id)
}

/// The ids that were seen before. The oldest is removed first.
#[derive(Default)]
struct Seen {
    ids: HashSet<Arc<str>>,
    in_order: VecDeque<Arc<str>>,
}

impl Seen {
    fn is_new(&mut self, id: String) -> bool {
        let id = Arc::<str>::from(id);
        if !self.ids.insert(Arc::clone(&id)) {
            return false;
        }
        self.in_order.push_back(id);
        // Two ids per delivery.
        if self.in_order.len() > 2 * REMEMBERED
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

/// Kinde's public keys.
struct Signers {
    client: reqwest::Client,
    url: String,
    keys: RwLock<HashMap<String, DecodingKey>>,
    /// When the keys may be fetched again. Locked during a fetch.
    next_fetch: tokio::sync::Mutex<Option<Instant>>,
}

impl Signers {
    fn new(url: String) -> reqwest::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(5))
            .build()?;
        Ok(Self {
            client,
            url,
            keys: RwLock::default(),
            next_fetch: tokio::sync::Mutex::new(None),
        })
    }

    /// Returns the claims of a token if Kinde signed it.
    async fn verify(&self, token: &[u8]) -> Option<Event> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        // The algorithm is fixed before a key is selected, so neither `none` nor an HMAC with the public key as secret is
        // accepted. Other fields of the header (`jku`, `jwk`, `x5u`, `x5c`) would let the token choose its key, and are
        // ignored.
        if header.alg != Algorithm::RS256 {
            return None;
        }
        let key = self.key(&header.kid?).await?;
        let mut validation = Validation::new(Algorithm::RS256);
        // Kinde sends no `exp`; if it does, it is validated. The age is checked by the time of the event.
        validation.required_spec_claims.clear();
        validation.validate_aud = false;
        let token = jsonwebtoken::decode::<Event>(token, &key, &validation).ok()?;
        Some(token.claims)
    }

    async fn key(&self, kid: &str) -> Option<DecodingKey> {
        if let Some(key) = self.held(kid) {
            return Some(key);
        }
        // Another request is fetching: Kinde will repeat this delivery.
        let mut next_fetch = self.next_fetch.try_lock().ok()?;
        let now = Instant::now();
        if next_fetch.is_some_and(|next_fetch| now < next_fetch) {
            return None;
        }
        *next_fetch = Some(now + BETWEEN_FETCHES);
        if let Some(fetched) = self.fetch().await {
            *self.keys.write().unwrap_or_else(PoisonError::into_inner) = fetched;
        }
        self.held(kid)
    }

    fn held(&self, kid: &str) -> Option<DecodingKey> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(kid).cloned()
    }

    async fn fetch(&self) -> Option<HashMap<String, DecodingKey>> {
        let mut response = self.client.get(&self.url).send().await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.ok()? {
            if body.len() + chunk.len() > LONGEST_BODY {
                return None;
            }
            body.extend_from_slice(&chunk);
        }
        let set: JwkSet = serde_json::from_slice(&body).ok()?;
        Some(set.keys.iter().filter_map(signer).collect())
    }
}

/// Returns a key that signs with RS256, and its id.
fn signer(jwk: &Jwk) -> Option<(String, DecodingKey)> {
    let common = &jwk.common;
    let is_ours = matches!(jwk.algorithm, AlgorithmParameters::RSA(_))
        && matches!(common.key_algorithm, None | Some(KeyAlgorithm::RS256))
        && matches!(common.public_key_use, None | Some(PublicKeyUse::Signature));
    if !is_ours {
        return None;
    }
    Some((common.key_id.clone()?, DecodingKey::from_jwk(jwk).ok()?))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let var = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let issuer = var("KINDE_ISSUER_URL")?;
    let kinde = KindeVerifier::builder(&issuer)
        .client_credentials(var("KINDE_CLIENT_ID")?, var("KINDE_CLIENT_SECRET")?)
        .build()?;
    let auth = ApiKeyLayer::new(kinde);
    let webhook = webhook(&issuer, auth.handle())?;
    let app = Router::new()
        .route(
            "/whoami",
            get(|org: OrgContext| async move { org.org_code().to_string() }),
        )
        .route_layer(auth)
        .merge(webhook);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("listening on http://127.0.0.1:3000");
    axum::serve(listener, app).await?;
    Ok(())
}
