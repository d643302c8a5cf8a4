//! Events of the limits.

use super::{RateLimitedLog, TARGET};

/// Emits that a limit evicted an organization or a key that was using its quota.
pub(crate) fn evicted() {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    if let Some(suppressed) = LOG.admit() {
        tracing::warn!(
            target: TARGET,
            suppressed,
            "limit table full: an active organization or key was evicted, and starts again with a full quota"
        );
    }
}
