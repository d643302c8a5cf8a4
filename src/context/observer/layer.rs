use std::sync::Arc;
use std::task::{Context, Poll};

use http::Request;
use tower_layer::Layer;
use tower_service::Service;

use super::{Callback, RequestObservation};
use crate::context::OrgContext;

/// A layer that calls a function as soon as [`ApiKeyLayer`](crate::ApiKeyLayer) authenticates a key.
///
/// It goes outside `ApiKeyLayer`, and inside the layer that opens a span if the function records on the span. See the
/// [module documentation](crate::observer#fields-on-a-span) for an example.
#[derive(Clone)]
#[must_use]
pub struct ObserverLayer {
    callback: Callback,
}

impl ObserverLayer {
    /// Calls `callback` with the context that the handler will see.
    ///
    /// The function runs on the path of the request and must not block. It is not called for a request that is rejected
    /// before its organization is known, or let through without a key. With two `ApiKeyLayer`s in a row it is called once
    /// for each that authenticates a key.
    pub fn on_authenticated(callback: impl Fn(&OrgContext) + Send + Sync + 'static) -> Self {
        Self {
            callback: Arc::new(callback),
        }
    }
}

impl<S> Layer<S> for ObserverLayer {
    type Service = ObserverService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ObserverService {
            inner,
            layer: self.clone(),
        }
    }
}

impl_debug!(ObserverLayer);

/// The service of [`ObserverLayer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ObserverService<S> {
    inner: S,
    layer: ObserverLayer,
}

impl<S, B> Service<Request<B>> for ObserverService<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        RequestObservation::attach(request.extensions_mut())
            .add_callback(Arc::clone(&self.layer.callback));
        self.inner.call(request)
    }
}
