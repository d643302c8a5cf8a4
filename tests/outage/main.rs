//! The issuer's trouble, in paused time: what callers see, and what the issuer is asked meanwhile.
//!
//! Tests named `fault_…` carry the number of their row in `tests/FAULTS.md`; each asserts that its fault was injected.

// The lints know a test by its attribute, and not the functions that tests share; their clock only moves forward.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::unchecked_time_subtraction,
    clippy::too_many_lines
)]

mod ages;
mod dead_issuer;
mod handle;
mod junk;
mod kit;
mod max_age;
mod pressure;
mod revoked;
mod shutdown;
mod throttled;
mod until_invalid;
mod who_pays;
