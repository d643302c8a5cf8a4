//! Whether requests should be sent to this gateway.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tower_orgkey_fleet::Fleet;

/// How long a gateway that starts waits for the blocks of its fleet. It then is ready without them, because it works without the
/// engine.
const BLOCKS: Duration = Duration::from_secs(10);

/// How often it looks whether they were read.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Keys that are blocked in the fleet may be accepted.
    Starting,
    Ready,
    Stopping,
}

/// Makes a gateway ready once its fleet has read the blocks.
pub(super) async fn become_ready(fleet: Fleet, readiness: watch::Sender<Readiness>) {
    let blocks_read = async {
        while !fleet.status().has_read_blocks {
            sleep(LOOK_EVERY).await;
        }
    };
    if timeout(BLOCKS, blocks_read).await.is_err() {
        tracing::warn!("gateway is ready without the blocks of the fleet");
    }
    readiness.send_if_modified(|readiness| {
        let is_starting = *readiness == Readiness::Starting;
        if is_starting {
            *readiness = Readiness::Ready;
        }
        is_starting
    });
}
