//! What the layers of settings tell. A layer's cache and the loader behind it speak under names of their own, so that those of
//! the keys stay what they are.

use std::error::Error;
use std::time::Duration;

use orgkey_lookup::Found;

use super::{RateLimitedLog, RateLimitedLogs, TARGET};

/// Counts what requests found of their organization's settings.
pub const SETTINGS_LOOKUPS: &str = "orgkey_settings_lookups_total";
/// Counts requests that were given the default, since there were no settings to be had.
pub const SETTINGS_DEFAULTS: &str = "orgkey_settings_defaults_total";
/// Counts calls to the settings loader by their result.
pub const SETTINGS_LOADS: &str = "orgkey_settings_loads_total";
/// How long calls to the settings loader took, in seconds.
pub const SETTINGS_LATENCY: &str = "orgkey_settings_load_seconds";
/// The state of the circuit breaker before the settings loader: 0 closed, 1 half open, 2 open.
pub const SETTINGS_BREAKER: &str = "orgkey_settings_breaker_state";
/// Counts the pauses that the settings loader asked for.
pub const SETTINGS_THROTTLED: &str = "orgkey_settings_throttled_total";
/// Calls to the settings loader under way.
pub const SETTINGS_IN_FLIGHT: &str = "orgkey_settings_loads_in_flight";
/// Loads of settings that wait for their turn.
pub const SETTINGS_WAITING: &str = "orgkey_settings_loads_waiting";
/// Organizations whose settings are held.
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

/// A handler asks for settings of a type that no layer has given this request.
pub(crate) fn layer_missing(who_asks: &'static str, of: &'static str) {
    static LOGS: RateLimitedLogs = RateLimitedLogs::new();
    if let Some(left_out) = LOGS.admit(who_asks, of) {
        tracing::error!(
            target: TARGET,
            who_asks,
            settings = of,
            left_out,
            "refused with 500: no `OrgSettingsLayer` of this type stands between this route and its `ApiKeyLayer`; add it with \
             `.route_layer(settings)` before `.route_layer(auth)`, and after limits that read it"
        );
    }
}

/// A request looked for its organization's settings.
#[inline]
pub(crate) fn looked_up(found: Found) {
    let result = match found {
        Found::Fresh => "fresh",
        Found::Stale => "stale",
        // A loader refuses nobody.
        Found::Invalid | Found::Miss => "asked",
    };
    count!(SETTINGS_LOOKUPS, "result" = result; "fresh" "stale" "asked");
}

/// A request was given the default.
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

/// A call to the loader has ended.
pub(crate) fn called(
    of: &'static str,
    org_code: &str,
    result: &'static str,
    error: Option<&(dyn Error + 'static)>,
    took: Duration,
) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    tracing::debug!(target: TARGET, settings = of, result, org_code, ?took, "asked the settings loader");
    #[cfg(feature = "metrics")]
    {
        metrics::counter!(SETTINGS_LOADS, "settings" => of, "result" => result).increment(1);
        metrics::histogram!(SETTINGS_LATENCY, "settings" => of).record(took.as_secs_f64());
    }
    if let Some(error) = error
        && let Some(left_out) = LOG.admit()
    {
        tracing::warn!(
            target: TARGET,
            error,
            settings = of,
            org_code,
            left_out,
            "an organization's settings could not be loaded"
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
