//! Events and metrics of the outcome of requests.

use tracing::level_filters::LevelFilter;

use crate::context::OrgContext;
use crate::rejection::Rejection;
use crate::telemetry::TARGET;
#[cfg(feature = "metrics")]
use crate::telemetry::{REQUESTS, SERVED_AGE};

/// Emits that a request is allowed.
#[inline]
pub(super) fn allowed(context: &OrgContext) {
    // The cheap half of the event's condition. The other half needs registers that each hit would have to save.
    if LevelFilter::current() >= LevelFilter::DEBUG {
        emit_allowed(context);
    }
    observe!(SERVED_AGE, context.age());
}

/// Kept out of line so that the hit path stays small.
#[cold]
#[inline(never)]
fn emit_allowed(context: &OrgContext) {
    tracing::debug!(
        target: TARGET,
        outcome = "allowed",
        org_code = %context.org_code(),
        key_id = context.key_id().map(tracing::field::display),
        age = ?context.age(),
        "request allowed"
    );
}

/// Counts the outcome of a request, when it has its response.
pub(super) fn responded(outcome: Outcome<'_>) {
    let outcome = match outcome {
        Outcome::Allowed => "allowed",
        Outcome::Anonymous => "anonymous",
        Outcome::OtherCredential => "other-credential",
        Outcome::Rejected(rejection) => {
            tracing::debug!(target: TARGET, outcome = rejection.code(), "request rejected");
            // The kind of a custom rejection, so that the label is bounded.
            rejection.kind().code()
        }
    };
    count!(REQUESTS, "outcome" = outcome;
        "allowed" "anonymous" "other-credential" "credential-missing" "credential-malformed" "invalid-token"
        "organization-required" "insufficient-scope" "organization-mismatch" "not-found" "wrong-region"
        "region-unknown" "verifier-unavailable"
        "verifier-misconfigured" "rate-limited" "concurrency-limited" "settings-unavailable" "internal" "custom");
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome<'a> {
    Allowed,
    Anonymous,
    OtherCredential,
    Rejected(&'a Rejection),
}

#[cfg(test)]
mod tests {
    use crate::rejection::RejectionKind;

    #[test]
    fn every_kind_of_rejection_is_a_label() {
        let (_, labels) = include_str!("telemetry.rs")
            .split_once("count!(REQUESTS")
            .unwrap();
        let (labels, _) = labels.split_once(");").unwrap();
        for kind in RejectionKind::ALL {
            let label = format!("\"{}\"", kind.code());
            assert!(labels.contains(&label), "{label}");
        }
    }
}
