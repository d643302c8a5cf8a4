//! What a layer outside of `ApiKeyLayer` observes about a request.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use futures_util::future::{BoxFuture, FutureExt};
use http::StatusCode;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_http::trace::TraceLayer;
use tower_orgkey::observer::{
    Caller, EarlyEnd, ObservedFuture, Observer, ObserverLayer, RequestObservation, ResponseObserver,
};
use tower_orgkey::settings::{OrgSettingsLayer, SettingsError, settings_fn};
use tower_orgkey::{KeyId, OrgConcurrencyLimitLayer, OrgRateLimitLayer, Quota, RejectionKind};
use tracing::{Span, field::Empty, info_span};

use super::*;
use crate::support::log::Log;

fn request(path: &str, key: &str) -> Request {
    let request = Request::builder().uri(path);
    let request = match key {
        "" => request,
        key => request.header("authorization", format!("Bearer {key}")),
    };
    request.body(Body::empty()).unwrap()
}

/// What was recorded, in short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    caller: String,
    requirements: Vec<String>,
    rejection: Option<RejectionKind>,
}

impl Seen {
    fn of(observation: &RequestObservation, response: &Response) -> Self {
        let caller = match observation.caller() {
            None => String::new(),
            Some(Caller::Anonymous) => "anonymous".to_owned(),
            Some(Caller::Organization { context, is_cached }) => {
                let how = if is_cached { "cached" } else { "verified" };
                format!("{} {how}", context.org_code())
            }
            Some(other) => panic!("{other:?}"),
        };
        let requirements = observation.requirements();
        let requirements = requirements.iter().map(|requirement| {
            let what = match requirement.scope_alternatives() {
                Some(alternatives) => {
                    let alternatives: Vec<Vec<&str>> =
                        alternatives.map(Iterator::collect).collect();
                    format!("{alternatives:?}")
                }
                None => format!("{:?}", requirement.organization_parameter()),
            };
            format!("{what} {}", requirement.is_met())
        });
        let rejection = observation.rejection_of(response);
        Self {
            caller,
            requirements: requirements.collect(),
            rejection: rejection.map(|rejection| rejection.kind()),
        }
    }
}

/// A logging layer, as a user would write it.
fn observed(app: Router) -> (Router, Arc<Mutex<Seen>>) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let log = Arc::clone(&seen);
    let layer = from_fn(move |mut request: Request, next: Next| {
        let log = Arc::clone(&log);
        async move {
            let observation = RequestObservation::attach(request.extensions_mut());
            let response = next.run(request).await;
            *log.lock().unwrap() = Seen::of(&observation, &response);
            response
        }
    });
    (app.route_layer(layer), seen)
}

#[tokio::test]
async fn outer_layer_sees_caller_and_decision() {
    let (app, seen) = observed(guarded().route_layer(ApiKeyLayer::new(issuer())));
    let scopes = |names: &str, is_met| vec![format!("[[{names}]] {is_met}")];
    let both = r#""read:reports", "write:reports""#;
    let table = [
        ("/whoami", ONE, "org_one verified", vec![], None),
        ("/whoami", ONE, "org_one cached", vec![], None),
        (
            "/read",
            ONE,
            "org_one cached",
            scopes(r#""read:reports""#, true),
            None,
        ),
        (
            "/guarded",
            ONE,
            "org_one cached",
            scopes(both, false),
            Some(RejectionKind::InsufficientScope),
        ),
        (
            "/typed",
            ONE,
            "org_one cached",
            scopes(both, false),
            Some(RejectionKind::InsufficientScope),
        ),
        ("/typed", TWO, "org_two verified", scopes(both, true), None),
        (
            "/orgs/org_one",
            ONE,
            "org_one cached",
            vec![r#"Some("org_code") true"#.to_owned()],
            None,
        ),
        (
            "/orgs/org_two",
            ONE,
            "org_one cached",
            vec![r#"Some("org_code") false"#.to_owned()],
            Some(RejectionKind::OrganizationMismatch),
        ),
        (
            "/hidden/org_two",
            ONE,
            "org_one cached",
            vec![r#"Some("org_code") false"#.to_owned()],
            Some(RejectionKind::NotFound),
        ),
        (
            "/whoami",
            "",
            "",
            vec![],
            Some(RejectionKind::CredentialMissing),
        ),
        (
            "/whoami",
            BAD,
            "",
            vec![],
            Some(RejectionKind::InvalidToken),
        ),
        (
            "/whoami",
            NOBODY,
            "",
            vec![],
            Some(RejectionKind::OrganizationRequired),
        ),
        (
            "/whoami",
            DOUBTFUL,
            "",
            vec![],
            Some(RejectionKind::VerifierUnavailable),
        ),
    ];
    for (path, key, caller, requirements, rejection) in table {
        app.clone().oneshot(request(path, key)).await.unwrap();
        let expected = Seen {
            caller: caller.to_owned(),
            requirements,
            rejection,
        };
        assert_eq!(*seen.lock().unwrap(), expected, "{path} {key}");
    }
}

#[tokio::test]
async fn anonymous_requests_are_observed() {
    let auth = ApiKeyLayer::builder(issuer())
        .allow_anonymous()
        .build()
        .unwrap();
    let routes = guarded().route("/open", get(open));
    let (app, seen) = observed(routes.route_layer(auth));
    app.clone().oneshot(request("/open", "")).await.unwrap();
    assert_eq!(seen.lock().unwrap().caller, "anonymous");
    assert_eq!(seen.lock().unwrap().rejection, None);
    app.oneshot(request("/read", "")).await.unwrap();
    let expected = Seen {
        caller: "anonymous".to_owned(),
        requirements: vec![r#"[["read:reports"]] false"#.to_owned()],
        rejection: Some(RejectionKind::CredentialMissing),
    };
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test]
async fn replaced_response_does_not_hide_a_rejection() {
    // An error page: a new response without the extensions of the old one.
    let page = from_fn(async |request: Request, next: Next| {
        let status = next.run(request).await.status();
        (status, "an error page").into_response()
    });
    let auth = ApiKeyLayer::new(issuer());
    let rate_limit = OrgRateLimitLayer::new(|_| Some(Quota::per_minute(0)));
    let concurrency_limit = OrgConcurrencyLimitLayer::new(|_| Some(0));
    let loader = settings_fn(|_| async { Err::<(), _>(SettingsError::unavailable("on purpose")) });
    let settings = OrgSettingsLayer::new(&auth.handle(), loader);
    let app = guarded()
        .route("/rate", get(open).route_layer(rate_limit))
        .route("/concurrency", get(open).route_layer(concurrency_limit))
        .route("/settings", get(open).route_layer(settings))
        .route_layer(auth)
        .route_layer(page);
    let (app, seen) = observed(app);
    for (path, key, kind) in [
        ("/guarded", ONE, RejectionKind::InsufficientScope),
        ("/guarded", BAD, RejectionKind::InvalidToken),
        ("/guarded", "", RejectionKind::CredentialMissing),
        ("/guarded", DOUBTFUL, RejectionKind::VerifierUnavailable),
        ("/orgs/org_two", ONE, RejectionKind::OrganizationMismatch),
        ("/rate", ONE, RejectionKind::RateLimited),
        ("/concurrency", ONE, RejectionKind::ConcurrencyLimited),
        ("/settings", ONE, RejectionKind::SettingsUnavailable),
    ] {
        let response = app.clone().oneshot(request(path, key)).await.unwrap();
        assert!(
            response
                .extensions()
                .get::<tower_orgkey::Rejection>()
                .is_none()
        );
        assert_eq!(seen.lock().unwrap().rejection, Some(kind), "{path}");
    }
}

#[tokio::test]
async fn outer_layers_share_one_observation() {
    let inner = Issuer::knowing([(ONE, org("org_inner", &[]))]);
    let inner = ApiKeyLayer::new(inner);
    let app = guarded()
        .route_layer(inner)
        .route_layer(ApiKeyLayer::new(issuer()));
    let (app, first) = observed(app);
    let (app, second) = observed(app);
    app.oneshot(request("/whoami", ONE)).await.unwrap();
    assert_eq!(first.lock().unwrap().caller, "org_inner verified");
    assert_eq!(*first.lock().unwrap(), *second.lock().unwrap());
}

#[tokio::test]
async fn spans_of_trace_layer_get_org_and_key() {
    let (log, _guard) = Log::capture();
    let handler = async |org: OrgContext| {
        tracing::info!("the handler runs");
        org.org_code().to_string()
    };
    let app = Router::new()
        .route("/reports", get(handler))
        .route_layer(ApiKeyLayer::new(issuer()))
        .layer(
            ServiceBuilder::new()
                .layer(TraceLayer::new_for_http().make_span_with(|_: &Request| {
                    info_span!("request", org_code = Empty, key_id = Empty)
                }))
                .layer(ObserverLayer::on_authenticated(|org: &OrgContext| {
                    Span::current().record("org_code", org.org_code().as_str());
                    Span::current().record("key_id", org.key_id().map(KeyId::as_str));
                })),
        );
    // The first waits for the verification, the second is a hit.
    for n in 1..=2 {
        app.clone().oneshot(request("/reports", ONE)).await.unwrap();
        let lines = log.lines("INFO", "the handler runs");
        assert_eq!(lines.len(), n);
        let fields = r#"request{org_code="org_one" key_id="id_of_org_one"}"#;
        assert!(lines[n - 1].contains(fields), "{}", lines[n - 1]);
    }
    app.oneshot(request("/reports", BAD)).await.unwrap();
    assert_eq!(log.lines("INFO", "the handler runs").len(), 2);
}

#[derive(Clone)]
struct Ends(Arc<Mutex<Vec<&'static str>>>);

impl Observer for Ends {
    fn ended_early(self, end: EarlyEnd) {
        self.0.lock().unwrap().push(end.code());
    }
}

impl<B> ResponseObserver<B> for Ends {
    type Body = B;

    fn responded(self, response: http::Response<B>) -> http::Response<B> {
        self.0.lock().unwrap().push("responded");
        response
    }
}

#[tokio::test]
async fn every_end_is_reported_once() {
    type Answer = Result<http::Response<()>, StatusCode>;

    fn panics() -> Answer {
        panic!("on purpose")
    }

    let ends = Ends(Arc::default());

    let recorded = || std::mem::take(&mut *ends.0.lock().unwrap());
    let watch = |future| ObservedFuture::call(ends.clone(), || future);
    let ok = async { Answer::Ok(http::Response::new(())) };
    watch(ok.boxed()).await.unwrap();
    assert_eq!(recorded(), ["responded"]);
    let failed = async { Answer::Err(StatusCode::BAD_GATEWAY) };
    watch(failed.boxed()).await.unwrap_err();
    assert_eq!(recorded(), ["failed"]);
    drop(watch(std::future::pending::<Answer>().boxed()));
    assert_eq!(recorded(), ["dropped"]);
    let panics = async { panics() }.boxed();
    assert!(tokio::spawn(watch(panics)).await.unwrap_err().is_panic());
    assert_eq!(recorded(), ["panicked"]);
    let service =
        service_fn(|(): ()| -> BoxFuture<'static, Answer> { panic!("on purpose, in `call`") });
    let mut service = service;
    let call = std::panic::AssertUnwindSafe(|| {
        ObservedFuture::call(ends.clone(), || tower::Service::call(&mut service, ()))
    });
    assert!(std::panic::catch_unwind(call).is_err());
    assert_eq!(recorded(), ["panicked"]);
}
