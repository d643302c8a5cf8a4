//! The state of a node, for status pages and readiness probes.

use std::time::Duration;

/// Whether a node follows the engine's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FleetState {
    /// Updates of other nodes arrive, and results are shared.
    Followed,
    /// The engine was never reached, or did not answer for 3 s. This node keeps the bounds of a single node.
    NotFollowed,
}

/// The state of a node in its fleet. Returned by [`Fleet::status`](crate::Fleet::status).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FleetStatus {
    /// Whether this node follows the engine's log.
    pub state: FleetState,
    /// How long it has been in this state.
    pub since: Duration,
    /// Whether this node has read the blocks of the fleet since it started. Until then it accepts keys that are blocked on the other
    /// nodes.
    pub has_read_blocks: bool,
    /// The number of the last update that was applied. Numbers begin again when the engine loses its data.
    pub position: u64,
    /// How many updates the engine has that this node has not applied.
    pub lag: u64,
    /// The names of the known nodes, this one first.
    pub nodes: Vec<String>,
    /// The number of updates of this node that wait for the engine.
    pub unsent: usize,
    /// Whether the wall clock of this node differs from those of the others. Then results are not shared.
    pub clock_differs: bool,
    /// How often updates may have been missing: the engine lost data or was replaced.
    pub gaps: u64,
    /// How many values of the engine were rejected: changed, moved, or of another fleet.
    pub rejected: u64,
    /// How many verifications were taken from other nodes.
    pub fetched: u64,
    /// How many verifications the engine did not store: it failed, or its ACL denies `SET`.
    pub not_stored: u64,
}

impl FleetStatus {
    /// Returns whether this node follows the engine's log.
    pub fn is_followed(&self) -> bool {
        self.state == FleetState::Followed
    }
}
