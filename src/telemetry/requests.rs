//! Events and metrics of requests: what they found in the cache, their outcome, and what is missing on their route.

use orgkey_lookup::Found;
use tracing::level_filters::LevelFilter;

#[cfg(feature = "axum")]
use super::RateLimitedLog;
#[cfg(feature = "metrics")]
use super::{LOOKUPS, REQUESTS, SERVED_AGE};
use super::{RateLimitedLogs, TARGET};
use crate::context::OrgContext;
use crate::rejection::Rejection;

/// Emits that a request is allowed.
#[inline]
pub(crate) fn allowed(context: &OrgContext) {
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
pub(crate) fn responded(outcome: Outcome<'_>) {
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
        "organization-required" "insufficient-scope" "organization-mismatch" "not-found" "verifier-unavailable"
        "verifier-misconfigured" "rate-limited" "concurrency-limited" "settings-unavailable" "internal" "custom");
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome<'a> {
    Allowed,
    Anonymous,
    OtherCredential,
    Rejected(&'a Rejection),
}

/// Counts what a request found in the cache.
pub(crate) fn looked_up(found: Found) {
    let result = match found {
        Found::Fresh => "fresh",
        Found::Stale => "stale",
        Found::Invalid => "invalid",
        Found::Miss => "miss",
    };
    count!(LOOKUPS, "result" = result; "fresh" "stale" "invalid" "miss");
}

/// Emits that a request reached a guard or an extractor without the layer.
pub(crate) fn layer_missing(component: &'static str) {
    static LOGS: RateLimitedLogs = RateLimitedLogs::new();
    if let Some(suppressed) = LOGS.admit(component, "") {
        tracing::error!(
            target: TARGET,
            component,
            suppressed,
            "rejected with 500: no `ApiKeyLayer` outside of this route; add it with `.route_layer(auth)` after the route and \
             its guards"
        );
    }
}

/// Emits that `require_org` names a parameter that the route does not have.
#[cfg(feature = "axum")]
pub(crate) fn parameter_missing(parameter: &str) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    if let Some(suppressed) = LOG.admit() {
        tracing::error!(
            target: TARGET,
            parameter,
            suppressed,
            "rejected with 500: `require_org` names a path parameter that this route does not have"
        );
    }
}
