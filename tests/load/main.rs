//! Floods, outages simulated over hours, and races on real threads: what takes long, or needs a process without other tests.
//!
//! `TOWER_ORGKEY_FULL=1` in the environment runs ten times the requests and races.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

mod limit_flood;
mod outage_simulation;
mod races;
mod settings_races;
