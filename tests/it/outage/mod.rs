//! Outages of the issuer on the paused clock: the responses to callers, and the calls to the issuer.
//!
//! Tests named `fault_…` carry the number of their row in `tests/FAULTS.md`; each asserts that its fault was injected.

// The lints do not recognize shared functions of tests as tests; their clock only moves forward.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::unchecked_time_subtraction,
    clippy::too_many_lines
)]

mod ages;
mod dead_issuer;
mod handle;
mod invalid_keys;
mod isolation;
mod issuers;
mod max_age;
mod pressure;
mod revalidate;
mod revoked;
mod shutdown;
mod throttled;
mod until_invalid;
