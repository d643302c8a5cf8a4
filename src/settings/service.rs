use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use orgkey_lookup::LookupRequest;
use tower_service::Service;

use super::future::{ResponseFuture, State};
use super::layer::{Core, Decision, OrgSettingsLayer};
use super::source::Loader;
use crate::guard::GuardFuture;
use crate::pending::Pending;
use crate::rejection::RejectionBody;

/// The service that [`OrgSettingsLayer`] creates.
///
/// See the [module documentation](crate::settings).
#[must_use]
pub struct OrgSettingsService<S, T: Send + Sync + 'static> {
    inner: S,
    layer: OrgSettingsLayer<T>,
}

impl<S, T: Send + Sync + 'static> OrgSettingsService<S, T> {
    pub(super) fn new(inner: S, layer: OrgSettingsLayer<T>) -> Self {
        Self { inner, layer }
    }
}

impl<S, T, ReqBody, ResBody> Service<Request<ReqBody>> for OrgSettingsService<S, T>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    T: Send + Sync + 'static,
    ResBody: RejectionBody,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = ResponseFuture<S, T, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        match self.layer.core.decide(&mut request) {
            Decision::Pass => ResponseFuture {
                state: State::Decided {
                    guarded: GuardFuture::inner(self.inner.call(request)),
                },
            },
            Decision::Reject(rejection) => ResponseFuture {
                state: State::Decided {
                    guarded: GuardFuture::rejected(request.extensions(), rejection),
                },
            },
            Decision::Wait(lookup) => ResponseFuture {
                state: State::Waiting {
                    pending: self.wait(request, lookup),
                },
            },
        }
    }
}

impl<S: Clone, T: Send + Sync + 'static> OrgSettingsService<S, T> {
    #[cold]
    fn wait<ReqBody>(
        &mut self,
        request: Request<ReqBody>,
        lookup: LookupRequest<Loader<T>>,
    ) -> Box<Pending<S, ReqBody, Arc<Core<T>>>> {
        let core = Arc::clone(&self.layer.core);
        let cache = Arc::clone(&core.cache);
        let inner = &mut self.inner;
        Box::new(Pending::new(inner, request, &cache, lookup, core))
    }
}

impl<S: Clone, T: Send + Sync + 'static> Clone for OrgSettingsService<S, T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            layer: self.layer.clone(),
        }
    }
}

impl_debug!([S: std::fmt::Debug, T: Send + Sync + 'static] OrgSettingsService<S, T>, |service| {
    inner: service.inner,
    layer: service.layer
});
