//! Events of the Kinde verifier. None is emitted while a lock is held.

use std::error::Error as _;

use super::TARGET;
use crate::verify::VerifyError;

/// Emits that the issuer's certificate is not trusted, so nothing was sent. Once until a connection succeeds.
pub(crate) fn certificate_not_trusted(cause: Option<&str>) {
    tracing::error!(
        target: TARGET,
        security = true,
        cause,
        "TLS certificate of the issuer not trusted: the connection may be intercepted, or a root certificate is missing"
    );
}

/// Emits that the token request failed for the first time, or for another reason than before.
pub(crate) fn token_request_failed(error: &VerifyError, code: Option<&'static str>) {
    let cause = error.source().map(ToString::to_string);
    tracing::error!(
        target: TARGET,
        %error,
        code,
        cause,
        "access token request failed: the current token is used until it expires"
    );
}

/// Emits that the token request succeeded after a failure.
pub(crate) fn token_request_recovered() {
    tracing::info!(target: TARGET, "access token request succeeded again");
}

/// Emits that verify and the probe reject the token.
pub(crate) fn token_rejected(verify_status: u16, probe_status: u16) {
    tracing::error!(
        target: TARGET,
        verify_status,
        probe_status,
        "issuer rejects the access token: check the application's secret, its authorization for the management API, and \
         its scope `read:api_keys`"
    );
}

/// Emits that verify answered 200 after the token was rejected.
pub(crate) fn token_accepted_again() {
    tracing::info!(target: TARGET, "issuer accepts the access token again");
}

/// Emits that verify accepts the token and the probe rejects it.
pub(crate) fn probe_lacks_scope() {
    tracing::warn!(
        target: TARGET,
        "access token cannot list keys: without the scope `read:api_keys`, an unknown invalid key gets 503 until Kinde \
         accepts a call with the same token"
    );
}

/// Emits that the look-up of a key's record rejects the token.
pub(crate) fn look_up_rejected(status: u16) {
    tracing::error!(
        target: TARGET,
        status,
        "access token cannot look up keys: without the scope `read:api_keys`, no key can be shown to be of this API"
    );
}
