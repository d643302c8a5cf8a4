//! The events of this crate. The [crate documentation](crate#log-messages) lists them.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tower_orgkey::OrgCode;
use tower_orgkey::telemetry::TARGET;

use crate::error::OrgTxError;

pub(crate) fn job(org: &OrgCode, reason: &str) {
    tracing::info!(target: TARGET, org_code = %org, reason, "organization transaction of a job");
}

/// At most one event per second: while the database is down, each request fails to begin.
pub(crate) fn begin_failed(error: &OrgTxError) {
    static SECOND: AtomicU64 = AtomicU64::new(0);
    static SUPPRESSED: AtomicU64 = AtomicU64::new(0);

    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    if SECOND.swap(now, Ordering::Relaxed) == now {
        SUPPRESSED.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let suppressed = SUPPRESSED.swap(0, Ordering::Relaxed);
    let source = error.source().map(tracing::field::display);
    tracing::error!(
        target: TARGET,
        %error,
        source,
        suppressed,
        "organization transaction failed to begin"
    );
}
