//! Events and metrics of the cache of keys and of the calls to the issuer.

use std::error::Error;
use std::time::Duration;

use orgkey_lookup::{Answer, Answered, BreakerState, Circuit, Found, Invalid, Label, Telemetry};

use super::ApiKeys;
use crate::key::ApiKey;
use crate::telemetry::{self, RateLimitedLog, TARGET};
#[cfg(feature = "metrics")]
use crate::telemetry::{
    BREAKER, ENTRIES, IN_FLIGHT, ISSUER_CALLS, ISSUER_LATENCY, THROTTLED, WAITING,
};
use crate::verify::{Facts, VerifyError, VerifyErrorKind};

/// Events and metrics about the issuer.
#[derive(Debug)]
pub(crate) struct IssuerTelemetry;

impl Telemetry<ApiKeys> for IssuerTelemetry {
    const HAS_GAUGES: bool = cfg!(feature = "metrics");

    #[inline]
    fn looked_up(found: Found) {
        telemetry::looked_up(found);
    }

    fn entries(number: usize) {
        set!(ENTRIES, number);
    }

    fn called(
        _: &Label,
        _: &ApiKey,
        outcome: &Result<Answered<Facts>, VerifyError>,
        took: Duration,
    ) {
        static LOG: RateLimitedLog = RateLimitedLog::new();
        let result = match outcome {
            Ok(answered) => match answered.answer {
                Answer::Valid(_) => "valid",
                Answer::Invalid(Invalid::Undecided { .. }) => "undecided",
                Answer::Invalid(_) => "invalid",
            },
            Err(error) => match error.kind() {
                VerifyErrorKind::Unavailable => "unavailable",
                VerifyErrorKind::Throttled { .. } => "throttled",
                VerifyErrorKind::InvalidResponse => "invalid_response",
                VerifyErrorKind::Inconclusive => "inconclusive",
                VerifyErrorKind::Misconfigured => "misconfigured",
            },
        };
        let cause = outcome.as_ref().err().and_then(causes);
        tracing::debug!(target: TARGET, result, cause, ?took, "verification finished");
        count!(ISSUER_CALLS, "result" = result;
            "valid" "invalid" "undecided" "unavailable" "throttled" "invalid_response" "inconclusive" "misconfigured");
        observe!(ISSUER_LATENCY, took);
        if let Err(error) = outcome
            && let Some(suppressed) = LOG.admit()
        {
            tracing::warn!(target: TARGET, %error, cause, result, suppressed, "verification failed");
        }
    }

    fn occupied(_: &Label, calls: usize, waiting: usize) {
        set!(IN_FLIGHT, calls);
        set!(WAITING, waiting);
    }

    fn breaker_state(_: &Label, circuit: Circuit, state: BreakerState) {
        #[cfg(feature = "metrics")]
        metrics::gauge!(BREAKER, "circuit" => circuit.name()).set(f64::from(state.as_gauge()));
        #[cfg(not(feature = "metrics"))]
        let _ = (circuit, state);
    }

    fn breaker_opened(_: &Label, circuit: Circuit, open_for: Duration) {
        let circuit = circuit.name();
        tracing::warn!(target: TARGET, circuit, ?open_for, "circuit breaker opened");
    }

    fn breaker_tries(_: &Label, circuit: Circuit) {
        let circuit = circuit.name();
        tracing::info!(target: TARGET, circuit, "circuit breaker half open");
    }

    fn breaker_closed(_: &Label, circuit: Circuit) {
        let circuit = circuit.name();
        tracing::info!(target: TARGET, circuit, "circuit breaker closed");
    }

    fn throttled(_: &Label, pause: Duration) {
        #[cfg(feature = "metrics")]
        metrics::counter!(THROTTLED).increment(1);
        tracing::warn!(target: TARGET, ?pause, "issuer asks for fewer calls");
    }

    fn unconfirmed_invalid_answers(_: &Label, keys: usize) {
        tracing::error!(
            target: TARGET,
            keys,
            "issuer rejects known keys and answers no other key: known keys are kept up to the hard TTL"
        );
    }
}

/// Returns the sources of an error, joined by colons. Many subscribers show an error without its sources.
fn causes(error: &VerifyError) -> Option<String> {
    let mut causes = error.source()?.to_string();
    let mut source = error.source()?.source();
    while let Some(error) = source {
        causes = format!("{causes}: {error}");
        source = error.source();
    }
    Some(causes)
}
