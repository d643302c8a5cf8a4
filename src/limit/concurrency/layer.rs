use std::fmt;
use std::sync::Arc;

use tower_layer::Layer;

use super::permits::{Permit, Permits};
use super::service::OrgConcurrencyLimit;
use crate::context::OrgContext;
use crate::limit::subject::{Asked, Per};

/// The layer that lets an organization, or each of its keys, have so many requests under way at a time.
///
/// A request is under way until its response's body has ended or was dropped. See the [module's guide](crate::limit) for
/// where it stands. Clones count together; two layers share nothing.
#[derive(Clone)]
#[must_use]
pub struct OrgConcurrencyLimitLayer {
    core: Arc<Core>,
}

/// The user's function.
type LimitFn = dyn Fn(&OrgContext) -> Option<usize> + Send + Sync;

/// What a layer and its clones share.
struct Core {
    limit: Box<LimitFn>,
    per: Per,
    permits: Arc<Permits>,
}

/// All places are taken.
pub(super) struct Full;

impl OrgConcurrencyLimitLayer {
    /// The limit of each organization, by what your function makes of it; `None` is no limit, and of 0 nothing passes.
    ///
    /// The function is asked at every request, so it looks things up and loads nothing. A new answer holds from that
    /// request on; what is under way is not disturbed.
    ///
    /// ```
    /// use tower_orgkey::{OrgConcurrencyLimitLayer, OrgContext};
    ///
    /// let exports = OrgConcurrencyLimitLayer::new(|_: &OrgContext| Some(4));
    /// ```
    pub fn new(limit: impl Fn(&OrgContext) -> Option<usize> + Send + Sync + 'static) -> Self {
        Self::counting(Per::Organization, Box::new(limit))
    }

    /// The limit of each key; otherwise as [`new`](Self::new).
    ///
    /// A key goes by its id, or where the issuer gives its keys no ids, by the key itself.
    pub fn per_key(limit: impl Fn(&OrgContext) -> Option<usize> + Send + Sync + 'static) -> Self {
        Self::counting(Per::Key, Box::new(limit))
    }

    fn counting(per: Per, limit: Box<LimitFn>) -> Self {
        Self {
            core: Arc::new(Core {
                limit,
                per,
                permits: Arc::new(Permits::new()),
            }),
        }
    }

    /// How many organizations, or keys, that have a limit have requests under way at this moment.
    pub fn accounts(&self) -> usize {
        self.core.permits.len()
    }

    /// A place for a request of this caller, if it needs one.
    #[inline]
    pub(super) fn admit(&self, context: &OrgContext) -> Result<Option<Permit>, Full> {
        let Some(limit) = (self.core.limit)(context) else {
            return Ok(None);
        };
        let subject = Asked::of(context, self.core.per).to_subject();
        let permit = self.core.permits.take(subject, limit).ok_or(Full)?;
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
