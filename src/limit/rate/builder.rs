use std::sync::Arc;

use super::layer::{Core, OrgRateLimitLayer, QuotaFn};
use crate::clock::Clock;
use crate::config::ConfigError;
use crate::limit::accounts::Accounts;
use crate::limit::ratelimit_fields::PolicyName;
use crate::limit::subject::Per;

/// The smallest capacity that can be configured.
const MIN_CAPACITY: usize = 10;

/// Configures and builds an [`OrgRateLimitLayer`].
///
/// ```
/// use tower_orgkey::{OrgContext, OrgRateLimitLayer, Quota};
///
/// let limit = OrgRateLimitLayer::builder(|_: &OrgContext| Some(Quota::per_minute(100)))
///     .per_key()
///     .ratelimit_fields("per-key")
///     .capacity(1_000_000)
///     .build()?;
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
#[must_use]
pub struct OrgRateLimitLayerBuilder {
    quota: Box<QuotaFn>,
    per: Per,
    fields: Option<String>,
    capacity: usize,
    clock: Clock,
}

impl OrgRateLimitLayerBuilder {
    pub(super) fn new(quota: Box<QuotaFn>) -> Self {
        Self {
            quota,
            per: Per::Organization,
            fields: None,
            capacity: 100_000,
            clock: Clock::default(),
        }
    }

    /// Counts per key. By default, requests are counted per organization.
    ///
    /// A key is identified by its id, which a rotation does not change, or by the key itself if the issuer provides no id.
    pub fn per_key(mut self) -> Self {
        self.per = Per::Key;
        self
    }

    /// Adds the fields `RateLimit-Policy` and `RateLimit` to every response to a request with a quota, including a 429. Off by
    /// default.
    ///
    /// The policy name distinguishes several limits: 1 to 64 printable ASCII characters without `"` and `\`. The fields follow
    /// [draft-ietf-httpapi-ratelimit-headers-11] of May 2026, and later drafts until it is an RFC.
    ///
    /// ```text
    /// RateLimit-Policy: "default";q=100;w=60
    /// RateLimit: "default";r=50;t=30
    /// ```
    ///
    /// `q` requests refill in `w` seconds (omitted if that is not a whole number). `r` more requests pass within the next `t`
    /// seconds; on a 429, `r` is 0 and `t` is `Retry-After`.
    ///
    /// [draft-ietf-httpapi-ratelimit-headers-11]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-11
    pub fn ratelimit_fields(mut self, policy: impl Into<String>) -> Self {
        self.fields = Some(policy.into());
        self
    }

    /// Sets for how many organizations or keys usage is tracked at a time. At least 10; 100,000 by default. An account takes
    /// some 400 bytes, and is removed after its quota is full again.
    ///
    /// See [Memory](crate::limit#memory) for evictions above this number.
    pub fn capacity(mut self, accounts: usize) -> Self {
        self.capacity = accounts;
        self
    }

    /// Reads the time from a [`TestClock`](crate::test_util::TestClock).
    #[cfg(feature = "test-util")]
    pub fn test_clock(mut self, clock: crate::test_util::TestClock) -> Self {
        self.clock = Clock::Test(clock);
        self
    }

    /// Builds the layer. Needs no runtime and spawns no task.
    ///
    /// # Errors
    ///
    /// If the capacity is less than 10 or the policy name is invalid.
    pub fn build(self) -> Result<OrgRateLimitLayer, ConfigError> {
        if self.capacity < MIN_CAPACITY {
            return Err(ConfigError::new("capacity", "must be at least 10 accounts"));
        }
        let invalid_name = || {
            ConfigError::new(
                "ratelimit_fields",
                "must be 1 to 64 printable ASCII characters without `\"` and `\\`",
            )
        };
        let fields = match self.fields {
            Some(name) => Some(PolicyName::new(&name).ok_or_else(invalid_name)?),
            None => None,
        };
        Ok(OrgRateLimitLayer::from_core(Arc::new(Core {
            quota: self.quota,
            per: self.per,
            fields,
            accounts: Accounts::new(self.capacity),
            clock: self.clock,
        })))
    }
}

impl_debug!(OrgRateLimitLayerBuilder, |builder| {
    per: builder.per,
    fields: builder.fields,
    capacity: builder.capacity
});
