use std::sync::Arc;
use std::time::Duration;

use orgkey_lookup::Config;

use super::layer::{Core, OrgSettingsLayer};
use super::loader::SettingsLoader;
use super::source::{Cache, Loader};
use crate::config::{ConfigError, config_setters};
use crate::handle::ApiKeyHandle;

/// Builds an [`OrgSettingsLayer`].
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
    loader: Loader<T>,
    config: Config,
    default: Option<T>,
}

impl<T: Send + Sync + 'static> OrgSettingsLayerBuilder<T> {
    pub(super) fn new(keys: ApiKeyHandle, loader: impl SettingsLoader<T>) -> Self {
        Self {
            keys,
            loader: Loader::new(loader),
            config: Config::default(),
            default: None,
        }
    }

    config_setters! {
        /// Sets how long settings are fresh. At least 1 s; 60 s unless set. Each entry's time is shortened at random by up to
        /// 15 %.
        ///
        /// While loads succeed, a change in your store is applied after at most twice this time and one load.
        soft_ttl(ttl: Duration) => lifetimes.soft;

        /// Sets how long settings are served while loads fail, counted from the call that returned them. At least twice the
        /// soft TTL, at most 12 h; 15 min unless set.
        hard_ttl(ttl: Duration) => lifetimes.hard;

        /// Sets the maximum number of organizations with cached settings. At least 10; 100,000 unless set.
        capacity(organizations: u64) => capacity;

        /// Sets the maximum number of calls to the loader per second. At least 1; no fixed limit unless set.
        max_calls_per_second(calls: u32) => max_calls_per_second;

        /// Sets how long one call to the loader may take. Not zero; 1 s unless set.
        attempt_deadline(deadline: Duration) => attempt_deadline;

        /// Sets how long a request waits for its settings. At least the attempt deadline; 2.5 s unless set.
        caller_deadline(deadline: Duration) => caller_deadline;

        /// Sets how long a load may take with its retry and its waits. At least the caller deadline, at most 60 s; 10 s
        /// unless set.
        lookup_deadline(deadline: Duration) => lookup_deadline;
    }

    /// Sets what a request gets when its settings cannot be loaded and none are cached. Without a default, such a request is
    /// rejected with 503.
    ///
    /// The default is not cached: the next request causes another load.
    /// [`OrgSettings::is_default`](super::OrgSettings::is_default) distinguishes it from loaded settings.
    pub fn default_on_error(mut self, settings: T) -> Self {
        self.default = Some(settings);
        self
    }

    /// Builds the layer. Needs no runtime, and spawns nothing.
    pub fn build(self) -> Result<OrgSettingsLayer<T>, ConfigError> {
        self.config.check()?;
        // The clock of the keys, which a test may have set.
        let clock = self.keys.0.clock().clone();
        let core = Arc::new(Core {
            cache: Cache::new(self.loader, self.config, clock),
            default: self.default.map(Arc::new),
        });
        self.keys.0.add_dependent(&core);
        Ok(OrgSettingsLayer { core })
    }
}

impl_debug!([T] OrgSettingsLayerBuilder<T>, |builder| {
    config: builder.config,
    has_default: builder.default.is_some()
});
