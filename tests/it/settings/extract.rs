//! The extractor, and rejections over a socket.

use axum::Router;
use axum::routing::get as route;
use tower_orgkey::settings::{OrgSettings, OrgSettingsLayer, SettingsError, settings_fn};
use tower_orgkey::test_util::{OrgContextBuilder, org_settings};
use tower_orgkey::{ApiKeyLayer, OrgCode, OrgContext, Rejection, Verification, verifier_fn};

use super::store::{Fault, Plan, Store};
use super::{code, key_of};
use crate::support::log::Log;
use crate::support::wire::{get, serve};

const ONE: &str = "k_test_one_0123456789";

/// `k_test_<org>` is a key of `<org>`.
fn keys() -> tower_orgkey::ApiKeyLayerBuilder {
    ApiKeyLayer::builder(verifier_fn(|key| async move {
        let org = code(&key.expose_secret()["k_test_".len()..]);
        Ok(Verification::of_organization(org))
    }))
}

#[derive(Debug, PartialEq)]
struct Color(&'static str);

#[tokio::test]
async fn a_handler_extracts_settings_of_several_types() {
    let auth = keys().build().unwrap();
    let store = Store::default();
    store.change("org_two");
    let plans = OrgSettingsLayer::<Plan>::new(&auth.handle(), store.clone());
    let colors = OrgSettingsLayer::new(
        &auth.handle(),
        settings_fn(async |org: OrgCode| {
            Ok::<_, std::convert::Infallible>(Color(if org == "org_one" { "red" } else { "blue" }))
        }),
    );
    let handler = async |org: OrgContext,
                         plan: OrgSettings<Plan>,
                         color: Option<OrgSettings<Color>>,
                         request: axum::extract::Request| {
        let color = color.unwrap();
        assert_eq!(plan.org_code(), org.org_code());
        assert_eq!(color.org_code(), org.org_code());
        let again = OrgSettings::<Color>::of(request.extensions()).unwrap();
        assert_eq!(again.clone().into_inner(), color.clone().into_inner());
        format!(
            "{} {} {} {}",
            org.org_code(),
            plan.org,
            plan.revision,
            color.0
        )
    };
    let app = Router::new()
        .route("/", route(handler))
        .route_layer(plans)
        .route_layer(colors)
        .route_layer(auth);
    let address = serve(app).await;
    for _ in 0..2 {
        for (org, expected) in [
            ("org_one", "org_one org_one 0 red"),
            ("org_two", "org_two org_two 1 blue"),
        ] {
            let answer = get(address, "/").key(&key_of(org)).send().await;
            assert_eq!((answer.status, answer.body.as_str()), (200, expected));
        }
    }
    assert_eq!(store.calls(), 2);
}

#[tokio::test]
async fn the_inner_of_two_layers_wins() {
    let auth = keys().build().unwrap();
    let say = |revision| {
        settings_fn(move |_| async move { Ok::<_, SettingsError>(Plan::of("", revision)) })
    };
    let layer = |revision| OrgSettingsLayer::new(&auth.handle(), say(revision));
    let app = Router::new()
        .route(
            "/",
            route(async |plan: OrgSettings<Plan>| plan.revision.to_string()),
        )
        .route_layer(layer(1))
        .route_layer(layer(2))
        .route_layer(auth.clone());
    let address = serve(app).await;
    assert_eq!(get(address, "/").key(ONE).send().await.body, "1");
}

#[tokio::test]
async fn failed_loads_have_the_key_layers_response() {
    let auth = keys().realm("acme").build().unwrap();
    let store = Store::default();
    store.fails(Fault::Broken);
    let plans = OrgSettingsLayer::<Plan>::new(&auth.handle(), store.clone());
    let app = |auth| {
        Router::new()
            .route("/", route(async |_: OrgSettings<Plan>| ()))
            .route_layer(plans.clone())
            .route_layer(auth)
    };
    let address = serve(app(auth.clone())).await;
    let answer = get(address, "/").key(ONE).send().await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("10"));
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("www-authenticate"), None);
    let problem: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(problem["code"], "settings-unavailable");
    // The loader's error is not disclosed.
    assert!(!answer.body.contains("no such plan"));

    let own = Router::new()
        .route("/", route(async |_: OrgSettings<Plan>| ()))
        .route_layer(plans)
        .route_layer(auth.with_rejection_response(|rejection: &Rejection| {
            axum::response::IntoResponse::into_response((rejection.status(), rejection.code()))
        }));
    let address = serve(own).await;
    let answer = get(address, "/").key(ONE).send().await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (503, "settings-unavailable")
    );
    assert!(store.failures() >= 2);
}

#[tokio::test]
async fn anonymous_requests_cause_no_load() {
    let auth = keys().allow_anonymous().build().unwrap();
    let store = Store::default();
    let plans = OrgSettingsLayer::<Plan>::new(&auth.handle(), store.clone());
    let app = Router::new()
        .route("/mine", route(async |_: OrgSettings<Plan>| "in"))
        .route(
            "/maybe",
            route(async |plan: Option<OrgSettings<Plan>>| match plan {
                Some(plan) => plan.org.clone(),
                None => "nobody".into(),
            }),
        )
        .route("/open", route(async || "open"))
        .route_layer(plans)
        .route_layer(auth);
    let address = serve(app).await;
    assert_eq!(get(address, "/mine").send().await.status, 401);
    assert_eq!(get(address, "/maybe").send().await.body, "nobody");
    assert_eq!(get(address, "/open").send().await.body, "open");
    assert_eq!(store.calls(), 0);
    let org_one = get(address, "/maybe").key("k_test_org_one").send().await;
    assert_eq!(org_one.body, "org_one");
}

#[tokio::test]
async fn missing_or_misordered_layers_are_500() {
    let auth = keys().allow_anonymous().build().unwrap();
    let colors = settings_fn(async |_| Ok::<_, SettingsError>(Color("red")));
    let colors = OrgSettingsLayer::new(&auth.handle(), colors);
    let taken = || route(async |_: OrgSettings<Color>| "in");
    let maybe = || route(async |_: Option<OrgSettings<Color>>| "in");
    let cases: [(&str, Router, &str); 5] = [
        (
            "no layer of settings",
            Router::new().route("/", taken()).route_layer(auth.clone()),
            "no `OrgSettingsLayer` of this type",
        ),
        (
            "none, and the handler would do without",
            Router::new().route("/", maybe()).route_layer(auth.clone()),
            "no `OrgSettingsLayer` of this type",
        ),
        (
            "no layer of keys",
            Router::new()
                .route("/", taken())
                .route_layer(colors.clone()),
            "this layer must be inside an `ApiKeyLayer`",
        ),
        (
            "no layer at all",
            Router::new().route("/", taken()),
            "no `ApiKeyLayer` outside of this route",
        ),
        (
            "settings outside of keys",
            Router::new()
                .route("/", taken())
                .route_layer(auth)
                .route_layer(colors),
            "this layer must be inside an `ApiKeyLayer`",
        ),
    ];
    for (name, app, message) in cases {
        // At most one such event is logged per second.
        let mut told = false;
        for _ in 0..40 {
            let (log, _guard) = Log::capture();
            let request = crate::support::service::request(ONE).map(|()| axum::body::Body::empty());
            let response = tower::ServiceExt::oneshot(app.clone(), request)
                .await
                .unwrap();
            assert_eq!(response.status(), 500, "{name}");
            told = !log.lines("ERROR", message).is_empty();
            if told {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(told, "{name}");
    }
}

#[tokio::test]
async fn settings_of_an_outer_org_are_not_extracted() {
    // The outer layer reads another header, so that one request has two organizations.
    let outer = keys()
        .credential_header(http::HeaderName::from_static("x-api-key"), "ApiKey")
        .build()
        .unwrap();
    let inner = keys().allow_anonymous().build().unwrap();
    let plans = OrgSettingsLayer::<Plan>::new(&outer.handle(), Store::default());
    let app = Router::new()
        .route("/", route(async |plan: OrgSettings<Plan>| plan.org.clone()))
        .route(
            "/maybe",
            route(async |plan: Option<OrgSettings<Plan>>| {
                plan.map_or("nobody".into(), |plan| plan.org.clone())
            }),
        )
        .route(
            "/raw",
            route(async |request: axum::extract::Request| {
                OrgSettings::<Plan>::of(request.extensions())
                    .map_or("none".into(), |plan| plan.org.clone())
            }),
        )
        .route_layer(inner)
        .route_layer(plans)
        .route_layer(outer);
    let address = serve(app).await;
    let request = |path: &str, key: Option<&str>| {
        let request = get(address, path).header("x-api-key", "k_test_org_outer");
        match key {
            Some(key) => request.key(key),
            None => request,
        }
    };
    let same = Some("k_test_org_outer");
    let other = Some("k_test_org_inner");
    assert_eq!(request("/", same).send().await.body, "org_outer");
    assert_eq!(request("/", other).send().await.status, 500);
    assert_eq!(request("/maybe", other).send().await.status, 500);
    assert_eq!(request("/raw", other).send().await.body, "none");
    // The inner layer accepts the request without a key.
    assert_eq!(request("/", None).send().await.status, 401);
    assert_eq!(request("/maybe", None).send().await.body, "nobody");
    assert_eq!(request("/raw", None).send().await.body, "none");
}

#[tokio::test]
async fn unit_tests_create_settings_without_a_layer() {
    let org = OrgContextBuilder::new("org_1").build();
    let color = org_settings(&org, Color("red"));
    assert_eq!(
        (color.org_code(), color.is_default()),
        (&code("org_1"), false)
    );
    assert_eq!(*color.clone(), Color("red"));
    assert!(format!("{color:?}").contains("org_1"));
}
