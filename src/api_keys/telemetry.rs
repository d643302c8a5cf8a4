//! Events and metrics of the cache of keys and of the calls to the issuer.

use std::error::Error;
use std::time::Duration;

#[cfg(feature = "metrics")]
use super::{BREAKER, ENTRIES, IN_FLIGHT, ISSUER_CALLS, ISSUER_LATENCY, THROTTLED, WAITING};
use super::{RateLimitedLog, TARGET};

/// Emits one verification.
pub(crate) fn issuer_called(result: &'static str, error: Option<&dyn Error>, took: Duration) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    let cause = error.and_then(causes);
    tracing::debug!(target: TARGET, result, cause, ?took, "verification finished");
    count!(ISSUER_CALLS, "result" = result;
        "valid" "invalid" "undecided" "unavailable" "throttled" "invalid_response" "inconclusive" "misconfigured");
    observe!(ISSUER_LATENCY, took);
    if let Some(error) = error
        && let Some(suppressed) = LOG.admit()
    {
        tracing::warn!(target: TARGET, %error, cause, result, suppressed, "verification failed");
    }
}

/// Returns the sources of an error, joined by colons. Many subscribers show an error without its sources.
fn causes(error: &dyn Error) -> Option<String> {
    let mut causes = error.source()?.to_string();
    let mut source = error.source()?.source();
    while let Some(error) = source {
        causes = format!("{causes}: {error}");
        source = error.source();
    }
    Some(causes)
}

/// Emits that many known keys were rejected and no answer shows that the issuer is right.
pub(crate) fn unconfirmed_invalid_answers(keys: usize) {
    tracing::error!(
        target: TARGET,
        keys,
        "issuer rejects known keys and answers no other key: known keys are kept up to the hard TTL"
    );
}

/// Sets the number of cached results.
pub(crate) fn entries(number: usize) {
    set!(ENTRIES, number);
}

/// Sets the numbers of calls in flight and of lookups that wait.
pub(crate) fn occupied(calls: usize, waiting: usize) {
    set!(IN_FLIGHT, calls);
    set!(WAITING, waiting);
}

/// Sets the state of a circuit: 0 closed, 1 half open, 2 open.
pub(crate) fn breaker_state(circuit: &'static str, state: u8) {
    #[cfg(feature = "metrics")]
    metrics::gauge!(BREAKER, "circuit" => circuit).set(f64::from(state));
    #[cfg(not(feature = "metrics"))]
    let _ = (circuit, state);
}

pub(crate) fn breaker_opened(circuit: &str, open_for: Duration) {
    tracing::warn!(target: TARGET, circuit, ?open_for, "circuit breaker opened");
}

/// Emits that the half-open circuit lets one call through.
pub(crate) fn breaker_tries(circuit: &str) {
    tracing::info!(target: TARGET, circuit, "circuit breaker half open");
}

pub(crate) fn breaker_closed(circuit: &str) {
    tracing::info!(target: TARGET, circuit, "circuit breaker closed");
}

/// Emits that the issuer answered 429.
pub(crate) fn throttled(pause: Duration) {
    #[cfg(feature = "metrics")]
    metrics::counter!(THROTTLED).increment(1);
    tracing::warn!(target: TARGET, ?pause, "issuer asks for fewer calls");
}
