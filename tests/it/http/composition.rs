//! The positions of the layer and its guards in an axum application, and what they cover.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get as route;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, Method};
use tower::ServiceBuilder;
use tower_http::cors::{Any, CorsLayer};
use tower_orgkey::{ApiKeyLayer, ApiKeyLayerBuilder, require_any_scope, require_scope};

use super::*;
use crate::support::wire::{get, raw_request, serve};

async fn status(address: SocketAddr, path: &str, key: Option<&str>) -> u16 {
    let request = get(address, path);
    let request = match key {
        Some(key) => request.key(key),
        None => request,
    };
    request.send().await.status
}

#[tokio::test]
async fn only_layer_covers_404_and_fallback() {
    let routes = || Router::new().route("/a", route(open));
    let auth = || ApiKeyLayer::new(issuer());
    let fallback = || routes().fallback(async || (http::StatusCode::IM_A_TEAPOT, "fallback"));
    for (app, without, with) in [
        (routes().route_layer(auth()), 404, 404),
        (routes().layer(auth()), 401, 404),
        (fallback().route_layer(auth()), 418, 418),
        (fallback().layer(auth()), 401, 418),
    ] {
        let address = serve(app).await;
        assert_eq!(status(address, "/a", None).await, 401);
        assert_eq!(status(address, "/a", Some(ONE)).await, 200);
        assert_eq!(status(address, "/unknown", None).await, without);
        assert_eq!(status(address, "/unknown", Some(ONE)).await, with);
    }
}

#[tokio::test]
async fn fault_48_guards_of_later_routes_respond_with_500() {
    let app = Router::new()
        .route("/before", route(whoami))
        .route_layer(ApiKeyLayer::new(issuer()))
        .route("/after", route(open))
        .route("/after/context", route(whoami))
        .route(
            "/after/optional",
            route(async |_: Option<OrgContext>| "optional"),
        )
        .route(
            "/after/typed",
            route(async |_: Scoped<BothReports>| "typed"),
        )
        .route("/after/guard", route(open).route_layer(require_scope("a")))
        .route(
            "/after/{org}",
            route(open).route_layer(tower_orgkey::require_org("org")),
        );
    let address = serve(app).await;
    assert_eq!(status(address, "/before", None).await, 401);
    assert_eq!(status(address, "/before", Some(ONE)).await, 200);
    assert_eq!(status(address, "/after", None).await, 200);
    for path in ["context", "optional", "typed", "guard", "org_one"] {
        let path = format!("/after/{path}");
        assert_eq!(status(address, &path, Some(ONE)).await, 500, "{path}");
        assert_eq!(status(address, &path, None).await, 500, "{path}");
    }
}

#[tokio::test]
async fn fault_48_later_methods_are_not_guarded() {
    let app = Router::new()
        .route(
            "/hole",
            route(whoami)
                .route_layer(require_scope("admin"))
                .post(whoami),
        )
        .route(
            "/closed",
            route(whoami)
                .post(whoami)
                .route_layer(require_scope("admin")),
        )
        .route_layer(ApiKeyLayer::new(issuer()));
    let address = serve(app).await;
    for (method, path, expected) in [
        ("GET", "/hole", 403),
        ("HEAD", "/hole", 403),
        ("POST", "/hole", 200),
        ("GET", "/closed", 403),
        ("POST", "/closed", 403),
    ] {
        let answer = raw_request(address, method, path).key(ONE).send().await;
        assert_eq!(answer.status, expected, "{method} {path}");
        // The layer covers both.
        assert_eq!(raw_request(address, method, path).send().await.status, 401);
    }
}

#[tokio::test]
async fn layer_composes_with_nest_and_merge() {
    let issuer = issuer();
    let auth = ApiKeyLayer::new(issuer.clone());
    let app = Router::new()
        .nest(
            "/nested",
            Router::new()
                .route("/a", route(whoami))
                .route_layer(auth.clone()),
        )
        .nest_service(
            "/service",
            Router::new().route("/a", route(whoami)).layer(auth.clone()),
        )
        .merge(
            Router::new()
                .route("/merged", route(whoami))
                .route_layer(auth.clone()),
        )
        .merge(Router::new().route("/public", route(open)))
        .route(
            "/method",
            route(whoami).route_layer(auth.clone()).post(open),
        )
        .route("/methods", route(whoami).post(whoami).layer(auth));
    let address = serve(app).await;
    for path in ["/nested/a", "/service/a", "/merged", "/method", "/methods"] {
        assert_eq!(status(address, path, None).await, 401, "{path}");
        assert_eq!(status(address, path, Some(BAD)).await, 401, "{path}");
        assert_eq!(
            get(address, path).key(ONE).send().await.body,
            "org_one",
            "{path}"
        );
    }
    assert_eq!(status(address, "/public", None).await, 200);
    assert_eq!(status(address, "/nested/unknown", None).await, 404);
    assert_eq!(status(address, "/service/unknown", None).await, 401);
    assert_eq!(
        raw_request(address, "POST", "/method").send().await.status,
        200
    );
    assert_eq!(
        raw_request(address, "POST", "/methods").send().await.status,
        401
    );
    // All share one cache.
    assert_eq!((issuer.calls_for(ONE), issuer.calls_for(BAD)), (1, 1));
}

#[tokio::test]
async fn unknown_method_is_401_before_405() {
    let app = Router::new()
        .route("/a", route(whoami))
        .route_layer(ApiKeyLayer::new(issuer()));
    let address = serve(app).await;
    assert_eq!(raw_request(address, "POST", "/a").send().await.status, 401);
    assert_eq!(
        raw_request(address, "POST", "/a")
            .key(ONE)
            .send()
            .await
            .status,
        405
    );
}

#[tokio::test]
async fn all_guards_must_allow_a_request() {
    let app = Router::new()
        .route(
            "/orgs/{org}",
            route(whoami)
                .route_layer(require_any_scope(["write:reports", "admin"]))
                .route_layer(require_scope("read:reports"))
                .route_layer(tower_orgkey::require_org("org")),
        )
        .route_layer(ApiKeyLayer::new(issuer()));
    let address = serve(app).await;
    for _ in 0..2 {
        assert_eq!(status(address, "/orgs/org_two", Some(TWO)).await, 200);
        assert_eq!(status(address, "/orgs/org_one", Some(TWO)).await, 403);
        let answer = get(address, "/orgs/org_one").key(ONE).send().await;
        assert_eq!(answer.code(), "insufficient-scope");
        let answer = get(address, "/orgs/org_two").key(ONE).send().await;
        assert_eq!(answer.code(), "organization-mismatch");
    }
}

#[tokio::test]
async fn fault_54_preflight_needs_cors_outside_the_layer() {
    let cors = || {
        CorsLayer::new()
            .allow_origin(Any)
            .allow_methods([Method::GET])
            .allow_headers([http::header::AUTHORIZATION])
    };
    let issuer = issuer();
    let auth = ApiKeyLayer::new(issuer.clone());
    let inside = Router::new()
        .route("/a", route(whoami))
        .layer(ServiceBuilder::new().layer(auth.clone()).layer(cors()));
    let outside = Router::new()
        .route("/a", route(whoami))
        .layer(ServiceBuilder::new().layer(cors()).layer(auth));
    let preflight = |address| {
        raw_request(address, "OPTIONS", "/a")
            .header("origin", "https://app.test")
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", "authorization")
    };
    let (inside, outside) = (serve(inside).await, serve(outside).await);
    assert_eq!(preflight(inside).send().await.status, 401);
    let answer = preflight(outside).send().await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-methods"), Some("GET"));
    assert_eq!(
        answer.header("access-control-allow-headers"),
        Some("authorization")
    );
    assert_eq!(issuer.calls(), 0);
    // A browser must be able to read the rejection too.
    let refused = get(outside, "/a")
        .header("origin", "https://app.test")
        .send()
        .await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("access-control-allow-origin"), Some("*"));
}

#[tokio::test]
async fn inner_layer_replaces_the_outer_context() {
    let outer_issuer = crate::support::Issuer::knowing([
        (ONE, crate::support::org("org_outer", &["admin"])),
        (TWO, crate::support::org("org_outer", &["admin"])),
    ]);
    let inner_issuer = crate::support::Issuer::knowing([(
        ONE,
        crate::support::org("org_inner", &["read:reports"]),
    )]);
    let outer = ApiKeyLayer::new(outer_issuer.clone());
    let inner = ApiKeyLayer::builder(inner_issuer.clone())
        .realm("inner")
        .build()
        .unwrap();
    // Another header than that of the outer layer, so that a request can have a key for one of them only.
    let lax = ApiKeyLayer::builder(inner_issuer.clone())
        .credential_header(http::HeaderName::from_static("x-api-key"), "ApiKey")
        .allow_anonymous()
        .build()
        .unwrap();
    let app = Router::new()
        .route("/", route(whoami))
        .route("/admin", route(open).route_layer(require_scope("admin")))
        .route_layer(inner)
        .merge(
            Router::new()
                .route(
                    "/lax",
                    route(async |org: Option<OrgContext>| format!("{}", org.is_some())),
                )
                .route("/lax/context", route(whoami))
                .route_layer(lax),
        )
        .route_layer(outer);
    let address = serve(app).await;
    for _ in 0..2 {
        assert_eq!(get(address, "/").key(ONE).send().await.body, "org_inner");
        let scope = get(address, "/admin").key(ONE).send().await;
        assert_eq!(scope.status, 403);
        assert_eq!(
            scope.header("www-authenticate"),
            Some(r#"Bearer realm="inner", error="insufficient_scope", scope="admin""#)
        );
        // Valid outside, invalid inside.
        let refused = get(address, "/").key(TWO).send().await;
        assert_eq!(
            refused.header("www-authenticate"),
            Some(r#"Bearer realm="inner", error="invalid_token""#)
        );
        // Invalid outside: the inner layer is not called.
        let refused = get(address, "/").key(BAD).send().await;
        assert_eq!(
            refused.header("www-authenticate"),
            Some(r#"Bearer realm="api", error="invalid_token""#)
        );
        assert_eq!(get(address, "/lax").key(ONE).send().await.body, "false");
        assert_eq!(
            get(address, "/lax/context").key(ONE).send().await.status,
            401
        );
        let both = get(address, "/lax/context")
            .key(TWO)
            .header("x-api-key", ONE);
        assert_eq!(both.send().await.body, "org_inner");
    }
    // `inner` and `lax` share only the issuer.
    assert_eq!(inner_issuer.calls_for(ONE), 2);
    assert_eq!(inner_issuer.calls_for(TWO), 1);
    assert_eq!(inner_issuer.calls_for(BAD), 0);
    assert_eq!(outer_issuer.calls(), 3);
}

#[tokio::test]
async fn only_clones_share_a_cache() {
    let issuer = issuer();
    let first = ApiKeyLayer::new(issuer.clone());
    let second = ApiKeyLayer::new(issuer.clone());
    let app = Router::new()
        .route("/1", route(whoami).route_layer(first.clone()))
        .route(
            "/1b",
            route(whoami).route_layer(first.with_rejection_response(
                |_: &tower_orgkey::Rejection| http::Response::new(axum::body::Body::empty()),
            )),
        )
        .route("/2", route(whoami).route_layer(second));
    let address = serve(app).await;
    for path in ["/1", "/1b", "/1", "/1b"] {
        assert_eq!(status(address, path, Some(ONE)).await, 200);
        assert_eq!(issuer.calls(), 1);
    }
    for _ in 0..2 {
        assert_eq!(status(address, "/2", Some(ONE)).await, 200);
        assert_eq!(issuer.calls(), 2);
    }
}

/// The headers as the handler sees them, and the caller.
async fn shown(headers: HeaderMap, org: Option<OrgContext>) -> String {
    let org = org.map(|org| org.org_code().to_string());
    format!("{} {headers:?}", org.as_deref().unwrap_or("anonymous"))
}

/// Counts the requests without a credential.
async fn count_stripped(
    State(stripped): State<Arc<AtomicUsize>>,
    request: Request,
    next: Next,
) -> Response {
    let names = ["authorization", "x-api-key"];
    let is_stripped = !names
        .iter()
        .any(|name| request.headers().contains_key(*name));
    stripped.fetch_add(usize::from(is_stripped), Ordering::SeqCst);
    let shown = format!("{:?}", request.extensions());
    assert!(!shown.contains(&ONE[..8]), "{shown}");
    next.run(request).await
}

fn strips(issuer: &Issuer) -> ApiKeyLayerBuilder {
    ApiKeyLayer::builder(issuer.clone()).strip_credential(true)
}

fn own_header(builder: ApiKeyLayerBuilder) -> ApiKeyLayerBuilder {
    builder.credential_header(HeaderName::from_static("x-api-key"), "ApiKey")
}

#[tokio::test]
async fn fault_83_inner_clone_uses_the_stripped_key() {
    type Of = fn(ApiKeyLayerBuilder) -> ApiKeyLayerBuilder;
    let kinds: [(&str, &str, Of); 3] = [
        ("authorization", "Bearer ", |builder| builder),
        (
            "authorization",
            "bearer  ",
            ApiKeyLayerBuilder::allow_anonymous,
        ),
        ("x-api-key", "", own_header),
    ];
    for (header, scheme, of) in kinds {
        let issuer = issuer();
        let auth = of(strips(&issuer)).build().unwrap();
        let stripped = Arc::<AtomicUsize>::default();
        let inner = auth.clone().max_age(Duration::ZERO);
        let app = Router::new()
            .route(
                "/",
                route(shown).route_layer(inner.clone()).route_layer(inner),
            )
            .route_layer(from_fn_with_state(Arc::clone(&stripped), count_stripped))
            .route_layer(auth);
        let address = serve(app).await;
        for n in 1..4 {
            let request = get(address, "/").header(header, format!("{scheme}{ONE}"));
            let answer = request.send().await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(answer.body.starts_with("org_one "), "{}", answer.body);
            assert!(!answer.body.contains(header), "{}", answer.body);
            assert_eq!(stripped.load(Ordering::SeqCst), n, "nothing was stripped");
            // A hit or a miss outside, and always a verification by each clone inside.
            assert_eq!(issuer.calls_for(ONE), 1 + 2 * n);
        }
        issuer.set(ONE, Answer::Invalid);
        let request = get(address, "/").header(header, format!("{scheme}{ONE}"));
        let answer = request.send().await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, "invalid-token")
        );
    }
}

#[tokio::test]
async fn fault_83_anonymous_requests_pass_a_clone() {
    let issuer = issuer();
    let auth = strips(&issuer).allow_anonymous().build().unwrap();
    let inner = auth.clone().max_age(Duration::ZERO);
    let app = Router::new()
        .route("/", route(shown).route_layer(inner.clone()))
        .route("/org", route(whoami).route_layer(inner.clone()))
        .route(
            "/guarded",
            route(open)
                .route_layer(require_scope("read:reports"))
                .route_layer(inner),
        )
        .route_layer(auth);
    let address = serve(app).await;
    let answer = get(address, "/").send().await;
    assert!(answer.body.starts_with("anonymous "), "{answer:?}");
    for path in ["/org", "/guarded"] {
        assert_eq!(status(address, path, None).await, 401);
        assert_eq!(status(address, path, Some(ONE)).await, 200);
        assert_eq!(status(address, path, Some(BAD)).await, 401);
    }
    assert_eq!(issuer.calls_for(ONE), 3);
}

#[tokio::test]
async fn fault_83_other_layer_ignores_the_stripped_key() {
    let issuer = issuer();
    let auth = strips(&issuer).build().unwrap();
    let other = strips(&issuer).build().unwrap();
    let lax = strips(&issuer).allow_anonymous().build().unwrap();
    let stripped = Arc::<AtomicUsize>::default();
    let app = Router::new()
        .route("/other", route(shown).route_layer(other))
        .route("/lax", route(shown).route_layer(lax))
        .route_layer(from_fn_with_state(Arc::clone(&stripped), count_stripped))
        .route_layer(auth);
    let address = serve(app).await;
    for n in 1..3 {
        let answer = get(address, "/other").key(ONE).send().await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, "credential-missing")
        );
        let answer = get(address, "/lax").key(ONE).send().await;
        assert!(answer.body.starts_with("anonymous "), "{answer:?}");
        assert_eq!(stripped.load(Ordering::SeqCst), 2 * n);
    }
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test]
async fn fault_83_layer_between_clones_takes_nothing() {
    let (issuer, others) = (super::issuer(), super::issuer());
    let auth = strips(&issuer).build().unwrap();
    let between = own_header(strips(&others)).build().unwrap();
    let app = Router::new()
        .route("/", route(shown))
        .route_layer(auth.clone().max_age(Duration::ZERO))
        .route_layer(between.clone().max_age(Duration::ZERO))
        .route_layer(auth)
        .route_layer(between);
    let address = serve(app).await;
    let answer = get(address, "/")
        .key(TWO)
        .header("x-api-key", ONE)
        .send()
        .await;
    assert!(answer.body.starts_with("org_two "), "{answer:?}");
    assert_eq!((issuer.calls_for(TWO), others.calls_for(ONE)), (2, 2));
    assert_eq!((issuer.calls(), others.calls()), (2, 2));
}

#[tokio::test]
async fn fault_83_credential_added_between_is_used() {
    let issuer = issuer();
    let auth = strips(&issuer).build().unwrap();
    let put = |value: &'static str| {
        tower::util::MapRequestLayer::new(move |mut request: Request| {
            let value = http::HeaderValue::from_static(value);
            request.headers_mut().insert(AUTHORIZATION, value);
            request
        })
    };
    let inner = || auth.clone().max_age(Duration::ZERO);
    let app = Router::new()
        .route(
            "/basic",
            route(shown)
                .route_layer(inner())
                .route_layer(put("Basic abc")),
        )
        .route(
            "/key",
            route(shown)
                .route_layer(inner())
                .route_layer(inner())
                .route_layer(put("Bearer k_test_two_0123456789")),
        )
        .route_layer(auth);
    let address = serve(app).await;
    let answer = get(address, "/basic").key(ONE).send().await;
    assert!(answer.body.starts_with("org_one "), "{answer:?}");
    let stays = answer.body.contains(r#""authorization": Sensitive"#);
    assert!(stays, "{}", answer.body);
    let answer = get(address, "/key").key(ONE).send().await;
    assert!(answer.body.starts_with("org_two "), "{answer:?}");
    assert!(!answer.body.contains("authorization"), "{}", answer.body);
    assert_eq!((issuer.calls_for(ONE), issuer.calls_for(TWO)), (2, 2));
}
