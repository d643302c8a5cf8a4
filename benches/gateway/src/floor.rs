//! The least that a check can be: it reads the headers of nginx's dialect, compares the key with one key, and responds as the gateway
//! does. It has no routes, no cache, no counters, no clock and no limits, and checks no path.

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use axum::routing::any;
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

pub(crate) const KEY: &str = "k_live_00000000000000000000000000000001";

static METHOD: HeaderName = HeaderName::from_static("x-original-method");
static URI: HeaderName = HeaderName::from_static("x-original-uri");
static HOST: HeaderName = HeaderName::from_static("x-original-host");

/// A check as a handler of axum.
pub(crate) fn router() -> Router {
    let identity = identity();
    let check = async move |request: Request| response::<Body>(request.headers(), &identity);
    Router::new().route("/v1/nginx", any(check))
}

/// Serves a check as a service of hyper, without a router, forever.
pub(crate) async fn serve(listener: TcpListener) {
    let identity = identity();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let identity = identity.clone();
        tokio::spawn(async move {
            let check = service_fn(|request: hyper::Request<Incoming>| {
                let response = response::<Empty<Bytes>>(request.headers(), &identity);
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let server = auto::Builder::new(TokioExecutor::new());
            // A client may end its connection at any time.
            let _ = server.serve_connection(TokioIo::new(stream), check).await;
        });
    }
}

type Identity = [(HeaderName, HeaderValue); 3];

/// As long as that of the gateway.
fn identity() -> Identity {
    [
        ("x-org-code", "org_1"),
        ("x-org-key-id", "api_key_00000000000000000000000000000000"),
        ("x-org-scopes", "read:reports"),
    ]
    .map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    })
}

fn response<B: Default>(request: &HeaderMap, identity: &Identity) -> Response<B> {
    let mut response = Response::new(B::default());
    if !may_pass(request) {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        return response;
    }
    let headers = response.headers_mut();
    headers.reserve(8);
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in identity {
        headers.insert(name, value.clone());
    }
    response
}

fn may_pass(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name)?.to_str().ok();
    let method = text(&METHOD).and_then(|method| method.parse::<Method>().ok());
    let key = text(&AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    method == Some(Method::GET)
        && text(&URI).is_some_and(|uri| uri.starts_with("/reports/"))
        && text(&HOST) == Some("api.example.com")
        && key == Some(KEY)
}
