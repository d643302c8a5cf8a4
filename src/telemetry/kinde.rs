//! What the Kinde verifier tells.

use std::error::Error as _;

use super::TARGET;
use crate::verify::VerifyError;

/// The issuer's certificate is not trusted, so nothing was sent to it. Logged once until a connection stands again.
pub(crate) fn certificate_refused(cause: &str) {
    tracing::error!(
        target: TARGET,
        security = true,
        cause,
        "the issuer's TLS certificate is refused: somebody may stand between, or a root certificate is missing"
    );
}

/// Fetching our own token fails, or fails in another way than before.
pub(crate) fn token_fails(error: &VerifyError, code: Option<&'static str>) {
    let cause = error.source().map(ToString::to_string);
    tracing::error!(
        target: TARGET,
        code,
        cause,
        "cannot fetch our own token: {error}; the one that is held is used until its end"
    );
}

/// Fetching our own token works again.
pub(crate) fn token_back() {
    tracing::info!(target: TARGET, "our own token can be fetched again");
}

/// Verify and the probe refuse our own token.
pub(crate) fn token_refused(verify_status: u16, probe_status: u16) {
    tracing::error!(
        target: TARGET,
        verify_status,
        probe_status,
        "the issuer refuses our own token: check the application's secret, that it is authorized for the management API, \
         and its scope `read:api_keys`"
    );
}

/// Verify accepts our own token again.
pub(crate) fn token_accepted_again() {
    tracing::info!(target: TARGET, "the issuer accepts our own token again");
}

/// Verify accepts our token and the probe refuses it.
pub(crate) fn probe_lacks_scope() {
    tracing::warn!(
        target: TARGET,
        "our own token may verify keys but not list them: without the scope `read:api_keys`, refused keys cannot be told \
         from a refused token as surely"
    );
}

/// The look-up of a key's API refuses our own token.
pub(crate) fn look_up_refused(status: u16) {
    tracing::error!(
        target: TARGET,
        status,
        "our own token may not look keys up, so no key can be shown to be of this API: grant the scope `read:api_keys`"
    );
}
