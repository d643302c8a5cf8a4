//! Events and metrics of the cache of keys and of the calls to the issuer.

use std::error::Error;
use std::time::Duration;

use orgkey_lookup::Label;

#[cfg(feature = "metrics")]
use super::{BREAKER, ENTRIES, IN_FLIGHT, ISSUER_CALLS, ISSUER_LATENCY, THROTTLED, WAITING};
use super::{RateLimitedLog, TARGET};

/// Returns a metric, with the label `issuer` if the issuer has a name.
#[cfg(feature = "metrics")]
macro_rules! of_issuer {
    ($kind:ident, $name:expr, $issuer:expr $(, $label:literal => $value:expr)*) => {
        if $issuer.is_empty() {
            metrics::$kind!($name $(, $label => $value)*)
        } else {
            metrics::$kind!($name $(, $label => $value)*, "issuer" => Label::clone($issuer))
        }
    };
}

/// Returns the name of an issuer, for events.
fn name(issuer: &Label) -> Option<&str> {
    (!issuer.is_empty()).then_some(&**issuer)
}

/// Emits one verification.
pub(crate) fn issuer_called(
    issuer: &Label,
    result: &'static str,
    error: Option<&dyn Error>,
    took: Duration,
) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    let cause = error.and_then(causes);
    let name = name(issuer);
    tracing::debug!(target: TARGET, issuer = name, result, cause, ?took, "verification finished");
    #[cfg(feature = "metrics")]
    {
        of_issuer!(counter, ISSUER_CALLS, issuer, "result" => result).increment(1);
        of_issuer!(histogram, ISSUER_LATENCY, issuer).record(took.as_secs_f64());
    }
    if let Some(error) = error
        && let Some(suppressed) = LOG.admit()
    {
        tracing::warn!(target: TARGET, issuer = name, %error, cause, result, suppressed, "verification failed");
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
pub(crate) fn unconfirmed_invalid_answers(issuer: &Label, keys: usize) {
    tracing::error!(
        target: TARGET,
        issuer = name(issuer),
        keys,
        "issuer rejects known keys and answers no other key: known keys are kept up to the hard TTL"
    );
}

/// Sets the number of cached results.
pub(crate) fn entries(number: usize) {
    set!(ENTRIES, number);
}

/// Sets the numbers of calls in flight and of lookups that wait.
pub(crate) fn occupied(issuer: &Label, calls: usize, waiting: usize) {
    #[cfg(feature = "metrics")]
    {
        // Exact: at most 64 calls and 8,192 lookups.
        #[allow(clippy::cast_precision_loss)]
        let (calls, waiting) = (calls as f64, waiting as f64);
        of_issuer!(gauge, IN_FLIGHT, issuer).set(calls);
        of_issuer!(gauge, WAITING, issuer).set(waiting);
    }
    #[cfg(not(feature = "metrics"))]
    let _ = (issuer, calls, waiting);
}

/// Sets the state of a circuit: 0 closed, 1 half open, 2 open.
pub(crate) fn breaker_state(issuer: &Label, circuit: &'static str, state: u8) {
    #[cfg(feature = "metrics")]
    of_issuer!(gauge, BREAKER, issuer, "circuit" => circuit).set(f64::from(state));
    #[cfg(not(feature = "metrics"))]
    let _ = (issuer, circuit, state);
}

pub(crate) fn breaker_opened(issuer: &Label, circuit: &str, open_for: Duration) {
    tracing::warn!(target: TARGET, issuer = name(issuer), circuit, ?open_for, "circuit breaker opened");
}

/// Emits that the half-open circuit lets one call through.
pub(crate) fn breaker_tries(issuer: &Label, circuit: &str) {
    tracing::info!(target: TARGET, issuer = name(issuer), circuit, "circuit breaker half open");
}

pub(crate) fn breaker_closed(issuer: &Label, circuit: &str) {
    tracing::info!(target: TARGET, issuer = name(issuer), circuit, "circuit breaker closed");
}

/// Emits that the issuer answered 429.
pub(crate) fn throttled(issuer: &Label, pause: Duration) {
    #[cfg(feature = "metrics")]
    of_issuer!(counter, THROTTLED, issuer).increment(1);
    tracing::warn!(target: TARGET, issuer = name(issuer), ?pause, "issuer asks for fewer calls");
}
