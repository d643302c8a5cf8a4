//! The names of our events, all in one place.
//!
//! Events go through [`tracing`] under the target [`TARGET`]. None of them ever holds a key or a digest of one.

/// The target of every event of this crate.
pub const TARGET: &str = "tower_orgkey";

/// A guard or extractor was reached without the layer: 500 to the caller, and the fix to the operator.
pub(crate) fn layer_missing(who_asks: &str) {
    tracing::error!(
        target: TARGET,
        who_asks,
        "refused with 500: no `ApiKeyLayer` stands in front of this route; add it with `.route_layer(auth)` after the \
         route and its guards"
    );
}

/// `require_org` names a parameter that the route does not have.
#[cfg(feature = "axum")]
pub(crate) fn parameter_missing(parameter: &str) {
    tracing::error!(
        target: TARGET,
        parameter,
        "refused with 500: `require_org` names a path parameter that this route does not have"
    );
}

/// A request boarded a verification that another one had started.
pub(crate) fn coalesced() {
    tracing::trace!(target: TARGET, "joined a verification under way");
}

/// Too many known keys were refused, and nothing shows that the issuer works.
pub(crate) fn refusals_not_believed() {
    tracing::error!(
        target: TARGET,
        "the issuer refuses known keys one after another and confirms none: its refusals are taken for a fault of its own"
    );
}
