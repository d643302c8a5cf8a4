//! The names of this crate's metrics. They are stable.
//!
//! Events go through [`tracing`] under the target `tower_orgkey`; the [crate documentation](crate#log-messages) lists them.

use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::parked::ParkReason;
use tower_orgkey::telemetry::TARGET;

/// A counter of records, with the label `result`: `pushed`, `undeliverable`, `dropped`, `maybe_stored`, `too_old` or `held`;
/// the last three are parked.
pub const USAGE_RECORDS: &str = "orgkey_usage_records_total";
/// A counter of pushes, with the label `result`: `accepted`, `retry`, `permanent` or `park`.
pub const USAGE_PUSHES: &str = "orgkey_usage_pushes_total";
/// A gauge of records that wait for the sink.
pub const USAGE_WAITING: &str = "orgkey_usage_records_waiting";
/// A gauge of records that are parked.
pub const USAGE_PARKED: &str = "orgkey_usage_records_parked";
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
    gauge(USAGE_WAITING, records);
}

pub(crate) fn parked_now(records: usize) {
    gauge(USAGE_PARKED, records);
}

pub(crate) fn parked(id: &str, reason: ParkReason) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    let reason = reason.name();
    count(reason, 1);
    if let Some(suppressed) = LOG.admit() {
        tracing::error!(target: TARGET, id, reason, suppressed, "usage record parked");
    }
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

pub(crate) fn clock_set_back(minutes: u64) {
    tracing::warn!(target: TARGET, minutes, "usage clock was set back");
}

fn gauge(name: &'static str, records: usize) {
    // Exact to 2^53.
    #[cfg(feature = "metrics")]
    #[allow(clippy::cast_precision_loss)]
    metrics::gauge!(name).set(records as f64);
    #[cfg(not(feature = "metrics"))]
    let _ = (name, records);
}

fn count(result: &'static str, records: u64) {
    #[cfg(feature = "metrics")]
    metrics::counter!(USAGE_RECORDS, "result" => result).increment(records);
    #[cfg(not(feature = "metrics"))]
    let _ = (result, records);
}
