//! Events and metrics of a cache and of the calls behind it.

use std::error::Error;
use std::time::Duration;

#[cfg(feature = "settings")]
use super::settings;
#[cfg(feature = "metrics")]
use super::{BREAKER, ENTRIES, IN_FLIGHT, ISSUER_CALLS, ISSUER_LATENCY, THROTTLED, WAITING};
use super::{RateLimitedLog, TARGET};
use crate::upstream::{BreakerState, Circuit};
use crate::verify::{Answer, Invalid, Verification, VerifyError, VerifyErrorKind};

/// The component that an event is about.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Component {
    /// The verifier of keys.
    #[default]
    Issuer,
    /// The loader of settings of this type.
    #[cfg(feature = "settings")]
    Settings(&'static str),
}

/// Emits one verification.
pub(crate) fn issuer_called(outcome: &Result<Verification, VerifyError>, took: Duration) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    let result = match outcome {
        Ok(verification) => match verification.answer {
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

/// Emits that many known keys were rejected and no answer shows that the issuer is right.
pub(crate) fn unconfirmed_invalid_answers(keys: usize) {
    tracing::error!(
        target: TARGET,
        keys,
        "issuer rejects known keys and answers no other key: known keys are kept up to the hard TTL"
    );
}

/// Sets the number of cached results.
pub(crate) fn entries(component: Component, number: usize) {
    match component {
        Component::Issuer => {
            set!(ENTRIES, number);
        }
        #[cfg(feature = "settings")]
        Component::Settings(of) => settings::entries(of, number),
    }
}

/// Sets the numbers of calls in flight and of lookups that wait.
pub(crate) fn occupied(component: Component, calls: usize, waiting: usize) {
    match component {
        Component::Issuer => {
            set!(IN_FLIGHT, calls);
            set!(WAITING, waiting);
        }
        #[cfg(feature = "settings")]
        Component::Settings(of) => settings::occupied(of, calls, waiting),
    }
}

/// Sets the state of a circuit: 0 closed, 1 half open, 2 open.
pub(crate) fn breaker_state(component: Component, circuit: Circuit, state: BreakerState) {
    let state = match state {
        BreakerState::Closed => 0_u8,
        BreakerState::HalfOpen => 1,
        BreakerState::Open { .. } => 2,
    };
    match component {
        Component::Issuer => {
            #[cfg(feature = "metrics")]
            metrics::gauge!(BREAKER, "circuit" => circuit.name()).set(f64::from(state));
            #[cfg(not(feature = "metrics"))]
            let _ = (circuit, state);
        }
        #[cfg(feature = "settings")]
        Component::Settings(of) => settings::breaker_state(of, circuit, state),
    }
}

pub(crate) fn breaker_opened(component: Component, circuit: Circuit, open_for: Duration) {
    match component {
        Component::Issuer => {
            let circuit = circuit.name();
            tracing::warn!(target: TARGET, circuit, ?open_for, "circuit breaker opened");
        }
        #[cfg(feature = "settings")]
        Component::Settings(of) => settings::breaker_opened(of, circuit, open_for),
    }
}

/// Emits that the half-open circuit lets one call through.
pub(crate) fn breaker_tries(component: Component, circuit: Circuit) {
    match component {
        Component::Issuer => {
            let circuit = circuit.name();
            tracing::info!(target: TARGET, circuit, "circuit breaker half open");
        }
        #[cfg(feature = "settings")]
        Component::Settings(of) => settings::breaker_tries(of, circuit),
    }
}

pub(crate) fn breaker_closed(component: Component, circuit: Circuit) {
    match component {
        Component::Issuer => {
            let circuit = circuit.name();
            tracing::info!(target: TARGET, circuit, "circuit breaker closed");
        }
        #[cfg(feature = "settings")]
        Component::Settings(of) => settings::breaker_closed(of, circuit),
    }
}

/// Emits that the issuer answered 429.
pub(crate) fn throttled(component: Component, pause: Duration) {
    match component {
        Component::Issuer => {
            #[cfg(feature = "metrics")]
            metrics::counter!(THROTTLED).increment(1);
            tracing::warn!(target: TARGET, ?pause, "issuer asks for fewer calls");
        }
        #[cfg(feature = "settings")]
        Component::Settings(of) => settings::throttled(of, pause),
    }
}
