//! Names, labels and rate limits of telemetry: a public contract.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::routing::get;
use axum::{Extension, Router};
use http::{HeaderName, Request, StatusCode};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tower::ServiceExt;
use tower_orgkey::test_util::TestClock;
use tower_orgkey::verify::{Organizations, PrefixVerifier};
use tower_orgkey::{
    ApiKeyLayer, OrgCode, OrgContext, Scopes, Verification, VerifyError, require_org,
    require_scope, telemetry, verifier_fn,
};

use crate::support::log::Log;

const GOOD: &str = "k_test_good_0123456789";
const DOWN: &str = "k_test_down_0123456789";
const BUSY: &str = "k_test_busy_0123456789";
const OURS: &str = "k_test_ours_0123456789";
const USER: &str = "k_test_user_0123456789";
const INVALID_KEY: &str = "k_test_none_0123456789";

fn layer(clock: TestClock) -> ApiKeyLayer {
    let verifier = verifier_fn(|key| async move {
        let org = Verification::of_organization(OrgCode::from_static("org_1"));
        match key.expose_secret() {
            GOOD => Ok(org.with_scopes(Scopes::from_names(["read"]))),
            USER => Ok(org.with_user_id("user_1")),
            key if key.starts_with(DOWN) => Err(VerifyError::unavailable("connection refused")),
            BUSY => Err(VerifyError::throttled(Some(Duration::from_secs(1)))),
            OURS => Err(VerifyError::misconfigured("wrong secret")),
            _ => Ok(Verification::invalid()),
        }
    });
    ApiKeyLayer::builder(verifier)
        .test_clock(clock)
        .allow_anonymous()
        .build()
        .unwrap()
}

fn app(auth: ApiKeyLayer) -> Router {
    Router::new()
        .route("/", get(|| async {}))
        .route("/mine", get(|_: OrgContext| async {}))
        .route("/read", get(|| async {}).route_layer(require_scope("read")))
        .route(
            "/write",
            get(|| async {}).route_layer(require_scope("write")),
        )
        .route(
            "/orgs/{org}",
            get(|| async {}).route_layer(require_org("org")),
        )
        .route(
            "/hidden/{org}",
            get(|| async {}).route_layer(require_org("org").with_not_found()),
        )
        .route("/wrong", get(|| async {}).route_layer(require_org("org")))
        .route_layer(auth)
}

async fn status(app: &Router, path: &str, authorization: Option<&str>) -> StatusCode {
    let mut request = Request::get(path);
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    let request = request.body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap().status()
}

/// Every counter and gauge, as `name{label=value}`, and every histogram's number of values.
fn snapshot(snapshotter: &Snapshotter) -> BTreeMap<String, u64> {
    snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _, _, value)| {
            let key = key.key();
            let labels: Vec<_> = key
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            let value = match value {
                DebugValue::Counter(count) => count,
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                // Small whole numbers.
                DebugValue::Gauge(value) => value.0 as u64,
                DebugValue::Histogram(values) => values.len() as u64,
            };
            (format!("{}{{{}}}", key.name(), labels.join(",")), value)
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn each_outcome_is_counted_once() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let app = app(layer(TestClock::new()));
    let bearer = |key: &str| format!("Bearer {key}");

    let requests = [
        ("/", None, "anonymous", 200),
        ("/", Some(bearer(GOOD)), "allowed", 200),
        ("/mine", None, "credential-missing", 401),
        ("/", Some("Bearer".into()), "credential-malformed", 400),
        ("/", Some(bearer(INVALID_KEY)), "invalid-token", 401),
        ("/", Some(bearer(USER)), "organization-required", 403),
        ("/read", Some(bearer(GOOD)), "allowed", 200),
        ("/write", Some(bearer(GOOD)), "insufficient-scope", 403),
        (
            "/orgs/org_2",
            Some(bearer(GOOD)),
            "organization-mismatch",
            403,
        ),
        ("/hidden/org_2", Some(bearer(GOOD)), "not-found", 404),
        ("/wrong", Some(bearer(GOOD)), "internal", 500),
        ("/", Some(bearer(OURS)), "verifier-misconfigured", 503),
        ("/", Some(bearer(DOWN)), "verifier-unavailable", 503),
    ];
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    for (path, authorization, outcome, code) in &requests {
        *expected.entry(outcome).or_default() += 1;
        assert_eq!(
            status(&app, path, authorization.as_deref()).await,
            *code,
            "{path} {outcome}"
        );
    }

    let seen = snapshot(&snapshotter);
    for (outcome, count) in expected {
        let name = format!("{}{{outcome={outcome}}}", telemetry::REQUESTS);
        assert_eq!(seen.get(&name), Some(&count), "{name}");
    }
    let total: u64 = seen
        .iter()
        .filter(|(name, _)| name.starts_with(telemetry::REQUESTS))
        .map(|(_, count)| count)
        .sum();
    assert_eq!(total, requests.len() as u64, "one metric per outcome");
}

#[tokio::test(start_paused = true)]
async fn look_ups_calls_and_states_are_recorded() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let clock = TestClock::new();
    let auth = layer(clock.clone());
    let app = app(auth);

    let bearer = |key: &str| format!("Bearer {key}");
    for key in [GOOD, GOOD, INVALID_KEY, INVALID_KEY, OURS] {
        status(&app, "/", Some(&bearer(key))).await;
    }
    clock.jump(Duration::from_secs(61));
    status(&app, "/", Some(&bearer(GOOD))).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    for n in 0..5 {
        status(&app, "/", Some(&bearer(&format!("{DOWN}{n}")))).await;
    }

    let seen = snapshot(&snapshotter);
    let of = |name: &str, label: &str| seen.get(&format!("{name}{{{label}}}")).copied();
    assert_eq!(of(telemetry::LOOKUPS, "result=fresh"), Some(1));
    assert_eq!(of(telemetry::LOOKUPS, "result=stale"), Some(1));
    assert_eq!(of(telemetry::LOOKUPS, "result=invalid"), Some(1));
    assert_eq!(of(telemetry::LOOKUPS, "result=miss"), Some(8));
    assert_eq!(
        of(telemetry::ISSUER_CALLS, "result=valid"),
        Some(2),
        "the first, and the refresh"
    );
    assert_eq!(of(telemetry::ISSUER_CALLS, "result=invalid"), Some(1));
    assert_eq!(of(telemetry::ISSUER_CALLS, "result=misconfigured"), Some(1));
    assert!(of(telemetry::ISSUER_CALLS, "result=unavailable") >= Some(5));
    assert_eq!(of(telemetry::SERVED_AGE, ""), Some(3));
    assert!(of(telemetry::ISSUER_LATENCY, "") >= Some(9));
    assert_eq!(of(telemetry::BREAKER, "circuit=unknown"), Some(2), "open");
    assert_eq!(of(telemetry::ENTRIES, ""), Some(1));
    assert_eq!(of(telemetry::IN_FLIGHT, ""), Some(0));
    assert_eq!(of(telemetry::WAITING, ""), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_429_is_counted_as_a_pause() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let auth = layer(TestClock::new());
    let handle = auth.handle();
    let app = app(auth);
    assert_eq!(
        status(&app, "/", Some(&format!("Bearer {BUSY}"))).await,
        503
    );
    let seen = snapshot(&snapshotter);
    assert_eq!(seen.get(&format!("{}{{}}", telemetry::THROTTLED)), Some(&1));
    assert_eq!(
        handle.upstream().breaker,
        tower_orgkey::BreakerState::Closed
    );
    assert!(handle.upstream().paused_for.is_some());
}

#[tokio::test(start_paused = true)]
async fn passed_credentials_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let auth = ApiKeyLayer::builder(verifier_fn(|_| async { Ok(Verification::invalid()) }))
        .only_prefix("k_live_")
        .pass_other_credentials_to_inner_auth()
        .build()
        .unwrap();
    let app = Router::new()
        .route("/", get(async || "open"))
        .route_layer(auth);
    assert_eq!(status(&app, "/", Some("Bearer eyJ.e30.c2ln")).await, 200);
    let counted = snapshot(&snapshotter);
    let name = format!("{}{{outcome=other-credential}}", telemetry::REQUESTS);
    assert_eq!(counted.into_iter().collect::<Vec<_>>(), [(name, 1)]);
}

#[tokio::test(start_paused = true)]
async fn only_the_rejecting_layer_counts() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let app = app(layer(TestClock::new())).layer(layer(TestClock::new()));
    assert_eq!(
        status(&app, "/write", Some(&format!("Bearer {GOOD}"))).await,
        403
    );
    let seen = snapshot(&snapshotter);
    let counted: Vec<_> = seen
        .iter()
        .filter(|(name, _)| name.starts_with(telemetry::REQUESTS))
        .collect();
    assert_eq!(
        counted,
        [(
            &format!("{}{{outcome=insufficient-scope}}", telemetry::REQUESTS),
            &1
        )]
    );
}

#[tokio::test(start_paused = true)]
async fn nested_layers_count_a_request_once() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let auth = layer(TestClock::new());
    let inner = auth.clone().max_age(Duration::ZERO);
    // A first request is a miss in the outer layer; all are in the inner one. The other pair has hits in both.
    let strict = app(inner).layer(auth.clone());
    let twice = app(auth.clone()).layer(auth);
    let authorization = format!("Bearer {GOOD}");
    for (app, requests) in [(&strict, 3), (&twice, 4)] {
        for _ in 0..requests {
            assert_eq!(status(app, "/read", Some(&authorization)).await, 200);
        }
        let counted = snapshot(&snapshotter);
        let allowed = format!("{}{{outcome=allowed}}", telemetry::REQUESTS);
        assert_eq!(counted.get(&allowed), Some(&requests));
    }
}

#[tokio::test(start_paused = true)]
async fn accepted_requests_are_counted_once() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let valid = || {
        let valid = |_| async { Ok(Verification::of_organization(OrgCode::from_static("org_1"))) };
        ApiKeyLayer::builder(verifier_fn(valid))
    };
    let outer = valid()
        .credential_header(HeaderName::from_static("x-api-key"), "ApiKey")
        .allow_anonymous()
        .build()
        .unwrap();
    let inner = valid().allow_authenticated_by(&outer, Organizations::Shared);
    let app = app(inner.build().unwrap()).layer(outer);
    for _ in 0..2 {
        let request = Request::get("/").header("x-api-key", GOOD);
        let request = request.body(Body::empty()).unwrap();
        assert_eq!(app.clone().oneshot(request).await.unwrap().status(), 200);
    }
    let counted: Vec<_> = snapshot(&snapshotter)
        .into_iter()
        .filter(|(name, _)| name.starts_with(telemetry::REQUESTS))
        .collect();
    let name = format!("{}{{outcome=allowed}}", telemetry::REQUESTS);
    assert_eq!(counted, [(name, 2)]);
}

/// Two issuers, of which the second one fails.
fn two_issuers(clock: TestClock) -> ApiKeyLayer {
    let valid = |_| async { Ok(Verification::of_organization(OrgCode::from_static("org_1"))) };
    let verifier = PrefixVerifier::builder()
        .issuer("one", ["one_"], verifier_fn(valid))
        .issuer(
            "two",
            ["two_"],
            verifier_fn(|key| async move {
                Err(match key.expose_secret() {
                    "two_busy" => VerifyError::throttled(Some(Duration::from_secs(1))),
                    _ => VerifyError::unavailable("connection refused"),
                })
            }),
        )
        .organizations(Organizations::Separate)
        .build()
        .unwrap();
    let layer = ApiKeyLayer::builder(verifier).test_clock(clock);
    layer.build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn issuers_have_a_label() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let app = app(two_issuers(TestClock::new()));
    for n in 0..5 {
        for issuer in ["one", "two"] {
            status(&app, "/", Some(&format!("Bearer {issuer}_{n:08}"))).await;
        }
    }
    status(&app, "/", Some("Bearer two_busy")).await;
    let seen = snapshot(&snapshotter);
    let of = |name: &str, labels: &str| seen.get(&format!("{name}{{{labels}}}")).copied();
    let calls = telemetry::ISSUER_CALLS;
    assert_eq!(of(calls, "result=valid,issuer=one"), Some(5));
    assert!(of(calls, "result=unavailable,issuer=two") >= Some(5));
    assert_eq!(of(calls, "result=valid"), None);
    let breaker = telemetry::BREAKER;
    assert_eq!(of(breaker, "circuit=unknown,issuer=two"), Some(2));
    assert_ne!(of(breaker, "circuit=unknown,issuer=one"), Some(2));
    assert_eq!(of(telemetry::ISSUER_LATENCY, "issuer=one"), Some(5));
    assert_eq!(of(telemetry::IN_FLIGHT, "issuer=one"), Some(0));
    assert_eq!(of(telemetry::WAITING, "issuer=two"), Some(0));
}

#[tokio::test(start_paused = true)]
async fn events_name_the_issuer() {
    let (log, _guard) = Log::capture_up_to(tracing::Level::INFO);

    let calls = Arc::new(AtomicUsize::new(0));
    let verifier = {
        let calls = Arc::clone(&calls);
        verifier_fn(move |_| {
            // Three successful calls per failure keep the breaker closed.
            let is_bad = calls.fetch_add(1, Ordering::SeqCst).is_multiple_of(4);
            async move {
                if is_bad {
                    Err(VerifyError::unavailable("connection reset"))
                } else {
                    Ok(Verification::without_organization())
                }
            }
        })
    };
    let auth = ApiKeyLayer::builder(verifier)
        .test_clock(TestClock::new())
        .build()
        .unwrap();
    let app: Router = Router::new()
        .route("/", get(|_: Extension<OrgContext>| async {}))
        .route_layer(auth);
    for n in 0..10_000 {
        status(&app, "/", Some(&format!("Bearer k_test_{n:016}"))).await;
        // Another test may have emitted this second's event, so this continues until the next one.
        if n >= 2_000 {
            if log.text().contains("verification failed") {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let text = log.text();
    let logged = text.matches("verification failed").count();
    assert!(calls.load(Ordering::SeqCst) >= 2_000, "too few calls");
    // The limit is one per second of real time, and this test takes at most a few seconds.
    assert!(
        (1..=60).contains(&logged),
        "{logged} of 500 failures were logged"
    );
    assert!(text.contains("connection reset"), "the reason is missing");
    assert!(!text.contains("k_test_"), "a key was logged");
}
