//! The cost of layers that do a part of this layer's work, without a cache.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::{Extension, Router};
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tower_http::validate_request::ValidateRequestHeaderLayer;
use tower_layer::Layer;
use tower_service::Service;

use super::{BEARER, Call, KEY, ORG_REPORTS, SCOPE, SCOPES, api, passes, through};

pub(super) fn no_op() -> Call {
    passes(bare())
}

/// An API with a layer that does nothing.
pub(crate) fn bare() -> Router {
    api().layer(NoOpLayer)
}

pub(super) fn no_op_parameter() -> Call {
    through(ORG_REPORTS, BEARER, StatusCode::OK, api().layer(NoOpLayer))
}

#[expect(
    deprecated,
    reason = "the nearest thing to a floor that others have written"
)]
pub(super) fn static_bearer() -> Call {
    let bearer =
        ValidateRequestHeaderLayer::<tower_http::auth::require_authorization::Bearer<Body>>::bearer(
            KEY,
        );
    passes(api().layer(bearer))
}

pub(super) fn extension() -> Call {
    passes(api().layer(Extension(Arc::new(Facts::of_the_key()))))
}

pub(super) fn floor() -> Call {
    let auth = KeyLayer(|key: &str, only: &(String, Arc<Facts>)| {
        (key == only.0).then(|| Arc::clone(&only.1))
    })
    .over((KEY.to_owned(), Arc::new(Facts::of_the_key())));
    passes(api().layer((auth, ScopeLayer(SCOPE))))
}

#[derive(Clone, Copy, Debug)]
pub(super) struct NoOpLayer;

impl<S> Layer<S> for NoOpLayer {
    type Service = NoOp<S>;

    fn layer(&self, inner: S) -> NoOp<S> {
        NoOp(inner)
    }
}

#[derive(Clone, Debug)]
pub(super) struct NoOp<S>(S);

impl<S: Service<R>, R> Service<R> for NoOp<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.0.call(request)
    }
}

/// A verification result, as a hand-written server would store it.
#[derive(Clone, Debug)]
#[cfg_attr(
    not(feature = "whole"),
    expect(
        dead_code,
        reason = "a context is carried whole, though these handlers look at a part of it"
    )
)]
pub(super) struct Facts {
    pub(super) org: String,
    pub(super) key_id: String,
    pub(super) scopes: Vec<String>,
}

impl Facts {
    pub(super) fn of_the_key() -> Self {
        Self {
            org: "org_1234567890".to_owned(),
            key_id: "api_key_0195ac80a14e8d71f42b98e75d3c61ad".to_owned(),
            scopes: SCOPES.map(str::to_owned).to_vec(),
        }
    }
}

/// Looks up the result of a bearer key with a function and inserts it into the extensions.
#[derive(Clone, Copy)]
pub(super) struct KeyLayer<F>(pub(super) F);

impl<F> KeyLayer<F> {
    pub(super) fn over<T>(self, keys: T) -> KeyLayerOver<F, T> {
        KeyLayerOver {
            find: self.0,
            keys: Arc::new(keys),
        }
    }
}

pub(super) struct KeyLayerOver<F, T> {
    find: F,
    keys: Arc<T>,
}

impl<F: Clone, T> Clone for KeyLayerOver<F, T> {
    fn clone(&self) -> Self {
        Self {
            find: self.find.clone(),
            keys: Arc::clone(&self.keys),
        }
    }
}

impl<S, F: Clone, T> Layer<S> for KeyLayerOver<F, T> {
    type Service = KeyService<S, F, T>;

    fn layer(&self, inner: S) -> Self::Service {
        KeyService {
            inner,
            layer: self.clone(),
        }
    }
}

pub(super) struct KeyService<S, F, T> {
    inner: S,
    layer: KeyLayerOver<F, T>,
}

impl<S: Clone, F: Clone, T> Clone for KeyService<S, F, T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
        }
    }
}

impl<S, F, T> Service<Request<Body>> for KeyService<S, F, T>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    F: Fn(&str, &T) -> Option<Arc<Facts>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let facts = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .and_then(|key| (self.layer.find)(key, &self.layer.keys));
        let Some(facts) = facts else {
            return Answer::Refused {
                status: StatusCode::UNAUTHORIZED,
            };
        };
        request.extensions_mut().insert(facts);
        Answer::Passed {
            future: self.inner.call(request),
        }
    }
}

/// Lets a request pass if its result has a scope.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScopeLayer(pub(super) &'static str);

impl<S> Layer<S> for ScopeLayer {
    type Service = ScopeService<S>;

    fn layer(&self, inner: S) -> ScopeService<S> {
        ScopeService {
            inner,
            scope: self.0,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct ScopeService<S> {
    inner: S,
    scope: &'static str,
}

impl<S> Service<Request<Body>> for ScopeService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let facts = request.extensions().get::<Arc<Facts>>();
        if facts.is_some_and(|facts| facts.scopes.iter().any(|held| held == self.scope)) {
            Answer::Passed {
                future: self.inner.call(request),
            }
        } else {
            Answer::Refused {
                status: StatusCode::FORBIDDEN,
            }
        }
    }
}

pin_project! {
    #[project = AnswerProj]
    pub(super) enum Answer<F> {
        Passed { #[pin] future: F },
        Refused { status: StatusCode },
    }
}

impl<F, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            AnswerProj::Passed { future } => Poll::Ready(ready!(future.poll(cx))),
            AnswerProj::Refused { status } => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = *status;
                Poll::Ready(Ok(response))
            }
        }
    }
}
