//! The names of our events, all in one place.
//!
//! Events go through [`tracing`] under the target [`TARGET`]. None of them ever holds a key or a digest of one. A change of
//! state is told once; what every request could cause is told at most once a second, with the number of those left out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Clock;
use crate::verify::{Answer, Verification, VerifyError};

/// The target of every event of this crate.
pub const TARGET: &str = "tower_orgkey";

/// Lets one event a second through, and counts the others.
struct Flood {
    second: AtomicU64,
    left_out: AtomicU64,
}

impl Flood {
    const fn new() -> Self {
        Self {
            second: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// How many were left out before this one, if this one is to be told.
    fn admit(&self) -> Option<u64> {
        // Seconds since boot, from one on, so that the first event finds another second in the cell.
        let now = Clock::System.now().0 / 1_000_000_000 + 1;
        let before = self.second.load(Ordering::Relaxed);
        let is_first = before != now
            && self
                .second
                .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_first {
            Some(self.left_out.swap(0, Ordering::Relaxed))
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

/// A guard or extractor was reached without the layer: 500 to the caller, and the fix to the operator.
pub(crate) fn layer_missing(who_asks: &str) {
    static FLOOD: Flood = Flood::new();
    if let Some(left_out) = FLOOD.admit() {
        tracing::error!(
            target: TARGET,
            who_asks,
            left_out,
            "refused with 500: no `ApiKeyLayer` stands in front of this route; add it with `.route_layer(auth)` after the \
             route and its guards"
        );
    }
}

/// `require_org` names a parameter that the route does not have.
#[cfg(feature = "axum")]
pub(crate) fn parameter_missing(parameter: &str) {
    static FLOOD: Flood = Flood::new();
    if let Some(left_out) = FLOOD.admit() {
        tracing::error!(
            target: TARGET,
            parameter,
            left_out,
            "refused with 500: `require_org` names a path parameter that this route does not have"
        );
    }
}

/// Too many known keys were refused, and nothing shows that the issuer works.
pub(crate) fn refusals_not_believed() {
    static FLOOD: Flood = Flood::new();
    if let Some(left_out) = FLOOD.admit() {
        tracing::error!(
            target: TARGET,
            left_out,
            "the issuer refuses known keys one after another and confirms none: its refusals are taken for a fault of its \
             own, and the keys are kept"
        );
    }
}

/// A call to the verifier has ended.
pub(crate) fn issuer_called(outcome: &Result<Verification, VerifyError>, took: Duration) {
    static FLOOD: Flood = Flood::new();
    let result = match outcome {
        Ok(Verification(Answer::Valid(_))) => "valid",
        Ok(Verification(Answer::Refused(_))) => "refused",
        Err(_) => "error",
    };
    tracing::debug!(target: TARGET, result, ?took, "asked the issuer");
    if let Err(error) = outcome
        && let Some(left_out) = FLOOD.admit()
    {
        let error: &dyn std::error::Error = error;
        tracing::warn!(target: TARGET, error, left_out, "the issuer gave no answer");
    }
}

/// The breaker opened.
pub(crate) fn breaker_opened(open_for: Duration) {
    tracing::warn!(
        target: TARGET,
        ?open_for,
        "the issuer fails: known keys are served from what is held, unknown ones get 503"
    );
}

/// The breaker lets one call through.
pub(crate) fn breaker_probes() {
    tracing::info!(target: TARGET, "trying the issuer again");
}

/// The breaker closed.
pub(crate) fn breaker_closed() {
    tracing::info!(target: TARGET, "the issuer answers again");
}

/// The issuer answered 429, and is left alone.
pub(crate) fn throttled(pause: Duration) {
    tracing::warn!(target: TARGET, ?pause, "the issuer asks for fewer calls");
}
