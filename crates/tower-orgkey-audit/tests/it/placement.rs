//! Layers in the wrong place, and between two layers of keys.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use http::{HeaderName, HeaderValue};
use tower_orgkey::settings::{OrgSettingsLayer, SettingsError, settings_fn};
use tower_orgkey::{ObserverLayer, OrgCode, OrgConcurrencyLimitLayer, OrgRateLimitLayer};
use tower_orgkey_usage::{Account, UsageLayer};

use crate::support::log::Log;
use crate::*;

const SECOND_HEADER: HeaderName = HeaderName::from_static("x-second-key");

/// A layer of keys in a header of their own.
fn second_auth() -> ApiKeyLayer {
    let issuer = Issuer::knowing([(TWO, org("org_two", &["read:reports"]))]);
    ApiKeyLayer::builder(issuer)
        .credential_header(SECOND_HEADER, "ApiKey")
        .build()
        .unwrap()
}

fn with_second(path: &str, first: &str, second: &'static str) -> Request<Body> {
    let mut request = request("GET", path, first);
    let key = HeaderValue::from_static(second);
    request.headers_mut().insert(SECOND_HEADER, key);
    request
}

/// One test for all: a line is logged once per second and layer in the whole process.
#[tokio::test]
async fn misplaced_layers_are_500_and_logged() {
    let (log, _guard) = Log::capture();
    let stage = Stage::new();
    let auth = ApiKeyLayer::builder(issuer())
        .allow_anonymous()
        .build()
        .unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let handler = async move |_: Option<OrgContext>| {
        counted.fetch_add(1, Ordering::SeqCst);
        "served"
    };
    let open = async || "open";
    let routes = || {
        Router::new()
            .route("/org", get(handler.clone()))
            .route(
                "/guarded",
                get(open).route_layer(require_scope("read:reports")),
            )
            // Needs no context, so only the response can show that nothing was recorded.
            .route("/open", get(open))
    };
    let usage = UsageLayer::new();
    let rate = OrgRateLimitLayer::new(|_| None);
    let concurrency = OrgConcurrencyLimitLayer::new(|_| None);
    let loader = settings_fn(async |_| Ok::<_, SettingsError>(()));
    let settings = OrgSettingsLayer::new(&auth.handle(), loader);
    let inside = |layer| ("is inside", layer);
    let outside = |layer| ("must be inside", layer);
    let behind_auth = |app: Router| app.route_layer(auth.clone());
    let cases = [
        (
            inside("AuditLayer"),
            behind_auth(routes().route_layer(stage.layer())),
        ),
        (
            inside("UsageLayer"),
            behind_auth(routes().route_layer(usage.clone())),
        ),
        (
            outside("OrgRateLimitLayer"),
            behind_auth(routes()).route_layer(rate),
        ),
        (
            outside("OrgConcurrencyLimitLayer"),
            behind_auth(routes()).route_layer(concurrency),
        ),
        (
            outside("OrgSettingsLayer"),
            behind_auth(routes()).route_layer(settings),
        ),
    ];
    for ((place, layer), app) in cases {
        for path in ["/org", "/guarded", "/open"] {
            for key in [ONE, ""] {
                let response = send(&app, request("GET", path, key)).await;
                assert_eq!(response.status(), 500, "{layer} {path}");
                if place == "is inside" {
                    let problem: Value = serde_json::from_str(response.body()).unwrap();
                    assert_eq!(problem["code"], "internal", "{layer} {path}");
                } else {
                    // No layer around it renders the rejection.
                    assert_eq!(response.body(), "", "{layer} {path}");
                }
            }
        }
        let lines = log.lines("ERROR", &format!("layer=\"{layer}\""));
        // More than one if the six requests take longer than a second.
        assert!((1..=6).contains(&lines.len()), "{layer}: {}", log.text());
        let message = format!("rejected with 500: this layer {place}");
        assert!(lines[0].contains(&message), "{}", lines[0]);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0, "no handler got a context");
    let others = log.lines("ERROR", "no `ApiKeyLayer`");
    assert_eq!(others, [""; 0], "only the layer itself is named");
    // Both record that the requests were rejected.
    let events = stage.events().await;
    let codes: Vec<_> = events.iter().map(|event| &event["status_code"]).collect();
    assert_eq!(codes, ["internal"; 6]);
    assert_eq!(usage.handle().snapshot().total().rejected(), 6);
}

/// The observation of an observer inside the layer of keys is older than that of the layer that is in the wrong place.
#[tokio::test]
async fn observed_requests_hide_no_misplacement() {
    let stage = Stage::new();
    let app = routes()
        .route_layer(stage.layer())
        .route_layer(ObserverLayer::on_authenticated(|_| {}))
        .route_layer(ApiKeyLayer::new(issuer()));
    let answer = send(&app, request("GET", "/whoami", ONE)).await;
    assert_eq!(answer.status(), 500);
}

#[tokio::test]
async fn layers_between_two_key_layers_record() {
    let stage = Stage::new();
    let usage = UsageLayer::new();
    let app = routes()
        .route_layer(second_auth())
        .route_layer(usage.clone())
        .route_layer(stage.layer())
        .route_layer(ApiKeyLayer::new(issuer()));
    let table = [
        (with_second("/whoami", ONE, TWO), 200, "allowed"),
        (with_second("/read", ONE, TWO), 200, "allowed"),
        (with_second("/write", ONE, TWO), 403, "insufficient-scope"),
        (with_second("/whoami", ONE, BAD), 401, "invalid-token"),
        (request("GET", "/whoami", ONE), 401, "credential-missing"),
    ];
    let mut expected = Vec::new();
    for (request, status, code) in table {
        assert_eq!(send(&app, request).await.status(), status, "{code}");
        expected.push(code);
    }
    let events = stage.events().await;
    let codes: Vec<_> = events.iter().map(|event| &event["status_code"]).collect();
    assert_eq!(codes, expected);
    let counts = usage.handle().snapshot();
    let two = Account::Organization(OrgCode::from_static("org_two"));
    assert_eq!(counts.of_account(&two).requests(), 3);
    assert_eq!(counts.total().requests(), 5);
}

#[tokio::test]
async fn layers_outside_two_key_layers_record() {
    let stage = Stage::new();
    let usage = UsageLayer::new();
    let outer = ApiKeyLayer::builder(issuer())
        .allow_anonymous()
        .build()
        .unwrap();
    let app = routes()
        .route_layer(second_auth())
        .route_layer(outer)
        .route_layer(usage.clone())
        .route_layer(stage.layer());
    let response = send(&app, with_second("/whoami", "", TWO)).await;
    assert_eq!(response.body(), "org_two");
    let event = stage.event().await;
    assert_eq!(event["actor"]["user"]["org"]["uid"], "org_two");
    assert_eq!(usage.handle().snapshot().total().rejected(), 0);
}

/// The extensions of the response are lost, but an inner layer has decided.
#[tokio::test]
async fn a_replaced_rejection_is_no_misplacement() {
    let stage = Stage::new();
    let page = from_fn(async |request, next: Next| {
        (next.run(request).await.status(), "a page").into_response()
    });
    let app = routes()
        .route_layer(second_auth())
        .route_layer(page)
        .route_layer(stage.layer())
        .route_layer(ApiKeyLayer::new(issuer()));
    let response = send(&app, request("GET", "/whoami", ONE)).await;
    assert_eq!(response.status(), 401);
}
