//! Events and metrics of the cache of keys and of the calls to the issuer.

use std::time::Duration;

use orgkey_lookup::{Answer, Answered, BreakerState, Circuit, Found, Invalid, Label, Telemetry};

use super::ApiKeys;
use crate::key::ApiKey;
use crate::telemetry::{self, RateLimitedLog, TARGET, causes};
#[cfg(feature = "metrics")]
use crate::telemetry::{
    BREAKER, ENTRIES, IN_FLIGHT, ISSUER_CALLS, ISSUER_LATENCY, THROTTLED, WAITING,
};
use crate::verify::{Facts, VerifyError, VerifyErrorKind};

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
        issuer: &Label,
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
        let cause = outcome.as_ref().err().and_then(|error| causes(error));
        let name = name(issuer);
        tracing::debug!(target: TARGET, issuer = name, result, cause, ?took, "verification finished");
        #[cfg(feature = "metrics")]
        {
            of_issuer!(counter, ISSUER_CALLS, issuer, "result" => result).increment(1);
            of_issuer!(histogram, ISSUER_LATENCY, issuer).record(took.as_secs_f64());
        }
        if let Err(error) = outcome
            && let Some(suppressed) = LOG.admit()
        {
            tracing::warn!(target: TARGET, issuer = name, %error, cause, result, suppressed, "verification failed");
        }
    }

    fn occupied(issuer: &Label, calls: usize, waiting: usize) {
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

    fn breaker_state(issuer: &Label, circuit: Circuit, state: BreakerState) {
        #[cfg(feature = "metrics")]
        of_issuer!(gauge, BREAKER, issuer, "circuit" => circuit.name())
            .set(f64::from(state.as_gauge()));
        #[cfg(not(feature = "metrics"))]
        let _ = (issuer, circuit, state);
    }

    fn breaker_opened(issuer: &Label, circuit: Circuit, open_for: Duration) {
        let circuit = circuit.name();
        tracing::warn!(target: TARGET, issuer = name(issuer), circuit, ?open_for, "circuit breaker opened");
    }

    fn breaker_tries(issuer: &Label, circuit: Circuit) {
        let circuit = circuit.name();
        tracing::info!(target: TARGET, issuer = name(issuer), circuit, "circuit breaker half open");
    }

    fn breaker_closed(issuer: &Label, circuit: Circuit) {
        let circuit = circuit.name();
        tracing::info!(target: TARGET, issuer = name(issuer), circuit, "circuit breaker closed");
    }

    fn throttled(issuer: &Label, pause: Duration) {
        #[cfg(feature = "metrics")]
        of_issuer!(counter, THROTTLED, issuer).increment(1);
        tracing::warn!(target: TARGET, issuer = name(issuer), ?pause, "issuer asks for fewer calls");
    }

    fn unconfirmed_invalid_answers(issuer: &Label, keys: usize) {
        tracing::error!(
            target: TARGET,
            issuer = name(issuer),
            keys,
            "issuer rejects known keys and answers no other key: known keys are kept up to the hard TTL"
        );
    }
}
