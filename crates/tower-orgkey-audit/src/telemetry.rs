//! The names of this crate's events and metrics. They are stable.

use std::error::Error;

use tower_orgkey::telemetry::TARGET;

/// The target of the audit events that [`TracingSink`](crate::TracingSink) emits.
pub const AUDIT_TARGET: &str = "tower_orgkey::audit";

/// A counter of audit events (feature `metrics`), with the label `result`: `written`, `suppressed` or `lost`.
pub const AUDIT_EVENTS: &str = "orgkey_audit_events_total";

pub(crate) fn written(events: u64) {
    count("written", events);
}

pub(crate) fn suppressed() {
    count("suppressed", 1);
}

/// `is_first` since losses were last reported in the trail: only then the log is written to.
pub(crate) fn lost(is_first: bool) {
    count("lost", 1);
    if is_first {
        tracing::error!(
            target: TARGET,
            "audit events are lost: the queue is full or the trail is shut down"
        );
    }
}

pub(crate) fn failed_permanently(events: u64, error: &(dyn Error + 'static)) {
    count("lost", events);
    tracing::error!(target: TARGET, events, error, "audit sink failed permanently, its events are lost");
}

pub(crate) fn sink_failed(error: &(dyn Error + 'static)) {
    tracing::warn!(target: TARGET, error, "audit sink failed, retrying");
}

pub(crate) fn sink_recovered() {
    tracing::info!(target: TARGET, "audit sink recovered");
}

fn count(result: &'static str, events: u64) {
    #[cfg(feature = "metrics")]
    metrics::counter!(AUDIT_EVENTS, "result" => result).increment(events);
    #[cfg(not(feature = "metrics"))]
    let _ = (result, events);
}
