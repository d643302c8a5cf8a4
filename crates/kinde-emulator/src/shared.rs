//! What the handle, the server and every connection share.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::calls::{Calls, SeenRequest};
use super::endpoint::Endpoint;
use super::fault::Faults;
use super::issuer::Issuer;

/// The issuer, what goes wrong and what was seen, and the word when one of them changes.
pub(super) struct Shared {
    world: Mutex<World>,
    /// A call has arrived.
    pub(super) arrived: Notify,
    /// Faults were injected or cleared.
    pub(super) faults_changed: Notify,
    pub(super) mode: watch::Sender<Mode>,
}

/// What changes from call to call.
#[derive(Debug)]
pub(super) struct World {
    pub(super) issuer: Issuer,
    pub(super) faults: Faults,
    pub(super) calls: Calls,
    pub(super) seen: [Option<SeenRequest>; Endpoint::ALL.len()],
}

/// Whether connections are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Up,
    /// Connections are closed at once.
    Outage,
    /// The server stops.
    Stopping,
    Stopped,
}

impl Shared {
    pub(super) fn new(issuer: Issuer) -> Self {
        Self {
            world: Mutex::new(World {
                issuer,
                faults: Faults::default(),
                calls: Calls::default(),
                seen: Default::default(),
            }),
            arrived: Notify::new(),
            faults_changed: Notify::new(),
            mode: watch::Sender::new(Mode::Up),
        }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        // A user's `rewrite` runs outside of the lock, and what runs inside leaves nothing half-done.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("mode", &*self.mode.borrow())
            .finish_non_exhaustive()
    }
}
