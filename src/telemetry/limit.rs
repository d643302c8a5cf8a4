//! What the limits tell.

use super::{RateLimitedLog, TARGET};

/// A limit gave up the accounts of an organization or a key that was not idle.
pub(crate) fn forgotten() {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    if let Some(left_out) = LOG.admit() {
        tracing::warn!(
            target: TARGET,
            left_out,
            "a limit holds fewer accounts than organizations or keys are active: those that it forgets begin anew"
        );
    }
}
