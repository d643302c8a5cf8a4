use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use tower_layer::Layer;

use super::permits::{Permit, Permits};
use super::service::OrgConcurrencyLimit;
use crate::context::OrgContext;
use crate::limit::subject::{Per, SubjectRef};
use crate::rejection::Rejection;
#[cfg(feature = "settings")]
use crate::settings::OrgSettings;

/// A layer that limits the requests in flight of each organization or key.
///
/// A request is in flight until its response body ends or is dropped. See the [module documentation](crate::limit) for the
/// order of layers. Clones share one limit; two layers share nothing.
#[derive(Clone)]
#[must_use]
pub struct OrgConcurrencyLimitLayer {
    core: Arc<Core>,
}

/// Returns the limit of a request. The error is the rejection of a request without the settings that the function reads.
type LimitFn = dyn Fn(&Extensions, &OrgContext) -> Result<Option<usize>, Rejection> + Send + Sync;

/// The state that a layer and its clones share.
struct Core {
    limit: Box<LimitFn>,
    per: Per,
    permits: Arc<Permits>,
}

/// The least value of `Retry-After`: it is unknown when a request in flight will end.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl OrgConcurrencyLimitLayer {
    /// Limits each organization to the number of requests in flight that `limit` returns. `None` is no limit; `Some(0)` rejects
    /// every request.
    ///
    /// The function is called for every request, so it must not block. A new limit applies from that request on; requests in
    /// flight continue.
    ///
    /// ```
    /// use tower_orgkey::{OrgConcurrencyLimitLayer, OrgContext};
    ///
    /// let exports = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(4));
    /// ```
    pub fn new(limit: impl Fn(&OrgContext) -> Option<usize> + Send + Sync + 'static) -> Self {
        Self::with_limit(
            Per::Organization,
            Box::new(move |_, context| Ok(limit(context))),
        )
    }

    /// Like [`new`](Self::new), but limits each key.
    ///
    /// A key is identified by its id, or by the key itself if the issuer provides no id.
    pub fn per_key(limit: impl Fn(&OrgContext) -> Option<usize> + Send + Sync + 'static) -> Self {
        Self::with_limit(Per::Key, Box::new(move |_, context| Ok(limit(context))))
    }

    /// Like [`new`](Self::new), but `limit` also gets the [settings](crate::settings) of the organization.
    ///
    /// Put the layer inside an [`OrgSettingsLayer`](crate::OrgSettingsLayer) of the type `T`. Without that layer, requests are
    /// rejected with 500.
    ///
    /// ```
    /// use tower_orgkey::{OrgConcurrencyLimitLayer, OrgContext};
    ///
    /// struct Plan {
    ///     exports: usize,
    /// }
    ///
    /// let exports =
    ///     OrgConcurrencyLimitLayer::from_settings(|_: &OrgContext, plan: &Plan| Some(plan.exports));
    /// ```
    #[cfg(feature = "settings")]
    pub fn from_settings<T: Send + Sync + 'static>(
        limit: impl Fn(&OrgContext, &T) -> Option<usize> + Send + Sync + 'static,
    ) -> Self {
        Self::with_limit(Per::Organization, reading_settings(limit))
    }

    /// Like [`from_settings`](Self::from_settings), but limits each key.
    #[cfg(feature = "settings")]
    pub fn per_key_from_settings<T: Send + Sync + 'static>(
        limit: impl Fn(&OrgContext, &T) -> Option<usize> + Send + Sync + 'static,
    ) -> Self {
        Self::with_limit(Per::Key, reading_settings(limit))
    }

    fn with_limit(per: Per, limit: Box<LimitFn>) -> Self {
        Self {
            core: Arc::new(Core {
                limit,
                per,
                permits: Arc::new(Permits::new()),
            }),
        }
    }

    /// Returns the number of organizations or keys that have a limit and requests in flight.
    pub fn accounts(&self) -> usize {
        self.core.permits.len()
    }

    /// Acquires a permit if the request has a limit.
    #[inline]
    pub(super) fn acquire(
        &self,
        extensions: &Extensions,
        context: &OrgContext,
    ) -> Result<Option<Permit>, Rejection> {
        let Some(limit) = (self.core.limit)(extensions, context)? else {
            return Ok(None);
        };
        let subject = SubjectRef::new(context, self.core.per);
        match self.core.permits.acquire(subject, limit) {
            Some(permit) => Ok(Some(permit)),
            None => Err(Rejection::concurrency_limited(RETRY_AFTER)),
        }
    }
}

#[cfg(feature = "settings")]
fn reading_settings<T: Send + Sync + 'static>(
    limit: impl Fn(&OrgContext, &T) -> Option<usize> + Send + Sync + 'static,
) -> Box<LimitFn> {
    Box::new(move |extensions, context| {
        let settings = OrgSettings::require(extensions, "OrgConcurrencyLimitLayer")?;
        Ok(limit(context, settings))
    })
}

impl<S> Layer<S> for OrgConcurrencyLimitLayer {
    type Service = OrgConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        OrgConcurrencyLimit::new(inner, self.clone())
    }
}

impl_debug!(OrgConcurrencyLimitLayer, |layer| { per: layer.core.per, accounts: layer.accounts() });
