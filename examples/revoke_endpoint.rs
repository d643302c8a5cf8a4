//! An endpoint of your own by which a customer revokes a key: deleted at the issuer first, then forgotten here.
//!
//! In this order. The other way round the issuer could say yes once more, between the two.
//!
//! ```text
//! cargo run --example revoke_endpoint
//! ```

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{delete, get};
use http::{Method, StatusCode};
use kinde_emulator::{KeySpec, KindeEmulator};
use serde::Deserialize;
use tokio::sync::Mutex;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::{ApiKeyHandle, ApiKeyLayer, KeyId, OrgCode, OrgContext, require_scope};

/// The application. `management` is another client of Kinde's than the verifier: it may delete.
pub(crate) fn app(auth: ApiKeyLayer, management: Management) -> Router {
    let revocation = Arc::new(Revocation {
        keys: auth.handle(),
        management,
    });
    Router::new()
        .route(
            "/keys/{key_id}",
            delete(revoke)
                .route_layer(require_scope("delete:keys"))
                // Who takes keys away must hold a key that is good now, and not a minute ago.
                .route_layer(auth.clone().max_age(Duration::ZERO)),
        )
        .route(
            "/whoami",
            get(|org: OrgContext| async move { org.org_code().to_string() }).route_layer(auth),
        )
        .with_state(revocation)
}

struct Revocation {
    keys: ApiKeyHandle,
    management: Management,
}

/// 204 when the key is gone. 404 when the caller's organization has no such key, whoever else may have it. 503 when Kinde
/// does not say: then the caller tries again.
async fn revoke(
    org: OrgContext,
    Path(key_id): Path<String>,
    State(revocation): State<Arc<Revocation>>,
) -> StatusCode {
    // Kinde's ids are of this kind, and nothing in them can turn the path of a call into another.
    let is_id = key_id
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let Some(key_id) = KeyId::new(key_id).ok().filter(|_| is_id) else {
        return StatusCode::NOT_FOUND;
    };
    match revocation.management.organization_of(&key_id).await {
        Ok(Some(owner)) if owner == *org.org_code() => {}
        Ok(_) => return StatusCode::NOT_FOUND,
        Err(_) => return StatusCode::SERVICE_UNAVAILABLE,
    }
    let deleted = revocation.management.delete(&key_id).await;
    // Also when the call failed: it may have done its work. To ask once more costs one verification.
    revocation.keys.invalidate_key_id(&key_id);
    match deleted {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Kinde's management API, by an application of its own with the scopes `read:api_keys` and `delete:api_keys`. The
/// verifier's has no use for the second.
pub(crate) struct Management {
    client: reqwest::Client,
    issuer: String,
    client_id: String,
    client_secret: String,
    /// Held while one is fetched: Kinde bills each.
    token: Mutex<Option<Token>>,
}

struct Token {
    text: String,
    refresh_at: Instant,
}

#[derive(Deserialize)]
struct TokenReply {
    access_token: String,
    expires_in: u64,
}

#[derive(Deserialize)]
struct KeyReply {
    api_key: Record,
}

#[derive(Deserialize)]
struct Record {
    organization_id: Option<String>,
}

/// No usable answer. What it was exactly is of no interest here; yours will want to log it.
#[derive(Debug)]
pub(crate) struct NoAnswer;

impl From<reqwest::Error> for NoAnswer {
    fn from(_: reqwest::Error) -> Self {
        Self
    }
}

impl Management {
    pub(crate) fn new(
        issuer: impl Into<String>,
        client_id: impl Into<String>,
        client_secret: impl Into<String>,
    ) -> reqwest::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(5))
            .build()?;
        Ok(Self {
            client,
            issuer: issuer.into(),
            client_id: client_id.into(),
            client_secret: client_secret.into(),
            token: Mutex::new(None),
        })
    }

    /// `None` for a key that does not exist, or is no organization's.
    async fn organization_of(&self, key_id: &KeyId) -> Result<Option<OrgCode>, NoAnswer> {
        let response = self.call(Method::GET, key_id).await?;
        match response.status() {
            StatusCode::OK => {
                let reply: KeyReply = response.json().await?;
                let org = reply.api_key.organization_id.map(OrgCode::new).transpose();
                org.map_err(|_| NoAnswer)
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(NoAnswer),
        }
    }

    async fn delete(&self, key_id: &KeyId) -> Result<(), NoAnswer> {
        match self.call(Method::DELETE, key_id).await?.status() {
            // It was there a moment ago, so somebody else was quicker.
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
            _ => Err(NoAnswer),
        }
    }

    async fn call(&self, method: Method, key_id: &KeyId) -> Result<reqwest::Response, NoAnswer> {
        let url = format!("{}/api/v1/api_keys/{key_id}", self.issuer);
        let token = self.token().await?;
        let request = self.client.request(method, url).bearer_auth(token);
        Ok(request.send().await?)
    }

    async fn token(&self) -> Result<String, NoAnswer> {
        let mut held = self.token.lock().await;
        if let Some(token) = held
            .as_ref()
            .filter(|token| Instant::now() < token.refresh_at)
        {
            return Ok(token.text.clone());
        }
        let now = Instant::now();
        let audience = format!("{}/api", self.issuer);
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &self.client_id),
            ("client_secret", &self.client_secret),
            ("audience", &audience),
        ];
        let request = self.client.post(format!("{}/oauth2/token", self.issuer));
        let response = request.form(&form).send().await?.error_for_status()?;
        let reply: TokenReply = response.json().await?;
        let lifetime = Duration::from_secs(reply.expires_in.min(24 * 60 * 60));
        *held = Some(Token {
            text: reply.access_token.clone(),
            refresh_at: now + lifetime.mul_f64(0.8),
        });
        Ok(reply.access_token)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let emulator = KindeEmulator::start().await?;
    let (issuer, id, secret) = (
        emulator.issuer_url(),
        emulator.client_id(),
        emulator.client_secret(),
    );
    let kinde = KindeVerifier::builder(issuer)
        .client_credentials(&id, &secret)
        .build()?;
    let app = app(
        ApiKeyLayer::new(kinde),
        Management::new(issuer, id, secret)?,
    );
    let admin = KeySpec::organization("org_1").scopes(["delete:keys"]);
    let admin = emulator.issue_key(admin);
    let leaked = emulator.issue_key(KeySpec::organization("org_1"));
    let foreign = emulator.issue_key(KeySpec::organization("org_2"));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    let base = "http://127.0.0.1:3000";
    let whoami = format!(
        "curl -i {base}/whoami -H 'Authorization: Bearer {}'",
        leaked.secret()
    );
    let revoke = |key_id: &str| {
        let admin = admin.secret();
        format!("curl -i -X DELETE {base}/keys/{key_id} -H 'Authorization: Bearer {admin}'")
    };
    println!("200: {whoami}");
    println!("204: {}", revoke(leaked.id()));
    println!("401, from this moment on: {whoami}");
    println!("404, another organization's key: {}", revoke(foreign.id()));
    axum::serve(listener, app).await?;
    Ok(())
}
