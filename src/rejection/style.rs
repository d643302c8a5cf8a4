//! How a layer words its challenges.

use http::header::{HeaderName, HeaderValue};

use super::{Rejection, RejectionKind};
use crate::config::ConfigError;
use crate::credential::{is_token, vary_on};

/// The `WWW-Authenticate` values of one layer, put together once.
#[derive(Clone, Debug)]
pub(crate) struct Style {
    /// `Bearer realm="…"`, or the user's scheme.
    plain: HeaderValue,
    /// The scheme is RFC 6750's, so its attributes may follow.
    bearer: Option<Bearer>,
    /// The header of the user's choice, if the key does not stand in `Authorization`.
    vary: Option<HeaderValue>,
}

#[derive(Clone, Debug)]
struct Bearer {
    invalid_request: HeaderValue,
    invalid_token: HeaderValue,
}

impl Style {
    pub(crate) const DEFAULT_REALM: &str = "api";

    /// RFC 6750's challenge.
    pub(crate) fn bearer(realm: &str) -> Result<Self, ConfigError> {
        let plain = format!("Bearer realm=\"{}\"", quotable(realm)?);
        let with = |error: &str| header(&format!("{plain}, error=\"{error}\""));
        Ok(Self {
            bearer: Some(Bearer {
                invalid_request: with("invalid_request")?,
                invalid_token: with("invalid_token")?,
            }),
            plain: header(&plain)?,
            vary: None,
        })
    }

    /// The challenge of a scheme of the user's own, for a key in a header of the user's own.
    pub(crate) fn custom(
        scheme: &str,
        realm: &str,
        name: &HeaderName,
    ) -> Result<Self, ConfigError> {
        if !is_token(scheme.as_bytes()) {
            return Err(ConfigError::new(
                "credential_header",
                "the scheme is not an RFC 9110 token",
            ));
        }
        Ok(Self {
            plain: header(&format!("{scheme} realm=\"{}\"", quotable(realm)?))?,
            bearer: None,
            vary: Some(vary_on(name)),
        })
    }

    /// The challenge that this refusal calls for, if any.
    pub(crate) fn challenge(&self, rejection: &Rejection) -> Option<HeaderValue> {
        match (rejection.kind, &self.bearer) {
            (RejectionKind::CredentialMissing, _) | (RejectionKind::InvalidToken, None) => {
                Some(self.plain.clone())
            }
            (RejectionKind::CredentialMalformed, Some(bearer)) => {
                Some(bearer.invalid_request.clone())
            }
            (RejectionKind::InvalidToken, Some(bearer)) => Some(bearer.invalid_token.clone()),
            (RejectionKind::InsufficientScope, Some(_)) => {
                let plain = self.plain.to_str().ok()?;
                let mut challenge = format!("{plain}, error=\"insufficient_scope\"");
                if let Some(scope) = rejection.required_scope() {
                    // A scope-token has neither `"` nor `\`, so the names need no escaping.
                    challenge = format!("{challenge}, scope=\"{scope}\"");
                }
                HeaderValue::try_from(challenge).ok()
            }
            _ => None,
        }
    }

    /// What every response must vary on (RFC 9111 §3.5 protects only `Authorization`).
    pub(crate) fn vary(&self) -> Option<&HeaderValue> {
        self.vary.as_ref()
    }
}

impl Default for Style {
    fn default() -> Self {
        Self {
            plain: HeaderValue::from_static("Bearer realm=\"api\""),
            bearer: Some(Bearer {
                invalid_request: HeaderValue::from_static(
                    "Bearer realm=\"api\", error=\"invalid_request\"",
                ),
                invalid_token: HeaderValue::from_static(
                    "Bearer realm=\"api\", error=\"invalid_token\"",
                ),
            }),
            vary: None,
        }
    }
}

/// RFC 9110 §5.6.4 quoted-string, without the characters that would need escaping.
fn quotable(realm: &str) -> Result<&str, ConfigError> {
    let plain = |b: u8| matches!(b, b' ' | 0x21 | 0x23..=0x5B | 0x5D..=0x7E);
    if realm.is_empty() || !realm.bytes().all(plain) {
        return Err(ConfigError::new(
            "realm",
            "expected printable ASCII without quotation marks and backslashes",
        ));
    }
    Ok(realm)
}

fn header(value: &str) -> Result<HeaderValue, ConfigError> {
    HeaderValue::try_from(value)
        .map_err(|_| ConfigError::new("realm", "does not fit into a header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_style_is_the_bearer_style_of_the_default_realm() {
        let built = Style::bearer(Style::DEFAULT_REALM).unwrap();
        assert_eq!(format!("{built:?}"), format!("{:?}", Style::default()));
    }

    #[test]
    fn parameters_are_quoted_and_separated_by_commas() {
        let style = Style::bearer("acme api").unwrap();
        let challenge = style
            .challenge(&Rejection::insufficient_scope(["a", "b"]))
            .unwrap();
        assert_eq!(
            challenge,
            r#"Bearer realm="acme api", error="insufficient_scope", scope="a b""#
        );
    }

    #[test]
    fn a_realm_that_would_need_escaping_is_an_error() {
        for realm in ["", "a\"b", "a\\b", "a\nb", "é"] {
            assert_eq!(Style::bearer(realm).unwrap_err().field(), "realm");
        }
    }

    #[test]
    fn a_scheme_of_ones_own_carries_no_attributes_of_rfc_6750() {
        let name = HeaderName::from_static("x-api-key");
        let style = Style::custom("ApiKey", "api", &name).unwrap();
        let challenge = |rejection| style.challenge(&rejection);
        assert_eq!(
            challenge(Rejection::missing_credential()).unwrap(),
            r#"ApiKey realm="api""#
        );
        assert_eq!(
            challenge(Rejection::invalid_token()).unwrap(),
            r#"ApiKey realm="api""#
        );
        assert_eq!(challenge(Rejection::malformed_credential()), None);
        assert_eq!(challenge(Rejection::insufficient_scope(["a"])), None);
        assert!(Style::custom("Api Key", "api", &name).is_err());
    }
}
