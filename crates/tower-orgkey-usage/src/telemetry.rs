//! What the books of usage tell.

use std::error::Error;
use std::io;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tower_orgkey::telemetry::TARGET;

/// Counts records of usage by what became of them.
pub const USAGE_RECORDS: &str = "orgkey_usage_records_total";
/// Counts pushes of usage by how the sink answered.
pub const USAGE_PUSHES: &str = "orgkey_usage_pushes_total";
/// Records of usage that the sink has not taken yet.
pub const USAGE_WAITING: &str = "orgkey_usage_records_waiting";
/// Counts the rows of usage that had to make room and were folded into coarser ones.
pub const USAGE_FOLDED: &str = "orgkey_usage_rows_folded_total";

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

    fn admit(&self) -> Option<u64> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        if self.second.swap(now, Ordering::Relaxed) == now {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(self.left_out.swap(0, Ordering::Relaxed))
    }
}

/// Rows have made room for others.
pub(crate) fn folded(rows: u64) {
    #[cfg(feature = "metrics")]
    metrics::counter!(USAGE_FOLDED).increment(rows);
    #[cfg(not(feature = "metrics"))]
    let _ = rows;
}

/// A push has ended: `accepted`, `retry` or `refused`.
pub(crate) fn push_ended(result: &'static str) {
    #[cfg(feature = "metrics")]
    metrics::counter!(USAGE_PUSHES, "result" => result).increment(1);
    #[cfg(not(feature = "metrics"))]
    let _ = result;
}

/// The sink has taken records.
pub(crate) fn pushed(records: u64) {
    counted("pushed", records);
}

/// So many records wait to be pushed.
pub(crate) fn waiting(records: usize) {
    // Exact to 2^53.
    #[cfg(feature = "metrics")]
    #[allow(clippy::cast_precision_loss)]
    metrics::gauge!(USAGE_WAITING).set(records as f64);
    #[cfg(not(feature = "metrics"))]
    let _ = records;
}

/// Records were given up.
pub(crate) fn dropped(records: u64, why: &'static str) {
    static FLOOD: Flood = Flood::new();
    counted("dropped", records);
    if let Some(left_out) = FLOOD.admit() {
        tracing::error!(
            target: TARGET,
            records,
            why,
            left_out,
            "usage records are given up: they are in the snapshot, and in no bill"
        );
    }
}

/// The sink has refused a record for good.
pub(crate) fn refused(id: &str, error: &(dyn Error + 'static)) {
    static FLOOD: Flood = Flood::new();
    counted("refused", 1);
    if let Some(left_out) = FLOOD.admit() {
        tracing::error!(
            target: TARGET,
            id,
            error,
            left_out,
            "the usage sink refuses a record for good: it is in the snapshot, and in no bill"
        );
    }
}

/// A push has failed, after one that had not.
pub(crate) fn takes_no_records(error: &(dyn Error + 'static)) {
    tracing::warn!(
        target: TARGET,
        error,
        "the usage sink takes no records: they are kept, and pushed later"
    );
}

/// A push was accepted, after one that had failed.
pub(crate) fn takes_records_again() {
    tracing::info!(target: TARGET, "the usage sink takes records again");
}

/// The file could not be written, after it could.
pub(crate) fn file_not_written(error: &io::Error) {
    let error: &dyn Error = error;
    tracing::warn!(
        target: TARGET,
        error,
        "the file of unsent usage records cannot be written: what waits would be gone with this process"
    );
}

/// The file could be written, after it could not.
pub(crate) fn file_written_again() {
    tracing::info!(target: TARGET, "the file of unsent usage records is written again");
}

/// The last line of the file has no end.
pub(crate) fn tail_cut(bytes: usize) {
    tracing::warn!(
        target: TARGET,
        bytes,
        "the file of unsent usage records ends in the middle of a line: the line is taken off"
    );
}

fn counted(result: &'static str, records: u64) {
    #[cfg(feature = "metrics")]
    metrics::counter!(USAGE_RECORDS, "result" => result).increment(records);
    #[cfg(not(feature = "metrics"))]
    let _ = (result, records);
}
