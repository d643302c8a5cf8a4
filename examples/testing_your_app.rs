//! Testing an application of your own: the issuer is an emulator, and the time is the test's.
//!
//! ```sh
//! cargo test --example testing_your_app   # the tests
//! cargo run --example testing_your_app    # the same application, once
//! ```

use std::error::Error;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use axum::{Router, routing::get};
use kinde_emulator::{KeySpec, KindeEmulator};
use tower::ServiceExt;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::{ApiKeyLayer, ConfigError, OrgContext, require_scope};

/// The application. It takes the layer, so that a test can bring one with a clock of its own.
fn app(auth: ApiKeyLayer) -> Router {
    Router::new()
        .route(
            "/reports",
            get(reports).route_layer(require_scope("read:reports")),
        )
        .route_layer(auth)
}

async fn reports(org: OrgContext) -> String {
    format!("reports of {}", org.org_code())
}

/// In production these three come from the configuration.
fn verifier(
    url: &str,
    client_id: String,
    client_secret: String,
) -> Result<KindeVerifier, ConfigError> {
    KindeVerifier::builder(url)
        .client_credentials(client_id, client_secret)
        .build()
}

fn verifier_of(emulator: &KindeEmulator) -> Result<KindeVerifier, ConfigError> {
    verifier(
        emulator.issuer_url(),
        emulator.client_id(),
        emulator.client_secret(),
    )
}

async fn call(app: &Router, key: &str) -> Result<(StatusCode, String), Box<dyn Error>> {
    let request = Request::get("/reports")
        .header("authorization", format!("Bearer {key}"))
        .body(Body::empty())?;
    let response = app.clone().oneshot(request).await?;
    let status = response.status();
    let body = to_bytes(response.into_body(), 64 * 1024).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let emulator = KindeEmulator::start().await?;
    let app = app(ApiKeyLayer::new(verifier_of(&emulator)?));
    let key = emulator.issue_key(KeySpec::organization("org_1").scopes(["read:reports"]));
    for _ in 0..3 {
        let (status, body) = call(&app, key.secret()).await?;
        println!("{status}: {body}");
    }
    let calls = emulator.calls();
    println!(
        "The issuer was asked {} time(s), with {} token(s).",
        calls.verify.total, calls.token.total
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kinde_emulator::{Endpoint, Fault, IssuedKey};
    use tower_orgkey::test_util::TestClock;

    use super::*;

    struct World {
        emulator: KindeEmulator,
        clock: TestClock,
        app: Router,
    }

    impl World {
        async fn new() -> Self {
            let emulator = KindeEmulator::start().await.unwrap();
            let clock = TestClock::new();
            let auth = ApiKeyLayer::builder(verifier_of(&emulator).unwrap())
                .soft_ttl(Duration::from_secs(60))
                .hard_ttl(Duration::from_secs(900))
                .test_clock(clock.clone())
                .build()
                .unwrap();
            let app = app(auth);
            Self {
                emulator,
                clock,
                app,
            }
        }

        fn key(&self, scopes: &[&str]) -> IssuedKey {
            let spec = KeySpec::organization("org_1").scopes(scopes.iter().copied());
            self.emulator.issue_key(spec)
        }

        async fn status(&self, key: &IssuedKey) -> StatusCode {
            call(&self.app, key.secret()).await.unwrap().0
        }
    }

    #[tokio::test]
    async fn a_key_sees_the_reports_of_its_own_organization() {
        let world = World::new().await;
        let key = world.key(&["read:reports"]);
        let (status, body) = call(&world.app, key.secret()).await.unwrap();
        assert_eq!(
            (status, body.as_str()),
            (StatusCode::OK, "reports of org_1")
        );
    }

    #[tokio::test]
    async fn a_key_without_the_scope_does_not() {
        let world = World::new().await;
        let key = world.key(&["read:users"]);
        assert_eq!(world.status(&key).await, StatusCode::FORBIDDEN);
    }

    #[tokio::test]
    async fn a_revoked_key_is_refused_within_two_minutes() {
        let world = World::new().await;
        let key = world.key(&["read:reports"]);
        assert_eq!(world.status(&key).await, StatusCode::OK);
        world.emulator.revoke(key.id());
        world.clock.jump(Duration::from_secs(120));
        assert_eq!(world.status(&key).await, StatusCode::UNAUTHORIZED);
    }

    #[tokio::test]
    async fn an_outage_of_the_issuer_is_survived_for_a_quarter_of_an_hour() {
        let world = World::new().await;
        let key = world.key(&["read:reports"]);
        assert_eq!(world.status(&key).await, StatusCode::OK);
        world.emulator.inject(Endpoint::Verify, Fault::status(503));
        world.clock.jump(Duration::from_secs(899));
        assert_eq!(world.status(&key).await, StatusCode::OK);
        world.clock.jump(Duration::from_secs(1));
        assert_eq!(world.status(&key).await, StatusCode::SERVICE_UNAVAILABLE);
        // The fault was met, so the test shows something.
        assert!(world.emulator.calls().verify.faulted > 0);
    }
}
