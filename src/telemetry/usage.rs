//! What the books of usage tell.

use std::error::Error;
use std::io;

use super::{RateLimitedLog, TARGET};
#[cfg(feature = "metrics")]
use super::{USAGE_FOLDED, USAGE_PUSHES, USAGE_RECORDS, USAGE_WAITING};

/// Rows have made room for others.
pub(crate) fn folded(rows: u64) {
    #[cfg(feature = "metrics")]
    metrics::counter!(USAGE_FOLDED).increment(rows);
    #[cfg(not(feature = "metrics"))]
    let _ = rows;
}

/// A push has ended: `accepted`, `retry` or `refused`.
pub(crate) fn push_ended(result: &'static str) {
    count!(USAGE_PUSHES, "result" = result; "accepted" "retry" "refused");
}

/// The sink has taken records.
pub(crate) fn pushed(records: u64) {
    counted("pushed", records);
}

/// So many records wait to be pushed.
pub(crate) fn waiting(records: usize) {
    set!(USAGE_WAITING, records);
}

/// Records were given up.
pub(crate) fn dropped(records: u64, why: &'static str) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    counted("dropped", records);
    if let Some(left_out) = LOG.admit() {
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
    static LOG: RateLimitedLog = RateLimitedLog::new();
    counted("refused", 1);
    if let Some(left_out) = LOG.admit() {
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
