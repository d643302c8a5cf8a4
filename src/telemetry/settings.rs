//! Events and metrics of the settings layers. Their names differ from those of keys, so that neither affects the other.

use std::error::Error;
use std::time::Duration;

use orgkey_lookup::Found;

use super::{RateLimitedLog, TARGET};

/// Counts what requests found in the cache of settings.
pub const SETTINGS_LOOKUPS: &str = "orgkey_settings_lookups_total";
/// Counts requests that got the default because no settings were available.
pub const SETTINGS_DEFAULTS: &str = "orgkey_settings_defaults_total";
/// Counts calls to the settings loader by their result.
pub const SETTINGS_LOADS: &str = "orgkey_settings_loads_total";
/// The duration of calls to the settings loader, in seconds.
pub const SETTINGS_LATENCY: &str = "orgkey_settings_load_seconds";
/// The state of the circuit breaker of the settings loader: 0 closed, 1 half open, 2 open.
pub const SETTINGS_BREAKER: &str = "orgkey_settings_breaker_state";
/// Counts the pauses that the settings loader requested.
pub const SETTINGS_THROTTLED: &str = "orgkey_settings_throttled_total";
/// Calls to the settings loader in flight.
pub const SETTINGS_IN_FLIGHT: &str = "orgkey_settings_loads_in_flight";
/// Loads of settings that wait for their turn.
pub const SETTINGS_WAITING: &str = "orgkey_settings_loads_waiting";
/// Cached settings of organizations.
pub const SETTINGS_ENTRIES: &str = "orgkey_settings_entries";

/// Sets a gauge of the settings of one type.
#[cfg(feature = "metrics")]
macro_rules! set_of {
    ($name:expr, $of:expr, $value:expr) => {
        // Exact to 2^53.
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!($name, "settings" => $of).set($value as f64)
    };
}

#[cfg(not(feature = "metrics"))]
macro_rules! set_of {
    ($name:expr, $of:expr, $value:expr) => {
        let _ = ($of, $value);
    };
}

/// Emits that a handler takes settings of a type for which the request passed no layer.
pub(crate) fn layer_missing(component: &str, of: &str) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    if let Some(suppressed) = LOG.admit() {
        tracing::error!(
            target: TARGET,
            component,
            settings = of,
            suppressed,
            "rejected with 500: no `OrgSettingsLayer` of this type between this route and its `ApiKeyLayer`; add it with \
             `.route_layer(settings)` before `.route_layer(auth)`"
        );
    }
}

/// Counts what a request found in the cache.
#[inline]
pub(crate) fn looked_up(found: Found) {
    let result = match found {
        Found::Fresh => "fresh",
        Found::Stale => "stale",
        // A loader has no invalid results.
        Found::Invalid | Found::Miss => "miss",
    };
    count!(SETTINGS_LOOKUPS, "result" = result; "fresh" "stale" "miss");
}

/// Counts a request that got the default.
pub(crate) fn defaulted() {
    #[cfg(feature = "metrics")]
    metrics::counter!(SETTINGS_DEFAULTS).increment(1);
}

pub(crate) fn entries(of: &'static str, number: usize) {
    set_of!(SETTINGS_ENTRIES, of, number);
}

pub(crate) fn occupied(of: &'static str, calls: usize, waiting: usize) {
    set_of!(SETTINGS_IN_FLIGHT, of, calls);
    set_of!(SETTINGS_WAITING, of, waiting);
}

/// Emits the result of a call to the loader.
pub(crate) fn called(
    of: &'static str,
    org_code: &str,
    result: &'static str,
    error: Option<&(dyn Error + 'static)>,
    took: Duration,
) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    tracing::debug!(target: TARGET, settings = of, result, org_code, ?took, "settings load finished");
    #[cfg(feature = "metrics")]
    {
        metrics::counter!(SETTINGS_LOADS, "settings" => of, "result" => result).increment(1);
        metrics::histogram!(SETTINGS_LATENCY, "settings" => of).record(took.as_secs_f64());
    }
    if let Some(error) = error
        && let Some(suppressed) = LOG.admit()
    {
        tracing::warn!(
            target: TARGET,
            error,
            settings = of,
            org_code,
            suppressed,
            "settings load failed"
        );
    }
}

/// Sets the state of a circuit: 0 closed, 1 half open, 2 open.
pub(crate) fn breaker_state(of: &'static str, circuit: &'static str, state: u8) {
    #[cfg(feature = "metrics")]
    metrics::gauge!(SETTINGS_BREAKER, "settings" => of, "circuit" => circuit).set(f64::from(state));
    #[cfg(not(feature = "metrics"))]
    let _ = (of, circuit, state);
}

pub(crate) fn breaker_opened(of: &'static str, circuit: &'static str, open_for: Duration) {
    tracing::warn!(target: TARGET, settings = of, circuit, ?open_for, "settings circuit breaker opened");
}

pub(crate) fn breaker_tries(of: &'static str, circuit: &'static str) {
    tracing::info!(target: TARGET, settings = of, circuit, "settings circuit breaker half open");
}

pub(crate) fn breaker_closed(of: &'static str, circuit: &'static str) {
    tracing::info!(target: TARGET, settings = of, circuit, "settings circuit breaker closed");
}

pub(crate) fn throttled(of: &'static str, pause: Duration) {
    #[cfg(feature = "metrics")]
    metrics::counter!(SETTINGS_THROTTLED, "settings" => of).increment(1);
    tracing::warn!(target: TARGET, settings = of, ?pause, "settings loader asks for fewer calls");
}
