use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

use super::{Settings, UsagePusher};
use crate::books::Books;
use crate::outbox::Outbox;
use crate::sink::UsageSink;
use crate::unsent::UnsentFile;
use tower_orgkey::ConfigError;

/// Builds a [`UsagePusher`].
#[must_use]
pub struct UsagePusherBuilder<S> {
    books: Arc<Books>,
    sink: S,
    settings: Settings,
    unsent: Option<UnsentFile>,
}

impl<S: UsageSink> UsagePusherBuilder<S> {
    pub(crate) fn new(books: Arc<Books>, sink: S) -> Self {
        Self {
            books,
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
            unsent: None,
        }
    }

    /// Records a batch. 1 to 10,000; 500 unless set.
    pub fn batch_size(mut self, records: usize) -> Self {
        self.settings.batch_size = records;
        self
    }

    /// How long one push may take. Not zero; 10 s unless set. A batch whose push takes longer is pushed again.
    pub fn push_timeout(mut self, timeout: Duration) -> Self {
        self.settings.push_timeout = timeout;
        self
    }

    /// How many records may wait for the sink. At least 1; 100,000 unless set, which is about 50 MB. Beyond it the oldest
    /// are given up, counted and told in the log.
    pub fn max_waiting(mut self, records: usize) -> Self {
        self.settings.max_waiting = records;
        self
    }

    /// Keeps records that have not been taken in this file, so that a restart loses none. Without it they are kept in memory
    /// alone.
    ///
    /// ```no_run
    /// # use tower_orgkey_usage::{PushError, UnsentFile, UsageLayer, UsageRecord, UsageSink};
    /// # struct Meter;
    /// # impl UsageSink for Meter { async fn push(&self, _: &[UsageRecord]) -> Result<(), PushError> { Ok(()) } }
    /// let usage = UsageLayer::new();
    /// let file = UnsentFile::open("/var/lib/acme/usage.unsent")?;
    /// let pusher = usage.handle().pusher(Meter).unsent_file(file).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unsent_file(mut self, file: UnsentFile) -> Self {
        self.unsent = Some(file);
        self
    }

    /// The pusher. Needs no runtime, and starts nothing; from now on minutes that are over are kept for it.
    ///
    /// # Errors
    ///
    /// Names the setting that cannot be used; `pusher` when the layer has one already.
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
        if !self.books.keep(settings.max_waiting) {
            return wrong("pusher", "the layer has one already");
        }
        let pusher = UsagePusher {
            books: self.books,
            sink: self.sink,
            outbox: Arc::new(Mutex::new(Outbox::new(self.unsent, settings.max_waiting))),
            batch: settings.batch_size,
            backoff: settings.backoff.build(),
            settings,
            not_before: None,
            refused_in_a_row: 0,
            is_failing: false,
            is_unsaved: false,
        };
        pusher.tell_waiting();
        Ok(pusher)
    }
}

impl<S> fmt::Debug for UsagePusherBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsagePusherBuilder")
            .field("settings", &self.settings)
            .field("unsent", &self.unsent)
            .finish_non_exhaustive()
    }
}
