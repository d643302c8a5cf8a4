//! An issuer of your own: keys in a table, found by a hash of them.
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

/// Stands for a database. Yours would keep a keyed cryptographic hash of each key, such as HMAC-SHA-256; this one lives as
/// long as the process, and so does the state of its hasher.
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

    /// A look-up that takes its time, and may fail.
    async fn find(&self, key: &ApiKey) -> Result<Option<&Row>, std::io::Error> {
        tokio::task::yield_now().await;
        Ok(self.rows.get(&self.hasher.hash_one(key.expose_secret())))
    }
}

impl Verifier for Keys {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        // "We cannot tell" is an error, and never a refusal: callers get 503, and known keys go on.
        let row = self.find(key).await.map_err(VerifyError::unavailable)?;
        // "The key is bad" is an answer: callers get 401.
        let Some(row) = row.filter(|row| !row.revoked) else {
            return Ok(Verification::invalid());
        };
        // A row that makes no sense says nothing about the key.
        let facts = || -> Result<Verification, InvalidIdentifier> {
            Ok(Verification::of_organization(OrgCode::new(row.org)?)
                .with_key_id(KeyId::new(row.id)?)
                .with_scopes(Scopes::from_names(row.scopes.iter().copied())))
        };
        facts().map_err(VerifyError::unavailable)
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

    for key in ["k_test_0123456789", "k_test_9876543210", "k_test_of_nobody"] {
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
