use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::layer::{Core, OrgSettingsLayer};
use super::loader::{Loads, SettingsLoader};
use crate::cache::{ApiKeyHandle, Cache};
use crate::config::{ConfigError, Settings};
use crate::key::DigestSecret;
use crate::telemetry::Component;
use crate::upstream::Upstream;
use crate::verify::DynVerifier;

/// Builds an [`OrgSettingsLayer`] with bounds of your own.
///
/// ```
/// use std::time::Duration;
/// use tower_orgkey::settings::{OrgSettingsLayer, SettingsError, settings_fn};
/// # use tower_orgkey::{ApiKeyLayer, Verification, verifier_fn};
/// # struct Plan { seats: u32 }
/// # async fn load(_: tower_orgkey::OrgCode) -> Result<Plan, SettingsError> { Ok(Plan { seats: 3 }) }
/// # let auth = ApiKeyLayer::new(verifier_fn(|_| async { Ok(Verification::invalid()) }));
///
/// let plans = OrgSettingsLayer::builder(&auth.handle(), settings_fn(load))
///     .soft_ttl(Duration::from_secs(300))
///     .hard_ttl(Duration::from_secs(3_600))
///     .default_on_error(Plan { seats: 1 })
///     .build()?;
/// # Ok::<(), tower_orgkey::ConfigError>(())
/// ```
#[must_use]
pub struct OrgSettingsLayerBuilder<T> {
    keys: ApiKeyHandle,
    loads: Arc<dyn DynVerifier>,
    settings: Settings,
    default: Option<T>,
}

impl<T: Send + Sync + 'static> OrgSettingsLayerBuilder<T> {
    pub(super) fn new(keys: ApiKeyHandle, loader: impl SettingsLoader<T>) -> Self {
        Self {
            keys,
            loads: Arc::new(Loads::new(loader)),
            settings: Settings::default(),
            default: None,
        }
    }

    /// How long settings are fresh. At least 1 s; 60 s unless set. Each organization's draw their own from the last 15 % of
    /// it.
    ///
    /// While the loader answers, a change in your store is seen at most twice this time and one load later.
    pub fn soft_ttl(mut self, ttl: Duration) -> Self {
        self.settings.lifetimes.soft = ttl;
        self
    }

    /// How long settings are served while the loader fails, since the call that brought them. At least twice the soft TTL, at
    /// most 12 h; 15 min unless set.
    pub fn hard_ttl(mut self, ttl: Duration) -> Self {
        self.settings.lifetimes.hard = ttl;
        self
    }

    /// Of how many organizations settings are held. At least 10; 100,000 unless set.
    pub fn capacity(mut self, organizations: u64) -> Self {
        self.settings.capacity = organizations;
        self
    }

    /// The most calls to the loader in a second, all told. At least 1; no fixed limit unless set.
    pub fn max_calls_per_second(mut self, calls: u32) -> Self {
        self.settings.max_calls_per_second = Some(calls);
        self
    }

    /// How long one call to the loader may take. Not zero; 1 s unless set.
    pub fn attempt_deadline(mut self, deadline: Duration) -> Self {
        self.settings.attempt_deadline = deadline;
        self
    }

    /// How long a request waits for settings altogether. At least the deadline of an attempt; 2.5 s unless set.
    pub fn caller_deadline(mut self, deadline: Duration) -> Self {
        self.settings.caller_deadline = deadline;
        self
    }

    /// How long a load may take with its retry and its waits, whoever still waits for it. At least the deadline of a caller,
    /// at most 60 s; 10 s unless set.
    pub fn flight_deadline(mut self, deadline: Duration) -> Self {
        self.settings.flight_deadline = deadline;
        self
    }

    /// What a request is given when a load fails and nothing is held that may still be served. Without it, such a request is
    /// refused with 503.
    ///
    /// The default is not remembered: the next request tries again. [`OrgSettings::is_default`](super::OrgSettings::is_default)
    /// tells it from settings that were loaded.
    pub fn default_on_error(mut self, settings: T) -> Self {
        self.default = Some(settings);
        self
    }

    /// The layer. Needs no runtime, and starts nothing.
    pub fn build(self) -> Result<OrgSettingsLayer<T>, ConfigError> {
        self.settings.check()?;
        let secret = DigestSecret::draw()
            .map_err(|_| ConfigError::new("build", "the operating system has no random numbers"))?;
        // One clock with the keys, which a test may have set.
        let clock = self.keys.clock();
        let component = Component::Settings(std::any::type_name::<T>());
        let upstream = Upstream::new(self.loads, clock.clone(), &self.settings, component);
        let cache = Cache::new(self.settings, clock, secret, upstream);
        self.keys.add_dependent(&cache);
        Ok(OrgSettingsLayer {
            core: Arc::new(Core {
                cache,
                default: self.default.map(Arc::new),
            }),
        })
    }
}

impl<T> fmt::Debug for OrgSettingsLayerBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrgSettingsLayerBuilder")
            .field("settings", &self.settings)
            .field("has_default", &self.default.is_some())
            .finish_non_exhaustive()
    }
}
