//! What the limits tell.

use super::{Flood, TARGET};

/// A limit gave up the accounts of an organization or a key that was not idle.
pub(crate) fn forgotten() {
    static FLOOD: Flood = Flood::new();
    if let Some(left_out) = FLOOD.admit() {
        tracing::warn!(
            target: TARGET,
            left_out,
            "a limit holds fewer accounts than organizations or keys are active: those that it forgets begin anew"
        );
    }
}
