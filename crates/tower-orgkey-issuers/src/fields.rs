//! Reads the fields of an issuer's reply that most issuers have. An unusable field is an
//! [invalid response](VerifyError::invalid_response), which concerns one key only.
//! [`Endpoint`](crate::Endpoint) has an example of a verifier that uses them.

use std::time::{Duration, SystemTime};

use tower_orgkey::scope::{MAX_SCOPE_LEN, MAX_SCOPES};
use tower_orgkey::{KeyId, OrgCode, Scopes, Verification, VerifyError};

/// Returns the verification of a valid key of this organization. `None` and blank text mean no organization.
///
/// # Errors
///
/// If the code is not 1 to 255 visible ASCII characters.
///
/// ```
/// # use tower_orgkey_issuers::fields;
/// assert!(fields::verification(Some("org_1")).is_ok_and(|valid| valid.is_valid()));
/// assert!(fields::verification(Some("org 1")).is_err());
/// ```
pub fn verification(organization: Option<&str>) -> Result<Verification, VerifyError> {
    match organization.filter(|code| !code.trim().is_empty()) {
        None => Ok(Verification::without_organization()),
        Some(code) => OrgCode::new(code)
            .map(Verification::of_organization)
            .map_err(VerifyError::invalid_response),
    }
}

/// Returns the identifier of a key.
///
/// # Errors
///
/// If it is not 1 to 255 visible ASCII characters.
pub fn key_id(id: &str) -> Result<KeyId, VerifyError> {
    KeyId::new(id).map_err(VerifyError::invalid_response)
}

/// Returns scopes. Names that are not a `scope-token` of RFC 6749 are skipped.
///
/// # Errors
///
/// If there are more than 1,000, or one is longer than 256 bytes.
pub fn scopes<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Scopes, VerifyError> {
    let names: Vec<_> = names.into_iter().take(MAX_SCOPES + 1).collect();
    if names.len() > MAX_SCOPES || names.iter().any(|name| name.len() > MAX_SCOPE_LEN) {
        return Err(VerifyError::invalid_response(
            "the reply has too many or too long scopes",
        ));
    }
    Ok(Scopes::from_names(names))
}

/// 2000-01-01 and 10000-01-01. Seconds in place of milliseconds, or the reverse, are outside.
const SANE: std::ops::Range<u64> = 946_684_800..253_402_300_800;

/// Returns the time of an expiry in seconds since 1970.
///
/// # Errors
///
/// If it is not between the years 2000 and 9999: the number is probably in milliseconds.
///
/// ```
/// # use tower_orgkey_issuers::fields;
/// assert!(fields::expires_at_seconds(1_800_000_000).is_ok());
/// assert!(fields::expires_at_seconds(1_800_000_000_000).is_err());
/// ```
pub fn expires_at_seconds(seconds: u64) -> Result<SystemTime, VerifyError> {
    expiry(seconds, Duration::from_secs(seconds))
}

/// Returns the time of an expiry in milliseconds since 1970.
///
/// # Errors
///
/// If it is not between the years 2000 and 9999: the number is probably in seconds.
///
/// ```
/// # use tower_orgkey_issuers::fields;
/// assert!(fields::expires_at_millis(1_800_000_000_000).is_ok());
/// assert!(fields::expires_at_millis(1_800_000_000).is_err());
/// ```
pub fn expires_at_millis(millis: u64) -> Result<SystemTime, VerifyError> {
    expiry(millis / 1000, Duration::from_millis(millis))
}

fn expiry(seconds: u64, since_1970: Duration) -> Result<SystemTime, VerifyError> {
    SANE.contains(&seconds)
        .then(|| SystemTime::UNIX_EPOCH + since_1970)
        .ok_or_else(|| VerifyError::invalid_response("the expiry is outside 2000 to 9999"))
}
