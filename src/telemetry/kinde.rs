//! The events of the Kinde verifier. None is emitted while a lock is held.

use std::error::Error as _;

use super::TARGET;
use crate::verify::VerifyError;

/// The issuer's certificate is not trusted, so nothing was sent to it. Logged once until a connection succeeds.
pub(crate) fn certificate_refused(cause: &str) {
    tracing::error!(
        target: TARGET,
        security = true,
        cause,
        "the issuer's TLS certificate is refused: the connection may be intercepted, or a root certificate is missing"
    );
}

/// The token request failed for the first time, or for another reason than before.
pub(crate) fn token_fails(error: &VerifyError, code: Option<&'static str>) {
    let cause = error.source().map(ToString::to_string);
    tracing::error!(
        target: TARGET,
        code,
        cause,
        "cannot fetch our own token: {error}; the current one is used until it expires"
    );
}

/// The token request succeeded after a failure.
pub(crate) fn token_back() {
    tracing::info!(target: TARGET, "our own token can be fetched again");
}

/// Verify and the probe reject the token.
pub(crate) fn token_refused(verify_status: u16, probe_status: u16) {
    tracing::error!(
        target: TARGET,
        verify_status,
        probe_status,
        "the issuer refuses our own token: check the application's secret, that it is authorized for the management API, \
         and its scope `read:api_keys`"
    );
}

/// Verify answered 200 after the token was rejected.
pub(crate) fn token_accepted_again() {
    tracing::info!(target: TARGET, "the issuer accepts our own token again");
}

/// Verify accepts the token and the probe rejects it.
pub(crate) fn probe_lacks_scope() {
    tracing::warn!(
        target: TARGET,
        "our own token may verify keys but not list them: without the scope `read:api_keys`, an unknown invalid key gets 503 \
         until Kinde accepts a call with the same token"
    );
}

/// The look-up of a key's record rejects the token.
pub(crate) fn look_up_refused(status: u16) {
    tracing::error!(
        target: TARGET,
        status,
        "our own token may not look keys up, so no key can be shown to be of this API: grant the scope `read:api_keys`"
    );
}
