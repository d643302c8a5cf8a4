//! What the poller tells.

use std::error::Error;

use super::TARGET;
#[cfg(feature = "metrics")]
use super::{POLLER_CALLS, POLLER_INVALIDATED, POLLER_WALKS};

/// A page of the issuer's list is asked for.
pub(crate) fn called() {
    #[cfg(feature = "metrics")]
    metrics::counter!(POLLER_CALLS).increment(1);
}

/// How a walk ended that did not fail.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WalkEnd {
    /// Nothing was held, so nothing was asked.
    Idle,
    Complete,
    NotBelieved,
}

/// A walk has come to its end.
pub(crate) fn walked(end: WalkEnd, compared: usize, invalidated: usize) {
    let result = match end {
        WalkEnd::Idle => "idle",
        WalkEnd::Complete => "complete",
        WalkEnd::NotBelieved => "not-believed",
    };
    count!(POLLER_WALKS, "result" = result; "idle" "complete" "not-believed");
    #[cfg(feature = "metrics")]
    metrics::counter!(POLLER_INVALIDATED).increment(invalidated as u64);
    if invalidated > 0 {
        tracing::info!(
            target: TARGET,
            invalidated,
            compared,
            "keys were rotated or taken away at the issuer: what was held of them is verified anew"
        );
    }
}

/// The list speaks against so much of what is held that it is not believed yet.
pub(crate) fn not_believed(condemned: usize, compared: usize) {
    tracing::error!(
        target: TARGET,
        condemned,
        compared,
        "the issuer's list speaks against most of the keys held: believed only if the next one does too; is our own token restricted \
         to one organization?"
    );
}

/// A walk has failed, after one that had not.
pub(crate) fn fails(error: &(dyn Error + 'static)) {
    tracing::warn!(
        target: TARGET,
        error,
        "the poller cannot walk the issuer's keys: revocations made there take effect by the soft TTL alone"
    );
}

/// A walk has failed.
pub(crate) fn failed() {
    count!(POLLER_WALKS, "result" = "failed"; "failed");
}

/// A walk is complete, after one that had failed.
pub(crate) fn works_again() {
    tracing::info!(target: TARGET, "the poller walks the issuer's keys again");
}
