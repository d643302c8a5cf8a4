use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Extensions, Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

use super::builder::RegionLayerBuilder;
use crate::context::OrgContext;
use crate::guard::GuardFuture;
use crate::rejection::{Rejection, RejectionBody};
use crate::telemetry;

/// Where an organization is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// In this region.
    Here,
    /// In the region of this name. The name of this region is the same as [`Here`](Self::Here).
    ///
    /// A region that the [builder](RegionLayerBuilder::region) does not declare is an error of the configuration: the request
    /// is rejected with 503, and the log names the organization.
    At(Cow<'static, str>),
    /// Not known, or not at the moment. Rejected with 503, unless [declared to be
    /// here](RegionLayerBuilder::unknown_is_here).
    Unknown,
}

/// A layer that rejects requests of organizations whose home is another region.
///
/// See the [module documentation](crate::region). Clones share their configuration.
#[derive(Clone)]
#[must_use]
pub struct RegionLayer {
    pub(super) core: Arc<Core>,
}

/// Returns the home of the organization of a request.
pub(super) type HomeFn = dyn Fn(&OrgContext, &Extensions) -> Home + Send + Sync;

pub(super) struct Core {
    pub(super) here: Cow<'static, str>,
    pub(super) home: Box<HomeFn>,
    /// The other regions, with their base addresses.
    pub(super) others: BTreeMap<Cow<'static, str>, Option<Cow<'static, str>>>,
    pub(super) status: StatusCode,
    pub(super) unknown_is_here: bool,
}

/// When to ask again for an organization without a known home.
const RETRY_AFTER: Duration = Duration::from_secs(60);

impl RegionLayer {
    /// Returns a builder for the layer of a deployment in the region `here`.
    ///
    /// `home` returns the home of the organization of a request. It is called for every request with an organization, so it
    /// must not block. See the [module documentation](crate::region) for examples.
    pub fn builder(
        here: impl Into<Cow<'static, str>>,
        home: impl Fn(&OrgContext, &Extensions) -> Home + Send + Sync + 'static,
    ) -> RegionLayerBuilder {
        RegionLayerBuilder::new(here.into(), Box::new(home))
    }

    /// Returns the rejection of a request that belongs to the region `name`, for
    /// [`reject_before_lookup`](crate::ApiKeyLayerBuilder::reject_before_lookup).
    ///
    /// If the region is not declared, the rejection is that of an unknown home, with 503.
    pub fn wrong_region(&self, name: &str) -> Rejection {
        match self.core.others.get_key_value(name) {
            Some((name, base)) => {
                Rejection::wrong_region(name.clone(), base.clone(), self.core.status)
            }
            None => Rejection::region_unknown(RETRY_AFTER),
        }
    }

    fn decide(&self, extensions: &Extensions) -> Result<(), Rejection> {
        let Some(context) = OrgContext::optional_in_layer(extensions, "RegionLayer")? else {
            return Ok(());
        };
        match (self.core.home)(context, extensions) {
            Home::Here => Ok(()),
            Home::At(name) if name == self.core.here => Ok(()),
            Home::At(name) => {
                if !self.core.others.contains_key(&name) {
                    telemetry::region_undeclared(context.org_code());
                }
                Err(self.wrong_region(&name))
            }
            Home::Unknown if self.core.unknown_is_here => Ok(()),
            Home::Unknown => Err(Rejection::region_unknown(RETRY_AFTER)),
        }
    }
}

impl_debug!(RegionLayer, |layer| { here: layer.core.here, others: layer.core.others });

impl<S> Layer<S> for RegionLayer {
    type Service = RegionService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RegionService {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service of [`RegionLayer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RegionService<S> {
    inner: S,
    layer: RegionLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RegionService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: RejectionBody,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = GuardFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        match self.layer.decide(request.extensions()) {
            Ok(()) => GuardFuture::inner(self.inner.call(request)),
            Err(rejection) => GuardFuture::rejected(request.extensions(), rejection),
        }
    }
}
