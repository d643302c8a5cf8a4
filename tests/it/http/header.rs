//! The key in a configured header.

use axum::http::{HeaderMap, HeaderName};
use axum::response::IntoResponse;
use axum::routing::get as route;
use tower_orgkey::{ApiKeyLayer, ApiKeyLayerBuilder};

use super::*;
use crate::support::Issuer;
use crate::support::wire::{RawRequest, get, serve};

const NAME: &str = "x-api-key";

fn builder(issuer: &Issuer) -> ApiKeyLayerBuilder {
    ApiKeyLayer::builder(issuer.clone())
        .credential_header(HeaderName::from_static(NAME), "ApiKey")
        .realm("acme")
}

fn with_key(request: RawRequest, key: &str) -> RawRequest {
    request.header("X-Api-Key", key)
}

#[tokio::test]
async fn responses_vary_on_a_configured_header() {
    let issuer = issuer();
    let app = guarded()
        .route("/fails", route(async || http::StatusCode::IM_A_TEAPOT))
        .route_layer(builder(&issuer).build().unwrap());
    let address = serve(app).await;
    let plain = Some(r#"ApiKey realm="acme""#);
    for (path, key, status, challenge, control) in [
        ("/whoami", Some(ONE), 200, None, "private"),
        ("/fails", Some(ONE), 418, None, "private"),
        ("/whoami", None, 401, plain, "no-store"),
        ("/whoami", Some(BAD), 401, plain, "no-store"),
        ("/whoami", Some(""), 400, None, "no-store"),
        (
            "/whoami",
            Some("Bearer k_test_one_0123456789"),
            400,
            None,
            "no-store",
        ),
        ("/guarded", Some(ONE), 403, None, "no-store"),
        ("/typed", Some(ONE), 403, None, "no-store"),
        ("/orgs/other", Some(ONE), 403, None, "no-store"),
        ("/misnamed/x", Some(ONE), 500, None, "no-store"),
        ("/whoami", Some(DOUBTFUL), 503, None, "no-store"),
    ] {
        let mut request = get(address, path);
        if let Some(key) = key {
            request = with_key(request, key);
        }
        let answer = request.send().await;
        assert_eq!(answer.status, status, "{path} {key:?}");
        assert_eq!(
            answer.header("www-authenticate"),
            challenge,
            "{path} {key:?}"
        );
        assert_eq!(answer.header("vary"), Some(NAME), "{path} {key:?}");
        assert_eq!(
            answer.header("cache-control"),
            Some(control),
            "{path} {key:?}"
        );
        assert_eq!(answer.header("retry-after").is_some(), status == 503);
    }
}

#[tokio::test]
async fn stacked_layers_vary_once() {
    let issuer = issuer();
    let outer = builder(&issuer).build().unwrap();
    let inner = outer.clone().max_age(std::time::Duration::from_secs(60));
    let cors = async || ([("vary", "origin, X-Api-Key")], "open");
    let app = guarded()
        .route("/cors", route(cors))
        .route_layer(inner)
        .route_layer(outer);
    let address = serve(app).await;
    for (path, key, vary) in [
        ("/whoami", ONE, "x-api-key"),
        ("/guarded", ONE, "x-api-key"),
        ("/whoami", BAD, "x-api-key"),
        ("/cors", ONE, "origin, X-Api-Key"),
    ] {
        let answer = with_key(get(address, path), key).send().await;
        assert_eq!(answer.all("vary"), [vary], "{path} {key}");
    }
}

#[tokio::test]
async fn authorization_is_ignored_if_another_is_set() {
    let issuer = issuer();
    let app = guarded().route_layer(builder(&issuer).build().unwrap());
    let address = serve(app).await;
    let answer = get(address, "/whoami").key(ONE).send().await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "credential-missing")
    );
    assert_eq!(issuer.calls(), 0);
    let answer = with_key(get(address, "/whoami").key(ONE), TWO).send().await;
    assert_eq!(answer.body, "org_two");
    let twice = with_key(with_key(get(address, "/whoami"), TWO), TWO);
    assert_eq!(twice.send().await.status, 400);
}

#[tokio::test]
async fn cache_control_of_the_handler_is_kept() {
    let issuer = issuer();
    let app = axum::Router::new()
        .route(
            "/",
            route(async || {
                (
                    [("cache-control", "public, max-age=9"), ("vary", "accept")],
                    "x",
                )
                    .into_response()
            }),
        )
        .route_layer(builder(&issuer).build().unwrap());
    let address = serve(app).await;
    let answer = with_key(get(address, "/"), ONE).send().await;
    assert_eq!(answer.header("cache-control"), Some("public, max-age=9"));
    assert_eq!(answer.all("vary"), ["accept", NAME]);
}

#[tokio::test]
async fn bearer_responses_are_unchanged() {
    let address = start(&issuer()).await;
    let answer = get(address, "/whoami").key(ONE).send().await;
    let names: Vec<&str> = answer
        .headers
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(names, ["content-type", "content-length"]);
}

async fn show(headers: HeaderMap) -> String {
    format!("{headers:?}")
}

#[tokio::test]
async fn debug_of_headers_hides_the_credential() {
    let issuer = issuer();
    let own = builder(&issuer).build().unwrap();
    let app = axum::Router::new()
        .route("/own", route(show).route_layer(own))
        .route(
            "/bearer",
            route(show).route_layer(ApiKeyLayer::new(issuer.clone())),
        );
    let address = serve(app).await;
    // A miss, then a hit.
    for _ in 0..2 {
        let own = with_key(get(address, "/own"), ONE).send().await;
        assert!(own.body.contains(r#""x-api-key": Sensitive"#), "{own:?}");
        let bearer = get(address, "/bearer").key(ONE).send().await;
        assert!(
            bearer.body.contains(r#""authorization": Sensitive"#),
            "{bearer:?}"
        );
        assert!(!format!("{own:?}{bearer:?}").contains(&ONE[..8]));
    }
}

#[tokio::test]
async fn credential_can_be_stripped() {
    let issuer = issuer();
    let own = builder(&issuer).strip_credential(true).build().unwrap();
    let bearer = ApiKeyLayer::builder(issuer.clone())
        .strip_credential(true)
        .build()
        .unwrap();
    let app = axum::Router::new()
        .route("/own", route(show).route_layer(own))
        .route("/bearer", route(show).route_layer(bearer));
    let address = serve(app).await;
    // A miss, then a hit.
    for _ in 0..2 {
        let own = with_key(get(address, "/own"), ONE).header("x-other", "kept");
        let bearer = get(address, "/bearer").key(ONE).header("x-other", "kept");
        for request in [own, bearer] {
            let answer = request.send().await;
            assert_eq!(answer.status, 200);
            assert!(answer.body.contains("kept"), "{}", answer.body);
            assert!(!answer.body.contains("x-api-key"), "{}", answer.body);
            assert!(!answer.body.contains("authorization"), "{}", answer.body);
        }
    }
}

#[test]
fn invalid_credential_header_is_not_built() {
    let build = |name, scheme: &str| {
        ApiKeyLayer::builder(issuer())
            .credential_header(name, scheme)
            .build()
    };
    let error = build(http::header::AUTHORIZATION, "ApiKey").unwrap_err();
    assert_eq!(error.field(), "credential_header");
    for scheme in ["", "Api Key", "Api\"Key", "é"] {
        let error = build(HeaderName::from_static(NAME), scheme).unwrap_err();
        assert_eq!(error.field(), "credential_header");
    }
}
