//! The names of this crate's metrics. They are stable.
//!
//! Events go through [`tracing`] under the target `tower_orgkey`; the [crate documentation](crate#log-messages) lists them.

use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tower_orgkey::telemetry::TARGET;

/// A counter of records, with the label `result`: `pushed`, `undeliverable` or `dropped`.
pub const USAGE_RECORDS: &str = "orgkey_usage_records_total";
/// A counter of pushes, with the label `result`: `accepted`, `retry` or `permanent`.
pub const USAGE_PUSHES: &str = "orgkey_usage_pushes_total";
/// A gauge of records that wait for the sink.
pub const USAGE_WAITING: &str = "orgkey_usage_records_waiting";
/// A counter of rows that were merged into an "other" row.
pub const USAGE_ROWS_MERGED: &str = "orgkey_usage_rows_merged_total";

/// Lets one event per second through, and counts the others.
struct RateLimitedLog {
    second: AtomicU64,
    suppressed: AtomicU64,
}

impl RateLimitedLog {
    const fn new() -> Self {
        Self {
            second: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Returns how many events were suppressed before this one. `None` suppresses this one.
    fn admit(&self) -> Option<u64> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        if self.second.swap(now, Ordering::Relaxed) == now {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }
}

pub(crate) fn rows_merged(rows: u64) {
    #[cfg(feature = "metrics")]
    metrics::counter!(USAGE_ROWS_MERGED).increment(rows);
    #[cfg(not(feature = "metrics"))]
    let _ = rows;
}

/// `result` is one of those of [`USAGE_PUSHES`].
pub(crate) fn push_ended(result: &'static str) {
    #[cfg(feature = "metrics")]
    metrics::counter!(USAGE_PUSHES, "result" => result).increment(1);
    #[cfg(not(feature = "metrics"))]
    let _ = result;
}

pub(crate) fn pushed(records: u64) {
    count("pushed", records);
}

pub(crate) fn waiting(records: usize) {
    // Exact to 2^53.
    #[cfg(feature = "metrics")]
    #[allow(clippy::cast_precision_loss)]
    metrics::gauge!(USAGE_WAITING).set(records as f64);
    #[cfg(not(feature = "metrics"))]
    let _ = records;
}

pub(crate) fn dropped(records: u64, reason: &'static str) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    count("dropped", records);
    if let Some(suppressed) = LOG.admit() {
        tracing::error!(target: TARGET, records, reason, suppressed, "usage records dropped");
    }
}

pub(crate) fn undeliverable(id: &str, error: &(dyn Error + 'static)) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    count("undeliverable", 1);
    if let Some(suppressed) = LOG.admit() {
        tracing::error!(target: TARGET, id, error, suppressed, "usage record undeliverable");
    }
}

pub(crate) fn push_failed(error: &(dyn Error + 'static)) {
    tracing::warn!(target: TARGET, error, "usage push failed, retrying");
}

pub(crate) fn push_recovered() {
    tracing::info!(target: TARGET, "usage push recovered");
}

pub(crate) fn spool_failed(error: &io::Error) {
    let error: &dyn Error = error;
    tracing::warn!(target: TARGET, error, "usage spool file cannot be written");
}

pub(crate) fn spool_recovered() {
    tracing::info!(target: TARGET, "usage spool file is written again");
}

pub(crate) fn spool_truncated(bytes: usize) {
    tracing::warn!(target: TARGET, bytes, "usage spool file truncated, its last line was incomplete");
}

fn count(result: &'static str, records: u64) {
    #[cfg(feature = "metrics")]
    metrics::counter!(USAGE_RECORDS, "result" => result).increment(records);
    #[cfg(not(feature = "metrics"))]
    let _ = (result, records);
}
