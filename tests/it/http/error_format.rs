//! Custom response formats.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get as route;
use bytes::Bytes;
use http_body::Frame;
use tower::{Layer, ServiceExt, service_fn};
use tower_orgkey::{ApiKeyLayer, Rejection, RejectionResponse, require_scope};

use super::*;
use crate::support::service::request;
use crate::support::wire::{RawResponse, get, serve};

fn face(name: &'static str) -> impl FnMut(&Rejection) -> Response + Clone {
    move |rejection| {
        let status = if rejection.status() == 401 {
            418
        } else {
            rejection.status().as_u16()
        };
        (
            http::StatusCode::from_u16(status).unwrap(),
            [("x-face", name)],
            format!("{name}: {}", rejection.code()),
        )
            .into_response()
    }
}

#[track_caller]
fn wears(answer: &RawResponse, name: &str, status: u16, code: &str) {
    assert_eq!(answer.body, format!("{name}: {code}"));
    assert_eq!(answer.status, status);
    assert_eq!(answer.header("x-face"), Some(name));
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(
        answer.header("content-length"),
        Some(answer.body.len().to_string().as_str())
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let is_503 = status == 503;
    assert_eq!(answer.header("retry-after").is_some(), is_503);
    let error = match code {
        "credential-missing" => Some(String::new()),
        "credential-malformed" => Some(r#", error="invalid_request""#.into()),
        "invalid-token" => Some(r#", error="invalid_token""#.into()),
        "insufficient-scope" => {
            Some(r#", error="insufficient_scope", scope="read:reports write:reports""#.into())
        }
        _ => None,
    };
    let challenge = error.map(|error: String| format!(r#"Bearer realm="acme"{error}"#));
    assert_eq!(answer.header("www-authenticate"), challenge.as_deref());
}

#[tokio::test]
async fn custom_format_applies_to_all_rejections() {
    let layer = ApiKeyLayer::builder(issuer())
        .realm("acme")
        .build()
        .unwrap()
        .with_rejection_response(face("mine"));
    let address = serve(guarded().route_layer(layer)).await;
    for (path, key, status, code) in [
        ("/whoami", None, 418, "credential-missing"),
        ("/whoami", Some("short"), 400, "credential-malformed"),
        ("/whoami", Some(BAD), 418, "invalid-token"),
        ("/whoami", Some(NOBODY), 403, "organization-required"),
        ("/guarded", Some(ONE), 403, "insufficient-scope"),
        ("/typed", Some(ONE), 403, "insufficient-scope"),
        ("/orgs/org_two", Some(ONE), 403, "organization-mismatch"),
        ("/hidden/org_two", Some(ONE), 404, "not-found"),
        ("/misnamed/org_one", Some(ONE), 500, "internal"),
        ("/whoami", Some(STRANGE), 503, "verifier-misconfigured"),
        // The last one, because its failures may open the breaker.
        ("/whoami", Some(DOUBTFUL), 503, "verifier-unavailable"),
    ] {
        for _ in 0..2 {
            let mut request = get(address, path);
            if let Some(key) = key {
                request = request.key(key);
            }
            let answer = request.send().await;
            wears(&answer, "mine", status, code);
        }
    }
    let passed = get(address, "/whoami").key(ONE).send().await;
    assert_eq!((passed.status, passed.header("x-face")), (200, None));
}

#[tokio::test]
async fn headers_of_a_custom_format_are_kept() {
    let layer = ApiKeyLayer::new(issuer()).with_rejection_response(|rejection: &Rejection| {
        (
            rejection.status(),
            [
                ("www-authenticate", "Mine"),
                ("cache-control", "no-cache"),
                ("retry-after", "77"),
            ],
        )
            .into_response()
    });
    let address = serve(guarded().route_layer(layer)).await;
    for (path, key) in [("/whoami", BAD), ("/guarded", ONE), ("/whoami", DOUBTFUL)] {
        let answer = get(address, path).key(key).send().await;
        assert_eq!(answer.header("www-authenticate"), Some("Mine"));
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        assert_eq!(answer.header("retry-after"), Some("77"));
    }
}

#[tokio::test]
async fn rejecting_layer_chooses_the_format() {
    let outer = ApiKeyLayer::builder(crate::support::Issuer::knowing([
        (ONE, crate::support::org("org_outer", &[])),
        (TWO, crate::support::org("org_outer", &[])),
    ]))
    .realm("acme")
    .build()
    .unwrap();
    let inner = ApiKeyLayer::builder(crate::support::Issuer::knowing([(
        ONE,
        crate::support::org("org_inner", &["read:reports"]),
    )]))
    .realm("acme")
    .build()
    .unwrap();
    let app = guarded()
        .route_layer(inner.with_rejection_response(face("inner")))
        .route("/between", route(open).route_layer(require_scope("admin")))
        .route_layer(outer.with_rejection_response(face("outer")));
    let address = serve(app).await;
    for _ in 0..2 {
        wears(
            &get(address, "/whoami").key(BAD).send().await,
            "outer",
            418,
            "invalid-token",
        );
        wears(
            &get(address, "/whoami").key(TWO).send().await,
            "inner",
            418,
            "invalid-token",
        );
        wears(
            &get(address, "/guarded").key(ONE).send().await,
            "inner",
            403,
            "insufficient-scope",
        );
        wears(
            &get(address, "/typed").key(ONE).send().await,
            "inner",
            403,
            "insufficient-scope",
        );
        let between = get(address, "/between").key(ONE).send().await;
        assert_eq!(between.body, "outer: insufficient-scope");
    }
}

#[tokio::test]
async fn headers_of_middleware_above_a_guard_are_kept() {
    async fn add(mut response: Response) -> Response {
        let headers = response.headers_mut();
        headers.insert("x-request-id", "7".parse().unwrap());
        headers.append("set-cookie", "a=1".parse().unwrap());
        headers.append("set-cookie", "b=2".parse().unwrap());
        headers.append("vary", "accept".parse().unwrap());
        response
    }
    let layer = ApiKeyLayer::builder(issuer())
        .credential_header(http::HeaderName::from_static("x-api-key"), "ApiKey")
        .build()
        .unwrap()
        .with_rejection_response(face("mine"));
    let app = guarded()
        .route_layer(axum::middleware::map_response(add))
        .route_layer(layer);
    let address = serve(app).await;
    let answer = get(address, "/guarded")
        .header("x-api-key", ONE)
        .send()
        .await;
    assert_eq!(answer.body, "mine: insufficient-scope");
    assert_eq!(answer.header("x-request-id"), Some("7"));
    assert_eq!(answer.all("set-cookie"), ["a=1", "b=2"]);
    let mut vary = answer.all("vary");
    vary.sort_unstable();
    assert_eq!(vary, ["accept", "x-api-key"]);
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(answer.header("www-authenticate"), None);
}

/// A body type of this file.
#[derive(Debug, PartialEq)]
enum Mine {
    Handler,
    Refused(&'static str),
}

impl http_body::Body for Mine {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }
}

#[derive(Clone)]
struct MyFace;

impl RejectionResponse<Mine> for MyFace {
    fn rejection_response(&mut self, rejection: &Rejection) -> http::Response<Mine> {
        http::Response::new(Mine::Refused(rejection.code()))
    }
}

#[tokio::test]
async fn body_may_have_any_type() {
    let inner = service_fn(async |_: http::Request<()>| {
        Ok::<_, Infallible>(http::Response::new(Mine::Handler))
    });
    let service = ApiKeyLayer::new(issuer())
        .with_rejection_response(MyFace)
        .layer(inner);
    for _ in 0..2 {
        let passed = service.clone().oneshot(request(ONE)).await.unwrap();
        assert_eq!(passed.into_body(), Mine::Handler);
        let refused = service.clone().oneshot(request(BAD)).await.unwrap();
        assert_eq!(refused.headers()["cache-control"], "no-store");
        assert!(refused.headers().contains_key("www-authenticate"));
        assert_eq!(refused.into_body(), Mine::Refused("invalid-token"));
    }
}

#[tokio::test]
async fn guard_without_layer_responds_without_a_body() {
    let app = Router::new().route("/", route(open).route_layer(require_scope("a")));
    let address = serve(app).await;
    let answer = get(address, "/").send().await;
    assert_eq!((answer.status, answer.body.as_str()), (500, ""));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}
