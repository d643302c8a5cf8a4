use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{KeyReconciler, Settings};
use crate::config::ConfigError;
use crate::handle::ApiKeyHandle;
use crate::identifier::KeyId;
use crate::kinde::token::{Credentials, RenewalBackoff};
use crate::kinde::verifier::{Kinde, KindeVerifier};

/// Configures and builds a [`KeyReconciler`].
#[must_use]
pub struct KeyReconcilerBuilder {
    kinde: Arc<Kinde>,
    keys: ApiKeyHandle,
    settings: Settings,
}

impl KeyReconcilerBuilder {
    pub(super) fn new(kinde: &KindeVerifier, keys: ApiKeyHandle) -> Self {
        Self {
            kinde: Arc::clone(&kinde.0),
            keys,
            settings: Settings {
                period: Duration::from_secs(60),
                page_size: 500,
                max_calls: 400,
                calls_per_second: 5,
                only: None,
                issuer: None,
            },
        }
    }

    /// Sets the time between the starts of two reconciliations, each shortened at random by up to 10 %. 1 s to 12 h; 60 s by
    /// default. A reconciliation that takes longer is followed by the next one at once.
    pub fn period(mut self, period: Duration) -> Self {
        self.settings.period = period;
        self
    }

    /// Sets the number of keys per page. 1 to 500, which is Kinde's limit; 500 by default. A page longer than 4 MiB ends the
    /// reconciliation, so set fewer if keys have very many scopes.
    pub fn page_size(mut self, keys: u32) -> Self {
        self.settings.page_size = keys;
        self
    }

    /// Sets the maximum number of calls of a reconciliation, one per page. Nothing is invalidated if the list is longer. At
    /// least 1; 400 by default, which is 200,000 keys.
    pub fn max_calls(mut self, calls: u32) -> Self {
        self.settings.max_calls = calls;
        self
    }

    /// Sets the maximum number of calls per second. At least 1; 5 by default. The calls are sent one at a time and do not count
    /// against the limits of the layer.
    pub fn calls_per_second(mut self, calls: u32) -> Self {
        self.settings.calls_per_second = calls;
        self
    }

    /// Compares only keys with an id that satisfies this predicate. All keys by default. Set it if another verifier of the
    /// layer has keys that Kinde does not list, because each reconciliation would invalidate them. For a
    /// [`PrefixVerifier`](crate::verify::PrefixVerifier), set [`issuer`](Self::issuer) instead.
    pub fn only(mut self, predicate: impl Fn(&KeyId) -> bool + Send + Sync + 'static) -> Self {
        self.settings.only = Some(Box::new(predicate));
        self
    }

    /// Compares only the keys of the issuer with this name, of a [`PrefixVerifier`](crate::verify::PrefixVerifier) with key ids that
    /// begin with it.
    pub fn issuer(mut self, name: &str) -> Self {
        self.settings.issuer = Some(format!("{name}:"));
        self
    }

    /// Builds the reconciler. Needs no runtime and spawns no task.
    ///
    /// # Errors
    ///
    /// Names the invalid setting: `period`, `page_size`, `max_calls` or `calls_per_second` if out of range; `credentials` if
    /// the verifier has none, because the list needs a token; `issuer` if the layer has no issuer of this name, or several
    /// issuers and neither it nor `only` is set, because the keys of the others are not on the list.
    pub fn build(self) -> Result<KeyReconciler, ConfigError> {
        let invalid = |field, problem: &'static str| Err(ConfigError::new(field, problem));
        let settings = &self.settings;
        let periods = Duration::from_secs(1)..=Duration::from_secs(12 * 60 * 60);
        if !periods.contains(&settings.period) {
            return invalid("period", "must be 1 s to 12 h");
        }
        if !(1..=500).contains(&settings.page_size) {
            return invalid("page_size", "must be 1 to 500");
        }
        if settings.max_calls == 0 {
            return invalid("max_calls", "must be at least 1");
        }
        if settings.calls_per_second == 0 {
            return invalid("calls_per_second", "must be at least 1");
        }
        if matches!(self.kinde.credentials, Credentials::None) {
            return invalid("credentials", "listing keys needs credentials");
        }
        let issuers: Vec<String> = self
            .keys
            .issuers()
            .map(|(name, _)| format!("{name}:"))
            .collect();
        match &settings.issuer {
            Some(issuer) if !issuers.contains(issuer) => {
                return invalid("issuer", "the layer has no issuer of this name");
            }
            None if issuers.len() > 1 && settings.only.is_none() => {
                return invalid(
                    "issuer",
                    "must be set, because the layer has several issuers",
                );
            }
            _ => {}
        }
        self.keys.keep_tails();
        Ok(KeyReconciler {
            kinde: self.kinde,
            keys: self.keys,
            settings: self.settings,
            next_call: Instant::now(),
            calls: 0,
            renewals: RenewalBackoff::default(),
            needs_confirmation: false,
            is_failing: false,
        })
    }
}

impl_debug!(KeyReconcilerBuilder, |builder| { period: builder.settings.period });
