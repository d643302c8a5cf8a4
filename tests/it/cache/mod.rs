//! The cache, through the layer, on a paused clock: what is cached, for how long, and how many calls are made.

#![allow(clippy::unchecked_time_subtraction)] // Written out, bounds are easier to compare with the documented ones.

mod blocked;
mod decisions;
mod in_flight;
mod invalid_keys;
mod runtimes;
mod staleness;

use std::time::Duration;

use tower_orgkey::test_util::TestClock;
use tower_orgkey::{ApiKeyLayer, ApiKeyLayerBuilder, RejectionKind, Verifier};

use crate::support::service::{Outcome, settle};

const ONE: &str = "k_test_one_0123456789";
const TWO: &str = "k_test_two_0123456789";
const NEW: &str = "k_test_new_0123456789";
const BAD: &str = "k_test_bad_0123456789";

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A builder with a test clock.
fn builder(verifier: impl Verifier) -> (ApiKeyLayerBuilder, TestClock) {
    let clock = TestClock::new();
    let builder = ApiKeyLayer::builder(verifier).test_clock(clock.clone());
    (builder, clock)
}

fn layer(verifier: impl Verifier) -> (ApiKeyLayer, TestClock) {
    let (builder, clock) = builder(verifier);
    (builder.build().unwrap(), clock)
}

fn rejected() -> Outcome {
    Outcome::Rejected(RejectionKind::InvalidToken)
}

fn unavailable() -> Outcome {
    Outcome::Rejected(RejectionKind::VerifierUnavailable)
}
