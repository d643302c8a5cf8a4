use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tower_orgkey::ConfigError;
use tower_orgkey::kinde::{KindeVerifier, ManagementApi};

use super::sender::{CHUNK, KindeBillingSender};
use super::store::TotalsStore;
use super::{KindeBillingSink, Measure};
use crate::record::UsageRecord;
use crate::wall_clock::WallClock;

/// Configures a [`KindeBillingSink`] and its [`KindeBillingSender`].
#[must_use]
pub struct KindeBillingBuilder {
    api: ManagementApi,
    feature: String,
    measure: Box<Measure>,
    interval: Duration,
    wall: WallClock,
}

impl KindeBillingBuilder {
    pub(super) fn new(kinde: &KindeVerifier, feature: String) -> Self {
        Self {
            api: kinde.management(),
            feature,
            measure: Box::new(|record| record.counts.served()),
            interval: Duration::from_secs(5 * 60),
            wall: WallClock::default(),
        }
    }

    /// Sets how many units a record has. Default: [`served`](crate::Counts::served). It must be the same after a restart.
    ///
    /// ```
    /// # use tower_orgkey::kinde::KindeVerifier;
    /// # use tower_orgkey_usage::KindeBillingSink;
    /// # fn configure(kinde: &KindeVerifier) {
    /// let builder = KindeBillingSink::builder(kinde, "kilobytes")
    ///     .measure(|record| record.counts.response_bytes().div_ceil(1_000));
    /// # }
    /// ```
    pub fn measure(
        mut self,
        measure: impl Fn(&UsageRecord) -> u64 + Send + Sync + 'static,
    ) -> Self {
        self.measure = Box::new(measure);
        self
    }

    /// Sets the time between two rounds of sends, each shortened at random by up to 10 %. 1 s to 1 h; 5 min by default.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets a wall clock for tests.
    #[cfg(feature = "test-util")]
    pub fn test_wall_clock(mut self, clock: crate::test_util::TestWallClock) -> Self {
        self.wall = WallClock::Test(clock);
        self
    }

    /// Builds the sink and the sender over a [`TotalsFile`](crate::TotalsFile) of a single node, or over a store that all nodes
    /// share. Needs no runtime.
    ///
    /// # Errors
    ///
    /// Names the setting that cannot be used: `feature_code` is empty, `interval` is out of range, or `store` has the totals of
    /// another feature or issuer or cannot be written.
    pub fn build<S: TotalsStore>(
        self,
        store: S,
    ) -> Result<(KindeBillingSink<S>, KindeBillingSender<S>), ConfigError> {
        if self.feature.trim().is_empty() {
            return Err(ConfigError::new("feature_code", "must not be empty"));
        }
        let intervals = Duration::from_secs(1)..=Duration::from_secs(60 * 60);
        if !intervals.contains(&self.interval) {
            return Err(ConfigError::new("interval", "must be 1 s to 1 h"));
        }
        store
            .bind(self.api.issuer(), &self.feature)
            .map_err(|error| ConfigError::new("store", error.to_string()))?;
        let store = Arc::new(store);
        let sink = KindeBillingSink {
            store: Arc::clone(&store),
            measure: self.measure,
        };
        let sender = KindeBillingSender {
            api: self.api,
            feature: self.feature,
            interval: self.interval,
            wall: self.wall,
            store,
            customers: HashMap::new(),
            told: HashMap::new(),
            not_before: None,
            chunk: CHUNK,
            first: None,
        };
        Ok((sink, sender))
    }
}

impl fmt::Debug for KindeBillingBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KindeBillingBuilder")
            .field("feature", &self.feature)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}
