//! The contract of `tower::Service`, and the auto traits of the public types.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test may fail on what it cannot do.

mod auto_traits;
mod hostile;
mod readiness;

const ONE: &str = "k_test_one_0123456789";
const TWO: &str = "k_test_two_0123456789";
const BAD: &str = "k_test_bad_0123456789";
