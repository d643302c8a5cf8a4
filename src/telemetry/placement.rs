//! Layers on the wrong side of `ApiKeyLayer`.

use super::{RateLimitedLogs, TARGET};

/// A layer that must be outside `ApiKeyLayer` is inside.
pub(crate) fn layer_inside(layer: &'static str) {
    static LOGS: RateLimitedLogs = RateLimitedLogs::new();
    if let Some(suppressed) = LOGS.admit(layer, "") {
        tracing::error!(
            target: TARGET,
            layer,
            suppressed,
            "rejected with 500: this layer is inside `ApiKeyLayer` and must be outside; add it after `.route_layer(auth)`"
        );
    }
}

/// A layer that must be inside `ApiKeyLayer` is outside, or there is no `ApiKeyLayer`.
#[cfg(any(feature = "limit", feature = "region", feature = "settings"))]
pub(crate) fn layer_outside(layer: &'static str) {
    static LOGS: RateLimitedLogs = RateLimitedLogs::new();
    if let Some(suppressed) = LOGS.admit(layer, "") {
        tracing::error!(
            target: TARGET,
            layer,
            suppressed,
            "rejected with 500: this layer must be inside an `ApiKeyLayer`; add it before `.route_layer(auth)`"
        );
    }
}
