//! Stripe's clock, as its replies show it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::Instant;

use super::MAX_AGE;
use crate::http_meter::HttpReply;
use crate::wall_clock::WallClock;

/// If the wall clock and the monotonic one differ by more since a reply, the machine was suspended or its clock was set.
const MAX_DIFFERENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct StripeClock {
    wall: WallClock,
    shown: Mutex<Option<Shown>>,
}

#[derive(Clone, Copy, Debug)]
struct Shown {
    /// In seconds since the Unix epoch.
    time: u64,
    /// When it was shown, by the wall clock.
    wall: u64,
    at: Instant,
}

impl Shown {
    /// Whether it is unknown how long ago this was.
    fn is_stale(&self, wall: u64) -> bool {
        let passed = Duration::from_secs(wall.saturating_sub(self.wall));
        wall < self.wall.saturating_sub(MAX_DIFFERENCE.as_secs())
            || passed.abs_diff(self.at.elapsed()) > MAX_DIFFERENCE
    }
}

impl StripeClock {
    pub(super) fn new(wall: WallClock) -> Self {
        let shown = Mutex::default();
        Self { wall, shown }
    }

    /// Notes the time of a reply, unless events of this time would be too old.
    pub(super) fn note(&self, reply: &HttpReply) {
        let time = reply.date();
        let time = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let wall = self.wall.seconds();
        let time = time.map(|time| time.as_secs());
        let time = time.filter(|time| time.saturating_add(MAX_AGE.as_secs()) > wall);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(time) = time {
            let at = Instant::now();
            *shown = Some(Shown { time, wall, at });
        } else if shown.is_some_and(|shown| shown.is_stale(wall)) {
            *shown = None;
        }
    }

    fn shown(&self) -> Option<Shown> {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the last reply with a time no longer shows Stripe's time.
    pub(super) fn is_stale(&self) -> bool {
        let wall = self.wall.seconds();
        self.shown().is_some_and(|shown| shown.is_stale(wall))
    }

    /// Returns the time by which no event is in the future, in seconds since the Unix epoch: the earlier one of the wall clock and
    /// Stripe's clock, if that is known.
    pub(super) fn now(&self) -> u64 {
        let wall = self.wall.seconds();
        let shown = self.shown().filter(|shown| !shown.is_stale(wall));
        shown.map_or(wall, |shown| {
            wall.min(shown.time.saturating_add(shown.at.elapsed().as_secs()))
        })
    }
}
