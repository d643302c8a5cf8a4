//! Token introspection with a cache.

use std::net::SocketAddr;

use axum::extract::Form;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tower::ServiceExt;
use tower_orgkey_benches::rows::{BEARER, Call, KEY, REPORTS, passes, request};
use zitadel::axum::introspection::{
    IntrospectedUser, IntrospectionState, IntrospectionStateBuilder,
};
use zitadel::oidc::introspection::cache::in_memory::InMemoryIntrospectionCache;

pub(crate) fn zitadel() -> Call {
    let issuer = issuer();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let router = runtime.block_on(async {
        let state: IntrospectionState = IntrospectionStateBuilder::new(&issuer)
            .with_basic_auth("the client's id", "the client's secret")
            .with_introspection_cache(InMemoryIntrospectionCache::new())
            .build()
            .await
            .expect("the issuer's metadata");
        let router = Router::new()
            .route(REPORTS, get(async |_: IntrospectedUser| "ok"))
            .with_state(state);
        let first = router.clone().oneshot(request(REPORTS, BEARER)).await;
        drop(first.expect("a response"));
        router
    });
    passes(router)
}

#[derive(Deserialize)]
struct Asked {
    token: String,
}

/// An issuer with an introspection endpoint, on another thread.
fn issuer() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("a port");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let app = Router::new()
                .route(
                    "/.well-known/openid-configuration",
                    get(move || async move { Json(metadata(address)) }),
                )
                .route("/keys", get(async || Json(json!({ "keys": [] }))))
                .route(
                    "/introspect",
                    post(async |Form(asked): Form<Asked>| Json(answer(&asked.token))),
                );
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
            axum::serve(listener, app).await.expect("a server");
        });
    });
    format!("http://{address}")
}

fn metadata(address: SocketAddr) -> Value {
    let issuer = format!("http://{address}");
    json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "introspection_endpoint": format!("{issuer}/introspect"),
        "jwks_uri": format!("{issuer}/keys"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    })
}

fn answer(token: &str) -> Value {
    json!({
        "active": token == KEY,
        "sub": "api_key_0195ac80a14e8d71f42b98e75d3c61ad",
        "scope": "read:reports read:users write:reports write:users",
        "client_id": "org_1234567890",
        "token_type": "Bearer",
        "exp": 4_102_444_800_i64,
        "iss": "http://issuer.example.com",
        "aud": ["api"],
    })
}
