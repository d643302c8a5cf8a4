//! What the audit trail tells of itself.

use std::error::Error;

#[cfg(feature = "metrics")]
use super::AUDIT_EVENTS;
use super::{RateLimitedLog, TARGET};

/// So many events were written.
pub(crate) fn written(events: u64) {
    counted("written", events);
}

/// A refusal of nobody's was left out, since there were too many.
pub(crate) fn left_out() {
    counted("left-out", 1);
}

/// An event found no place in the queue.
pub(crate) fn lost() {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    counted("lost", 1);
    if let Some(left_out) = LOG.admit() {
        tracing::error!(
            target: TARGET,
            left_out,
            "audit events are lost: the queue is full, since the sink is slower than the requests, or the trail is shut down"
        );
    }
}

/// The sink refused events for good, or panicked over them.
pub(crate) fn given_up(events: u64, error: &(dyn Error + 'static)) {
    counted("lost", events);
    tracing::error!(target: TARGET, events, error, "the audit sink gave up events, which are lost");
}

/// The sink failed, and is tried again until it works. Once for each time it fails.
pub(crate) fn sink_fails(error: &(dyn Error + 'static)) {
    tracing::warn!(
        target: TARGET,
        error,
        "the audit sink fails: events wait for it, and are lost when the queue is full"
    );
}

/// The end of that.
pub(crate) fn sink_works_again() {
    tracing::info!(target: TARGET, "the audit sink works again");
}

#[cfg_attr(not(feature = "metrics"), expect(unused_variables))]
fn counted(result: &'static str, events: u64) {
    #[cfg(feature = "metrics")]
    metrics::counter!(AUDIT_EVENTS, "result" => result).increment(events);
}
