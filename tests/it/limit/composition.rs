//! Limits in a stack: which requests count, and the response format of rejections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::get as route;
use tower::ServiceBuilder;
use tower_orgkey::settings::{SettingsError, settings_fn};
use tower_orgkey::{
    ApiKey, ApiKeyLayer, OrgCode, OrgConcurrencyLimitLayer, OrgSettingsLayer, Quota, Rejection,
    Verification, require_scope,
};

use super::*;
use crate::support::log::Log;
use crate::support::wire::{RawResponse, get, serve};
use crate::support::{self, Answer, Issuer};

const ONE: &str = "k_test_one_0123456789";
const TWO: &str = "k_test_two_0123456789";
const NO_ORGANIZATION: &str = "k_test_no_org_0123456";
const UNAVAILABLE: &str = "k_test_unavail_012345";

fn issuer() -> Issuer {
    Issuer::knowing([
        (ONE, support::org("org_one", &["read:reports"])),
        (TWO, support::org("org_one", &["read:reports"])),
        (
            NO_ORGANIZATION,
            Answer::Valid(Verification::without_organization()),
        ),
        (UNAVAILABLE, Answer::Unavailable),
    ])
}

/// A limit that counts the calls of its function. Without a call, a request uses no quota.
fn counted(requests: u32) -> (OrgRateLimitLayer, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let quota = {
        let calls = Arc::clone(&calls);
        move |_: &OrgContext| {
            calls.fetch_add(1, Ordering::SeqCst);
            Some(Quota::per_hour(requests))
        }
    };
    let builder = OrgRateLimitLayer::builder(quota).ratelimit_fields("hourly");
    (builder.build().unwrap(), calls)
}

fn app() -> Router {
    Router::new()
        .route("/", route(async || "open"))
        .route(
            "/read",
            route(async || "read").route_layer(require_scope("read:reports")),
        )
        .route(
            "/write",
            route(async || "write").route_layer(require_scope("write:reports")),
        )
}

fn has_no_fields(answer: &RawResponse) {
    assert_eq!(answer.header("ratelimit"), None);
    assert_eq!(answer.header("ratelimit-policy"), None);
}

#[tokio::test]
async fn rejected_key_uses_no_quota() {
    let (limit, calls) = counted(2);
    let auth = ApiKeyLayer::new(issuer());
    let keys = auth.handle();
    let address = serve(app().route_layer(limit.clone()).route_layer(auth)).await;
    keys.block_key(&ApiKey::parse(TWO).unwrap()).unwrap();
    for (key, status) in [
        (Some("k_test_unknown_01234"), 401),
        (Some("short"), 400),
        (Some(NO_ORGANIZATION), 403),
        (Some(UNAVAILABLE), 503),
        (Some(TWO), 401),
        (None, 401),
    ] {
        let request = get(address, "/");
        let answer = match key {
            Some(key) => request.key(key).send().await,
            None => request.send().await,
        };
        assert_eq!(answer.status, status);
        has_no_fields(&answer);
    }
    assert_eq!((calls.load(Ordering::SeqCst), limit.accounts()), (0, 0));
    for (status, left) in [(200, 1), (200, 0), (429, 0)] {
        let answer = get(address, "/").key(ONE).send().await;
        assert_eq!(answer.status, status);
        let field = answer.header("ratelimit").unwrap().to_owned();
        assert!(
            field.starts_with(&format!("\"hourly\";r={left};")),
            "{field}"
        );
        assert_eq!(
            answer.header("ratelimit-policy"),
            Some("\"hourly\";q=2;w=3600")
        );
    }
}

#[tokio::test]
async fn guard_rejections_count_inside_the_limit_only() {
    for (is_inside, left) in [(true, 0), (false, 1)] {
        let (limit, _) = counted(2);
        let guard = require_scope("write:reports");
        let handler = route(async || "write");
        let guarded = if is_inside {
            handler.route_layer(guard).route_layer(limit.clone())
        } else {
            handler.route_layer(limit.clone()).route_layer(guard)
        };
        let app = Router::new()
            .route("/write", guarded)
            .route("/read", route(async || "read").route_layer(limit))
            .route_layer(ApiKeyLayer::new(issuer()));
        let address = serve(app).await;
        let rejected = get(address, "/write").key(ONE).send().await;
        assert_eq!(
            (rejected.status, rejected.code().as_str()),
            (403, "insufficient-scope")
        );
        assert_eq!(rejected.header("ratelimit").is_some(), is_inside);
        let answer = get(address, "/read").key(ONE).send().await;
        let field = answer.header("ratelimit").unwrap().to_owned();
        assert!(
            field.starts_with(&format!("\"hourly\";r={left};")),
            "{field}"
        );
    }
}

#[tokio::test]
async fn rejection_has_the_custom_format_and_fields() {
    let (limit, _) = counted(1);
    let auth = ApiKeyLayer::new(issuer()).with_rejection_response(|rejection: &Rejection| {
        (
            rejection.status(),
            [("x-format", "custom")],
            format!("custom: {}", rejection.code()),
        )
            .into_response()
    });
    let busy = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(0));
    let app = app()
        .route("/busy", route(async || "busy").route_layer(busy))
        .route_layer(limit)
        .route_layer(auth);
    let address = serve(app).await;
    // Passes the rate limit. Its fields are kept in the inner rejection.
    let busy = get(address, "/busy").key(ONE).send().await;
    assert_eq!(
        (busy.status, busy.body.as_str()),
        (429, "custom: concurrency-limited")
    );
    assert_eq!(busy.header("retry-after"), Some("1"));
    assert!(
        busy.header("ratelimit")
            .unwrap()
            .starts_with("\"hourly\";r=0;")
    );

    let rejected = get(address, "/").key(ONE).send().await;
    assert_eq!(
        (rejected.status, rejected.body.as_str()),
        (429, "custom: rate-limited")
    );
    assert_eq!(rejected.header("x-format"), Some("custom"));
    assert_eq!(
        rejected.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(rejected.header("cache-control"), Some("no-store"));
    let wait = rejected.header("retry-after").unwrap().to_owned();
    let left = format!("\"hourly\";r=0;t={wait}");
    assert_eq!(rejected.header("ratelimit"), Some(left.as_str()));
    assert_eq!(
        rejected.header("ratelimit-policy"),
        Some("\"hourly\";q=1;w=3600")
    );
    assert!((3_500..=3_600).contains(&wait.parse().unwrap()), "{wait}");
}

#[tokio::test]
async fn several_limits_append_their_fields() {
    let limit = |name: &str, requests| quota(Quota::per_hour(requests)).ratelimit_fields(name);
    let app = app()
        .route_layer(limit("organization", 100).build().unwrap())
        .route_layer(limit("key", 10).per_key().build().unwrap())
        .route_layer(ApiKeyLayer::new(issuer()));
    let address = serve(app).await;
    let answer = get(address, "/read").key(ONE).send().await;
    let policies = [r#""organization";q=100;w=3600"#, r#""key";q=10;w=3600"#];
    assert_eq!(answer.all("ratelimit-policy"), policies);
    assert_eq!(answer.all("ratelimit").len(), 2);
}

#[tokio::test]
async fn anonymous_request_is_not_counted() {
    let (limit, calls) = counted(0);
    let none_at_once = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(0));
    let auth = ApiKeyLayer::builder(issuer())
        .allow_anonymous()
        .build()
        .unwrap();
    let app = app()
        .route_layer(none_at_once)
        .route_layer(limit)
        .route_layer(auth);
    let address = serve(app).await;
    for _ in 0..3 {
        let answer = get(address, "/").send().await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "open"));
        has_no_fields(&answer);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    // A guard inside still requires a key, and a request with a key is counted.
    assert_eq!(get(address, "/read").send().await.status, 401);
    assert_eq!(get(address, "/").key(ONE).send().await.status, 429);
}

#[tokio::test]
async fn missing_layer_is_500_and_logged() {
    let (log, _guard) = Log::capture();
    let (limit, _) = counted(5);
    let handler =
        || service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Body::empty())));
    let mut rate = limit.layer(handler());
    let rejected = rate.call(Request::new(())).await.unwrap();
    assert_eq!(rejected.status(), 500);
    assert!(!rejected.headers().contains_key("ratelimit"));
    let mut concurrency = OrgConcurrencyLimitLayer::new(|_: &OrgContext| None).layer(handler());
    assert_eq!(
        concurrency.call(Request::new(())).await.unwrap().status(),
        500
    );
    // Each has its own line, although only one line per second and layer is logged.
    for layer in ["OrgRateLimitLayer", "OrgConcurrencyLimitLayer"] {
        let lines = log.lines("ERROR", &format!("layer=\"{layer}\""));
        assert_eq!(lines.len(), 1, "{}", log.text());
        assert!(lines[0].contains("must be inside an `ApiKeyLayer`"));
    }
}

/// The plan of an organization in a database.
struct Plan {
    per_hour: u32,
    at_once: usize,
}

/// The keys of two organizations, and a layer that loads their plans.
fn plans() -> (ApiKeyLayer, OrgSettingsLayer<Plan>) {
    let issuer = Issuer::knowing([
        (ONE, support::org("org_one", &[])),
        (TWO, support::org("org_two", &[])),
    ]);
    let auth = ApiKeyLayer::new(issuer);
    let load = settings_fn(async |org: OrgCode| {
        // Not at once, as a database answers.
        tokio::task::yield_now().await;
        let (per_hour, at_once) = if org == "org_one" { (2, 1) } else { (5, 0) };
        Ok::<_, SettingsError>(Plan { per_hour, at_once })
    });
    let plans = OrgSettingsLayer::new(&auth.handle(), load);
    (auth, plans)
}

#[tokio::test]
async fn limits_read_settings_from_the_first_request() {
    let (auth, plans) = plans();
    let rate = OrgRateLimitLayer::builder_from_settings(|_: &OrgContext, plan: &Plan| {
        Some(Quota::per_hour(plan.per_hour))
    });
    let at_once =
        OrgConcurrencyLimitLayer::from_settings(|_: &OrgContext, plan: &Plan| Some(plan.at_once));
    let app = app()
        .route("/export", route(async || "all").route_layer(at_once))
        .route_layer(rate.ratelimit_fields("plan").build().unwrap())
        .route_layer(plans)
        .route_layer(auth);
    let address = serve(app).await;
    for (key, per_hour) in [(ONE, 2), (TWO, 5)] {
        let policy = format!("\"plan\";q={per_hour};w=3600");
        for left in (0..per_hour).rev() {
            let answer = get(address, "/").key(key).send().await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("ratelimit-policy"), Some(policy.as_str()));
            let field = answer.header("ratelimit").unwrap().to_owned();
            assert!(field.starts_with(&format!("\"plan\";r={left};")), "{field}");
        }
        assert_eq!(get(address, "/").key(key).send().await.status, 429);
    }
}

#[tokio::test]
async fn concurrency_limit_reads_settings() {
    let (auth, plans) = plans();
    let limits = [
        OrgConcurrencyLimitLayer::from_settings(|_: &OrgContext, plan: &Plan| Some(plan.at_once)),
        OrgConcurrencyLimitLayer::per_key_from_settings(|_: &OrgContext, plan: &Plan| {
            Some(plan.at_once)
        }),
    ];
    for limit in limits {
        let app = app()
            .route_layer(limit)
            .route_layer(plans.clone())
            .route_layer(auth.clone());
        let address = serve(app).await;
        assert_eq!(get(address, "/").key(ONE).send().await.status, 200);
        let rejected = get(address, "/").key(TWO).send().await;
        assert_eq!(rejected.status, 429);
        assert_eq!(rejected.code(), "concurrency-limited");
    }
}

#[tokio::test]
async fn settings_inside_a_limit_are_500_and_logged() {
    let (log, _guard) = Log::capture();
    let (auth, plans) = plans();
    let rate = OrgRateLimitLayer::from_settings(|_: &OrgContext, plan: &Plan| {
        Some(Quota::per_hour(plan.per_hour))
    });
    let at_once =
        OrgConcurrencyLimitLayer::from_settings(|_: &OrgContext, plan: &Plan| Some(plan.at_once));
    let routes = || app().route_layer(plans.clone());
    for (layer, app) in [
        ("OrgRateLimitLayer", routes().route_layer(rate)),
        ("OrgConcurrencyLimitLayer", routes().route_layer(at_once)),
    ] {
        let request = support::service::request(ONE).map(|()| Body::empty());
        let app = app.route_layer(auth.clone());
        let response = tower::ServiceExt::oneshot(app, request).await.unwrap();
        assert_eq!(response.status(), 500, "{layer}");
        let lines = log.lines("ERROR", "no `OrgSettingsLayer` of this type");
        let lines: Vec<_> = lines.iter().filter(|line| line.contains(layer)).collect();
        assert_eq!(lines.len(), 1, "{}", log.text());
    }
}

/// The permit is free once a client has read the whole response, however it was sent.
#[tokio::test]
async fn sequential_requests_pass_a_limit_of_one() {
    let chunks = async || {
        let chunks = ["in ", "three ", "parts"].map(Ok::<_, Infallible>);
        Body::from_stream(futures_util::stream::iter(chunks))
    };
    let app = Router::new()
        .route("/whole", route(async || "at once"))
        .route("/chunks", route(chunks))
        .route("/nothing", route(async || ()))
        .route_layer(OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(1)))
        .route_layer(ApiKeyLayer::new(issuer()));
    let address = serve(app).await;
    for n in 0..100 {
        for path in ["/whole", "/chunks", "/nothing"] {
            let answer = get(address, path).key(ONE).send().await;
            assert_eq!(answer.status, 200, "{path} for the {n}th time");
        }
    }
}

/// Plain Tower services, without a router that unifies the body types.
#[tokio::test]
async fn layers_compose_in_one_stack() {
    let (limit, _) = counted(2);
    let mut stack = ServiceBuilder::new()
        .layer(ApiKeyLayer::new(issuer()))
        .layer(limit)
        .layer(OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(1)))
        .layer(require_scope("read:reports"))
        .service(service_fn(async |_: Request<()>| {
            Ok::<_, Infallible>(Response::new(Body::from("reports")))
        }));
    for status in [200, 200, 429] {
        let ready = tower::ServiceExt::ready(&mut stack).await.unwrap();
        let response = ready.call(support::service::request(ONE)).await.unwrap();
        assert_eq!(response.status(), status);
    }
}
