//! The end of a session with the engine.

use crate::engine::EngineError;

/// Why a node stops to follow a session.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The engine lost data, or another server answers.
    NewEpoch,
    Failed(EngineError),
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Self::Failed(error)
    }
}
