//! The main job in one command: an API for organization API keys, an issuer to run it against, and a `curl` line for every
//! answer that a client can bring about.
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

use std::env;
use std::error::Error;
use std::fmt::Display;
use std::iter::once;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::trace::TraceLayer;
use tower_orgkey::emulator::{IssuedKey, KeySpec, KindeEmulator};
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
    issuer.explain(&format!("http://{}", listener.local_addr()?));

    axum::serve(listener, app)
        .with_graceful_shutdown(stop_signal()?)
        .await?;
    if let Issuer::Emulator(emulator) = issuer {
        emulator.shutdown().await;
    }
    println!("Stopped.");
    Ok(())
}

/// The API. Everything about keys is in here.
fn app(issuer: &Issuer) -> Result<Router, Box<dyn Error>> {
    let auth = ApiKeyLayer::new(issuer.verifier()?);

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
    if let Issuer::Emulator(emulator) = issuer {
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
enum Issuer {
    Emulator(KindeEmulator),
    Real {
        url: String,
        client_id: String,
        client_secret: String,
    },
}

impl Issuer {
    async fn from_env() -> Result<Self, Box<dyn Error>> {
        const NAMES: [&str; 3] = ["KINDE_ISSUER_URL", "KINDE_CLIENT_ID", "KINDE_CLIENT_SECRET"];
        match NAMES.map(|name| env::var(name).ok()) {
            [Some(url), Some(client_id), Some(client_secret)] => Ok(Self::Real {
                url,
                client_id,
                client_secret,
            }),
            [None, None, None] => Ok(Self::Emulator(KindeEmulator::start().await?)),
            some => {
                let missing = NAMES.iter().zip(&some).filter(|(_, value)| value.is_none());
                let missing: Vec<_> = missing.map(|(name, _)| *name).collect();
                Err(format!("for a real issuer, also set {}", missing.join(" and ")).into())
            }
        }
    }

    fn verifier(&self) -> Result<KindeVerifier, Box<dyn Error>> {
        let builder = match self {
            Self::Emulator(emulator) => KindeVerifier::builder(emulator.issuer_url())
                .client_credentials(emulator.client_id(), emulator.client_secret()),
            Self::Real {
                url,
                client_id,
                client_secret,
            } => KindeVerifier::builder(url).client_credentials(client_id, client_secret),
        };
        Ok(builder.build()?)
    }

    /// Prints what there is to try.
    fn explain(&self, api: &str) {
        match self {
            Self::Emulator(emulator) => {
                println!("The API listens on {api}.");
                println!(
                    "Its issuer is an emulator of Kinde on {}.",
                    emulator.issuer_url()
                );
                Tour { api }.with_emulator(emulator);
            }
            Self::Real { url, .. } => {
                println!("The API listens on {api}.");
                println!("Its issuer is {url}.");
                Tour { api }.with_a_key_of_ones_own();
            }
        }
        println!("\nCtrl-C stops it.");
    }
}

/// The `curl` lines, each beneath what it will answer.
struct Tour<'a> {
    api: &'a str,
}

impl Tour<'_> {
    /// `promise` is the status and the body, or the `code` in the body of a refusal.
    fn line(&self, title: &str, promise: impl Display, path: &str, options: &str) {
        println!("\n# {title} → {promise}");
        println!("curl -si '{}{path}'{options}", self.api);
    }

    fn with_emulator(&self, emulator: &KindeEmulator) {
        let keys = Keys::issue(emulator);
        self.good_keys(&keys);
        self.bad_keys(&keys);
        self.without_a_key();
        self.outage(&keys);
    }

    fn good_keys(&self, keys: &Keys) {
        let Keys {
            north, south, user, ..
        } = keys;
        println!("\n## Good keys");
        self.line(
            "Whose key is it?",
            keys.whoami_north(),
            "/whoami",
            &bearer(north),
        );
        self.line(
            "Has the scope read:users",
            r#"200 {"org_code":"org_north","users":["user_1","user_2"]}"#,
            "/users",
            &bearer(north),
        );
        self.line(
            "Has the scope write:users",
            r#"201 {"org_code":"org_south","created":"user_3"}"#,
            "/users",
            &format!(" -X POST{}", bearer(south)),
        );
        self.line(
            "The organization in the path is the key's own",
            r#"200 {"org_code":"org_north","reports":["report_1"]}"#,
            "/orgs/org_north/reports",
            &bearer(north),
        );

        println!("\n## Good keys that may not");
        self.line(
            "Lacks the scope write:users",
            "403 insufficient-scope",
            "/users",
            &format!(" -X POST{}", bearer(north)),
        );
        self.line(
            "The path names another organization",
            "403 organization-mismatch",
            "/orgs/org_south/reports",
            &bearer(north),
        );
        self.line(
            "The path names what no organization can be called",
            "403 organization-mismatch",
            "/orgs/%FF/reports",
            &bearer(north),
        );
        self.line(
            "The key is a user's, not an organization's",
            "403 organization-required",
            "/whoami",
            &bearer(user),
        );
    }

    fn bad_keys(&self, keys: &Keys) {
        println!("\n## Bad keys");
        self.line(
            "Was revoked",
            "401 invalid-token",
            "/whoami",
            &bearer(&keys.revoked),
        );
        self.line(
            "Never existed",
            "401 invalid-token",
            "/whoami",
            " -H 'Authorization: Bearer k_live_never_existed'",
        );
    }

    fn outage(&self, keys: &Keys) {
        println!("\n## The issuer is down: keys that were used before go on working");
        self.line(
            "Turn it off",
            r#"200 {"outage":true}"#,
            "/emulator/outage",
            " -X POST",
        );
        self.line(
            "Verified a moment ago",
            keys.whoami_north(),
            "/whoami",
            &bearer(&keys.north),
        );
        self.line(
            "Not used so far: nobody can tell whether it is good",
            "503 verifier-unavailable",
            "/whoami",
            &bearer(&keys.unused),
        );
        self.line(
            "Turn it on again",
            r#"200 {"outage":false}"#,
            "/emulator/outage",
            " -X POST",
        );
        self.line(
            "The same key as before (503 some seconds longer if there were many tries)",
            keys.whoami_unused(),
            "/whoami",
            &bearer(&keys.unused),
        );
    }

    fn with_a_key_of_ones_own(&self) {
        println!("\n## Keys of yours: set KEY to one of an organization");
        for path in ["/whoami", "/users", "/orgs/<its org_code>/reports"] {
            println!(
                "\ncurl -si '{}{path}' -H \"Authorization: Bearer $KEY\"",
                self.api
            );
        }
        println!("\n## Bad keys");
        self.without_a_key();
    }

    /// What needs no key.
    fn without_a_key(&self) {
        self.line("No key", "401 credential-missing", "/whoami", "");
        self.line(
            "Another scheme",
            "401 credential-missing",
            "/whoami",
            " -H 'Authorization: Basic dXNlcjpwYXNzd29yZA=='",
        );
        self.line(
            "Nothing after the scheme",
            "400 credential-malformed",
            "/whoami",
            " -H 'Authorization: Bearer '",
        );
        self.line(
            "Two credentials",
            "400 credential-malformed",
            "/whoami",
            " -H 'Authorization: Bearer first-key' -H 'Authorization: Bearer second-key'",
        );
        println!("\n## Open to everybody");
        self.line("A health check", r#"200 {"status":"ok"}"#, "/health", "");
        self.line("An unknown path", "404", "/nowhere", "");
    }
}

/// What the tour goes with.
struct Keys {
    north: IssuedKey,
    south: IssuedKey,
    /// Shown when the issuer is down, and not before.
    unused: IssuedKey,
    revoked: IssuedKey,
    user: IssuedKey,
}

impl Keys {
    fn issue(emulator: &KindeEmulator) -> Self {
        let of_organization = |org: &str, scopes: &[&str]| {
            let scopes = scopes.iter().copied();
            emulator.issue_key(KeySpec::organization(org).scopes(scopes))
        };
        let keys = Self {
            north: of_organization("org_north", &["read:reports", "read:users"]),
            south: of_organization("org_south", &["read:users", "write:users"]),
            unused: of_organization("org_south", &["read:users"]),
            revoked: of_organization("org_north", &["read:users"]),
            user: emulator.issue_key(KeySpec::user("kp_1").scopes(["read:users"])),
        };
        emulator.revoke(keys.revoked.id());
        keys
    }

    fn whoami_north(&self) -> String {
        let id = self.north.id();
        let scopes = ["read:reports", "read:users"];
        format!(
            "200 {}",
            json!({ "org_code": "org_north", "key_id": id, "scopes": scopes })
        )
    }

    fn whoami_unused(&self) -> String {
        let id = self.unused.id();
        let scopes = ["read:users"];
        format!(
            "200 {}",
            json!({ "org_code": "org_south", "key_id": id, "scopes": scopes })
        )
    }
}

fn bearer(key: &IssuedKey) -> String {
    format!(" -H 'Authorization: Bearer {}'", key.secret())
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
