use std::fmt;
use std::sync::Arc;

use super::layer::{Core, OrgRateLimitLayer, QuotaFn};
use crate::clock::Clock;
use crate::config::ConfigError;
use crate::context::OrgContext;
use crate::limit::accounts::Book;
use crate::limit::ratelimit_fields::PolicyName;
use crate::limit::quota::Quota;
use crate::limit::subject::Per;

/// The fewest accounts that a limit can be told to hold.
const LEAST_CAPACITY: usize = 10;

/// Builds an [`OrgRateLimitLayer`] with settings of your own.
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
    pub(super) fn new(
        quota: impl Fn(&OrgContext) -> Option<Quota> + Send + Sync + 'static,
    ) -> Self {
        Self {
            quota: Box::new(quota),
            per: Per::Organization,
            fields: None,
            capacity: 100_000,
            clock: Clock::default(),
        }
    }

    /// Counts the requests of each key for itself, and not those of an organization together.
    ///
    /// A key goes by its id, so a rotation changes nothing; where the issuer gives its keys no ids, by the key itself.
    pub fn per_key(mut self) -> Self {
        self.per = Per::Key;
        self
    }

    /// Tells callers how they stand, in the fields `RateLimit-Policy` and `RateLimit` of every response to a request that has a
    /// quota, the 429 included. Off unless called.
    ///
    /// The name tells several limits apart: 1 to 64 printable ASCII characters without `"` and `\`. The fields are those of
    /// [draft-ietf-httpapi-ratelimit-headers-11], of May 2026; they follow the draft until it is an RFC.
    ///
    /// ```text
    /// RateLimit-Policy: "default";q=100;w=60
    /// RateLimit: "default";r=50;t=30
    /// ```
    ///
    /// `q` requests are given back in `w` seconds (left out where that is no whole number). `r` more pass in the next `t`
    /// seconds without a pause after them; on a 429, `r` is 0 and `t` is `Retry-After`.
    ///
    /// [draft-ietf-httpapi-ratelimit-headers-11]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-11
    pub fn ratelimit_fields(mut self, policy: impl Into<String>) -> Self {
        self.fields = Some(policy.into());
        self
    }

    /// How many organizations, or keys, can be held to their quotas at a time: those that have used of theirs and did not
    /// get all of it back yet. At least 10; 100,000 unless set. Each takes some 400 bytes.
    ///
    /// See the [guide](crate::limit#memory) for what happens beyond.
    pub fn capacity(mut self, accounts: usize) -> Self {
        self.capacity = accounts;
        self
    }

    /// Reads the time from a test's clock.
    #[cfg(feature = "test-util")]
    pub fn test_clock(mut self, clock: crate::test_util::TestClock) -> Self {
        self.clock = Clock::Test(clock);
        self
    }

    /// The layer. Needs no runtime, and starts nothing.
    pub fn build(self) -> Result<OrgRateLimitLayer, ConfigError> {
        if self.capacity < LEAST_CAPACITY {
            return Err(ConfigError::new("capacity", "must be at least 10 accounts"));
        }
        let wrong_name = || {
            ConfigError::new(
                "ratelimit_fields",
                "must be 1 to 64 printable ASCII characters without `\"` and `\\`",
            )
        };
        let fields = match self.fields {
            Some(name) => Some(PolicyName::new(&name).ok_or_else(wrong_name)?),
            None => None,
        };
        Ok(OrgRateLimitLayer::over(Arc::new(Core {
            quota: self.quota,
            per: self.per,
            fields,
            book: Book::new(self.capacity),
            clock: self.clock,
        })))
    }
}

impl fmt::Debug for OrgRateLimitLayerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgRateLimitLayerBuilder")
            .field("per", &self.per)
            .field("fields", &self.fields)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}
