//! What a request found, how it ended, and what its route lacks.

use orgkey_lookup::Found;
use tracing::level_filters::LevelFilter;

#[cfg(feature = "metrics")]
use super::{LOOKUPS, REQUESTS, SERVED_AGE};
use super::{RateLimitedLog, TARGET};
use crate::context::OrgContext;
use crate::rejection::Rejection;

/// A request was let through.
#[inline]
pub(crate) fn allowed(context: &OrgContext) {
    // The cheap half of the event's own condition. The other half needs registers, which a hit then has to save.
    if LevelFilter::current() >= LevelFilter::DEBUG {
        tell_allowed(context);
    }
    observe!(SERVED_AGE, context.age());
}

/// Apart from its condition, which every request asks and hardly any fulfils.
#[cold]
#[inline(never)]
fn tell_allowed(context: &OrgContext) {
    tracing::debug!(
        target: TARGET,
        outcome = "allowed",
        org_code = %context.org_code(),
        key_id = context.key_id().map(tracing::field::display),
        age = ?context.age(),
        "request judged"
    );
}

/// A request was answered: refused, here or beneath the layer, or by the inner service.
pub(crate) fn answered(outcome: Outcome<'_>) {
    let outcome = match outcome {
        Outcome::Allowed => "allowed",
        Outcome::Anonymous => "anonymous",
        Outcome::Refused(rejection) => {
            tracing::debug!(target: TARGET, outcome = rejection.code(), "request judged");
            // Of custom rejections the kind, so that the label stays bounded.
            rejection.kind().code()
        }
    };
    count!(REQUESTS, "outcome" = outcome;
        "allowed" "anonymous" "credential-missing" "credential-malformed" "invalid-token" "organization-required"
        "insufficient-scope" "organization-mismatch" "not-found" "verifier-unavailable" "verifier-misconfigured"
        "rate-limited" "concurrency-limited" "settings-unavailable" "internal" "custom");
}

/// How a request ended, as far as the layer is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome<'a> {
    Allowed,
    Anonymous,
    Refused(&'a Rejection),
}

/// A request looked for its key.
pub(crate) fn looked_up(found: Found) {
    let result = match found {
        Found::Fresh => "fresh",
        Found::Stale => "stale",
        Found::Invalid => "refused",
        Found::Miss => "asked",
    };
    count!(LOOKUPS, "result" = result; "fresh" "stale" "refused" "asked");
}

/// A guard or extractor was reached without the layer: 500 to the caller, and the fix to the operator.
pub(crate) fn layer_missing(who_asks: &str) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    if let Some(left_out) = LOG.admit() {
        tracing::error!(
            target: TARGET,
            who_asks,
            left_out,
            "refused with 500: no `ApiKeyLayer` stands in front of this route; add it with `.route_layer(auth)` after the \
             route and its guards"
        );
    }
}

/// A context was asked to verify its key again, and its layer does not keep keys.
pub(crate) fn key_not_kept(method: &'static str) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    if let Some(suppressed) = LOG.admit() {
        tracing::error!(
            target: TARGET,
            method,
            suppressed,
            "key not kept: set `ApiKeyLayerBuilder::revalidation(true)`"
        );
    }
}

/// `require_org` names a parameter that the route does not have.
#[cfg(feature = "axum")]
pub(crate) fn parameter_missing(parameter: &str) {
    static LOG: RateLimitedLog = RateLimitedLog::new();
    if let Some(left_out) = LOG.admit() {
        tracing::error!(
            target: TARGET,
            parameter,
            left_out,
            "refused with 500: `require_org` names a path parameter that this route does not have"
        );
    }
}
