//! The main job in one command: an API for organization API keys, an issuer to run it against, and (in `tour.rs`) a `curl`
//! line for every answer that a client can bring about.
//!
//! ```sh
//! cargo run --example quickstart
//! ```
//!
//! | variable | |
//! |---|---|
//! | `LISTEN_ADDR` | where the API listens; `127.0.0.1:3000` unless set |
//! | `KINDE_ISSUER_URL`, `KINDE_CLIENT_ID`, `KINDE_CLIENT_SECRET` | a real issuer, instead of the emulator |
//! | `RUST_LOG` | what is logged, as in `tower_orgkey=debug` |

mod tour;

use std::env;
use std::error::Error;
use std::iter::once;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::routing::{get, post};
use axum::{Json, Router};
use kinde_emulator::KindeEmulator;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::trace::TraceLayer;
use tower_orgkey::kinde::KindeVerifier;
use tower_orgkey::{ApiKeyLayer, KeyId, OrgContext, Scope, require_org, require_scope};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::try_from_default_env().or_else(|_| EnvFilter::try_new("info"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();

    let issuer = Issuer::from_env().await?;
    let app = app(&issuer)?;

    let addr = env::var("LISTEN_ADDR").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(&addr).await?;
    tour::print(&format!("http://{}", listener.local_addr()?), &issuer);

    axum::serve(listener, app)
        .with_graceful_shutdown(stop_signal()?)
        .await?;
    if let Some(emulator) = issuer.emulator {
        emulator.shutdown().await;
    }
    println!("Stopped.");
    Ok(())
}

/// The API. Everything about keys is in here.
fn app(issuer: &Issuer) -> Result<Router, Box<dyn Error>> {
    let kinde = KindeVerifier::builder(&issuer.url)
        .client_credentials(&issuer.client_id, &issuer.client_secret)
        .build()?;
    let auth = ApiKeyLayer::new(kinde);

    let protected = Router::new()
        .route("/whoami", get(whoami))
        .route(
            "/users",
            get(list_users)
                .route_layer(require_scope("read:users"))
                // A method that is added after a guard is not behind it, so this one brings its own.
                .merge(post(create_user).route_layer(require_scope("write:users"))),
        )
        .route(
            "/orgs/{org_code}/reports",
            get(reports)
                .route_layer(require_scope("read:reports"))
                .route_layer(require_org("org_code")),
        )
        .route_layer(auth);

    let mut open = Router::new().route("/health", get(async || Json(json!({ "status": "ok" }))));
    if let Some(emulator) = &issuer.emulator {
        let outage = post(toggle_outage).with_state(emulator.clone());
        open = open.route("/emulator/outage", outage);
    }

    Ok(protected.merge(open).layer(
        ServiceBuilder::new()
            .layer(SetSensitiveRequestHeadersLayer::new(once(AUTHORIZATION)))
            .layer(TraceLayer::new_for_http()),
    ))
}

/// A handler that takes an [`OrgContext`] cannot be reached without an organization.
async fn whoami(org: OrgContext) -> Json<Value> {
    let scopes: Vec<&str> = org.scopes().iter().map(Scope::as_str).collect();
    Json(json!({
        "org_code": org.org_code().as_str(),
        "key_id": org.key_id().map(KeyId::as_str),
        "scopes": scopes,
    }))
}

async fn list_users(org: OrgContext) -> Json<Value> {
    Json(json!({ "org_code": org.org_code().as_str(), "users": ["user_1", "user_2"] }))
}

async fn create_user(org: OrgContext) -> (StatusCode, Json<Value>) {
    let created = json!({ "org_code": org.org_code().as_str(), "created": "user_3" });
    (StatusCode::CREATED, Json(created))
}

async fn reports(org: OrgContext) -> Json<Value> {
    Json(json!({ "org_code": org.org_code().as_str(), "reports": ["report_1"] }))
}

async fn toggle_outage(State(emulator): State<KindeEmulator>) -> Json<Value> {
    let outage = !emulator.is_outage();
    emulator.set_outage(outage);
    Json(json!({ "outage": outage }))
}

/// Who says whether a key is good.
struct Issuer {
    url: String,
    client_id: String,
    client_secret: String,
    /// The one that runs in this process, unless the issuer is a real one.
    emulator: Option<KindeEmulator>,
}

impl Issuer {
    async fn from_env() -> Result<Self, Box<dyn Error>> {
        const NAMES: [&str; 3] = ["KINDE_ISSUER_URL", "KINDE_CLIENT_ID", "KINDE_CLIENT_SECRET"];
        match NAMES.map(|name| env::var(name).ok()) {
            [Some(url), Some(client_id), Some(client_secret)] => Ok(Self {
                url,
                client_id,
                client_secret,
                emulator: None,
            }),
            [None, None, None] => {
                let emulator = KindeEmulator::start().await?;
                Ok(Self {
                    url: emulator.issuer_url().to_owned(),
                    client_id: emulator.client_id(),
                    client_secret: emulator.client_secret(),
                    emulator: Some(emulator),
                })
            }
            some => {
                let missing = NAMES.iter().zip(&some).filter(|(_, value)| value.is_none());
                let missing: Vec<_> = missing.map(|(name, _)| *name).collect();
                Err(format!("for a real issuer, also set {}", missing.join(" and ")).into())
            }
        }
    }
}

/// Ends at SIGINT or SIGTERM. Both are listened to from here on, not from the first poll on.
#[cfg(unix)]
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        // Without a way to listen for Ctrl-C there is nothing to wait for.
        let _ = tokio::signal::ctrl_c().await;
    })
}
