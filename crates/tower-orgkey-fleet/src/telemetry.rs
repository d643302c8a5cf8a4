//! Log messages and metrics. The names of metrics are constants.
//!
//! | metric | kind | counts |
//! |---|---|---|
//! | [`FOLLOWED`] | gauge | 1 while this node follows the engine's log, else 0 |
//! | [`LAG`] | gauge | updates that the engine has and this node has not applied |
//! | [`POSITION`] | gauge | the number of the last update that was applied |
//! | [`NODES`] | gauge | known nodes, this one included |
//! | [`UNSENT`] | gauge | updates that wait for the engine |
//!
//! | level | message begins | cause |
//! |---|---|---|
//! | warn | `fleet engine lost` | the engine does not answer, `error` says why: this node keeps the bounds of a single node |
//! | warn | `fleet engine lost data or was replaced`, `fleet updates missing` | cached keys are verified again |
//! | warn | `fleet blocks restored` | the engine did not have `secrets`, `key_ids` and `organizations` that are blocked here. It lost them, or they were lifted while this node was cut off: see the known limits |
//! | error | `fleet update not applied` | the engine returned a changed entry, a node has another secret, or too much is blocked here |
//! | error | `wall clock differs from the fleet` | this node shares no results until it agrees |
//! | error | `fleet not followed`, `fleet is followed already` | no layer has joined the fleet, or `Fleet::run` was called twice |
//! | warn | `fleet not left` | the engine did not take the leave: other nodes wait for this one |

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tower_orgkey::fleet::Subject;

use crate::engine::EngineError;
use crate::status::FleetStatus;

/// The target of every event of this crate.
pub const TARGET: &str = "tower_orgkey_fleet";
/// Whether this node follows the engine's log.
pub const FOLLOWED: &str = "orgkey_fleet_followed";
/// How many updates this node is behind.
pub const LAG: &str = "orgkey_fleet_lag";
/// The number of the last update that was applied.
pub const POSITION: &str = "orgkey_fleet_position";
/// The number of known nodes.
pub const NODES: &str = "orgkey_fleet_nodes";
/// The number of updates that wait for the engine.
pub const UNSENT: &str = "orgkey_fleet_unsent";

/// At most one event of a kind in this time.
const EVENT_EVERY: Duration = Duration::from_secs(10);

/// Admits an event, and returns how many were suppressed since the last one. A faulty engine can cause them at any rate.
struct RateLimit(Mutex<(Option<Instant>, u64)>);

impl RateLimit {
    const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    fn admit(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, suppressed) = *state;
        if last.is_some_and(|last| now.duration_since(last) < EVENT_EVERY) {
            state.1 += 1;
            return None;
        }
        *state = (Some(now), 0);
        Some(suppressed)
    }
}

pub(crate) fn followed() {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(suppressed) = LIMIT.admit() {
        tracing::info!(target: TARGET, suppressed, "fleet log followed");
    }
}

pub(crate) fn lost(error: &EngineError, was_followed: bool) {
    static LIMIT: RateLimit = RateLimit::new();
    if was_followed {
        let Some(suppressed) = LIMIT.admit() else {
            return;
        };
        tracing::warn!(target: TARGET, %error, suppressed, "fleet engine lost: this node keeps the bounds of a single node");
    } else {
        tracing::debug!(target: TARGET, %error, "fleet engine unavailable");
    }
}

pub(crate) fn new_epoch() {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(suppressed) = LIMIT.admit() {
        tracing::warn!(target: TARGET, suppressed, "fleet engine lost data or was replaced: cached keys are verified again");
    }
}

pub(crate) fn updates_missing() {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(suppressed) = LIMIT.admit() {
        tracing::warn!(target: TARGET, suppressed, "fleet updates missing: cached keys are verified again");
    }
}

/// Not limited in rate: a node compares blocks when it joins an epoch, and every 10 s at most.
pub(crate) fn blocks_restored<'a>(blocks: impl Iterator<Item = &'a Subject>) {
    let (mut secrets, mut key_ids, mut organizations) = (0_usize, 0_usize, 0_usize);
    for subject in blocks {
        match subject {
            Subject::Key(_) => secrets += 1,
            Subject::KeyId(_) => key_ids += 1,
            Subject::Org(_) => organizations += 1,
        }
    }
    if secrets + key_ids + organizations > 0 {
        tracing::warn!(
            target: TARGET, secrets, key_ids, organizations,
            "fleet blocks restored: the engine did not have them"
        );
    }
}

pub(crate) fn update_rejected() {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(suppressed) = LIMIT.admit() {
        tracing::error!(
            target: TARGET, suppressed,
            "fleet update not applied: the engine returned a changed entry, a node has another secret, or too much is blocked here"
        );
    }
}

pub(crate) fn clock_differs(differs: bool) {
    if differs {
        tracing::error!(target: TARGET, "wall clock differs from the fleet: results are not shared");
    } else {
        tracing::info!(target: TARGET, "wall clock agrees with the fleet");
    }
}

/// Sets the gauges.
pub(crate) fn report(status: &FleetStatus) {
    #[cfg(feature = "metrics")]
    {
        // Exact below 2^53.
        #[allow(clippy::cast_precision_loss)]
        let set = |name: &'static str, value: u64| metrics::gauge!(name).set(value as f64);
        set(FOLLOWED, u64::from(status.is_followed()));
        set(LAG, status.lag);
        set(POSITION, status.position);
        set(NODES, status.nodes.len() as u64);
        set(UNSENT, status.unsent as u64);
    }
    #[cfg(not(feature = "metrics"))]
    let _ = status;
}

pub(crate) fn no_layer() {
    tracing::error!(target: TARGET, "fleet not followed: no layer has joined it; call `ApiKeyLayerBuilder::fleet`");
}

pub(crate) fn runs_twice() {
    tracing::error!(target: TARGET, "fleet is followed already: `Fleet::run` was called twice");
}

pub(crate) fn not_left(error: &EngineError) {
    tracing::warn!(target: TARGET, %error, "fleet not left: other nodes wait for this one for the hard TTL");
}
