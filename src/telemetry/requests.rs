//! Events and metrics of requests: what they found in the cache, and what is missing on their route.

use orgkey_lookup::Found;

#[cfg(feature = "metrics")]
use super::LOOKUPS;
use super::{RateLimitedLog, RateLimitedLogs, TARGET};

/// Counts what a request found in the cache.
pub(crate) fn looked_up(found: Found) {
    let result = match found {
        Found::Fresh => "fresh",
        Found::Stale => "stale",
        Found::Invalid => "invalid",
        Found::Miss => "miss",
    };
    count!(LOOKUPS, "result" = result; "fresh" "stale" "invalid" "miss");
}

/// Emits that a request reached a guard or an extractor without the layer.
pub(crate) fn layer_missing(component: &'static str) {
    static LOGS: RateLimitedLogs = RateLimitedLogs::new();
    if let Some(suppressed) = LOGS.admit(component, "") {
        tracing::error!(
            target: TARGET,
            component,
            suppressed,
            "rejected with 500: no `ApiKeyLayer` outside of this route; add it with `.route_layer(auth)` after the route and \
             its guards"
        );
    }
}

/// Emits that a context cannot verify its key again, because its layer does not keep keys.
pub(crate) fn key_not_kept(method: &'static str) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    if let Some(suppressed) = LOG.admit() {
        tracing::error!(
            target: TARGET,
            method,
            suppressed,
            "key not kept: set `ApiKeyLayerBuilder::revalidation(true)`"
        );
    }
}

/// Emits that `require_org` names a parameter that the route does not have.
#[cfg(feature = "axum")]
pub(crate) fn parameter_missing(parameter: &str) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    if let Some(suppressed) = LOG.admit() {
        tracing::error!(
            target: TARGET,
            parameter,
            suppressed,
            "rejected with 500: `require_org` names a path parameter that this route does not have"
        );
    }
}
