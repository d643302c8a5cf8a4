use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

use super::deferral::Deferral;
use super::{Settings, UsagePusher};
use crate::aggregator::Aggregator;
use crate::queue::Queue;
use crate::sink::UsageSink;
use crate::spool::SpoolFile;
use tower_orgkey::ConfigError;

/// Configures a [`UsagePusher`].
#[must_use]
pub struct UsagePusherBuilder<S> {
    aggregator: Arc<Aggregator>,
    sink: S,
    settings: Settings,
    spool: Option<SpoolFile>,
}

impl<S: UsageSink> UsagePusherBuilder<S> {
    pub(crate) fn new(aggregator: Arc<Aggregator>, sink: S) -> Self {
        Self {
            aggregator,
            sink,
            settings: Settings {
                batch_size: 500,
                push_timeout: Duration::from_secs(10),
                max_waiting: 100_000,
                backoff: ExponentialBuilder::default()
                    .with_min_delay(Duration::from_secs(1))
                    .with_max_delay(Duration::from_secs(60))
                    .without_max_times(),
            },
            spool: None,
        }
    }

    /// Sets the most records of a batch. 1 to 10,000. Default: 500, or [fewer](UsageSink::max_batch) if the sink takes fewer.
    pub fn batch_size(mut self, records: usize) -> Self {
        self.settings.batch_size = records;
        self
    }

    /// Sets how long a push may take. Not zero. Default: 10 s. After a timeout the batch may be stored, and is pushed
    /// again.
    pub fn push_timeout(mut self, timeout: Duration) -> Self {
        self.settings.push_timeout = timeout;
        self
    }

    /// Sets how many records can wait for the sink. At least 1. Default: 100,000, about 50 MB. Beyond the bound, the oldest
    /// records of the accounts with the most are dropped, counted and logged.
    pub fn max_waiting(mut self, records: usize) -> Self {
        self.settings.max_waiting = records;
        self
    }

    /// Sets a file that keeps records until the sink has stored them. Default: records are kept in memory only.
    ///
    /// ```no_run
    /// # use tower_orgkey_usage::{PushError, SpoolFile, UsageLayer, UsageRecord, UsageSink};
    /// # struct Meter;
    /// # impl UsageSink for Meter { async fn push(&self, _: &[UsageRecord]) -> Result<(), PushError> { Ok(()) } }
    /// let usage = UsageLayer::new();
    /// let file = SpoolFile::open("/var/lib/acme/usage.spool")?;
    /// let pusher = usage.handle().pusher(Meter).spool_file(file).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spool_file(mut self, file: SpoolFile) -> Self {
        self.spool = Some(file);
        self
    }

    /// Builds the pusher. From now on the layer keeps past minutes for it. Needs no runtime.
    ///
    /// # Errors
    ///
    /// Names the setting that is out of range, or `pusher` if the layer has one already.
    pub fn build(self) -> Result<UsagePusher<S>, ConfigError> {
        let wrong = |field, problem: &'static str| Err(ConfigError::new(field, problem));
        let settings = self.settings;
        if !(1..=10_000).contains(&settings.batch_size) {
            return wrong("batch_size", "must be 1 to 10,000 records");
        }
        if settings.push_timeout.is_zero() {
            return wrong("push_timeout", "must not be zero");
        }
        if settings.max_waiting == 0 {
            return wrong("max_waiting", "must be at least 1");
        }
        if !self.aggregator.keep(settings.max_waiting) {
            return wrong("pusher", "the layer has one already");
        }
        let pusher = UsagePusher {
            aggregator: self.aggregator,
            sink: self.sink,
            queue: Arc::new(Mutex::new(Queue::new(self.spool, settings.max_waiting))),
            batch: settings.batch_size,
            backoff: settings.backoff.build(),
            settings,
            not_before: None,
            undeliverable_in_a_row: 0,
            deferral: Deferral::default(),
            is_failing: false,
            is_down: false,
            is_spool_failing: false,
        };
        pusher.report_waiting();
        Ok(pusher)
    }
}

impl<S> fmt::Debug for UsagePusherBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsagePusherBuilder")
            .field("settings", &self.settings)
            .field("spool", &self.spool)
            .finish_non_exhaustive()
    }
}
