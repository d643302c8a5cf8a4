//! Events and metrics of the reconciler.

use std::error::Error;

use super::TARGET;
#[cfg(feature = "metrics")]
use super::{RECONCILER_CALLS, RECONCILER_INVALIDATED, RECONCILER_RUNS};

/// Counts a request for a page of the issuer's list.
pub(crate) fn called() {
    #[cfg(feature = "metrics")]
    metrics::counter!(RECONCILER_CALLS).increment(1);
}

/// Emits the result of a run that did not fail: `idle`, `complete` or `unconfirmed`.
pub(crate) fn ran(result: &'static str, compared: usize, invalidated: usize) {
    count!(RECONCILER_RUNS, "result" = result; "idle" "complete" "unconfirmed");
    #[cfg(feature = "metrics")]
    metrics::counter!(RECONCILER_INVALIDATED).increment(invalidated as u64);
    if invalidated > 0 {
        tracing::info!(
            target: TARGET,
            invalidated,
            compared,
            "cached keys invalidated: rotated or deleted at the issuer"
        );
    }
}

/// Emits that the list contradicts most cached keys.
pub(crate) fn unconfirmed(outdated: usize, compared: usize) {
    tracing::error!(
        target: TARGET,
        outdated,
        compared,
        "issuer's key list contradicts most cached keys: it is applied only if the next list does too; check that the access \
         token is not restricted to one organization"
    );
}

/// Emits that a run failed after one that did not.
pub(crate) fn fails(error: &(dyn Error + 'static)) {
    tracing::warn!(
        target: TARGET,
        error,
        "reconciliation failed: until it succeeds, revocations at the issuer take effect within the bounds of the soft TTL"
    );
}

/// Counts a failed run.
pub(crate) fn failed() {
    count!(RECONCILER_RUNS, "result" = "failed"; "failed");
}

/// Emits that a run completed after one that failed.
pub(crate) fn recovered() {
    tracing::info!(target: TARGET, "reconciliation succeeded again");
}
