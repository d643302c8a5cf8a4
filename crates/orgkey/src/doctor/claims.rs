//! Reads an access token. Its signature is not checked: the issuer sent it to us, and only describes it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use orgkey_http::Unique;
use serde_json::{Map, Value};

/// The claims of an access token.
#[derive(Debug, Default)]
pub(super) struct Claims(Map<String, Value>);

impl Claims {
    /// Reads the claims of a JWT. `None` for a token of another form.
    pub(super) fn of(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
        let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
        match serde_json::from_slice(&claims) {
            Ok(Unique(Value::Object(claims))) => Some(Self(claims)),
            _ => None,
        }
    }

    /// Returns the audiences: a string or an array of them.
    pub(super) fn audiences(&self) -> Vec<&str> {
        texts(self.0.get("aud"))
    }

    pub(super) fn issuer(&self) -> Option<&str> {
        self.0.get("iss")?.as_str()
    }

    /// Returns the scopes: a string, or an array as `scp`.
    pub(super) fn scopes(&self) -> Vec<&str> {
        let scope = self.0.get("scope").and_then(Value::as_str);
        let mut scopes: Vec<&str> = scope.unwrap_or_default().split_whitespace().collect();
        scopes.extend(texts(self.0.get("scp")));
        scopes.sort_unstable();
        scopes.dedup();
        scopes
    }

    /// Returns whether the token belongs to an application of one organization.
    pub(super) fn has_organization(&self) -> bool {
        self.0.get("org_code").is_some_and(Value::is_string)
    }
}

fn texts(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn claims_are_read_in_both_forms() {
        let one = token(r#"{"aud":"a","scope":"x y","iss":"i"}"#);
        let one = Claims::of(&one).unwrap();
        assert_eq!(one.audiences(), ["a"]);
        assert_eq!(one.scopes(), ["x", "y"]);
        assert_eq!(one.issuer(), Some("i"));
        assert!(!one.has_organization());
        let other = token(r#"{"aud":["a","b"],"scp":["y","x"],"scope":"y","org_code":"o"}"#);
        let other = Claims::of(&other).unwrap();
        assert_eq!(other.audiences(), ["a", "b"]);
        assert_eq!(other.scopes(), ["x", "y"]);
        assert!(other.has_organization());
    }

    #[test]
    fn other_tokens_have_no_claims() {
        for token in ["", "opaque", "a.b.c", "a.!.c", &token("[]")] {
            assert!(Claims::of(token).is_none(), "{token}");
        }
    }

    #[test]
    fn private_names_are_names() {
        let claims = token(r#"{"aud":"a","b":{"$serde_json::private::RawValue":"["}}"#);
        assert_eq!(Claims::of(&claims).unwrap().audiences(), ["a"]);
    }
}
