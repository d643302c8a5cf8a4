use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{KeyPoller, Settings};
use crate::cache::ApiKeyHandle;
use crate::config::ConfigError;
use crate::context::KeyId;
use crate::kinde::token::{Credentials, RenewalGate};
use crate::kinde::verifier::{Kinde, KindeVerifier};

/// Builds a [`KeyPoller`].
#[must_use]
pub struct KeyPollerBuilder {
    kinde: Arc<Kinde>,
    keys: ApiKeyHandle,
    settings: Settings,
}

impl KeyPollerBuilder {
    pub(super) fn new(kinde: &KindeVerifier, keys: ApiKeyHandle) -> Self {
        Self {
            kinde: Arc::clone(&kinde.0),
            keys,
            settings: Settings {
                period: Duration::from_secs(60),
                page_size: 500,
                max_calls_per_walk: 400,
                calls_per_second: 5,
                only: None,
            },
        }
    }

    /// The time from the beginning of one walk to that of the next. 1 s to 12 h; 60 s unless set. Each is drawn from the
    /// last tenth of it. A walk that takes longer is followed by the next at once.
    pub fn period(mut self, period: Duration) -> Self {
        self.settings.period = period;
        self
    }

    /// Keys a page. 1 to 500, which is Kinde's own limit; 500 unless set. A page longer than 4 MiB ends the walk: ask for
    /// less where keys have very many scopes.
    pub fn page_size(mut self, keys: u32) -> Self {
        self.settings.page_size = keys;
        self
    }

    /// The most calls of a walk, one a page: a list that goes on beyond them proves nothing. At least 1; 400 unless set,
    /// which is 200,000 keys.
    pub fn max_calls_per_walk(mut self, calls: u32) -> Self {
        self.settings.max_calls_per_walk = calls;
        self
    }

    /// The poller's pace. At least 1; 5 unless set. These calls are no part of the layer's own limits, and go out one at a
    /// time.
    pub fn calls_per_second(mut self, calls: u32) -> Self {
        self.settings.calls_per_second = calls;
        self
    }

    /// Judges only keys whose id satisfies this. All of them unless set: a layer whose verifier asks other issuers than
    /// Kinde too must tell their ids apart, or their keys, which Kinde does not list, are verified anew after every walk.
    pub fn only(mut self, judges: impl Fn(&KeyId) -> bool + Send + Sync + 'static) -> Self {
        self.settings.only = Some(Box::new(judges));
        self
    }

    /// The poller. Needs no runtime, and starts nothing.
    ///
    /// # Errors
    ///
    /// Names the setting that cannot be used: `period`, `page_size`, `max_calls_per_walk`, `calls_per_second` outside of
    /// their ranges; `credentials` of a verifier that has none, for the list is nobody's without a token.
    pub fn build(self) -> Result<KeyPoller, ConfigError> {
        let wrong = |field, problem: &'static str| Err(ConfigError::new(field, problem));
        let settings = &self.settings;
        let periods = Duration::from_secs(1)..=Duration::from_secs(12 * 60 * 60);
        if !periods.contains(&settings.period) {
            return wrong("period", "must be 1 s to 12 h");
        }
        if !(1..=500).contains(&settings.page_size) {
            return wrong("page_size", "must be 1 to 500");
        }
        if settings.max_calls_per_walk == 0 {
            return wrong("max_calls_per_walk", "must be at least 1");
        }
        if settings.calls_per_second == 0 {
            return wrong("calls_per_second", "must be at least 1");
        }
        if matches!(self.kinde.credentials, Credentials::None) {
            return wrong("credentials", "listing keys needs credentials");
        }
        self.keys.keep_tails();
        Ok(KeyPoller {
            kinde: self.kinde,
            keys: self.keys,
            settings: self.settings,
            next_call: Instant::now(),
            calls: 0,
            renewals: RenewalGate::default(),
            is_doubtful: false,
            is_failing: false,
        })
    }
}

impl fmt::Debug for KeyPollerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPollerBuilder")
            .field("period", &self.settings.period)
            .finish_non_exhaustive()
    }
}
