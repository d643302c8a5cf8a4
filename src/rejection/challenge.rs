//! The challenges of a layer.

use http::header::{HeaderName, HeaderValue};

use super::{Rejection, RejectionKind};
use crate::config::ConfigError;
use crate::credential::{is_token, vary_on};

/// The `WWW-Authenticate` values of one layer, built once.
#[derive(Clone, Debug)]
pub(crate) struct Challenge {
    /// `Bearer realm="…"`, or the user's scheme.
    plain: HeaderValue,
    /// The values with the attributes of RFC 6750, if that is the scheme.
    bearer: Option<Bearer>,
    /// The configured header with the key, if it is not `Authorization`.
    vary: Option<HeaderValue>,
}

#[derive(Clone, Debug)]
struct Bearer {
    invalid_request: HeaderValue,
    invalid_token: HeaderValue,
}

impl Challenge {
    pub(crate) const DEFAULT_REALM: &str = "api";

    /// Creates the challenge of RFC 6750.
    pub(crate) fn bearer(
        realm: &str,
        resource_metadata: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let mut plain = format!("Bearer realm=\"{}\"", quotable(realm, "realm")?);
        if let Some(url) = resource_metadata {
            let url = quotable(url, "resource_metadata")?;
            plain = format!("{plain}, resource_metadata=\"{url}\"");
        }
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

    /// Creates the challenge of another scheme, for a key in another header.
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
            plain: header(&format!("{scheme} realm=\"{}\"", quotable(realm, "realm")?))?,
            bearer: None,
            vary: Some(vary_on(name)),
        })
    }

    /// Returns the value for a rejection, if it needs a challenge.
    pub(crate) fn value(&self, rejection: &Rejection) -> Option<HeaderValue> {
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
                let mut value = format!("{plain}, error=\"insufficient_scope\"");
                if let Some(scope) = rejection.required_scope() {
                    // A scope-token contains no `"` or `\`, so the names need no escaping.
                    value = format!("{value}, scope=\"{scope}\"");
                }
                HeaderValue::try_from(value).ok()
            }
            _ => None,
        }
    }

    /// Returns what every response must vary on. RFC 9111 §3.5 protects only `Authorization`.
    pub(crate) fn vary(&self) -> Option<&HeaderValue> {
        self.vary.as_ref()
    }
}

impl Default for Challenge {
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

/// Checks for the inside of an RFC 9110 §5.6.4 quoted-string without characters that need escaping.
fn quotable<'a>(text: &'a str, field: &'static str) -> Result<&'a str, ConfigError> {
    let plain = |b: u8| matches!(b, b' ' | 0x21 | 0x23..=0x5B | 0x5D..=0x7E);
    if text.is_empty() || !text.bytes().all(plain) {
        return Err(ConfigError::new(
            field,
            "expected printable ASCII without quotation marks and backslashes",
        ));
    }
    Ok(text)
}

fn header(value: &str) -> Result<HeaderValue, ConfigError> {
    HeaderValue::try_from(value)
        .map_err(|_| ConfigError::new("realm", "does not fit into a header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_bearer_with_the_default_realm() {
        let built = Challenge::bearer(Challenge::DEFAULT_REALM, None).unwrap();
        assert_eq!(format!("{built:?}"), format!("{:?}", Challenge::default()));
    }

    #[test]
    fn parameters_are_quoted_and_separated() {
        let challenge = Challenge::bearer("acme api", None).unwrap();
        let value = challenge
            .value(&Rejection::insufficient_scope(["a", "b"]))
            .unwrap();
        assert_eq!(
            value,
            r#"Bearer realm="acme api", error="insufficient_scope", scope="a b""#
        );
    }

    #[test]
    fn resource_metadata_is_in_all_challenges() {
        let url = "https://api.example.com/.well-known/oauth-protected-resource";
        let challenge = Challenge::bearer("api", Some(url)).unwrap();
        for rejection in [
            Rejection::missing_credential(),
            Rejection::invalid_token(),
            Rejection::insufficient_scope(["a"]),
        ] {
            let value = challenge.value(&rejection).unwrap();
            let expected = format!("Bearer realm=\"api\", resource_metadata=\"{url}\"");
            assert!(value.to_str().unwrap().starts_with(&expected), "{value:?}");
        }
        let error = Challenge::bearer("api", Some("\"")).unwrap_err();
        assert_eq!(error.field(), "resource_metadata");
    }

    #[test]
    fn realm_that_needs_escaping_is_an_error() {
        for realm in ["", "a\"b", "a\\b", "a\nb", "é"] {
            assert_eq!(Challenge::bearer(realm, None).unwrap_err().field(), "realm");
        }
    }

    #[test]
    fn another_scheme_has_no_bearer_attributes() {
        let name = HeaderName::from_static("x-api-key");
        let challenge = Challenge::custom("ApiKey", "api", &name).unwrap();
        let value = |rejection| challenge.value(&rejection);
        assert_eq!(
            value(Rejection::missing_credential()).unwrap(),
            r#"ApiKey realm="api""#
        );
        assert_eq!(
            value(Rejection::invalid_token()).unwrap(),
            r#"ApiKey realm="api""#
        );
        assert_eq!(value(Rejection::malformed_credential()), None);
        assert_eq!(value(Rejection::insufficient_scope(["a"])), None);
        assert!(Challenge::custom("Api Key", "api", &name).is_err());
    }
}
