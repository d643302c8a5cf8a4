//! What the audit trail tells of itself.

use std::error::Error;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tower_orgkey::telemetry::TARGET;

/// Counts the events of the audit trail by what became of them.
pub const AUDIT_EVENTS: &str = "orgkey_audit_events_total";
/// The target of the audit events themselves, where they are written through `tracing`.
pub const AUDIT_TARGET: &str = "tower_orgkey::audit";

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
    static SECOND: AtomicU64 = AtomicU64::new(0);
    counted("lost", 1);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    if SECOND.swap(now, Ordering::Relaxed) != now {
        tracing::error!(
            target: TARGET,
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
