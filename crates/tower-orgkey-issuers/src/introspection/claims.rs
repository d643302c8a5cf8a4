use std::fmt;

use serde::Deserialize;
use serde_json::Value;
use tower_orgkey::VerifyError;

use crate::members::{Members, mistyped};

/// The members of an introspection reply about an active token. `Debug` shows their names only.
///
/// A reply in which an object has two members of one name is an invalid response.
///
/// ```
/// use tower_orgkey::VerifyError;
/// use tower_orgkey_issuers::introspection::Claims;
///
/// // The organization `acme` of `{"active":true,"tenants":{"acme":{"name":"Acme"}}}`.
/// fn organization(claims: &Claims) -> Result<Option<String>, VerifyError> {
///     Ok(match claims.names(&["tenants"])?.as_slice() {
///         [one] => Some((*one).to_owned()),
///         _ => None,
///     })
/// }
/// ```
#[derive(Deserialize)]
#[serde(transparent)]
pub struct Claims(Members);

impl Claims {
    /// Returns the text at this path of members. `None` if it is absent or null.
    ///
    /// # Errors
    ///
    /// [`invalid_response`](VerifyError::invalid_response) if it has another type.
    pub fn text(&self, path: &[&str]) -> Result<Option<&str>, VerifyError> {
        self.0.text(path)
    }

    /// Returns the names in the object at this path, or the texts in the array. Empty if it is absent or null.
    ///
    /// # Errors
    ///
    /// [`invalid_response`](VerifyError::invalid_response) if it has another type, or if an item of the array has.
    pub fn names(&self, path: &[&str]) -> Result<Vec<&str>, VerifyError> {
        match self.0.at(path)? {
            None => Ok(Vec::new()),
            Some(Value::Object(members)) => Ok(members.keys().map(String::as_str).collect()),
            Some(Value::Array(items)) => {
                let texts = items.iter().map(|item| item.as_str().ok_or_else(mistyped));
                texts.collect()
            }
            Some(_) => Err(mistyped()),
        }
    }
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read_by_path() {
        let json =
            r#"{"a":"x","b":{"c":"y","d":1},"e":["p","q"],"f":{},"g":["p",{"q":1}],"h":null}"#;
        let claims: Claims = serde_json::from_str(json).unwrap();
        assert_eq!(claims.text(&["a"]).unwrap(), Some("x"));
        assert_eq!(claims.text(&["b", "c"]).unwrap(), Some("y"));
        for path in [&[][..], &["z"], &["h"], &["h", "i"], &["z", "i"]] {
            assert_eq!(claims.text(path).unwrap(), None, "{path:?}");
            assert!(claims.names(path).unwrap().is_empty(), "{path:?}");
        }
        for path in [&["b"][..], &["b", "d"], &["a", "c"], &["e"]] {
            assert!(claims.text(path).is_err(), "{path:?}");
        }
        assert_eq!(claims.names(&["b"]).unwrap(), ["c", "d"]);
        assert_eq!(claims.names(&["e"]).unwrap(), ["p", "q"]);
        assert!(claims.names(&["f"]).unwrap().is_empty());
        for path in [&["a"][..], &["g"], &["a", "c"]] {
            assert!(claims.names(path).is_err(), "{path:?}");
        }
        assert!(!format!("{claims:?}").contains('x'));
    }
}
