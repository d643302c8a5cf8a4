//! What a cache and what stands before its verifier tell, and whom they speak of.

use std::error::Error;
use std::time::Duration;

#[cfg(feature = "settings")]
use super::settings;
#[cfg(feature = "metrics")]
use super::{BREAKER, ENTRIES, IN_FLIGHT, ISSUER_CALLS, ISSUER_LATENCY, THROTTLED, WAITING};
use super::{Flood, TARGET};
use crate::verify::{Answer, Invalid, Verification, VerifyError, VerifyErrorKind};

/// Whom a cache and what stands before its verifier speak of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Voice {
    /// The issuer, and its keys.
    #[default]
    Issuer,
    /// The loader of settings of this type, and the organizations they are of.
    #[cfg(feature = "settings")]
    Settings(&'static str),
}

/// A call to the verifier has ended.
pub(crate) fn issuer_called(outcome: &Result<Verification, VerifyError>, took: Duration) {
    static FLOOD: Flood = Flood::new();
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
    tracing::debug!(target: TARGET, result, cause, ?took, "asked the issuer");
    count!(ISSUER_CALLS, "result" = result; "valid" "invalid" "undecided" "unavailable" "throttled" "invalid_response" "inconclusive" "misconfigured");
    observe!(ISSUER_LATENCY, took);
    if let Err(error) = outcome
        && let Some(left_out) = FLOOD.admit()
    {
        tracing::warn!(target: TARGET, %error, cause, left_out, "the issuer gave no answer");
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

/// Too many known keys were refused, and nothing shows that the issuer works.
pub(crate) fn refusals_not_believed() {
    static FLOOD: Flood = Flood::new();
    if let Some(left_out) = FLOOD.admit() {
        tracing::error!(
            target: TARGET,
            left_out,
            "the issuer refuses known keys one after another and confirms none: its refusals are taken for a fault of its \
             own, and the keys are kept"
        );
    }
}

/// The number of good keys held has changed.
pub(crate) fn entries(voice: Voice, number: usize) {
    match voice {
        Voice::Issuer => {
            set!(ENTRIES, number);
        }
        #[cfg(feature = "settings")]
        Voice::Settings(of) => settings::entries(of, number),
    }
}

/// The number of calls under way, or of those that wait, has changed.
pub(crate) fn occupied(voice: Voice, calls: usize, waiting: usize) {
    match voice {
        Voice::Issuer => {
            set!(IN_FLIGHT, calls);
            set!(WAITING, waiting);
        }
        #[cfg(feature = "settings")]
        Voice::Settings(of) => settings::occupied(of, calls, waiting),
    }
}

/// The breaker opened.
pub(crate) fn breaker_opened(voice: Voice, open_for: Duration) {
    match voice {
        Voice::Issuer => {
            set!(BREAKER, 2_usize);
            tracing::warn!(
                target: TARGET,
                ?open_for,
                "the issuer fails: known keys are served from what is held, unknown ones get 503"
            );
        }
        #[cfg(feature = "settings")]
        Voice::Settings(of) => settings::breaker_opened(of, open_for),
    }
}

/// The breaker lets one call through.
pub(crate) fn breaker_probes(voice: Voice) {
    match voice {
        Voice::Issuer => {
            set!(BREAKER, 1_usize);
            tracing::info!(target: TARGET, "trying the issuer again");
        }
        #[cfg(feature = "settings")]
        Voice::Settings(of) => settings::breaker_probes(of),
    }
}

/// The breaker closed.
pub(crate) fn breaker_closed(voice: Voice) {
    match voice {
        Voice::Issuer => {
            set!(BREAKER, 0_usize);
            tracing::info!(target: TARGET, "the issuer answers again");
        }
        #[cfg(feature = "settings")]
        Voice::Settings(of) => settings::breaker_closed(of),
    }
}

/// The issuer answered 429, and is left alone.
pub(crate) fn throttled(voice: Voice, pause: Duration) {
    match voice {
        Voice::Issuer => {
            #[cfg(feature = "metrics")]
            metrics::counter!(THROTTLED).increment(1);
            tracing::warn!(target: TARGET, ?pause, "the issuer asks for fewer calls");
        }
        #[cfg(feature = "settings")]
        Voice::Settings(of) => settings::throttled(of, pause),
    }
}
