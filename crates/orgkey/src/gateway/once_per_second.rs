//! Limits a message that each request could cause.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// True once per second.
#[derive(Debug, Default)]
pub(super) struct OncePerSecond(AtomicU64);

impl OncePerSecond {
    pub(super) fn first(&self) -> bool {
        let second = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |age| age.as_secs());
        self.0.swap(second, Ordering::Relaxed) != second
    }
}
