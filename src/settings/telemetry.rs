//! Events and metrics of settings. Their names differ from those of the keys.

use std::error::Error;
use std::time::Duration;

use orgkey_lookup::{Answered, BreakerState, Circuit, Found, Label, Telemetry};

use super::loader::{SettingsError, SettingsErrorKind};
use super::source::{Loader, Settings};
use crate::identifier::OrgCode;
use crate::telemetry::{RateLimitedLog, RateLimitedLogs, TARGET};
#[cfg(feature = "metrics")]
use crate::telemetry::{
    SETTINGS_BREAKER, SETTINGS_DEFAULTS, SETTINGS_ENTRIES, SETTINGS_IN_FLIGHT, SETTINGS_LATENCY,
    SETTINGS_LOADS, SETTINGS_LOOKUPS, SETTINGS_THROTTLED, SETTINGS_WAITING,
};

/// Events and metrics about a loader, labelled with the type of the settings.
#[derive(Debug)]
pub(super) struct LoaderTelemetry;

fn name<T>() -> &'static str {
    std::any::type_name::<T>()
}

/// Sets a gauge of the settings of one type.
#[cfg(feature = "metrics")]
macro_rules! set_of {
    ($name:expr, $value:expr) => {
        // Exact to 2^53.
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!($name, "settings" => name::<T>()).set($value as f64)
    };
}

#[cfg(not(feature = "metrics"))]
macro_rules! set_of {
    ($name:expr, $value:expr) => {
        let _ = $value;
    };
}

impl<T: Send + Sync + 'static> Telemetry<Loader<T>> for LoaderTelemetry {
    const HAS_GAUGES: bool = cfg!(feature = "metrics");

    #[inline]
    fn looked_up(found: Found) {
        let result = match found {
            Found::Fresh => "fresh",
            Found::Stale => "stale",
            // A loader finds no organization invalid.
            Found::Invalid | Found::Miss => "miss",
        };
        count!(SETTINGS_LOOKUPS, "result" = result; "fresh" "stale" "miss");
    }

    fn entries(number: usize) {
        set_of!(SETTINGS_ENTRIES, number);
    }

    fn called(
        _: &Label,
        org: &OrgCode,
        outcome: &Result<Answered<Settings<T>>, SettingsError>,
        took: Duration,
    ) {
        let (result, error) = match outcome {
            Ok(_) => ("loaded", None),
            Err(error) => match error.kind() {
                SettingsErrorKind::Unavailable => ("unavailable", Some(error)),
                // `throttled` reports the pause.
                SettingsErrorKind::Throttled { .. } => ("throttled", None),
                SettingsErrorKind::Broken => ("broken", Some(error)),
            },
        };
        called(name::<T>(), org.as_str(), result, error, took);
    }

    fn occupied(_: &Label, calls: usize, waiting: usize) {
        set_of!(SETTINGS_IN_FLIGHT, calls);
        set_of!(SETTINGS_WAITING, waiting);
    }

    fn breaker_state(_: &Label, circuit: Circuit, state: BreakerState) {
        #[cfg(feature = "metrics")]
        metrics::gauge!(SETTINGS_BREAKER, "settings" => name::<T>(), "circuit" => circuit.name())
            .set(f64::from(state.as_gauge()));
        #[cfg(not(feature = "metrics"))]
        let _ = (circuit, state);
    }

    fn breaker_opened(_: &Label, circuit: Circuit, open_for: Duration) {
        let (settings, circuit) = (name::<T>(), circuit.name());
        tracing::warn!(target: TARGET, settings, circuit, ?open_for, "settings circuit breaker opened");
    }

    fn breaker_tries(_: &Label, circuit: Circuit) {
        let (settings, circuit) = (name::<T>(), circuit.name());
        tracing::info!(target: TARGET, settings, circuit, "settings circuit breaker half open");
    }

    fn breaker_closed(_: &Label, circuit: Circuit) {
        let (settings, circuit) = (name::<T>(), circuit.name());
        tracing::info!(target: TARGET, settings, circuit, "settings circuit breaker closed");
    }

    fn throttled(_: &Label, pause: Duration) {
        let settings = name::<T>();
        #[cfg(feature = "metrics")]
        metrics::counter!(SETTINGS_THROTTLED, "settings" => settings).increment(1);
        tracing::warn!(target: TARGET, settings, ?pause, "settings loader asks for fewer calls");
    }
}

/// Emits one load. Not generic, so that all types share one rate limit.
fn called(
    settings: &'static str,
    org_code: &str,
    result: &'static str,
    error: Option<&SettingsError>,
    took: Duration,
) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    tracing::debug!(target: TARGET, settings, result, org_code, ?took, "settings load finished");
    #[cfg(feature = "metrics")]
    {
        metrics::counter!(SETTINGS_LOADS, "settings" => settings, "result" => result).increment(1);
        metrics::histogram!(SETTINGS_LATENCY, "settings" => settings).record(took.as_secs_f64());
    }
    if let Some(error) = error
        && let Some(suppressed) = LOG.admit()
    {
        let error = error as &(dyn Error + 'static);
        tracing::warn!(
            target: TARGET,
            error,
            settings,
            org_code,
            suppressed,
            "settings load failed"
        );
    }
}

/// Counts a request that got the default.
pub(super) fn defaulted() {
    #[cfg(feature = "metrics")]
    metrics::counter!(SETTINGS_DEFAULTS).increment(1);
}

/// Emits that no layer added settings of this type to a request.
pub(super) fn layer_missing(component: &'static str, settings: &'static str) {
    static LOGS: RateLimitedLogs = RateLimitedLogs::new();
    if let Some(suppressed) = LOGS.admit(component, settings) {
        tracing::error!(
            target: TARGET,
            component,
            settings,
            suppressed,
            "rejected with 500: no `OrgSettingsLayer` of this type between this route and its `ApiKeyLayer`; add it with \
             `.route_layer(settings)` before `.route_layer(auth)`, and after limits that read it"
        );
    }
}
