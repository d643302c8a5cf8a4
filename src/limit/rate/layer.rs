use std::fmt;
use std::sync::Arc;

use tower_layer::Layer;

use super::builder::OrgRateLimitLayerBuilder;
use super::service::OrgRateLimit;
use crate::clock::Clock;
use crate::context::OrgContext;
use crate::limit::account::{Verdict, closed};
use crate::limit::accounts::Book;
use crate::limit::ratelimit_fields::{Fields, PolicyName};
use crate::limit::quota::Quota;
use crate::limit::subject::{Asked, Per};

/// The layer that lets an organization, or each of its keys, make so many requests in so much time.
///
/// See the [module's guide](crate::limit) for where it stands. Clones share their accounts, so a clone on each of several
/// routes is one limit for all of them; two layers share nothing.
#[derive(Clone)]
#[must_use]
pub struct OrgRateLimitLayer {
    core: Arc<Core>,
}

/// The user's function.
pub(super) type QuotaFn = dyn Fn(&OrgContext) -> Option<Quota> + Send + Sync;

/// What a layer and its clones share.
pub(super) struct Core {
    pub(super) quota: Box<QuotaFn>,
    pub(super) per: Per,
    pub(super) fields: Option<PolicyName>,
    pub(super) book: Book,
    pub(super) clock: Clock,
}

impl OrgRateLimitLayer {
    /// The limit of each organization, by what your function makes of it; `None` is no limit.
    ///
    /// The function is asked at every request, so it looks things up and loads nothing. If its answer changes, the new quota
    /// holds from that request on; see the [guide](crate::limit#when-a-quota-changes).
    ///
    /// ```
    /// use tower_orgkey::{OrgContext, OrgRateLimitLayer, Quota};
    ///
    /// let limit = OrgRateLimitLayer::new(|org: &OrgContext| {
    ///     Some(if org.scopes().contains("plan:business") {
    ///         Quota::per_second(100).burst(500)
    ///     } else {
    ///         Quota::per_minute(60)
    ///     })
    /// });
    /// ```
    pub fn new(quota: impl Fn(&OrgContext) -> Option<Quota> + Send + Sync + 'static) -> Self {
        Self::with_defaults(Self::builder(quota))
    }

    /// The limit of each key; otherwise as [`new`](Self::new).
    pub fn per_key(quota: impl Fn(&OrgContext) -> Option<Quota> + Send + Sync + 'static) -> Self {
        Self::with_defaults(Self::builder(quota).per_key())
    }

    /// A builder for settings of your own.
    pub fn builder(
        quota: impl Fn(&OrgContext) -> Option<Quota> + Send + Sync + 'static,
    ) -> OrgRateLimitLayerBuilder {
        OrgRateLimitLayerBuilder::new(quota)
    }

    fn with_defaults(builder: OrgRateLimitLayerBuilder) -> Self {
        match builder.build() {
            Ok(layer) => layer,
            Err(error) => unreachable!("the defaults do not contradict each other: {error}"),
        }
    }

    pub(super) fn over(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// How many accounts are held at this moment, idle ones included that nobody has taken away yet. Never more than the
    /// [capacity](OrgRateLimitLayerBuilder::capacity).
    pub fn accounts(&self) -> usize {
        self.core.book.len()
    }

    /// The answer to a request of this caller, and what the response shall tell of it.
    #[inline]
    pub(super) fn judge(&self, context: &OrgContext) -> (Option<Verdict>, Option<Fields>) {
        let core = &*self.core;
        let Some(quota) = (core.quota)(context) else {
            return (None, None);
        };
        let verdict = if quota.fill() == 0 {
            closed(&quota)
        } else {
            let who = Asked::of(context, core.per);
            core.book.spend(who, &quota, core.clock.now())
        };
        let fields = core.fields.as_ref();
        let fields = fields.map(|name| Fields::new(name, quota, verdict));
        (Some(verdict), fields)
    }
}

impl<S> Layer<S> for OrgRateLimitLayer {
    type Service = OrgRateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        OrgRateLimit::new(inner, self.clone())
    }
}

impl fmt::Debug for OrgRateLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgRateLimitLayer")
            .field("per", &self.core.per)
            .field("accounts", &self.accounts())
            .finish_non_exhaustive()
    }
}
