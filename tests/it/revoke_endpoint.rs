//! The example's own endpoint for revocation, against the emulator.

#![allow(clippy::unwrap_used)] // A test may fail on what it did not expect.

use axum::Router;
use http::{Method, StatusCode};
use kinde_emulator::{Endpoint, Fault, IssuedKey, KeySpec, KindeEmulator};
use tower_orgkey::ApiKeyLayer;
use tower_orgkey::kinde::KindeVerifier;

use crate::support::service::call;

#[allow(dead_code)] // Its `main`.
#[path = "../../examples/revoke_endpoint.rs"]
mod example;

struct Stage {
    emulator: KindeEmulator,
    app: Router,
    admin: IssuedKey,
}

impl Stage {
    async fn set() -> Self {
        let emulator = KindeEmulator::start().await.unwrap();
        let (id, secret) = (emulator.client_id(), emulator.client_secret());
        let kinde = KindeVerifier::builder(emulator.issuer_url())
            .client_credentials(&id, &secret)
            .build()
            .unwrap();
        let management = example::Management::new(emulator.issuer_url(), id, secret).unwrap();
        let app = example::app(ApiKeyLayer::new(kinde), management);
        let admin = KeySpec::organization("org_a").scopes(["delete:keys"]);
        let admin = emulator.issue_key(admin);
        Self {
            emulator,
            app,
            admin,
        }
    }

    /// A key of this organization that is held.
    async fn known(&self, org_code: &str) -> IssuedKey {
        let key = self.emulator.issue_key(KeySpec::organization(org_code));
        assert_eq!(self.whoami(&key).await, StatusCode::OK);
        key
    }

    async fn call(&self, method: Method, path: &str, key: &IssuedKey) -> StatusCode {
        call(&self.app, method, path, key.secret()).await.status()
    }

    async fn whoami(&self, key: &IssuedKey) -> StatusCode {
        self.call(Method::GET, "/whoami", key).await
    }

    async fn revoke(&self, key_id: &str, by: &IssuedKey) -> StatusCode {
        self.call(Method::DELETE, &format!("/keys/{key_id}"), by)
            .await
    }
}

#[tokio::test]
async fn revoked_key_gets_401_on_the_next_request() {
    let stage = Stage::set().await;
    let (leaked, other) = (stage.known("org_a").await, stage.known("org_a").await);
    assert_eq!(
        stage.revoke(leaked.id(), &stage.admin).await,
        StatusCode::NO_CONTENT
    );
    assert_eq!(stage.whoami(&leaked).await, StatusCode::UNAUTHORIZED);
    assert_eq!(stage.whoami(&other).await, StatusCode::OK);
    assert_eq!(stage.emulator.calls().delete_key.ok, 1);
    assert_eq!(
        stage.revoke(leaked.id(), &stage.admin).await,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn other_organizations_get_404() {
    let stage = Stage::set().await;
    let theirs = stage.known("org_b").await;
    let users = stage.emulator.issue_key(KeySpec::user("kp_1"));
    for key_id in [
        theirs.id(),
        users.id(),
        "api_key_of_nobody",
        "a.b",
        "%2e%2e",
        "a%2fb",
    ] {
        let status = stage.revoke(key_id, &stage.admin).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{key_id}");
    }
    assert_eq!(stage.emulator.calls().delete_key.total, 0);
    assert_eq!(stage.whoami(&theirs).await, StatusCode::OK);
    // Nor may a key of the organization without the scope.
    let plain = stage.known("org_a").await;
    let status = stage.revoke(stage.admin.id(), &plain).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn revoked_key_cannot_revoke_another() {
    let stage = Stage::set().await;
    let key = stage.known("org_a").await;
    // Held, and known to the cache as good.
    assert_eq!(stage.whoami(&stage.admin).await, StatusCode::OK);
    stage.emulator.delete(stage.admin.id());
    assert_eq!(
        stage.whoami(&stage.admin).await,
        StatusCode::OK,
        "the fault is not there"
    );
    assert_eq!(
        stage.revoke(key.id(), &stage.admin).await,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(stage.whoami(&key).await, StatusCode::OK);
}

#[tokio::test]
async fn failed_deletion_is_503_and_reverifies_the_key() {
    let stage = Stage::set().await;
    let key = stage.known("org_a").await;
    stage
        .emulator
        .inject(Endpoint::DeleteKey, Fault::status(503));
    let status = stage.revoke(key.id(), &stage.admin).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(stage.emulator.calls().delete_key.faulted, 1);
    let before = stage.emulator.calls().verify.total;
    assert_eq!(stage.whoami(&key).await, StatusCode::OK);
    assert_eq!(stage.emulator.calls().verify.total, before + 1);

    // The reply is lost after Kinde deleted the key. The key is invalidated although the caller gets 503.
    stage.emulator.clear_faults();
    stage
        .emulator
        .inject(Endpoint::DeleteKey, Fault::no_response());
    let revoking = stage.revoke(key.id(), &stage.admin);
    let issuer = async {
        stage.emulator.wait_for_calls(Endpoint::DeleteKey, 2).await;
        stage.emulator.delete(key.id());
    };
    let (status, ()) = tokio::join!(revoking, issuer);
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(stage.whoami(&key).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn revocation_is_503_without_the_issuer() {
    let stage = Stage::set().await;
    let key = stage.known("org_a").await;
    assert_eq!(stage.whoami(&stage.admin).await, StatusCode::OK);
    for endpoint in [Endpoint::GetKey, Endpoint::Verify] {
        stage.emulator.inject(endpoint, Fault::status(503));
        let status = stage.revoke(key.id(), &stage.admin).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{endpoint:?}");
        assert!(stage.emulator.calls().of(endpoint).faulted > 0);
        stage.emulator.clear_faults();
    }
    assert_eq!(stage.emulator.calls().delete_key.total, 0);
    assert_eq!(stage.whoami(&key).await, StatusCode::OK);
}
