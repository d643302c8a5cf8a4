//! The example, called by clients in Rust and Python, over HTTP/2 and gRPC-Web.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

#[path = "../../../tests/support/python.rs"]
mod python;

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use example_grpc::proto::reports_client::ReportsClient;
use example_grpc::proto::reports_server::ReportsServer;
use example_grpc::proto::{ListRequest, Report};
use example_grpc::{Auth, ReportsService, auth, methods, server};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use tonic_web::GrpcWebLayer;
use tower::Layer;
use tower_orgkey::grpc::GrpcRejectionResponse;
use tower_orgkey::rejection::DefaultRejectionResponse;
use tower_orgkey::settings::{OrgSettingsLayer, SettingsError, settings_fn};
use tower_orgkey::{
    ApiKey, ApiKeyHandle, ApiKeyLayer, KeyId, OrgCode, OrgConcurrencyLimitLayer, OrgContext,
    OrgRateLimitLayer, Quota, RequestHead, Scopes, Verification, VerifyError, require_org_with,
    verifier_fn,
};

const READER: &str = "k_live_reader";
const WRITER: &str = "k_live_writer";

async fn verify(key: ApiKey) -> Result<Verification, VerifyError> {
    let of = |org, scopes: &[&str]| {
        Verification::of_organization(OrgCode::from_static(org))
            .with_key_id(KeyId::new("id_1").unwrap())
            .with_scopes(Scopes::from_names(scopes.iter().copied()))
    };
    Ok(match key.expose_secret() {
        READER => of("org_1", &["read:reports"]),
        WRITER => of("org_1", &["read:reports", "write:reports"]),
        "k_live_without_organization" => Verification::without_organization(),
        "k_live_unavailable" => return Err(VerifyError::unavailable("down")),
        "k_live_misconfigured" => return Err(VerifyError::misconfigured("wrong secret")),
        _ => Verification::invalid(),
    })
}

fn layer() -> (Auth, ApiKeyHandle) {
    let auth = auth(ApiKeyLayer::builder(verifier_fn(verify))).unwrap();
    let handle = auth.handle();
    (auth, handle)
}

async fn listener() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), listener)
}

/// Starts the server of the example.
async fn start() -> (SocketAddr, ApiKeyHandle) {
    let (auth, handle) = layer();
    let (address, listener) = listener().await;
    let server = server(auth, ReportsService).await.unwrap();
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, handle)
}

async fn connect(address: SocketAddr) -> ReportsClient<Channel> {
    ReportsClient::connect(format!("http://{address}"))
        .await
        .unwrap()
}

fn with_key<T>(message: T, key: &str) -> Request<T> {
    let mut request = Request::new(message);
    if !key.is_empty() {
        let value = format!("Bearer {key}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

async fn list(address: SocketAddr, key: &str) -> Result<Vec<Report>, Status> {
    let mut client = connect(address).await;
    let reply = client.list(with_key(ListRequest {}, key)).await?;
    Ok(reply.into_inner().reports)
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.domain, "tower-orgkey");
    info.reason
}

fn metadata<'a>(metadata: &'a MetadataMap, name: &str) -> Option<&'a str> {
    metadata.get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn rejections_are_statuses_with_details() {
    let (address, _) = start().await;
    let reports = list(address, READER).await.unwrap();
    assert_eq!(reports[0].org_code, "org_1");
    for (key, code, expected) in [
        ("", Code::Unauthenticated, "CREDENTIAL_MISSING"),
        ("short", Code::Unauthenticated, "CREDENTIAL_MALFORMED"),
        ("k_live_unknown", Code::Unauthenticated, "INVALID_TOKEN"),
        (
            "k_live_without_organization",
            Code::PermissionDenied,
            "ORGANIZATION_REQUIRED",
        ),
        (
            "k_live_unavailable",
            Code::Unavailable,
            "VERIFIER_UNAVAILABLE",
        ),
        (
            "k_live_misconfigured",
            Code::Unavailable,
            "VERIFIER_MISCONFIGURED",
        ),
    ] {
        let status = list(address, key).await.unwrap_err();
        assert_eq!(
            (status.code(), &*reason(&status)),
            (code, expected),
            "{key}"
        );
        let retry = status.get_details_retry_info();
        assert_eq!(retry.is_some(), code == Code::Unavailable, "{key}");
        let challenge = metadata(status.metadata(), "www-authenticate");
        assert_eq!(
            challenge.is_some(),
            code == Code::Unauthenticated || key == "short",
            "{key}"
        );
    }
}

#[tokio::test]
async fn methods_require_their_scopes() {
    let (address, _) = start().await;
    let upload = |key| async move {
        let reports = tokio_stream::iter([Report::default(), Report::default()]);
        let reply = connect(address)
            .await
            .upload(with_key(reports, key))
            .await?;
        Ok::<_, Status>(reply.into_inner().count)
    };
    assert_eq!(upload(WRITER).await.unwrap(), 2);
    let status = upload(READER).await.unwrap_err();
    assert_eq!(
        (status.code(), &*reason(&status)),
        (Code::PermissionDenied, "INSUFFICIENT_SCOPE")
    );
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["scope"], "write:reports");
}

#[tokio::test]
async fn health_is_open_and_its_watch_is_not() {
    let (address, _) = start().await;
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    let mut client = HealthClient::new(channel.connect().await.unwrap());
    let request = || HealthCheckRequest {
        service: "reports.v1.Reports".to_owned(),
    };
    let reply = client.check(request()).await.unwrap();
    assert_eq!(reply.into_inner().status, 1);
    let status = client.watch(request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let status = client.watch(with_key(request(), WRITER)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn guards_limits_and_settings_work_under_tonic() {
    let (auth, _) = layer();
    let settings = settings_fn(async |org: OrgCode| match org.as_str() {
        "org_1" => Ok(7_u32),
        _ => Err(SettingsError::unavailable("down")),
    });
    let settings = OrgSettingsLayer::new(&auth.handle(), settings);
    let rate = OrgRateLimitLayer::new(|_: &OrgContext| Some(Quota::per_minute(2)));
    let concurrency = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(1));
    let named = |head: RequestHead<'_>| {
        let name = head.headers.get("x-org")?;
        Some(name.to_str().ok()?.to_owned())
    };
    let (address, listener) = listener().await;
    let server = Server::builder()
        .layer(auth)
        .layer(settings)
        .layer(rate)
        .layer(concurrency)
        .layer(require_org_with(named))
        .layer(methods().unwrap())
        .add_service(ReportsServer::new(ReportsService));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let call = |org: &'static str| async move {
        let mut request = with_key(ListRequest {}, READER);
        request.metadata_mut().insert("x-org", org.parse().unwrap());
        connect(address).await.list(request).await
    };
    assert!(call("org_1").await.is_ok());
    let status = call("org_2").await.unwrap_err();
    assert_eq!(
        (status.code(), &*reason(&status)),
        (Code::PermissionDenied, "ORGANIZATION_MISMATCH")
    );
    let status = call("org_1").await.unwrap_err();
    assert_eq!(
        (status.code(), &*reason(&status)),
        (Code::ResourceExhausted, "RATE_LIMITED")
    );
    let details = status.get_error_details();
    assert!(details.retry_info().unwrap().retry_delay.unwrap() > Duration::from_secs(1));
    assert_eq!(details.quota_failure().unwrap().violations.len(), 1);
    assert!(metadata(status.metadata(), "retry-after").is_some());
}

/// Rejections of guards, limits and settings that the other tests do not cause.
#[tokio::test]
async fn every_layer_has_a_code() {
    let (auth, handle) = layer();
    let down = settings_fn(async |_: OrgCode| Err::<u32, _>(SettingsError::unavailable("down")));
    let settings = OrgSettingsLayer::new(&handle, down);
    let none = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(0));
    let unset = OrgRateLimitLayer::from_settings(|_: &OrgContext, _: &u32| None);
    let hidden = require_org_with(|_: RequestHead<'_>| Some("org_2".to_owned())).with_not_found();
    let service = || ReportsServer::new(ReportsService);
    let (address, listener) = listener().await;
    // A router of axum with a path for each, because a server of tonic has one set of layers.
    let app = axum::Router::new()
        .nest_service("/settings", settings.layer(service()))
        .nest_service("/concurrency", none.layer(service()))
        .nest_service("/internal", unset.layer(service()))
        .nest_service("/hidden", hidden.layer(service()))
        .layer(auth);
    tokio::spawn(async { axum::serve(listener, app).await });
    for (path, code, expected) in [
        ("settings", Code::Unavailable, "SETTINGS_UNAVAILABLE"),
        (
            "concurrency",
            Code::ResourceExhausted,
            "CONCURRENCY_LIMITED",
        ),
        ("internal", Code::Internal, "INTERNAL"),
        ("hidden", Code::NotFound, "NOT_FOUND"),
    ] {
        let origin = format!("http://{address}/{path}").parse().unwrap();
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        let channel = channel.connect().await.unwrap();
        let mut client = ReportsClient::with_origin(channel, origin);
        let status = client
            .list(with_key(ListRequest {}, READER))
            .await
            .unwrap_err();
        assert_eq!(
            (status.code(), &*reason(&status)),
            (code, expected),
            "{path}"
        );
    }
}

#[tokio::test]
async fn fault_120_server_stream_ends_with_its_key() {
    let (address, handle) = start().await;
    let mut client = connect(address).await;
    let reply = client
        .watch(with_key(ListRequest {}, READER))
        .await
        .unwrap();
    let mut reports = reply.into_inner();
    assert_eq!(reports.message().await.unwrap().unwrap().title, "sales");
    handle.block_key_id(&KeyId::new("id_1").unwrap()).unwrap();
    let status = reports.message().await.unwrap_err();
    assert_eq!(
        (status.code(), &*reason(&status)),
        (Code::Unauthenticated, "INVALID_TOKEN")
    );
}

#[tokio::test]
async fn fault_120_client_stream_ends_with_its_key() {
    let (address, handle) = start().await;
    let (sender, receiver) = mpsc::channel(1);
    let mut client = connect(address).await;
    let request = with_key(ReceiverStream::new(receiver), WRITER);
    let upload = tokio::spawn(async move { client.upload(request).await });
    sender.send(Report::default()).await.unwrap();
    // The key is known once the call has reached the layer.
    while handle.stats().entries == 0 {
        tokio::task::yield_now().await;
    }
    handle.block_key_id(&KeyId::new("id_1").unwrap()).unwrap();
    let status = upload.await.unwrap().unwrap_err();
    assert_eq!(
        (status.code(), &*reason(&status)),
        (Code::Unauthenticated, "INVALID_TOKEN")
    );
}

#[tokio::test]
async fn fault_120_both_directions_end_with_the_key() {
    let (address, handle) = start().await;
    let (sender, receiver) = mpsc::channel(1);
    let mut client = connect(address).await;
    let request = with_key(ReceiverStream::new(receiver), WRITER);
    sender.send(Report::default()).await.unwrap();
    let mut reports = client.sync(request).await.unwrap().into_inner();
    assert_eq!(reports.message().await.unwrap().unwrap().org_code, "org_1");
    handle.block_key_id(&KeyId::new("id_1").unwrap()).unwrap();
    let status = reports.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    // The server has closed the request stream too.
    sender.closed().await;
}

#[tokio::test]
async fn http_and_grpc_share_a_port() {
    let auth = ApiKeyLayer::new(verifier_fn(verify)).with_rejection_response(
        GrpcRejectionResponse::or(DefaultRejectionResponse::default()),
    );
    let app = Routes::new(ReportsServer::new(ReportsService))
        .into_axum_router()
        .route(
            "/reports",
            axum::routing::get(async |org: OrgContext| org.org_code().to_string()),
        )
        .layer(auth);
    let (address, listener) = listener().await;
    tokio::spawn(async { axum::serve(listener, app).await });

    let status = list(address, "k_live_unknown").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(list(address, READER).await.is_ok());
    let http = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let response = http
        .get(format!("http://{address}/reports").parse().unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
}

#[tokio::test]
async fn grpc_web_callers_get_statuses() {
    let (auth, _) = layer();
    let (address, listener) = listener().await;
    let server = Server::builder()
        .accept_http1(true)
        .layer(GrpcWebLayer::new())
        .layer(auth)
        .layer(methods().unwrap())
        .add_service(ReportsServer::new(ReportsService));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let http = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let call = |key: &'static str| {
        let request = http::Request::post(format!("http://{address}/reports.v1.Reports/List"))
            .header("content-type", "application/grpc-web+proto")
            .header("authorization", format!("Bearer {key}"))
            // One message of no bytes.
            .body(Body::from(vec![0; 5]))
            .unwrap();
        let response = http.request(request);
        async move {
            let response = response.await.unwrap();
            let (parts, body) = response.into_parts();
            (parts, body.collect().await.unwrap().to_bytes())
        }
    };
    let (parts, body) = call("k_live_unknown").await;
    assert_eq!(parts.status, 200);
    assert_eq!(parts.headers["content-type"], "application/grpc-web+proto");
    let text = String::from_utf8_lossy(&body).into_owned();
    let in_headers = parts
        .headers
        .get("grpc-status")
        .is_some_and(|status| status == "16");
    assert!(
        in_headers || text.contains("grpc-status:16"),
        "{parts:?} {text}"
    );
    let (_, body) = call(READER).await;
    assert!(String::from_utf8_lossy(&body).contains("grpc-status:0"));
}

/// grpcio sends paths as they are written.
#[tokio::test]
async fn python_callers_get_statuses() {
    let (address, _) = start().await;
    for (path, key, code, reason) in [
        ("/reports.v1.Reports/List", READER, 0, ""),
        ("/reports.v1.Reports/List", "", 16, "CREDENTIAL_MISSING"),
        (
            "/reports.v1.Reports/List",
            "k_live_unknown",
            16,
            "INVALID_TOKEN",
        ),
        (
            "/reports.v1.Reports/List",
            "k_live_unavailable",
            14,
            "VERIFIER_UNAVAILABLE",
        ),
        (
            "/reports.v1.Reports/Upload",
            READER,
            7,
            "INSUFFICIENT_SCOPE",
        ),
        (
            "/reports.v1.Reports/Unknown",
            WRITER,
            7,
            "INSUFFICIENT_SCOPE",
        ),
    ] {
        let answer = grpcio(address, path, key).await;
        assert_eq!(
            (
                &answer["code"],
                answer["reason"].as_str().unwrap_or_default()
            ),
            (&code.into(), reason),
            "{path} {key}"
        );
    }
    // A path without the first slash reaches no handler (CVE-2026-33186).
    let answer = grpcio(address, "reports.v1.Reports/Upload", READER).await;
    assert_ne!(answer["code"], 0, "{answer}");
}

async fn grpcio(address: SocketAddr, path: &str, key: &str) -> serde_json::Value {
    python::script("grpcio.py", &[&address.to_string(), path, key]).await
}
