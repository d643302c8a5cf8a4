use std::fmt;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use tokio::time::Instant;
use tower_orgkey::RequestHead;
use tower_orgkey::observer::{ObservedFuture, OuterObservation, Requirements};
use tower_service::Service;

use crate::body::AuditBody;
use crate::event::{Actor, AuditedRequest, Outcome, Route, bounded_method, bounded_text};
use crate::future::{AuditFuture, RequestAudit};
use crate::layer::AuditLayer;
use crate::request_id::sent_id;

/// The service of [`AuditLayer`]. See the [crate documentation](crate).
#[derive(Clone)]
#[must_use]
pub struct AuditService<S> {
    inner: S,
    layer: AuditLayer,
}

impl<S> AuditService<S> {
    pub(crate) fn new(inner: S, layer: AuditLayer) -> Self {
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
        let audit = self.layer.open(&mut request);
        let inner = &mut self.inner;
        AuditFuture::new(ObservedFuture::call(audit, || inner.call(request)))
    }
}

impl AuditLayer {
    /// Records what is known when a request arrives.
    fn open<B>(&self, request: &mut Request<B>) -> RequestAudit {
        let options = &self.options;
        let observation = OuterObservation::attach(request.extensions_mut(), "AuditLayer");
        let head = RequestHead::of(request);
        let peer = options.peer.as_ref().and_then(|peer| peer(head));
        let (peer, peer_pseudonym) = match (peer, &options.privacy.pseudonyms) {
            (Some(peer), Some(key)) => (None, Some(key.of_ip(peer.ip()))),
            (peer, _) => (peer, None),
        };
        let record = Box::new(AuditedRequest {
            time: SystemTime::now(),
            arrived: Instant::now(),
            request_id: sent_id(head.headers, &options.request_id_header),
            method: bounded_method(head.method),
            route: match &options.route {
                Some(route) => route(head).map(Route::named),
                None => matched(head),
            },
            path: options.record_path.then(|| bounded_text(head.uri.path())),
            peer,
            peer_pseudonym,
            // Set when the request ends.
            actor: Actor::Unknown,
            requirements: Requirements::default(),
            outcome: Outcome::Allowed,
            status: None,
            duration: Duration::ZERO,
            body: None,
        });
        RequestAudit::new(record, observation, self.clone())
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
