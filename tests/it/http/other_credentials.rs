//! Credentials that are not keys, on routes that accept keys.

use axum::http::{HeaderMap, HeaderName};
use axum::routing::get as route;
use tower_orgkey::observer::{Caller, OuterObservation, RequestObservation};
use tower_orgkey::settings::{OrgSettings, OrgSettingsLayer, settings_fn};
use tower_orgkey::{
    ApiKeyLayer, ApiKeyLayerBuilder, OrgConcurrencyLimitLayer, OrgContext, OrgRateLimitLayer,
};

use super::*;
use crate::support::issuer::Behavior;
use crate::support::wire::{get, serve};

const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJrcF8xIn0.c2lnbmF0dXJl";

/// Every path of `app` but `/open`.
const PROTECTED: [&str; 10] = [
    "/whoami",
    "/optional",
    "/read",
    "/guarded",
    "/typed",
    "/orgs/org_one",
    "/of",
    "/rate",
    "/concurrency",
    "/settings",
];

fn builder(issuer: &Issuer) -> ApiKeyLayerBuilder {
    ApiKeyLayer::builder(issuer.clone())
        .only_prefix("k_live_")
        .only_prefix("k_test_")
}

/// A layer for keys in another header, and one inside of it that passes other credentials on.
fn outer_and_passing(issuer: &Issuer) -> (ApiKeyLayer, ApiKeyLayer) {
    let outer = ApiKeyLayer::builder(issuer.clone())
        .credential_header(HeaderName::from_static("x-api-key"), "ApiKey")
        .build()
        .unwrap();
    let inner = builder(issuer)
        .pass_other_credentials_to_inner_auth()
        .build()
        .unwrap();
    (outer, inner)
}

/// A request with a key of the outer layer, and a credential that is not a key.
fn with_both() -> axum::http::Request<()> {
    let mut request = crate::support::service::request(JWT);
    request
        .headers_mut()
        .insert("x-api-key", ONE.parse().unwrap());
    request
}

async fn authorization(headers: HeaderMap) -> String {
    let values = headers.get_all("authorization").iter();
    let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    values.collect::<Vec<_>>().join("|")
}

fn app(layer: ApiKeyLayer) -> Router {
    let rate = OrgRateLimitLayer::new(|_: &OrgContext| None);
    let concurrency = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(2));
    let load = settings_fn(async |_| Ok::<_, std::convert::Infallible>(7_u32));
    let settings = OrgSettingsLayer::new(&layer.handle(), load);
    let optional_settings = async |_: Option<OrgSettings<u32>>| "open";
    guarded()
        .route("/open", route(authorization))
        .route("/optional", route(async |_: Option<OrgContext>| "open"))
        .route(
            "/of",
            route(async |request: axum::extract::Request| {
                OrgContext::of(request.extensions()).map(|org| org.org_code().to_string())
            }),
        )
        .route("/rate", route(open).route_layer(rate))
        .route("/concurrency", route(open).route_layer(concurrency))
        .route("/settings", route(optional_settings).route_layer(settings))
        .route_layer(layer)
}

#[tokio::test]
async fn other_credentials_are_401_without_a_call() {
    let issuer = issuer();
    let invalid = get(start(&issuer).await, "/whoami").key(BAD).send().await;
    let calls = issuer.calls();
    let layer = builder(&issuer).allow_anonymous().build().unwrap();
    let handle = layer.handle();
    let before = handle.stats();
    let address = serve(app(layer)).await;
    let long = "x".repeat(4_000);
    for credential in [JWT, "K_TEST_0123456789", "short", "a,b", &long] {
        for path in PROTECTED.iter().chain(&["/open"]) {
            let answer = get(address, path).key(credential).send().await;
            assert_eq!(answer, invalid, "{path} {credential}");
        }
    }
    assert_eq!(issuer.calls(), calls);
    assert_eq!(handle.stats(), before);
    assert_eq!(
        get(address, "/whoami").key(ONE).send().await.body,
        "org_one"
    );
    // Anonymous, as another scheme is without `pass_other_credentials_to_inner_auth`.
    let basic = get(address, "/optional").header("authorization", "Basic YTpi");
    assert_eq!(basic.send().await.body, "open");
}

#[tokio::test]
async fn other_credentials_reach_only_inner_auth() {
    let issuer = issuer();
    let invalid = get(start(&issuer).await, "/whoami").key(BAD).send().await;
    let calls = issuer.calls();
    for allow_anonymous in [false, true] {
        let mut builder = builder(&issuer)
            .pass_other_credentials_to_inner_auth()
            .strip_credential(true);
        if allow_anonymous {
            builder = builder.allow_anonymous();
        }
        let layer = builder.build().unwrap();
        let before = layer.handle().stats();
        let handle = layer.handle();
        let address = serve(app(layer)).await;
        let long = format!("Bearer {}", "x".repeat(4_000));
        let jwt = format!("Bearer {JWT}");
        for value in [
            &jwt,
            "bearer  short",
            "Bearer a,b",
            &long,
            "Basic YTpi",
            "DPoP x",
        ] {
            let request = |path| get(address, path).header("authorization", value);
            let open = request("/open").send().await;
            assert_eq!((open.status, open.body.as_str()), (200, value));
            for path in PROTECTED {
                assert_eq!(request(path).send().await, invalid, "{path} {value}");
            }
        }
        assert_eq!(issuer.calls(), calls);
        assert_eq!(handle.stats(), before);

        let missing = get(address, "/open").send().await;
        assert_eq!(missing.status, if allow_anonymous { 200 } else { 401 });
        let twice = get(address, "/open").key(JWT).key(JWT).send().await;
        assert_eq!(
            (twice.status, &*twice.code()),
            (400, "credential-malformed")
        );
        for malformed in ["", "Bearer", "Bearer ", "Bearer k_test_ 1"] {
            let answer = get(address, "/open").header("authorization", malformed);
            assert_eq!(answer.send().await.status, 400, "{malformed:?}");
        }
    }
    let layer = builder(&issuer)
        .pass_other_credentials_to_inner_auth()
        .build()
        .unwrap();
    let address = serve(app(layer)).await;
    assert_eq!(get(address, "/open").key(BAD).send().await, invalid);
    for path in ["/whoami", "/of", "/read", "/rate", "/settings"] {
        assert_eq!(
            get(address, path).key(ONE).send().await.status,
            200,
            "{path}"
        );
    }
}

#[tokio::test]
async fn other_credential_replaces_an_outer_context() {
    let issuer = issuer();
    let outer = ApiKeyLayer::builder(issuer.clone())
        .credential_header(HeaderName::from_static("x-api-key"), "ApiKey")
        .allow_anonymous()
        .build()
        .unwrap();
    let inner = builder(&issuer)
        .pass_other_credentials_to_inner_auth()
        .build()
        .unwrap();
    let address = serve(app(inner).route_layer(outer)).await;
    for outer_key in [None, Some(ONE)] {
        for path in PROTECTED {
            let mut request = get(address, path).key(JWT);
            if let Some(key) = outer_key {
                request = request.header("x-api-key", key);
            }
            let answer = request.send().await;
            assert_eq!(
                (answer.status, &*answer.code()),
                (401, "invalid-token"),
                "{path}"
            );
        }
        let both = get(address, "/whoami").key(TWO).header("x-api-key", ONE);
        assert_eq!(both.send().await.body, "org_two");
    }
}

#[tokio::test]
async fn inner_anonymous_does_not_hide_another_credential() {
    let issuer = issuer();
    let outer = builder(&issuer)
        .pass_other_credentials_to_inner_auth()
        .build()
        .unwrap();
    let inner = ApiKeyLayer::builder(issuer.clone())
        .credential_header(HeaderName::from_static("x-api-key"), "ApiKey")
        .allow_anonymous()
        .build()
        .unwrap();
    let address = serve(app(inner).route_layer(outer)).await;
    for path in PROTECTED {
        let answer = get(address, path).key(JWT).send().await;
        assert_eq!(
            (answer.status, &*answer.code()),
            (401, "invalid-token"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn fault_116_other_credentials_cost_nothing() {
    let issuer = issuer();
    issuer.is(Behavior::Fails);
    for passes in [false, true] {
        let mut builder = builder(&issuer);
        if passes {
            builder = builder.pass_other_credentials_to_inner_auth();
        }
        let layer = builder.build().unwrap();
        let (handle, app) = (layer.handle(), app(layer));
        let (before, calls) = (handle.stats(), issuer.calls());
        let send = |path: &str, credential: &str| {
            let request = axum::http::Request::get(path)
                .header("authorization", format!("Bearer {credential}"))
                .body(axum::body::Body::empty())
                .unwrap();
            tower::ServiceExt::oneshot(app.clone(), request)
        };
        for n in 0..10_000 {
            let credential = format!("eyJ{n:05}.{}", "x".repeat((n % 5) * 1_000));
            let open = send("/open", &credential).await.unwrap();
            assert_eq!(open.status(), if passes { 200 } else { 401 });
            let path = PROTECTED[n % PROTECTED.len()];
            let protected = send(path, &credential).await.unwrap();
            assert_eq!(protected.status(), 401, "{path}");
        }
        assert_eq!(handle.stats(), before);
        assert_eq!(issuer.calls(), calls);
        // The issuer is down: a key that it knows is not served.
        assert_eq!(send("/open", ONE).await.unwrap().status(), 503);
        assert!(issuer.calls() > calls);
    }
}

#[tokio::test]
async fn passed_credential_is_recorded_as_such() {
    let issuer = issuer();
    let (outer, inner) = outer_and_passing(&issuer);
    let service = tower::ServiceBuilder::new()
        .layer(outer)
        .layer(inner)
        .service(crate::support::service::Handler::default());
    let mut request = with_both();
    let observation = RequestObservation::attach(request.extensions_mut());
    let response = tower::ServiceExt::oneshot(service, request).await.unwrap();
    assert_eq!(
        (response.status(), response.body().len()),
        (axum::http::StatusCode::OK, 0)
    );
    let caller = observation.caller();
    assert!(
        matches!(caller, Some(Caller::OtherCredential)),
        "{observation:?}"
    );
}

#[tokio::test]
async fn function_accepts_keys() {
    let issuer = issuer();
    let layer = ApiKeyLayer::builder(issuer.clone())
        .only_matching(|credential| credential == ONE)
        .only_prefix("k_test_two")
        .build()
        .unwrap();
    let address = serve(app(layer)).await;
    for (key, status) in [(ONE, 200), (TWO, 200), (USER, 401), (NOBODY, 401)] {
        assert_eq!(
            get(address, "/whoami").key(key).send().await.status,
            status,
            "{key}"
        );
    }
    assert_eq!(issuer.calls(), 2);
}

#[tokio::test]
async fn longer_keys_need_a_setting() {
    let key = format!("eyJ.{}", "a".repeat(8_000));
    let issuer = Issuer::knowing([(&*key, org("org_one", &[]))]);
    let address = start(&issuer).await;
    assert_eq!(get(address, "/whoami").key(&key).send().await.status, 400);
    assert_eq!(issuer.calls(), 0);
    let layer = ApiKeyLayer::builder(issuer.clone())
        .max_key_len(8_192)
        .strip_credential(true)
        .build()
        .unwrap();
    let address = serve(app(layer)).await;
    for _ in 0..2 {
        assert_eq!(
            get(address, "/whoami").key(&key).send().await.body,
            "org_one"
        );
        assert_eq!(get(address, "/open").key(&key).send().await.body, "");
    }
    assert_eq!(issuer.calls(), 1);
    let longer = format!("{key}{}", "a".repeat(189));
    assert_eq!(
        get(address, "/whoami").key(&longer).send().await.status,
        400
    );
}

#[test]
fn invalid_key_rules_are_not_built() {
    let build = |set: fn(ApiKeyLayerBuilder) -> ApiKeyLayerBuilder| {
        let result = set(ApiKeyLayer::builder(issuer())).build();
        result.err().map(|error| error.field())
    };
    assert_eq!(build(|b| b.only_prefix("k_live_").max_key_len(8)), None);
    assert_eq!(build(|b| b.max_key_len(7)), Some("max_key_len"));
    assert_eq!(build(|b| b.max_key_len(8_193)), Some("max_key_len"));
    assert_eq!(build(|b| b.only_prefix("")), Some("only_prefix"));
    assert_eq!(build(|b| b.only_prefix("k live")), Some("only_prefix"));
    assert_eq!(build(|b| b.only_prefix("k=")), Some("only_prefix"));
    assert_eq!(
        build(|b| b.only_prefix("k_live_01").max_key_len(8)),
        Some("only_prefix")
    );
}

#[tokio::test]
async fn an_observed_passed_credential_is_not_500() {
    let issuer = issuer();
    let (outer, inner) = outer_and_passing(&issuer);
    let inner = tower::ServiceBuilder::new()
        .layer(inner)
        .service(crate::support::service::Handler::default());
    let recorded = tower::service_fn(move |mut request: http::Request<()>| {
        let inner = inner.clone();
        async move {
            let observation = OuterObservation::attach(request.extensions_mut(), "RecordLayer");
            let response = tower::ServiceExt::oneshot(inner, request).await?;
            Ok::<_, std::convert::Infallible>(observation.check(response))
        }
    });
    let service = tower::ServiceBuilder::new().layer(outer).service(recorded);
    let request = with_both();
    let response = tower::ServiceExt::oneshot(service, request).await.unwrap();
    assert_eq!(response.status(), axum::http::StatusCode::OK);
}
