//! Accounts, routes and results of requests.

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::poll_fn;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer, Service, ServiceExt};
use tower_orgkey::{
    ApiKeyLayer, KeyId, OrgCode, RejectionKind, RequestHead, Verification, VerifyError, verifier_fn,
};
use tower_orgkey_usage::{
    Account, Counts, KeyName, OpenMeterSink, Route, UsageLayer, UsageLine, UsagePusher,
    UsageService, UsageSnapshot,
};

use crate::kit::{app, read, request, usage, wall};

static_assertions::assert_impl_all!(UsageLayer: Clone, Send, Sync);
static_assertions::assert_impl_all!(UsageService<axum::Router>: Clone, Send, Sync);
static_assertions::assert_impl_all!(UsagePusher<OpenMeterSink>: Send, Sync);
static_assertions::assert_impl_all!(UsageSnapshot: Clone, PartialEq, Send, Sync);

fn line<'a>(
    snapshot: &'a UsageSnapshot,
    account: &Account,
    key: &KeyName,
    route: &Route,
) -> &'a Counts {
    let is_it =
        |line: &&UsageLine| line.account == *account && line.key == *key && line.route == *route;
    let found = snapshot.lines().iter().find(is_it);
    &found.unwrap_or_else(|| panic!("{snapshot:?}")).counts
}

fn org() -> Account {
    Account::Organization(OrgCode::from_static("org_1"))
}

fn key() -> KeyName {
    KeyName::Id(KeyId::from_static("k1"))
}

fn template(text: &str) -> Route {
    Route::Template(text.into())
}

#[tokio::test(start_paused = true)]
async fn requests_count_for_account_key_and_route() {
    let usage = usage(&wall()).build().unwrap();
    let app = app(&usage);
    assert_eq!(read(&app, "key.org_1.k1").await, StatusCode::OK);
    assert_eq!(read(&app, "key.org_1.k1").await, StatusCode::OK);
    for (path, key, expected) in [
        ("/guarded", Some("key.org_1.k1"), StatusCode::FORBIDDEN),
        ("/reports/7", Some("bad.key.0"), StatusCode::UNAUTHORIZED),
        ("/reports/8", Some("no"), StatusCode::BAD_REQUEST),
        ("/reports/9", None, StatusCode::OK),
        ("/elsewhere", Some("key.org_1.k1"), StatusCode::NOT_FOUND),
    ] {
        let response = app.clone().oneshot(request("GET", path, key)).await;
        assert_eq!(response.unwrap().status(), expected, "{path}");
    }
    let mut upload = request("POST", "/upload", Some("key.org_1.k1"));
    *upload.body_mut() = Body::from(vec![0; 1_000]);
    assert_eq!(app.clone().oneshot(upload).await.unwrap().status(), 200);
    // Of unknown size, except for the header.
    let mut upload = request("POST", "/upload", Some("key.org_1.k1"));
    *upload.body_mut() =
        Body::from_stream(futures_util::stream::empty::<Result<Bytes, Infallible>>());
    upload
        .headers_mut()
        .insert("content-length", "11".parse().unwrap());
    assert_eq!(app.clone().oneshot(upload).await.unwrap().status(), 200);

    let snapshot = usage.handle().snapshot();
    let reports = line(&snapshot, &org(), &key(), &template("/reports/{id}"));
    assert_eq!((reports.requests(), reports.served()), (2, 2));
    assert_eq!(reports.rejected(), 0);
    assert_eq!((reports.request_bytes(), reports.response_bytes()), (0, 10));
    assert_eq!(reports.durations()[0], 2);
    let guarded = line(&snapshot, &org(), &key(), &template("/guarded"));
    let refused: Vec<_> = guarded.rejections().collect();
    assert_eq!(refused, [(RejectionKind::InsufficientScope, 1)]);
    assert_eq!((guarded.requests(), guarded.served()), (1, 0));
    let upload = line(&snapshot, &org(), &key(), &template("/upload"));
    assert_eq!((upload.requests(), upload.request_bytes()), (2, 1_011));
    let unmatched = line(&snapshot, &org(), &key(), &Route::Unmatched);
    assert_eq!((unmatched.requests(), unmatched.rejected()), (1, 0));

    let unnamed = KeyName::Unnamed;
    let nobody = line(
        &snapshot,
        &Account::Unauthenticated,
        &unnamed,
        &template("/reports/{id}"),
    );
    assert_eq!((nobody.requests(), nobody.served()), (2, 0));
    assert_eq!(nobody.rejected_for(RejectionKind::InvalidToken), 1);
    assert_eq!(nobody.rejected_for(RejectionKind::CredentialMalformed), 1);
    let anonymous = snapshot.of_account(&Account::Anonymous);
    assert_eq!((anonymous.requests(), anonymous.served()), (1, 1));
    assert_eq!(anonymous.rejected(), 0);
    assert_eq!(snapshot.total().requests(), 9);
    let text = serde_json::to_string(&snapshot).unwrap();
    assert!(
        !text.contains("bad.key") && !text.contains("key.org_1"),
        "a key is told"
    );
}

#[tokio::test(start_paused = true)]
async fn early_ends_are_counted_once() {
    let usage = usage(&wall()).build().unwrap();
    let app = app(&usage);
    read(&app, "key.org_1.k1").await;
    {
        let mut left = std::pin::pin!(app.clone().oneshot(request(
            "GET",
            "/never",
            Some("key.org_1.k1")
        )));
        let is_pending = poll_fn(|cx| Poll::Ready(left.as_mut().poll(cx).is_pending())).await;
        assert!(is_pending);
        tokio::time::advance(std::time::Duration::from_millis(30)).await;
    }
    let panics = tokio::spawn(
        app.clone()
            .oneshot(request("GET", "/panic", Some("key.org_1.k1"))),
    );
    assert!(panics.await.unwrap_err().is_panic());

    let snapshot = usage.handle().snapshot();
    let never = line(&snapshot, &org(), &key(), &template("/never"));
    assert_eq!(
        (never.requests(), never.dropped(), never.panicked()),
        (1, 1, 0)
    );
    assert_eq!(never.served(), 1, "the handler was reached");
    assert_eq!(never.duration().as_millis(), 30);
    assert_eq!(never.durations()[3], 1, "up to 50 ms");
    let panicked = line(&snapshot, &org(), &key(), &template("/panic"));
    assert_eq!((panicked.requests(), panicked.panicked()), (1, 1));
    assert_eq!(panicked.served(), 1);
    assert_eq!(snapshot.total().requests(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_drop_during_verification_is_not_served() {
    let usage = usage(&wall()).build().unwrap();
    let never = ApiKeyLayer::new(verifier_fn(|_| {
        std::future::pending::<Result<Verification, VerifyError>>()
    }));
    let app = axum::Router::new()
        .route("/", axum::routing::get(async || ()))
        .route_layer(never)
        .route_layer(usage.clone());
    {
        let mut left = std::pin::pin!(app.oneshot(request("GET", "/", Some("key.org_1.k1"))));
        let is_pending = poll_fn(|cx| Poll::Ready(left.as_mut().poll(cx).is_pending())).await;
        assert!(is_pending);
    }
    let total = usage.handle().snapshot().total();
    assert_eq!((total.requests(), total.dropped()), (1, 1));
    assert_eq!((total.served(), total.rejected()), (0, 0));
}

/// Fails in every way that a service can.
#[derive(Clone)]
struct Fails;

impl Service<Request<Full<Bytes>>> for Fails {
    type Response = Response<Full<Bytes>>;
    type Error = &'static str;
    type Future = std::future::Ready<Result<Response<Full<Bytes>>, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        assert_ne!(
            request.uri().path(),
            "/panic",
            "the service panics in `call`"
        );
        std::future::ready(Err("failed"))
    }
}

#[tokio::test(start_paused = true)]
async fn failures_of_plain_services_are_counted() {
    let usage = usage(&wall())
        .routes(1)
        .route(|head: RequestHead<'_>| {
            let path = head.uri.path();
            (path != "/none").then(|| Cow::Borrowed(&path[..2]))
        })
        .build()
        .unwrap();
    let service = usage.layer(Fails);
    let call = |path: &str| {
        let request = Request::get(path).body(Full::from("123")).unwrap();
        tokio::spawn(service.clone().oneshot(request))
    };
    assert_eq!(call("/first").await.unwrap().unwrap_err(), "failed");
    assert!(call("/panic").await.unwrap_err().is_panic());
    assert_eq!(call("/none").await.unwrap().unwrap_err(), "failed");

    let snapshot = usage.handle().snapshot();
    let of = |route: &Route| {
        let counts = line(
            &snapshot,
            &Account::Unauthenticated,
            &KeyName::Unnamed,
            route,
        );
        (counts.requests(), counts.failed(), counts.panicked())
    };
    assert_eq!(of(&template("/f")), (1, 1, 0));
    assert_eq!(
        of(&Route::Other),
        (1, 0, 1),
        "beyond the bound of one route"
    );
    assert_eq!(of(&Route::Unmatched), (1, 1, 0));
    assert_eq!(snapshot.total().request_bytes(), 9);
}
