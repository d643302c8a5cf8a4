//! An unknown key: one call to the issuer, compared with the same call without the layer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::routing::post;
use axum::{Json, Router};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tower::ServiceExt;
use tower_orgkey::ApiKeyLayer;
use tower_orgkey::kinde::KindeVerifier;

use crate::keys;
use crate::rows::{self, REPORTS};
use crate::table;

const ROUNDS: u32 = 2_001;
const VERIFY: &str = "/api/v1/api_keys/verify";

#[derive(Serialize)]
struct Asked<'a> {
    api_key: &'a str,
}

#[derive(Deserialize)]
struct Answered {
    is_valid: bool,
}

/// A call to the issuer's endpoint with reqwest only.
#[derive(Clone)]
struct OverHttp {
    client: reqwest::Client,
    url: String,
}

impl OverHttp {
    async fn ask(&self, key: &str) -> reqwest::Result<Answered> {
        let asked = Asked { api_key: key };
        self.client
            .post(&self.url)
            .json(&asked)
            .send()
            .await?
            .json()
            .await
    }
}

async fn answer() -> Json<serde_json::Value> {
    Json(serde_json::json!({
        "code": "API_KEY_VERIFIED", "message": "API key verified", "is_valid": true,
        "key_id": "api_key_00000000000000000000000000000001", "status": "active",
        "scopes": ["read:reports", "read:users"], "org_code": "org_1234567890", "user_id": null,
        "last_verified_on": "2026-01-02T03:04:05+11", "verification_count": 7
    }))
}

pub(crate) fn table() {
    let connections = Arc::new(AtomicU32::new(0));
    let issuer = serve(Arc::clone(&connections));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (bare, cold) = runtime.block_on(async {
        let bare = OverHttp {
            client: reqwest::Client::builder()
                .no_proxy()
                .build()
                .expect("a client"),
            url: format!("{issuer}{VERIFY}"),
        };
        let kinde = KindeVerifier::builder(&issuer)
            .bearer_token("a-token-of-our-own")
            .build()
            .expect("a verifier");
        let router = rows::api().layer(ApiKeyLayer::new(kinde)).with_state(());
        let mut took = (Vec::new(), Vec::new());
        for n in 0..ROUNDS {
            let key = keys::key(n);
            // On a task, like the server's requests.
            let asking = bare.clone();
            let begin = Instant::now();
            let answered = tokio::spawn(async move { asking.ask(&key).await }).await;
            assert!(
                answered
                    .expect("a task that ends")
                    .expect("an answer")
                    .is_valid
            );
            took.0.push(begin.elapsed().as_secs_f64());

            let request = rows::request_with(REPORTS, keys::authorization(n));
            let router = router.clone();
            let begin = Instant::now();
            let response = tokio::spawn(router.oneshot(request)).await;
            let response = response.expect("a task that ends").expect("a response");
            assert_eq!(response.status(), StatusCode::OK);
            took.1.push(begin.elapsed().as_secs_f64());
        }
        (table::median(took.0), table::median(took.1))
    });
    let microseconds = |seconds: f64| format!("{:.1} µs", seconds * 1e6);
    table::print(
        "miss: sequential calls over an open connection",
        &["row", "median", "relative to the plain call"],
        &[
            vec![
                "a plain reqwest JSON POST".to_owned(),
                microseconds(bare),
                "1.00".to_owned(),
            ],
            vec![
                "an unknown key through the layer and `KindeVerifier`".to_owned(),
                microseconds(cold),
                table::ratio(cold, bare),
            ],
        ],
    );
    println!(
        "\nConnections: {} (one is the bare client's).",
        connections.load(Ordering::Relaxed)
    );
}

/// A server on another thread that counts connections.
fn serve(connections: Arc<AtomicU32>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let issuer = format!("http://{}", listener.local_addr().expect("a port"));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            use axum::serve::ListenerExt;

            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
            let listener = listener.tap_io(move |stream| {
                connections.fetch_add(1, Ordering::Relaxed);
                stream.set_nodelay(true).expect("a socket");
            });
            let app = Router::new().route(VERIFY, post(answer));
            axum::serve(listener, app).await.expect("a server");
        });
    });
    std::thread::sleep(Duration::from_millis(100));
    issuer
}
