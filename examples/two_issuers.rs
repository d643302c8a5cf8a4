//! Two issuers behind one layer, chosen by the prefix of the key, for instance during a migration. The [`Verifier`]
//! delegates to two others, which run in memory here.
//!
//! ```sh
//! cargo run --example two_issuers
//! ```

use std::error::Error;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use axum::{Router, routing::get};
use tower::ServiceExt;
use tower_orgkey::{
    ApiKey, ApiKeyLayer, OrgCode, OrgContext, Verification, Verifier, VerifyError, verifier_fn,
};

/// Sends keys with the prefix to one issuer and all others to the other. Each key is sent to one issuer only.
struct ByPrefix<A, B> {
    prefix: &'static str,
    with_prefix: A,
    others: B,
}

impl<A: Verifier, B: Verifier> Verifier for ByPrefix<A, B> {
    async fn verify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        if key.expose_secret().starts_with(self.prefix) {
            self.with_prefix.verify(key).await
        } else {
            self.others.verify(key).await
        }
    }

    // Delegated too: an issuer can require stronger evidence that a known key is invalid.
    async fn reverify(&self, key: &ApiKey) -> Result<Verification, VerifyError> {
        if key.expose_secret().starts_with(self.prefix) {
            self.with_prefix.reverify(key).await
        } else {
            self.others.reverify(key).await
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // In place of `KindeVerifier::builder("https://acme.kinde.com")…build()?`.
    let kinde = verifier_fn(|key| async move {
        Ok(match key.expose_secret() {
            "k_live_0123456789" => Verification::of_organization(OrgCode::from_static("org_new")),
            _ => Verification::invalid(),
        })
    });
    // In place of your own table of keys.
    let table = verifier_fn(|key| async move {
        Ok(match key.expose_secret() {
            "acme-0123456789" => Verification::of_organization(OrgCode::from_static("org_old")),
            _ => Verification::invalid(),
        })
    });
    let verifier = ByPrefix {
        prefix: "k_live_",
        with_prefix: kinde,
        others: table,
    };

    let app: Router = Router::new()
        .route("/whoami", get(whoami))
        .route_layer(ApiKeyLayer::new(verifier));

    for key in ["k_live_0123456789", "acme-0123456789", "k_live_9876543210"] {
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
    org.org_code().to_string()
}
