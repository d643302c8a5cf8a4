use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value};

/// The members of an introspection reply about an active token. `Debug` shows their names only.
///
/// ```
/// use tower_orgkey_issuers::introspection::Claims;
///
/// // The organization `acme` of `{"active":true,"tenants":{"acme":{"name":"Acme"}}}`.
/// fn organization(claims: &Claims) -> Option<String> {
///     match claims.names(&["tenants"]).as_slice() {
///         [one] => Some((*one).to_owned()),
///         _ => None,
///     }
/// }
/// ```
#[derive(Deserialize)]
#[serde(transparent)]
pub struct Claims(Map<String, Value>);

impl Claims {
    /// Returns the text at this path of members. `None` if there is none, or another type.
    pub fn text(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.as_str()
    }

    /// Returns the names in the object at this path, or the texts in the array. Empty if there is neither.
    pub fn names(&self, path: &[&str]) -> Vec<&str> {
        match self.at(path) {
            Some(Value::Object(members)) => members.keys().map(String::as_str).collect(),
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }

    fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter()
            .try_fold(self.0.get(*first)?, |value, name| value.get(*name))
    }
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read_by_path() {
        let json = r#"{"a":"x","b":{"c":"y","d":1},"e":["p","q",2],"f":{}}"#;
        let claims: Claims = serde_json::from_str(json).unwrap();
        assert_eq!(claims.text(&["a"]), Some("x"));
        assert_eq!(claims.text(&["b", "c"]), Some("y"));
        for path in [&[][..], &["b"], &["b", "d"], &["a", "c"], &["z"]] {
            assert_eq!(claims.text(path), None, "{path:?}");
        }
        assert_eq!(claims.names(&["b"]), ["c", "d"]);
        assert_eq!(claims.names(&["e"]), ["p", "q"]);
        assert!(claims.names(&["a"]).is_empty() && claims.names(&["f"]).is_empty());
        assert!(!format!("{claims:?}").contains('x'));
    }
}
