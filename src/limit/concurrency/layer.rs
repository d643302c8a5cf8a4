use std::fmt;
use std::sync::Arc;

use tower_layer::Layer;

use super::permits::{Permit, Permits};
use super::service::OrgConcurrencyLimit;
use crate::context::OrgContext;
use crate::limit::subject::{Per, SubjectRef};

/// A layer that limits the requests in flight of each organization or key.
///
/// A request is in flight until its response body ends or is dropped. See the [module documentation](crate::limit) for the
/// order of layers. Clones share one limit; two layers share nothing.
#[derive(Clone)]
#[must_use]
pub struct OrgConcurrencyLimitLayer {
    core: Arc<Core>,
}

/// Returns the limit of a request.
type LimitFn = dyn Fn(&OrgContext) -> Option<usize> + Send + Sync;

/// The state that a layer and its clones share.
struct Core {
    limit: Box<LimitFn>,
    per: Per,
    permits: Arc<Permits>,
}

/// All permits are in use.
pub(super) struct NoPermit;

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
        Self::with_limit(Per::Organization, Box::new(limit))
    }

    /// Like [`new`](Self::new), but limits each key.
    ///
    /// A key is identified by its id, or by the key itself if the issuer provides no id.
    pub fn per_key(limit: impl Fn(&OrgContext) -> Option<usize> + Send + Sync + 'static) -> Self {
        Self::with_limit(Per::Key, Box::new(limit))
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
    pub(super) fn acquire(&self, context: &OrgContext) -> Result<Option<Permit>, NoPermit> {
        let Some(limit) = (self.core.limit)(context) else {
            return Ok(None);
        };
        let subject = SubjectRef::new(context, self.core.per).to_subject();
        let permit = self.core.permits.acquire(subject, limit).ok_or(NoPermit)?;
        Ok(Some(permit))
    }
}

impl<S> Layer<S> for OrgConcurrencyLimitLayer {
    type Service = OrgConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        OrgConcurrencyLimit::new(inner, self.clone())
    }
}

impl fmt::Debug for OrgConcurrencyLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgConcurrencyLimitLayer")
            .field("per", &self.core.per)
            .field("accounts", &self.accounts())
            .finish_non_exhaustive()
    }
}
