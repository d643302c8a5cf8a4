use std::sync::Arc;

use http::Extensions;
use tower_layer::Layer;

use super::builder::OrgRateLimitLayerBuilder;
use super::service::OrgRateLimit;
use crate::clock::Clock;
use crate::context::OrgContext;
use crate::limit::account::Decision;
use crate::limit::accounts::Accounts;
use crate::limit::quota::Quota;
use crate::limit::ratelimit_fields::{PolicyName, RateLimitFields};
use crate::limit::subject::{Per, SubjectRef};
use crate::rejection::Rejection;
#[cfg(feature = "settings")]
use crate::settings::OrgSettings;

/// A layer that limits the request rate of each organization or key.
///
/// See the [module documentation](crate::limit) for the order of layers. Clones share one limit, also on different routes; two
/// layers share nothing.
#[derive(Clone)]
#[must_use]
pub struct OrgRateLimitLayer {
    core: Arc<Core>,
}

/// Returns the quota of a request. The error is the rejection of a request without the settings that the function reads.
pub(super) type QuotaFn =
    dyn Fn(&Extensions, &OrgContext) -> Result<Option<Quota>, Rejection> + Send + Sync;

/// A request that is rejected, and the fields of its response.
pub(super) struct Rejected {
    pub(super) rejection: Rejection,
    pub(super) fields: Option<Box<RateLimitFields>>,
}

impl From<Rejection> for Rejected {
    fn from(rejection: Rejection) -> Self {
        Self {
            rejection,
            fields: None,
        }
    }
}

/// The state that a layer and its clones share.
pub(super) struct Core {
    pub(super) quota: Box<QuotaFn>,
    pub(super) per: Per,
    pub(super) fields: Option<PolicyName>,
    pub(super) accounts: Accounts,
    pub(super) clock: Clock,
}

impl OrgRateLimitLayer {
    /// Limits each organization to the quota that `quota` returns; `None` is no limit.
    ///
    /// The function is called for every request, so it must not block. A new quota applies from that request on; see
    /// [When a quota changes](crate::limit#when-a-quota-changes).
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

    /// Like [`new`](Self::new), but limits each key.
    pub fn per_key(quota: impl Fn(&OrgContext) -> Option<Quota> + Send + Sync + 'static) -> Self {
        Self::with_defaults(Self::builder(quota).per_key())
    }

    /// Returns a builder, to change the defaults.
    pub fn builder(
        quota: impl Fn(&OrgContext) -> Option<Quota> + Send + Sync + 'static,
    ) -> OrgRateLimitLayerBuilder {
        OrgRateLimitLayerBuilder::new(Box::new(move |_, context| Ok(quota(context))))
    }

    /// Limits each organization to the quota that `quota` returns for its [settings](crate::settings); `None` is no limit.
    ///
    /// Put the layer inside an [`OrgSettingsLayer`](crate::OrgSettingsLayer) of the type `T`, so that the first request of an
    /// organization waits for its settings and gets the right quota. Without that layer, requests are rejected with 500.
    ///
    /// ```
    /// use tower_orgkey::{OrgContext, OrgRateLimitLayer, Quota};
    ///
    /// struct Plan {
    ///     requests_per_minute: u32,
    /// }
    ///
    /// let limit = OrgRateLimitLayer::from_settings(|_: &OrgContext, plan: &Plan| {
    ///     Some(Quota::per_minute(plan.requests_per_minute))
    /// });
    /// ```
    #[cfg(feature = "settings")]
    pub fn from_settings<T: Send + Sync + 'static>(
        quota: impl Fn(&OrgContext, &T) -> Option<Quota> + Send + Sync + 'static,
    ) -> Self {
        Self::with_defaults(Self::builder_from_settings(quota))
    }

    /// Like [`from_settings`](Self::from_settings), but returns a builder, to change the defaults.
    #[cfg(feature = "settings")]
    pub fn builder_from_settings<T: Send + Sync + 'static>(
        quota: impl Fn(&OrgContext, &T) -> Option<Quota> + Send + Sync + 'static,
    ) -> OrgRateLimitLayerBuilder {
        OrgRateLimitLayerBuilder::new(Box::new(move |extensions, context| {
            let settings = OrgSettings::require(extensions, "OrgRateLimitLayer")?;
            Ok(quota(context, settings))
        }))
    }

    fn with_defaults(builder: OrgRateLimitLayerBuilder) -> Self {
        let layer = builder.build();
        layer.unwrap_or_else(|error| unreachable!("the defaults are valid: {error}"))
    }

    pub(super) fn from_core(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Returns the number of accounts, at most the [capacity](OrgRateLimitLayerBuilder::capacity). Includes accounts without
    /// usage that were not removed yet.
    pub fn accounts(&self) -> usize {
        self.core.accounts.len()
    }

    /// Decides about a request and returns the fields of its response.
    #[inline]
    pub(super) fn decide(
        &self,
        extensions: &Extensions,
    ) -> Result<Option<Box<RateLimitFields>>, Rejected> {
        let core = &*self.core;
        let Some(context) = OrgContext::optional_in_layer(extensions, "OrgRateLimitLayer")? else {
            return Ok(None);
        };
        let Some(quota) = (core.quota)(extensions, context)? else {
            return Ok(None);
        };
        let decision = if quota.refill() == 0 {
            Decision::reject_all(&quota)
        } else {
            let subject = SubjectRef::new(context, core.per);
            core.accounts.request(subject, &quota, core.clock.now())
        };
        let name = core.fields.as_ref();
        let fields = name.map(|name| Box::new(RateLimitFields::new(name, quota, decision)));
        match decision {
            Decision::Allow { .. } => Ok(fields),
            Decision::Reject { wait } => Err(Rejected {
                rejection: Rejection::rate_limited(wait),
                fields,
            }),
        }
    }
}

impl<S> Layer<S> for OrgRateLimitLayer {
    type Service = OrgRateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        OrgRateLimit::new(inner, self.clone())
    }
}

impl_debug!(OrgRateLimitLayer, |layer| { per: layer.core.per, accounts: layer.accounts() });
