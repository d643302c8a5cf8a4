//! Stripe's clock, as its replies show it.

use std::sync::{Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use tokio::time::Instant;

use crate::http_meter::HttpReply;

#[derive(Debug, Default)]
pub(super) struct StripeClock(Mutex<Option<Shown>>);

#[derive(Clone, Copy, Debug)]
struct Shown {
    /// In seconds since the Unix epoch.
    time: u64,
    at: Instant,
}

impl StripeClock {
    /// Notes the time of a reply.
    pub(super) fn note(&self, reply: &HttpReply) {
        let time = reply.date();
        let time = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        if let Some(time) = time {
            let shown = Shown {
                time: time.as_secs(),
                at: Instant::now(),
            };
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        }
    }

    /// Returns Stripe's time in seconds since the Unix epoch. `None` before the first reply with a time.
    pub(super) fn seconds(&self) -> Option<u64> {
        let shown = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shown.map(|shown| shown.time.saturating_add(shown.at.elapsed().as_secs()))
    }
}
