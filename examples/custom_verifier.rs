//! A verifier for your own keys, which are stored in a table by their hash.
//!
//! ```sh
//! cargo run --example custom_verifier
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::hash::{BuildHasher, RandomState};

use axum::body::{Body, to_bytes};
use axum::http::Request;
use axum::{Router, routing::get};
use tower::ServiceExt;
use tower_orgkey::{
    ApiKey, ApiKeyLayer, InvalidIdentifier, KeyId, OrgCode, OrgContext, Scopes, Verification,
    Verifier, VerifyError,
};

/// Represents a database. In production store a keyed cryptographic hash of each key, such as HMAC-SHA-256. This table and
/// the state of its hasher exist as long as the process.
struct Keys {
    hasher: RandomState,
    rows: HashMap<u64, Row>,
}

struct Row {
    id: &'static str,
    org: &'static str,
    scopes: &'static [&'static str],
    revoked: bool,
}

impl Keys {
    fn insert(&mut self, key: &str, row: Row) {
        self.rows.insert(self.hasher.hash_one(key), row);
    }

    /// Looks a key up. In production this takes time and can fail.
    async fn find(&self, key: &ApiKey) -> Result<Option<&Row>, std::io::Error> {
        tokio::task::yield_now().await;
        Ok(self.rows.get(&self.hasher.hash_one(key.expose_secret())))
    }
}

impl Verifier for Keys {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        // An error means that the key could not be verified: callers get 503, and cached keys are still accepted.
        let row = self.find(key).await.map_err(VerifyError::unavailable)?;
        // An invalid key is a result, not an error: callers get 401.
        let Some(row) = row.filter(|row| !row.revoked) else {
            return Ok(Verification::invalid());
        };
        // An unusable row does not mean that the key is invalid, and says nothing about other keys.
        let verification = || -> Result<Verification, InvalidIdentifier> {
            Ok(Verification::of_organization(OrgCode::new(row.org)?)
                .with_key_id(KeyId::new(row.id)?)
                .with_scopes(Scopes::from_names(row.scopes.iter().copied())))
        };
        verification().map_err(VerifyError::invalid_response)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut keys = Keys {
        hasher: RandomState::new(),
        rows: HashMap::new(),
    };
    let row = Row {
        id: "key_1",
        org: "org_1",
        scopes: &["read:reports"],
        revoked: false,
    };
    keys.insert("k_test_0123456789", row);
    let row = Row {
        id: "key_2",
        org: "org_2",
        scopes: &[],
        revoked: true,
    };
    keys.insert("k_test_9876543210", row);

    let app: Router = Router::new()
        .route("/whoami", get(whoami))
        .route_layer(ApiKeyLayer::new(keys));

    for key in ["k_test_0123456789", "k_test_9876543210", "k_test_unknown"] {
        let request = Request::get("/whoami")
            .header("authorization", format!("Bearer {key}"))
            .body(Body::empty())?;
        let response = app.clone().oneshot(request).await?;
        let status = response.status();
        let body = to_bytes(response.into_body(), 64 * 1024).await?;
        println!("{key}: {status}\n  {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

async fn whoami(org: OrgContext) -> String {
    format!(
        "{} by {:?} with {:?}",
        org.org_code(),
        org.key_id(),
        org.scopes()
    )
}
