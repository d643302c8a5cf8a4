//! Inner services that are called without a socket.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use tower::{Layer, Service, ServiceExt};
use tower_orgkey::{ApiKeyLayer, ApiKeyService, OrgContext, Rejection, RejectionKind};

/// Responds with the organization and counts its calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Handler(Arc<AtomicUsize>);

impl Handler {
    pub(crate) fn reached(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl<B> Service<Request<B>> for Handler {
    type Response = Response<Bytes>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Bytes>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.0.fetch_add(1, Ordering::SeqCst);
        let body = match request.extensions().get::<OrgContext>() {
            Some(org) => org.org_code().as_str().to_owned(),
            None => String::new(),
        };
        let mut response = Response::new(Bytes::from(body));
        if let Some(org) = request.extensions().get::<OrgContext>() {
            response.extensions_mut().insert(org.clone());
        }
        std::future::ready(Ok(response))
    }
}

pub(crate) type Api = ApiKeyService<Handler>;

pub(crate) fn api(layer: &ApiKeyLayer) -> Api {
    layer.layer(Handler::default())
}

pub(crate) fn request(key: &str) -> Request<()> {
    Request::builder()
        .header(AUTHORIZATION, format!("Bearer {key}"))
        .body(())
        .unwrap()
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The organization that the handler saw.
    Allowed(String),
    Rejected(RejectionKind),
}

impl Outcome {
    pub(crate) fn of(response: &Response<Bytes>) -> Self {
        match response.extensions().get::<Rejection>() {
            None => {
                assert_eq!(response.status(), StatusCode::OK);
                Self::Allowed(String::from_utf8(response.body().to_vec()).unwrap())
            }
            Some(rejection) => {
                assert_eq!(response.status(), rejection.status());
                assert!(response.extensions().get::<OrgContext>().is_none());
                Self::Rejected(rejection.kind())
            }
        }
    }
}

pub(crate) fn allowed(org: &str) -> Outcome {
    Outcome::Allowed(org.to_owned())
}

/// The response to a request with this key.
pub(crate) async fn answer<S>(api: &S, key: &str) -> Response<Bytes>
where
    S: Service<Request<()>, Response = Response<Bytes>, Error = Infallible> + Clone,
{
    match api.clone().oneshot(request(key)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The outcome of a request with this key.
pub(crate) async fn outcome<S>(api: &S, key: &str) -> Outcome
where
    S: Service<Request<()>, Response = Response<Bytes>, Error = Infallible> + Clone,
{
    Outcome::of(&answer(api, key).await)
}

/// The response of a router to a request with this key.
pub(crate) async fn call(
    app: &Router,
    method: Method,
    path: &str,
    key: &str,
) -> axum::response::Response {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(AUTHORIZATION, format!("Bearer {key}"))
        .body(Body::empty())
        .unwrap();
    match app.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Runs all tasks that are ready.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
