use std::fmt;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use tokio::time::Instant;
use tower_service::Service;

use super::body::AuditBody;
use super::event::{AuditedRequest, Outcome, Route, Who, kept, kept_method};
use super::future::{AuditFuture, Open};
use super::layer::AuditLayer;
use tower_orgkey::RequestHead;
use tower_orgkey::observer::{ObservedFuture, RequestObservation};

/// The service that [`AuditLayer`] makes.
///
/// See the [crate's guide](crate).
#[derive(Clone)]
#[must_use]
pub struct AuditService<S> {
    inner: S,
    layer: AuditLayer,
}

impl<S> AuditService<S> {
    pub(super) fn new(inner: S, layer: AuditLayer) -> Self {
        Self { inner, layer }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for AuditService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: http_body::Body,
{
    type Response = Response<AuditBody<ResBody>>;
    type Error = S::Error;
    type Future = AuditFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let open = self.layer.open(&mut request);
        let inner = &mut self.inner;
        AuditFuture::new(ObservedFuture::call(open, || inner.call(request)))
    }
}

impl AuditLayer {
    /// Writes down what is known of a request when it arrives.
    fn open<B>(&self, request: &mut Request<B>) -> Open {
        let options = &self.options;
        let observation = RequestObservation::attach(request.extensions_mut());
        let request_id = self
            .trail
            .ids()
            .settle(request.headers_mut(), &options.request_id_header);
        let head = RequestHead::of(request);
        let record = AuditedRequest {
            time: SystemTime::now(),
            arrived: Instant::now(),
            request_id,
            method: kept_method(head.method),
            route: match &options.route {
                Some(route) => route(head).map(|name| Route::Named(kept(&name))),
                None => matched(head),
            },
            path: options.record_path.then(|| kept(head.uri.path())),
            peer: options.peer.as_ref().and_then(|peer| peer(head)),
            // The rest is found out later, and stands here only until then.
            who: Who::Nobody,
            requirements: Vec::new(),
            outcome: Outcome::LetIn,
            status: None,
            duration: Duration::ZERO,
            body: None,
        };
        Open::new(record, observation, self.trail.clone())
    }
}

#[cfg(feature = "axum")]
fn matched(head: RequestHead<'_>) -> Option<Route> {
    head.extensions.get().cloned().map(Route::Matched)
}

#[cfg(not(feature = "axum"))]
fn matched(_: RequestHead<'_>) -> Option<Route> {
    None
}

impl<S: fmt::Debug> fmt::Debug for AuditService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditService")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish()
    }
}
