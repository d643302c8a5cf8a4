use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

const MIN_LEN: usize = 16;

/// The secret of operators.
pub(in crate::gateway) struct AdminToken(Zeroizing<String>);

impl AdminToken {
    pub(in crate::gateway) fn new(token: Zeroizing<String>) -> Result<Self, String> {
        if token.len() < MIN_LEN {
            return Err(format!("the token must have at least {MIN_LEN} bytes"));
        }
        Ok(Self(token))
    }

    /// Whether a request has the token: as a Bearer token, or as a password for Basic.
    pub(super) fn is_presented(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return false;
        };
        let Some((scheme, credential)) = value.to_str().ok().and_then(|text| text.split_once(' '))
        else {
            return false;
        };
        let credential = credential.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.is(credential.as_bytes());
        }
        if scheme.eq_ignore_ascii_case("basic")
            && let Ok(pair) = BASE64_STANDARD.decode(credential).map(Zeroizing::new)
            && let Some(colon) = pair.iter().position(|byte| *byte == b':')
        {
            return self.is(&pair[colon + 1..]);
        }
        false
    }

    fn is(&self, presented: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(presented).into()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminToken").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn token_is_bearer_or_basic_password() {
        let token = AdminToken::new(Zeroizing::new("0123456789abcdef".to_owned())).unwrap();
        let is_presented = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            }
            token.is_presented(&headers)
        };
        let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
        assert!(is_presented(&["Bearer 0123456789abcdef"]));
        assert!(is_presented(&[&basic("anyone:0123456789abcdef")]));
        for values in [
            &[][..],
            &["0123456789abcdef"],
            &["Bearer 0123456789abcde"],
            &["Bearer 0123456789abcdef0"],
            &["Digest 0123456789abcdef"],
            &[&basic("0123456789abcdef")],
            &[&basic("0123456789abcdef:")],
            &["Bearer 0123456789abcdef", "Bearer 0123456789abcdef"],
        ] {
            assert!(!is_presented(values), "{values:?}");
        }
    }

    #[test]
    fn short_tokens_are_refused() {
        assert!(AdminToken::new(Zeroizing::new("0123456789abcde".to_owned())).is_err());
    }
}
